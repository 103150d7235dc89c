package pipeline

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/frame"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
	"github.com/sluice-vpn/sluice/tun/ip"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// turnServer is a TURN server in the network, as its hook: it strips and adds ChannelData by code of its own. Its allocations
// are fixed. Guarded by the network's lock; tests read it when all is settled.
type turnServer struct {
	t           *testing.T
	addr        netip.AddrPort
	allocations []*turnAllocation
	padding     int                          // behind what is framed for clients, as RFC 8656, section 12.5, permits
	leg         func(d *udptest.Datagram)    // sees each datagram as it enters the network
	toClient    func(framed []byte) []byte   // changes what is framed for clients
	framed      map[netip.AddrPort]legs      // by client
	plain       map[netip.AddrPort]int       // what clients sent to the server that is no ChannelData
	marks       map[netip.AddrPort][]udp.ECN // of what came from each client
}

// legs counts ChannelData from and to a client.
type legs struct{ from, to uint64 }

// turnAllocation is one client's.
type turnAllocation struct {
	client, relayed netip.AddrPort
	channels        map[uint16]netip.AddrPort
}

// newTURNServer puts a server into the network, in the family of the nodes.
func (w *world) newTURNServer() *turnServer {
	s := &turnServer{
		t: w.t, addr: netip.MustParseAddrPort("198.51.100.1:3478"), framed: make(map[netip.AddrPort]legs),
		plain: make(map[netip.AddrPort]int), marks: make(map[netip.AddrPort][]udp.ECN),
	}
	if w.a.outer.Addr().Is6() {
		s.addr = netip.MustParseAddrPort("[2001:db8:ffff::1]:3478")
	}
	w.network.Hook(s.forward)
	return s
}

// allocate gives n an allocation, whose relayed address has this port.
func (s *turnServer) allocate(n *node, port uint16) *turnAllocation {
	a := &turnAllocation{client: n.outer, relayed: netip.AddrPortFrom(s.addr.Addr(), port), channels: make(map[uint16]netip.AddrPort)}
	s.allocations = append(s.allocations, a)
	n.SetRelays([]netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom16(s.addr.Addr().As16()), s.addr.Port())}) // mapped, if IPv4
	return a
}

func (s *turnServer) find(match func(a *turnAllocation) bool) *turnAllocation {
	if i := slices.IndexFunc(s.allocations, match); i >= 0 {
		return s.allocations[i]
	}
	return nil
}

// forward is the network's hook. A datagram may pass through two allocations.
func (s *turnServer) forward(d *udptest.Datagram) bool {
	if s.leg != nil {
		s.leg(d)
	}
	for {
		var ok bool
		switch a := s.find(func(a *turnAllocation) bool { return a.relayed == d.Dst }); {
		case d.Dst == s.addr:
			ok = s.fromClient(d)
		case a != nil:
			return s.toItsClient(a, d)
		default:
			return true
		}
		if !ok {
			return false
		}
	}
}

func (s *turnServer) fromClient(d *udptest.Datagram) bool {
	a := s.find(func(a *turnAllocation) bool { return a.client == d.Src })
	if a == nil || len(d.Data) < 4 || d.Data[0]>>4 != 4 {
		s.plain[d.Src]++
		return false
	}
	peer, ok := a.channels[binary.BigEndian.Uint16(d.Data)]
	if length := int(binary.BigEndian.Uint16(d.Data[2:])); !ok || length != len(d.Data)-4 {
		s.t.Errorf("ChannelData %x of %d bytes to %v", d.Data[:4], len(d.Data), peer)
		return false
	}
	count := s.framed[a.client]
	count.from++
	s.framed[a.client] = count
	s.marks[a.client] = append(s.marks[a.client], udp.ECN(d.TOS&3))
	d.Src, d.Dst, d.Data = a.relayed, peer, d.Data[4:]
	return true
}

func (s *turnServer) toItsClient(a *turnAllocation, d *udptest.Datagram) bool {
	for number, peer := range a.channels {
		if peer != d.Src {
			continue
		}
		b := binary.BigEndian.AppendUint16(nil, number)
		b = binary.BigEndian.AppendUint16(b, uint16(len(d.Data)))
		b = append(append(b, d.Data...), make([]byte, s.padding)...)
		if s.toClient != nil {
			b = s.toClient(b)
		}
		count := s.framed[a.client]
		count.to++
		s.framed[a.client] = count
		d.Src, d.Dst, d.Data = s.addr, a.client, b
		return true
	}
	return false
}

// setPath gives the node's only peer this path, as control does when a link has ordered it.
func (n *node) setPath(path *Path) {
	_ = n.call(func() { n.control.controller.peers[0].path.Store(path) })
}

// path is the path of the node's only peer, an empty one if it has none.
func (n *node) path() *Path {
	path := new(Path)
	_ = n.call(func() {
		if p := n.control.controller.peers[0].path.Load(); p != nil {
			path = p
		}
	})
	return path
}

const channelA, channelB = 0x4001, 0x4FFF

// relayA lets A reach B over the server while B sends to A's relayed address, as from behind a symmetric NAT.
func (w *world) relayA() *turnServer {
	s := w.newTURNServer()
	a := s.allocate(w.a, 50001)
	a.channels[channelA] = w.b.outer
	w.a.setPath(&Path{Dst: s.addr, Channel: channelA, Fixed: true})
	w.b.setPath(&Path{Dst: a.relayed})
	return s
}

// relayBoth gives B an allocation too: each sends over its own to the other's relayed address.
func (w *world) relayBoth() *turnServer {
	s := w.newTURNServer()
	a, b := s.allocate(w.a, 50001), s.allocate(w.b, 50002)
	a.channels[channelA], b.channels[channelB] = b.relayed, a.relayed
	w.a.setPath(&Path{Dst: s.addr, Channel: channelA, Fixed: true})
	w.b.setPath(&Path{Dst: s.addr, Channel: channelB, Fixed: true})
	return s
}

// wantFramed fails the test unless all that the node sent was framed, and it has counted what the server did.
func (w *world) wantFramed(s *turnServer, n *node) {
	w.t.Helper()
	count := s.framed[n.outer]
	w.wantCounter(n, "channel_sent", count.from)
	w.wantCounter(n, "channel_received", count.to)
	if count.from == 0 || count.to == 0 || s.plain[n.outer] != 0 {
		w.t.Errorf("the server took %d and framed %d; %d came without a header", count.from, count.to, s.plain[n.outer])
	}
	for _, drop := range []string{"channel_data", "stray", "malformed", "unauthentic", "unknown_index", "too_big"} {
		w.wantCounter(n, "drop_"+drop, 0)
	}
}

// A relayed path carries what a plain one does, both ways: the handshake, packets that were staged before it, runs of each
// size. Both sides may be relayed, or one.
func TestRelayedDelivery(t *testing.T) {
	for name, relay := range map[string]func(*world) *turnServer{"one side": (*world).relayA, "both sides": (*world).relayBoth} {
		t.Run(name, func(t *testing.T) {
			eachVariant(t, func(w *world) {
				s := relay(w)
				first := datagrams(w.a.inner4, w.b.inner4, 20, 100)
				w.a.device.InjectData(first...)
				w.settle()
				w.wantPackets(w.b, first...)
				for i, size := range []int{0, 1, 15, 16, 17, 700, 1391, 1392} {
					s.padding = i % 4
					there := datagrams(w.a.inner4, w.b.inner4, 100, size)
					back := datagrams(w.b.inner6, w.a.inner6, 100, min(size, 1372))
					w.a.device.InjectData(there...)
					w.b.device.InjectData(back...)
					w.settle()
					w.wantPackets(w.b, there...)
					w.wantPackets(w.a, back...)
				}
				w.wantCounter(w.b, "handshake_accepted", 1)
				w.wantFramed(s, w.a)
				if name == "both sides" {
					w.wantFramed(s, w.b)
				} else {
					w.wantCounter(w.b, "channel_sent", 0)
					w.wantCounter(w.b, "channel_received", 0)
				}
			})
		})
	}
}

// Superpackets, rekeys and keepalives go through the relay too, over hours.
func TestRelayedSession(t *testing.T) {
	eachVariant(t, func(w *world) {
		s := w.relayA()
		w.exchange(w.t)
		for i := range 30 {
			if w.a.device.Capabilities().TSO4 {
				p, segments := superpacket(w.a.inner4, w.b.inner4, uint32(i)<<20, 64000, 1380)
				w.a.device.Inject(p)
				w.settle()
				w.wantPackets(w.b, segments...)
			}
			back := datagram(w.b.inner4, w.a.inner4, i, 64)
			w.b.device.InjectData(back)
			w.settle()
			w.wantPackets(w.a, back)
			w.sleep(25 * time.Second)
		}
		if got := w.b.counter("handshake_accepted") + w.a.counter("handshake_accepted"); got < 4 {
			w.t.Errorf("%d handshakes in 750 s", got)
		}
		if w.a.counter("keepalives")+w.b.counter("keepalives") == 0 {
			w.t.Error("no keepalive came")
		}
		w.wantFramed(s, w.a)
	})
}

// Who hears first of a peer over a channel answers over the channel: handshake messages carry it in their return address.
func TestHandshakeOverChannel(t *testing.T) {
	eachVariant(t, func(w *world) {
		s := w.relayA()
		w.a.setPath(nil)
		there := datagram(w.b.inner4, w.a.inner4, 1, 20)
		w.b.device.InjectData(there)
		w.settle()
		w.wantPackets(w.a, there)
		if got := w.a.path(); got.Dst != s.addr || got.Channel != channelA || got.Src != w.a.outer.Addr() {
			w.t.Errorf("A's path is %+v, want channel %#x of %v", got, channelA, s.addr)
		}
		back := datagram(w.a.inner4, w.b.inner4, 2, 20)
		w.a.device.InjectData(back)
		w.settle()
		w.wantPackets(w.b, back)
		w.wantFramed(s, w.a)
	})
}

// An authenticated datagram over another channel moves the path, as one from another address does, and one off the relay
// leads away from it; a forged one does neither. A fixed path stays.
func TestRoamingOverChannels(t *testing.T) {
	eachVariant(t, func(w *world) {
		s := w.relayA()
		w.a.setPath(&Path{Dst: s.addr, Channel: channelA})
		w.exchange(w.t)
		a := s.allocations[0]
		speak := func() {
			p := datagram(w.b.inner4, w.a.inner4, 1, 20)
			w.b.device.InjectData(p)
			w.settle()
			w.wantPackets(w.a, p)
		}
		delete(a.channels, channelA)
		a.channels[channelB] = w.b.outer
		forged := append([]byte{0x4F, 0xFF, 0, 64, 4}, make([]byte, 63)...)
		w.network.Inject(udptest.Datagram{Src: s.addr, Dst: w.a.outer, Data: forged})
		w.settle()
		if got := w.a.path(); got.Channel != channelA {
			w.t.Fatalf("a forged datagram moved the path to %+v", got)
		}
		speak()
		if got := w.a.path(); got.Channel != channelB || got.Dst != s.addr {
			w.t.Fatalf("the path is %+v, want channel %#x", got, channelB)
		}
		speak() // and stays there
		before := w.a.path()
		speak()
		if got := w.a.path(); got != before {
			w.t.Errorf("the path moved to %+v without reason", got)
		}
		w.b.setPath(&Path{Dst: w.a.outer})
		speak()
		if got := w.a.path(); got.Channel != 0 || got.Dst != w.b.outer {
			w.t.Fatalf("the path is %+v, want %v", got, w.b.outer)
		}
		w.a.setPath(&Path{Dst: s.addr, Channel: channelB, Fixed: true})
		speak()
		if got := w.a.path(); got.Channel != channelB {
			w.t.Fatalf("a fixed path moved to %+v", got)
		}
	})
}

// RFC 6040 holds on a relayed path: marks go out and come in with ChannelData as without.
func TestRelayedECN(t *testing.T) {
	runWorld(t, offload, func(w *world) {
		s := w.relayA()
		w.exchange(w.t)
		s.marks = make(map[netip.AddrPort][]udp.ECN)
		s.leg = func(d *udptest.Datagram) {
			if d.Src == w.b.outer && d.TOS != 0 {
				d.TOS = 3
			}
		}
		var packets [][]byte
		for i, mark := range []ip.ECN{ip.ECT0, 0, ip.ECT0, ip.ECT0} {
			p, q := datagram(w.a.inner4, w.b.inner4, i, 20), datagram(w.b.inner4, w.a.inner4, i, 20)
			ip.SetMark(p, mark)
			ip.SetMark(q, mark)
			w.a.device.InjectData(p)
			w.b.device.InjectData(q)
			if mark != 0 {
				ip.SetMark(q, ip.CE)
			}
			packets = append(packets, q)
		}
		w.settle()
		if got := s.marks[w.a.outer]; !slices.Equal(got, []udp.ECN{2, 0, 2, 2}) {
			w.t.Errorf("outer marks %v", got)
		}
		got := w.a.device.TakeSegments()
		slices.SortFunc(got, func(a, b []byte) int { return bytes.Compare(a[28:], b[28:]) })
		for i := range packets {
			if i >= len(got) || !bytes.Equal(got[i], packets[i]) {
				w.t.Fatalf("packet %d of %x, want %x", i, got, packets[i])
			}
		}
		s.leg = func(d *udptest.Datagram) { d.TOS = 3 }
		w.b.device.InjectData(datagram(w.b.inner4, w.a.inner4, 9, 20))
		w.settle()
		w.wantPackets(w.a)
		w.wantCounter(w.a, "drop_ecn", 1)
	})
}

// ChannelData that is cut is dropped by name, whatever is left of it, and the session goes on.
func TestRelayedTruncation(t *testing.T) {
	runWorld(t, offload, func(w *world) {
		s := w.relayA()
		w.exchange(w.t)
		cut := 0
		s.toClient = func(b []byte) []byte {
			cut++
			return b[:min(cut, len(b)-1)]
		}
		packets := datagrams(w.b.inner4, w.a.inner4, 100, 20)
		for _, p := range packets {
			w.b.device.InjectData(p)
			w.settle()
		}
		w.wantPackets(w.a)
		w.wantCounter(w.a, "drop_channel_data", 100)
		s.toClient = nil
		w.b.device.InjectData(packets[0])
		w.settle()
		w.wantPackets(w.a, packets[0])
	})
}

// What comes framed from somebody who is no relay, or no longer, is a stray.
func TestChannelDataOfStrangers(t *testing.T) {
	runWorld(t, offload, func(w *world) {
		s := w.relayA()
		w.exchange(w.t)
		framed := append([]byte{0x40, 1, 0, 64, 4}, make([]byte, 63)...)
		w.network.Inject(udptest.Datagram{Src: netip.AddrPortFrom(s.addr.Addr(), 9), Dst: w.a.outer, Data: framed})
		w.settle()
		w.wantCounter(w.a, "drop_stray", 1)
		w.wantCounter(w.a, "drop_unknown_index", 0)
		servers := []netip.AddrPort{s.addr}
		w.a.SetRelays(servers)
		servers[0] = netip.AddrPort{} // it was copied
		w.network.Inject(udptest.Datagram{Src: s.addr, Dst: w.a.outer, Data: framed})
		w.settle()
		w.wantCounter(w.a, "drop_unknown_index", 1)
		w.a.SetRelays(nil)
		w.network.Inject(udptest.Datagram{Src: s.addr, Dst: w.a.outer, Data: framed})
		w.settle()
		w.wantCounter(w.a, "drop_stray", 2)
	})
}

// What a relay passes on in Data indications, since the peer's address has no channel, is opened; it moves no path by itself, and control
// is told where it came from.
func TestDataOfUnboundPeer(t *testing.T) {
	for _, v := range []variant{plain, {name: "IPv6", queues: 1, v6: true}} {
		runWorld(t, v, func(w *world) {
			s := w.relayA()
			w.exchange(w.t)
			path, moved := w.a.path(), netip.AddrPortFrom(w.b.outer.Addr(), 7777)
			s.toClient = func(framed []byte) []byte { return indication(moved, framed[frame.ChannelHeaderSize:]) }
			w.exchange(w.t)
			_ = w.a.call(func() {
				p := w.a.control.controller.peers[0]
				from := p.strayed.Load()
				if p.path.Load() != path || from == nil || from.Peer != moved || from.Dst != s.addr || from.Channel != 0 {
					t.Errorf("path %+v, noted %+v", p.path.Load(), from)
				}
			})
			// Of others than our relays it is not taken apart.
			w.a.SetRelays(nil)
			before := w.a.counter("drop_stray")
			w.network.Inject(udptest.Datagram{Src: s.addr, Dst: w.a.outer, Data: indication(moved, make([]byte, 64))})
			w.settle()
			w.wantCounter(w.a, "drop_stray", before+1)
		})
	}
}

// The lanes' runs to a relay are runs of ChannelData: equal datagrams with a header each, as long a run as there may be.
func TestRelayedRuns(t *testing.T) {
	big, segments := superpacket(laneInner[0], laneInner[1], 1, 45*1380, 1380)
	plain, relayed := newLanes(t, 0, big, laneInner), newLanes(t, 0, big, laneInner).relay()
	for _, l := range []*lanes{plain, relayed} {
		l.supply = 1
		if _, err := l.a.shards[0].outbound.run(l.now); err != nil {
			t.Fatal(err)
		}
	}
	size := plain.wire.runs[0].SegmentSize
	datagrams := 0
	for _, r := range relayed.wire.runs {
		if r.SegmentSize != frame.ChannelHeaderSize+size || r.Dst != netip.AddrPortFrom(laneAddrB, 1) {
			t.Errorf("a run of %d bytes each to %v, want %d", r.SegmentSize, r.Dst, frame.ChannelHeaderSize+size)
		}
		for b := r.Data; len(b) > 0; b = b[r.SegmentSize:] {
			channel, payload, ok := frame.ParseChannelData(b[:r.SegmentSize], frame.LastChannel)
			if !ok || channel != 0x4001 || len(payload) != size || classify(payload) != classTransport {
				t.Fatalf("datagram %d is %x..., %v", datagrams, b[:16], ok)
			}
			datagrams++
		}
	}
	if most := udp.MaxDatagram / (frame.ChannelHeaderSize + size); datagrams != len(segments) || len(relayed.wire.runs) != (datagrams+most-1)/most {
		t.Errorf("%d datagrams in %d runs of at most %d, want %d", datagrams, len(relayed.wire.runs), most, len(segments))
	}
	// Packets of their own share runs as well.
	small := newLanes(t, 0, tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}, laneInner).relay()
	small.supply = udp.MaxSegments
	if _, err := small.a.shards[0].outbound.run(small.now); err != nil {
		t.Fatal(err)
	}
	if n := len(small.wire.runs); n != 1 {
		t.Errorf("%d packets left in %d runs", udp.MaxSegments, n)
	}
}

// Channels share what a relay sends, so one received run may hold several: each datagram counts for its own.
func TestChannelsInOneRun(t *testing.T) {
	for _, workers := range []int{0, 2} {
		l := newLanes(t, workers, tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}, laneInner).relay()
		l.supply = 3
		if _, err := l.a.shards[0].outbound.run(l.now); err != nil {
			t.Fatal(err)
		}
		if len(l.wire.runs) != 1 {
			t.Fatalf("%d runs", len(l.wire.runs))
		}
		r, pa := l.wire.runs[0], l.b.control.controller.peers[0]
		binary.BigEndian.PutUint16(r.Data[r.SegmentSize:], 0x4002)
		if _, err := l.b.shards[0].inbound.run(l.now, l.wire); err != nil {
			t.Fatal(err)
		}
		if got := l.b.shards[0].stats.InboundPackets.Load(); got != 3 {
			t.Errorf("%d of 3 packets were delivered", got)
		}
		heard := slices.ContainsFunc(pa.inbound.visited.paths[:], func(p *Path) bool { return p != nil && p.Channel == 0x4002 })
		if !heard || pa.path.Load().Channel != 0x4001 {
			t.Errorf("the peer was heard at %+v and is at %+v, want channel 0x4002 and, last, 0x4001", pa.inbound.visited, pa.path.Load())
		}
	}
}

// The header has its place in the arena: wherever that ends, nothing is lost or written behind it.
func TestRelayedArena(t *testing.T) {
	packet := datagram(laneInner[0], laneInner[1], 1, 100)
	const size = frame.ChannelHeaderSize + 16 + 128 + 16
	for spare := range 2 * frame.ChannelHeaderSize {
		l := newLanes(t, 0, tuntest.Packet{Data: packet}, laneInner).relay()
		o := l.a.shards[0].outbound
		o.arena = o.arena[: 2*size+spare : 2*size+spare]
		l.carry(t, 50)
		if got := l.b.shards[0].stats.InboundPackets.Load(); got != 50 {
			t.Fatalf("an arena of %d bytes: %d of 50 packets came out", len(o.arena), got)
		}
		if got := l.a.shards[0].stats.OutboundSegments.Load(); got != 50 || l.wire.longest > len(o.arena) {
			t.Fatalf("%d were sent, in runs of up to %d bytes", got, l.wire.longest)
		}
	}
}

// SendOne and LocalPort follow the sockets: there are none before the interface is up and after it went down.
func TestSendOne(t *testing.T) {
	runWorld(t, offload, func(w *world) {
		var got []udptest.Datagram
		w.network.Hook(func(d *udptest.Datagram) bool {
			got = append(got, udptest.Datagram{Src: d.Src, Dst: d.Dst, Data: bytes.Clone(d.Data), TOS: d.TOS})
			return false
		})
		to := netip.MustParseAddrPort("203.0.113.5:3478")
		run := udp.Run{Data: []byte("hello"), Dst: to, TOS: 4}
		up := func(when string) {
			w.t.Helper()
			got = nil
			if err := w.a.SendOne(run); err != nil || w.a.LocalPort() != w.a.outer.Port() {
				w.t.Errorf("%s: %v, port %d", when, err, w.a.LocalPort())
			}
			if len(got) != 1 || got[0].Src != w.a.outer || got[0].Dst != to || string(got[0].Data) != "hello" || got[0].TOS != 4 {
				w.t.Errorf("%s: sent %+v", when, got)
			}
		}
		up("at first")
		six := run
		six.Dst = netip.MustParseAddrPort("[2001:db8::5]:3478")
		if err := w.a.SendOne(six); !errors.Is(err, udp.ErrNoFamily) {
			w.t.Errorf("a family that there is not: %v", err)
		}
		w.a.device.SetUp(false)
		w.settle()
		if err := w.a.SendOne(run); !errors.Is(err, udp.ErrClosed) || w.a.LocalPort() != 0 {
			w.t.Errorf("down: %v, port %d", err, w.a.LocalPort())
		}
		w.a.device.SetUp(true)
		w.settle()
		up("again")
		_ = w.a.Edit(func(e *Edit) error { return e.SetListenPort(7777) })
		w.a.outer = netip.AddrPortFrom(w.a.outer.Addr(), 7777)
		up("on another port")
		_ = w.a.Close()
		if err := w.a.SendOne(run); !errors.Is(err, udp.ErrClosed) || w.a.LocalPort() != 0 {
			w.t.Errorf("closed: %v, port %d", err, w.a.LocalPort())
		}
	})
}

// SendOne may be called while sockets are opened and closed, and by a shard: its error is ErrClosed or none.
func TestSendOneWhileSocketsChange(t *testing.T) {
	runWorld(t, queues, func(w *world) {
		stop := make(chan struct{})
		var senders sync.WaitGroup
		for range 4 {
			senders.Go(func() {
				for {
					err := w.a.SendOne(udp.Run{Data: []byte("x"), Dst: netip.MustParseAddrPort("203.0.113.5:9")})
					if err != nil && !errors.Is(err, udp.ErrClosed) {
						w.t.Error(err)
						return
					}
					w.a.SetRelays([]netip.AddrPort{w.b.outer})
					_ = w.a.LocalPort()
					select {
					case <-stop:
						return
					case <-time.After(time.Microsecond):
					}
				}
			})
		}
		for i := range 20 {
			_ = w.a.Edit(func(e *Edit) error { return e.SetListenPort(uint16(6000 + i)) })
			w.a.device.SetUp(false)
			time.Sleep(10 * time.Microsecond)
			w.a.device.SetUp(true)
			time.Sleep(10 * time.Microsecond)
		}
		close(stop)
		senders.Wait()
		w.a.SetRelays(nil)
		w.settle()
		w.exchange(w.t)
	})
}
