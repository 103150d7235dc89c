package pipeline

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/tun"
	"github.com/sluice-vpn/sluice/tun/ip"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

func (w *wireSocket) LocalPort() uint16 { return 51820 }

// wrap makes the IP packet of a datagram; IPv6 with that many destination options headers.
func wrap(src, dst netip.AddrPort, payload []byte, options int) []byte {
	header := ip.IPv4HeaderLen
	if src.Addr().Is6() {
		header = ip.IPv6HeaderLen + 8*options
	}
	b := make([]byte, header+ip.UDPHeaderLen+len(payload))
	writeIPHeader(b, src.Addr(), dst.Addr(), ip.ProtocolUDP)
	for i := range options {
		b[6] = ip.ProtocolDestOptions
		b[ip.IPv6HeaderLen+8*i] = ip.ProtocolDestOptions
		if i == options-1 {
			b[ip.IPv6HeaderLen+8*i] = ip.ProtocolUDP
		}
	}
	u := b[header:]
	binary.BigEndian.PutUint16(u[0:], src.Port())
	binary.BigEndian.PutUint16(u[2:], dst.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	copy(u[ip.UDPHeaderLen:], payload)
	return b
}

// cutIPv4 makes two fragments of a packet, the first of n bytes of payload.
func cutIPv4(packet []byte, id uint32, n int) (first, rest []byte) {
	first = bytes.Clone(packet[:ip.IPv4HeaderLen+n])
	rest = append(bytes.Clone(packet[:ip.IPv4HeaderLen]), packet[ip.IPv4HeaderLen+n:]...)
	binary.BigEndian.PutUint16(first[6:], 0x2000)
	binary.BigEndian.PutUint16(rest[6:], uint16(n/8))
	for _, f := range []ip.IPv4{first, rest} {
		binary.BigEndian.PutUint16(f[4:], uint16(id))
		f.SetTotalLen(len(f))
		f.SetChecksum()
	}
	return first, rest
}

// cutIPv6 does so with fragment headers.
func cutIPv6(packet []byte, id uint32, n int) (first, rest []byte) {
	cut := func(from, to int, word uint16) []byte {
		f := bytes.Clone(packet[:ip.IPv6HeaderLen])
		f[6] = ip.ProtocolFragment
		f = binary.BigEndian.AppendUint16(f, uint16(packet[6])<<8)
		f = binary.BigEndian.AppendUint16(f, word)
		f = binary.BigEndian.AppendUint32(f, id)
		f = append(f, packet[ip.IPv6HeaderLen+from:ip.IPv6HeaderLen+to]...)
		ip.IPv6(f).SetPayloadLen(len(f) - ip.IPv6HeaderLen)
		return f
	}
	return cut(0, n, 1), cut(n, len(packet)-ip.IPv6HeaderLen, uint16(n))
}

// loopLanes are lanes whose peer's endpoint has a route into the tunnel: the wire's datagrams can be given to A's TUN.
func loopLanes(t *testing.T, endpoint netip.AddrPort, channel uint16) (l *lanes, p *peer) {
	l = newLanes(t, 0, tuntest.Packet{}, laneInner)
	p = l.a.control.controller.peers[0]
	l.a.routes.set(netip.PrefixFrom(endpoint.Addr(), endpoint.Addr().BitLen()), p)
	l.a.routes.publish()
	p.path.Store(&Path{Dst: endpoint, Src: loopSource(endpoint), Channel: channel})
	l.a.shards[0].pair.V6 = l.wire
	return l, p
}

// loopSource is the address that our datagrams to the endpoint leave from.
func loopSource(endpoint netip.AddrPort) netip.Addr {
	if endpoint.Addr().Is6() {
		return netip.MustParseAddr("2001:db8::1")
	}
	return laneAddrA
}

// inject gives packets to A's TUN and returns the messages that leave.
func (l *lanes) inject(t *testing.T, packets ...tuntest.Packet) (messages [][]byte) {
	t.Helper()
	for i := range packets {
		l.source, l.supply = packets[i], 1
		if _, err := l.a.shards[0].outbound.run(l.now); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range l.wire.runs {
		for b := r.Data; len(b) > 0; b = b[min(r.SegmentSize, len(b)):] {
			messages = append(messages, bytes.Clone(b[:min(r.SegmentSize, len(b))]))
		}
	}
	l.wire.runs, l.wire.bytes = l.wire.runs[:0], l.wire.bytes[:0]
	return messages
}

var (
	loopEndpoint4 = netip.AddrPortFrom(laneAddrB, 51821)
	loopEndpoint6 = netip.MustParseAddrPort("[2001:db8::2]:51821")
)

// Whatever of ours comes back in at the TUN on its way to the endpoint of the peer that it selects goes no further.
func TestRoutingLoopEnds(t *testing.T) {
	stun := append([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, make([]byte, 12)...)
	for _, endpoint := range []netip.AddrPort{loopEndpoint4, loopEndpoint6} {
		for _, channel := range []uint16{0, 0x4001} {
			us := netip.AddrPortFrom(loopSource(endpoint), 51820)
			translated := netip.AddrPortFrom(us.Addr().Next().Next(), 1024) // by a NAT between our socket and the TUN
			l, p := loopLanes(t, endpoint, channel)
			message := func(inner int) []byte {
				return l.inject(t, tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, inner)})[0]
			}
			initiation := func() []byte {
				var sent []byte
				c := l.a.control.controller
				was := c.effects
				c.effects = &catcher{courier: was.(*courier), sent: &sent}
				p.core.Clear(l.now)
				l.now += 10 * time.Second
				p.core.Want(l.now)
				c.touch(l.now, p)
				c.effects = was
				if channel != 0 {
					sent = append([]byte{byte(channel >> 8), byte(channel), 0, byte(len(sent))}, sent...)
				}
				return sent
			}
			check := func(name string, packets int, back ...tuntest.Packet) {
				t.Helper()
				before := l.a.shards[0].stats.drops[dropRoutingLoop].Load()
				if left := l.inject(t, back...); len(left) > 0 || p.hasStaged() {
					t.Errorf("%s to %v over channel %#x: %d datagrams left again", name, endpoint, channel, len(left))
				}
				if got := l.a.shards[0].stats.drops[dropRoutingLoop].Load() - before; got != uint64(packets) {
					t.Errorf("%s to %v over channel %#x: %d packets were counted as a routing loop, want %d", name, endpoint, channel, got, packets)
				}
			}
			check("transport data", 1, tuntest.Packet{Data: wrap(us, endpoint, message(84), 0)})
			check("transport data behind a NAT", 1, tuntest.Packet{Data: wrap(translated, endpoint, message(84), 0)})
			check("STUN", 1, tuntest.Packet{Data: wrap(us, endpoint, stun, 0)})
			if endpoint.Addr().Is6() {
				check("extension headers", 1, tuntest.Packet{Data: wrap(us, endpoint, message(84), 2)})
				first, rest := cutIPv6(wrap(us, endpoint, message(1400), 1), 7, 1232)
				check("fragments", 2, tuntest.Packet{Data: first}, tuntest.Packet{Data: rest})
			} else {
				first, rest := cutIPv4(wrap(translated, endpoint, message(1400), 0), 7, 1376)
				check("fragments", 2, tuntest.Packet{Data: first}, tuntest.Packet{Data: rest})
			}
			check("a superpacket", 3, superDatagram(us, endpoint, message(500), message(500), message(500)))
			check("an initiation", 1, tuntest.Packet{Data: wrap(us, endpoint, initiation(), 0)})
			check("an initiation behind a NAT", 1, tuntest.Packet{Data: wrap(translated, endpoint, initiation(), 0)})
		}
	}
}

// superDatagram makes a UDP superpacket of equal messages, as a UDP_SEGMENT run of ours comes back where the TUN has USO.
func superDatagram(src, dst netip.AddrPort, messages ...[]byte) tuntest.Packet {
	b := wrap(src, dst, bytes.Join(messages, nil), 0)
	kind, header := tun.GSOUDPv4, ip.IPv4HeaderLen
	if src.Addr().Is6() {
		kind, header = tun.GSOUDPv6, ip.IPv6HeaderLen
	}
	return tuntest.Packet{Data: b, Offload: tun.Offload{
		Type: kind, NeedsChecksum: true, ChecksumStart: uint16(header), ChecksumOffset: 6,
		HeaderLen: uint16(header + ip.UDPHeaderLen), SegmentSize: uint16(len(messages[0])),
	}}
}

// catcher keeps what a controller sends.
type catcher struct {
	*courier
	sent *[]byte
}

func (c *catcher) send(_ *Path, data []byte, _ uint8) bool {
	*c.sent = bytes.Clone(data)
	return true
}

// What is not ours is carried: a host behind us may speak WireGuard to the same server from the same port, and one peer's
// datagrams may go through another.
func TestNoRoutingLoop(t *testing.T) {
	host := netip.MustParseAddrPort("10.77.0.1:51820")
	foreign := make([]byte, 96)
	foreign[0], foreign[4] = 4, 0x99
	opening := make([]byte, crypto.SizeInitiation)
	opening[0], opening[4] = 1, 0x99
	l, _ := loopLanes(t, loopEndpoint4, 0)
	first, rest := cutIPv4(wrap(host, loopEndpoint4, make([]byte, 1400), 0), 9, 1376)
	other := netip.AddrPortFrom(loopEndpoint4.Addr(), 53)
	us := netip.AddrPortFrom(laneAddrA, 51820)
	for name, packets := range map[string][][]byte{
		"a host's session from the same port": {wrap(host, loopEndpoint4, foreign, 0)},
		"a host's initiation":                 {wrap(host, loopEndpoint4, opening, 0)},
		"a host's fragments":                  {first, rest},
		"our question to another port":        {wrap(us, other, foreign, 0)},
		"another program's datagram":          {wrap(netip.AddrPortFrom(laneAddrA, 4000), loopEndpoint4, foreign, 0)},
		"another peer's datagram through it":  {wrap(us, netip.AddrPortFrom(laneInner[1], 51821), foreign, 0)},
		"an empty datagram":                   {wrap(host, loopEndpoint4, nil, 0)},
	} {
		for i, packet := range packets {
			if left := l.inject(t, tuntest.Packet{Data: packet}); len(left) != 1 {
				t.Errorf("%s, packet %d: %d datagrams left, want 1", name, i, len(left))
			}
		}
	}
	if got := l.a.shards[0].stats.drops[dropRoutingLoop].Load(); got != 0 {
		t.Errorf("%d packets were counted as a routing loop", got)
	}
}

// A loop is told once, and again after a long while.
func TestRoutingLoopIsTold(t *testing.T) {
	l, p := loopLanes(t, loopEndpoint4, 0)
	var log bytes.Buffer
	l.a.control.controller.log = slog.New(slog.NewTextHandler(&log, nil))
	for i, want := range []int{1, 1, 1, 2, 2} {
		if i == 3 {
			l.now += loopInterval
			p.path.Store(&Path{Dst: loopEndpoint4, Src: laneAddrA})
		}
		message := wrap(netip.AddrPortFrom(laneAddrA, 51820), loopEndpoint4, make([]byte, 20), 0)
		l.inject(t, tuntest.Packet{Data: message})
		l.a.notified.drain(func(p *peer, signals uint32) { l.a.control.controller.notice(l.now, p, signals) })
		if got := strings.Count(log.String(), "routing loop"); got != want {
			t.Errorf("after %d packets: told %d times, want %d:\n%s", i+1, got, want, &log)
		}
	}
	if !strings.Contains(log.String(), loopEndpoint4.String()) || strings.Contains(log.String(), p.key.Encode()) {
		t.Errorf("the line names not the endpoint, or a whole key: %s", &log)
	}
}

// What carries a tunnel's transport data has fewer hops to go than that, and at last none; anything else has the host's default.
func TestNestedTTL(t *testing.T) {
	transport := append([]byte{4, 0, 0, 0, 1, 2, 3, 4}, make([]byte, 60)...)
	relayed := append([]byte{0x40, 1, 0, 68}, transport...)
	withTTL := func(packet []byte, ttl byte) []byte {
		if packet[0]>>4 == 4 {
			packet[8] = ttl
		} else {
			packet[7] = ttl
		}
		return packet
	}
	for _, to := range []netip.AddrPort{loopEndpoint4, loopEndpoint6} {
		from := netip.AddrPortFrom(loopSource(to), 7)
		whole := wrap(from, to, append(bytes.Clone(transport), make([]byte, 1300)...), 0)
		cut := cutIPv4
		if to.Addr().Is6() {
			cut = cutIPv6
		}
		one, two := cut(whole, 1, 1000)
		for _, c := range []struct {
			name   string
			packet []byte
			want   uint8
			ok     bool
		}{
			{"transport data", withTTL(wrap(from, to, transport, 0), 64), 54, true},
			{"a second time", withTTL(wrap(from, to, transport, 0), 54), 44, true},
			{"a last time", withTTL(wrap(from, to, transport, 0), 11), 1, true},
			{"once too often", withTTL(wrap(from, to, transport, 0), 10), 0, false},
			{"none left", withTTL(wrap(from, to, transport, 0), 0), 0, false},
			{"behind a relay", withTTL(wrap(from, to, relayed, 0), 64), 54, true},
			{"a first fragment", withTTL(one, 64), 54, true},
			{"a later fragment", withTTL(two, 8), 0, true},
			{"an initiation", withTTL(wrap(from, to, append([]byte{1, 0, 0, 0}, make([]byte, 144)...), 0), 8), 0, true},
			{"something else", withTTL(wrap(from, to, make([]byte, 100), 0), 8), 0, true},
			{"too short", withTTL(wrap(from, to, transport[:8], 0), 8), 0, true},
		} {
			if got, ok := nestedTTL(c.packet); got != c.want || ok != c.ok {
				t.Errorf("%s to %v: %d, %v, want %d, %v", c.name, to.Addr(), got, ok, c.want, c.ok)
			}
		}
		if to.Addr().Is6() {
			if got, _ := nestedTTL(withTTL(wrap(from, to, transport, 2), 64)); got != 54 {
				t.Errorf("behind extension headers: %d, want 54", got)
			}
		}
	}
	l := newLanes(t, 0, tuntest.Packet{}, laneInner)
	packet := datagram(laneInner[0], laneInner[1], 1, 100)
	copy(packet[28:], transport)
	for _, want := range []uint8{0, 54} {
		l.source, l.supply = tuntest.Packet{Data: packet}, 1
		if want == 0 {
			l.source.Data = datagram(laneInner[0], laneInner[1], 1, 100)
		}
		if _, err := l.a.shards[0].outbound.run(l.now); err != nil || len(l.wire.runs) == 0 {
			t.Fatalf("%v, %d runs", err, len(l.wire.runs))
		}
		if got := l.wire.runs[len(l.wire.runs)-1].TTL; got != want {
			t.Errorf("a run with TTL %d, want %d", got, want)
		}
	}
}
