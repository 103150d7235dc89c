package flow

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/tun/ip"
)

// line is one packet of a story, at a second.
type line struct {
	at     int
	in     bool
	p      []byte
	passes bool // if in
}

type sides struct{ us, them netip.Addr }

var families = map[string]sides{
	"IPv4": {netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("10.0.0.7")},
	"IPv6": {netip.MustParseAddr("fd00:2021:1111::2"), netip.MustParseAddr("fd09::7")},
}

// packet has that transport behind an IP header.
func packet(from, to netip.Addr, protocol uint8, transport []byte) []byte {
	var p []byte
	if from.Is4() {
		p = make([]byte, ip.IPv4HeaderLen, ip.IPv4HeaderLen+len(transport))
		p[0], p[8], p[9] = 0x45, 64, protocol
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)+len(transport)))
	} else {
		p = make([]byte, ip.IPv6HeaderLen, ip.IPv6HeaderLen+len(transport))
		p[0], p[6], p[7] = 0x60, protocol, 64
		binary.BigEndian.PutUint16(p[4:], uint16(len(transport)))
	}
	copy(ip.Addresses(p), append(from.AsSlice(), to.AsSlice()...))
	return append(p, transport...)
}

func ports(size int, source, destination uint16) []byte {
	b := make([]byte, size)
	binary.BigEndian.PutUint16(b, source)
	binary.BigEndian.PutUint16(b[2:], destination)
	return b
}

func tcpHeader(source, destination uint16, flags uint8) []byte {
	b := ports(20, source, destination)
	b[12], b[flagsAt] = 5<<4, flags
	return b
}

// out and back make what goes to and comes from the other side.
func (s sides) out(protocol uint8, transport []byte) []byte {
	return packet(s.us, s.them, protocol, transport)
}
func (s sides) back(protocol uint8, transport []byte) []byte {
	return packet(s.them, s.us, protocol, transport)
}

func (s sides) icmp(kind uint8, id uint16, body []byte) (protocol uint8, b []byte) {
	b = append([]byte{kind, 0, 0, 0, byte(id >> 8), byte(id), 0, 0}, body...)
	if s.us.Is4() {
		return ip.ProtocolICMP, b
	}
	return ip.ProtocolICMPv6, b
}

func (s sides) tcpOut(flags uint8) []byte { return s.out(ip.ProtocolTCP, tcpHeader(40000, 80, flags)) }
func (s sides) tcpBack(flags uint8) []byte {
	return s.back(ip.ProtocolTCP, tcpHeader(80, 40000, flags))
}
func (s sides) udpOut() []byte  { return s.out(ip.ProtocolUDP, ports(8, 40000, 53)) }
func (s sides) udpBack() []byte { return s.back(ip.ProtocolUDP, ports(8, 53, 40000)) }
func (s sides) icmpOut(kind uint8, id uint16, body []byte) []byte {
	return s.out(s.icmp(kind, id, body))
}
func (s sides) icmpBack(kind uint8, id uint16, body []byte) []byte {
	return s.back(s.icmp(kind, id, body))
}

// fragment makes it a fragment at an offset, with more behind it.
func fragment(p []byte, offset int) []byte {
	if p[0]>>4 == 4 {
		binary.BigEndian.PutUint16(p[6:], 1<<13|uint16(offset/8))
		return p
	}
	header := []byte{p[6], 0, 0, 0, 0, 0, 0, 1}
	binary.BigEndian.PutUint16(header[2:], uint16(offset)|1)
	p[6] = ip.ProtocolFragment
	p = append(p[:ip.IPv6HeaderLen:ip.IPv6HeaderLen], append(header, p[ip.IPv6HeaderLen:]...)...)
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-ip.IPv6HeaderLen))
	return p
}

const syn, ack, fin, rst = ip.TCPSyn, ip.TCPAck, ip.TCPFin, ip.TCPRst

func stories(s sides) map[string][]line {
	request, reply, tooLarge, gone := uint8(8), uint8(0), uint8(3), uint8(3)
	if s.us.Is6() {
		request, reply, tooLarge, gone = 128, 129, 2, 1
	}
	stranger := sides{s.us, s.us.Next()}
	return map[string][]line{
		"nobody asked": {
			{0, true, s.tcpBack(syn), false}, {0, true, s.tcpBack(ack), false}, {0, true, s.tcpBack(syn | ack), false}, {0, true, s.tcpBack(rst), false},
			{0, true, s.udpBack(), false}, {0, true, s.icmpBack(request, 7, nil), false}, {0, true, s.icmpBack(reply, 7, nil), false},
			{0, true, s.back(47, make([]byte, 8)), false}, {0, true, s.icmpBack(gone, 0, s.udpOut()), false},
		},
		"a connection": {
			{0, false, s.tcpOut(syn), false}, {0, true, s.tcpBack(syn | ack), true}, {0, false, s.tcpOut(ack), false}, {0, true, s.tcpBack(ack), true},
			{0, true, s.tcpBack(syn), false}, {4 * 86400, true, s.tcpBack(ack), true}, {8 * 86400, true, s.tcpBack(ack), true},
			{8 * 86400, true, s.tcpBack(ack | fin), true}, {8 * 86400, false, s.tcpOut(ack), false}, {8*86400 + 100, true, s.tcpBack(ack), true},
			{8*86400 + 200, false, s.tcpOut(ack), false}, {8*86400 + 321, true, s.tcpBack(ack), false},
		},
		"a connection that nobody uses": {{0, false, s.tcpOut(syn), false}, {0, false, s.tcpOut(ack), false}, {5*86400 - 1, true, s.tcpBack(ack), true}, {11 * 86400, true, s.tcpBack(ack), false}},
		"a connection of last month":    {{0, false, s.tcpOut(syn), false}, {0, false, s.tcpOut(ack), false}, {1<<21 + 60, true, s.tcpBack(ack), false}},
		"a connection that is refused":  {{0, false, s.tcpOut(syn), false}, {1, true, s.tcpBack(rst | ack), true}, {122, true, s.tcpBack(ack), false}},
		"a connection that we end":      {{0, false, s.tcpOut(ack), false}, {1, false, s.tcpOut(ack | fin), false}, {100, true, s.tcpBack(ack), true}, {221, true, s.tcpBack(ack), false}},
		"a connection once more":        {{0, false, s.tcpOut(ack | fin), false}, {0, false, s.tcpOut(syn), false}, {0, false, s.tcpOut(ack), false}, {500, true, s.tcpBack(ack), true}},
		"both open one at once":         {{0, false, s.tcpOut(syn), false}, {0, true, s.tcpBack(syn), true}, {0, false, s.tcpOut(syn | ack), false}, {0, true, s.tcpBack(syn), false}},
		"a reset is no question":        {{0, false, s.tcpOut(rst), false}, {0, true, s.tcpBack(ack), false}},
		"other ports": {
			{0, false, s.udpOut(), false}, {0, true, s.back(ip.ProtocolUDP, ports(8, 54, 40000)), false}, {0, true, s.back(ip.ProtocolUDP, ports(8, 53, 40001)), false},
			{0, true, s.back(ip.ProtocolTCP, tcpHeader(53, 40000, ack)), false}, {0, true, stranger.udpBack(), false}, {0, true, s.udpBack(), true},
		},
		"datagrams":                 {{0, false, s.udpOut(), false}, {29, true, s.udpBack(), true}, {148, true, s.udpBack(), true}, {267, true, s.udpBack(), true}, {388, true, s.udpBack(), false}},
		"no answer for 30 s":        {{0, false, s.udpOut(), false}, {30, true, s.udpBack(), false}},
		"a late answer, asked anew": {{0, false, s.udpOut(), false}, {31, true, s.udpBack(), false}, {31, false, s.udpOut(), false}, {31, true, s.udpBack(), true}},
		"an echo": {
			{0, false, s.icmpOut(request, 7, nil), false}, {1, true, s.icmpBack(reply, 7, nil), true}, {1, true, s.icmpBack(reply, 8, nil), false},
			{1, true, s.icmpBack(request, 7, nil), false}, {1, true, s.icmpBack(9, 7, nil), false}, {2, true, s.icmpBack(reply, 7, nil), true}, {30, true, s.icmpBack(reply, 7, nil), false},
		},
		"an answer is no question": {{0, false, s.icmpOut(reply, 7, nil), false}, {0, true, s.icmpBack(request, 7, nil), false}},
		"errors": {
			{0, false, s.udpOut(), false}, {0, true, s.icmpBack(tooLarge, 0, s.udpOut()), true}, {0, true, s.icmpBack(gone, 0, s.udpOut()[:len(s.udpOut())]), true},
			{0, true, packet(s.them.Next(), s.us, s.protocol(), s.body(gone, s.udpOut())), true}, // a router on the way
			{0, true, packet(s.them, s.us.Next(), s.protocol(), s.body(gone, s.udpOut())), false},
			{0, true, s.icmpBack(gone, 0, s.udpBack()), false}, {0, true, s.icmpBack(gone, 0, s.out(ip.ProtocolUDP, ports(8, 40000, 54))), false},
			{0, true, s.icmpBack(gone, 0, nil), false}, {0, true, s.icmpBack(gone, 0, s.udpOut()[:10]), false}, {30, true, s.icmpBack(gone, 0, s.udpOut()), false},
		},
		"errors about TCP and echoes": {
			{0, false, s.tcpOut(syn), false}, {0, false, s.icmpOut(request, 7, nil), false}, {0, true, s.icmpBack(gone, 0, s.tcpOut(syn)[:len(s.tcpOut(syn))-12]), true},
			{0, true, s.icmpBack(gone, 0, s.icmpOut(request, 7, nil)), true}, {0, true, s.icmpBack(gone, 0, s.icmpOut(request, 8, nil)), false},
		},
		"fragments": {
			{0, true, fragment(s.udpBack(), 0), false}, {0, true, fragment(s.udpBack(), 1400), true}, {0, false, fragment(s.udpOut(), 0), false},
			{0, true, fragment(s.udpBack(), 0), true}, {0, false, s.tcpOut(syn), false}, {0, true, fragment(s.back(ip.ProtocolTCP, ports(8, 80, 40000)), 0), false},
		},
		"other protocols": {{0, false, s.out(47, make([]byte, 8)), false}, {599, true, s.back(47, make([]byte, 8)), true}, {600, true, s.back(50, make([]byte, 8)), false}, {1200, true, s.back(47, make([]byte, 8)), false}},
		"too short":       {{0, false, s.udpOut(), false}, {0, true, s.back(ip.ProtocolUDP, ports(7, 53, 40000)), false}, {0, true, s.back(ip.ProtocolTCP, nil), false}, {0, true, s.icmpBack(reply, 0, nil)[:len(s.icmpBack(reply, 0, nil))-8], false}},
	}
}

func (s sides) protocol() uint8 {
	p, _ := s.icmp(0, 0, nil)
	return p
}

func (s sides) body(kind uint8, about []byte) []byte {
	_, b := s.icmp(kind, 0, about)
	return b
}

// TestStories: what answers passes, for as long as conntrack would let it, and nothing else; also where the lanes of the two directions are
// others for each packet.
func TestStories(t *testing.T) {
	for family, s := range families {
		for name, story := range stories(s) {
			for _, lanes := range []bool{false, true} {
				t.Run(fmt.Sprint(name, ", ", family, ", several lanes ", lanes), func(t *testing.T) {
					table := NewTable()
					sent, received := table.View(), table.View()
					for i, l := range story {
						if lanes {
							sent, received = table.View(), table.View()
						}
						now := 1000*time.Hour + time.Duration(l.at)*time.Second
						if !l.in {
							sent.Sent(now, l.p)
						} else if got := received.Answers(now, l.p); got != l.passes {
							t.Errorf("packet %d passes: %v, want %v", i, got, l.passes)
						}
					}
				})
			}
		}
	}
}

// TestFullTable: a table that overflows forgets those first that would have lasted shortest, and takes up what goes on.
func TestFullTable(t *testing.T) {
	s, table := families["IPv4"], NewTable()
	sent, received := table.View(), table.View()
	const long = 2000
	flow := func(n int) (out, back []byte) {
		source, destination := uint16(n), uint16(n>>16)+1
		return s.out(ip.ProtocolTCP, tcpHeader(source, destination, ack)), s.back(ip.ProtocolTCP, tcpHeader(destination, source, ack))
	}
	for n := range long {
		out, _ := flow(n)
		sent.Sent(0, out)
	}
	for n := range 10 * ways * buckets {
		p := s.out(ip.ProtocolUDP, ports(8, uint16(n), uint16(n>>16)+1))
		sent.Sent(time.Second, p)
	}
	lost := 0
	for n := range long {
		out, back := flow(n)
		if !received.Answers(time.Second, back) {
			lost++
		}
		sent.Sent(time.Second, out)
		if !received.Answers(time.Second, back) {
			t.Fatalf("connection %d does not come back", n)
		}
	}
	if lost > long/100 {
		t.Errorf("%d of %d connections were forgotten for queries, want hardly any", lost, long)
	}
}

// TestResume: what a program has begun before is answered.
func TestResume(t *testing.T) {
	for _, s := range families {
		table := NewTable()
		view := table.View()
		table.Resume(0, ip.ProtocolTCP, netip.AddrPortFrom(s.us, 40000), netip.AddrPortFrom(s.them, 80))
		table.Resume(0, ip.ProtocolUDP, netip.AddrPortFrom(s.us, 40000), netip.AddrPortFrom(s.them, 53))
		table.Resume(0, ip.ProtocolUDP, netip.AddrPortFrom(s.us, 40000), netip.AddrPort{})
		if !view.Answers(0, s.tcpBack(ack)) || !view.Answers(0, s.udpBack()) || view.Answers(0, s.tcpBack(syn)) {
			t.Errorf("%v: answers to what was resumed: %v %v, a question: %v; want true, true, false", s.us, view.Answers(0, s.tcpBack(ack)),
				view.Answers(0, s.udpBack()), view.Answers(0, s.tcpBack(syn)))
		}
	}
}

// TestTogether: lanes that use the table at once lose no flow of their own.
func TestTogether(t *testing.T) {
	s, table := families["IPv6"], NewTable()
	var group sync.WaitGroup
	var clock atomic.Int64 // of all: who lags behind would have the oldest flows, which are forgotten first
	for lane := range 4 {
		group.Go(func() {
			sent, received := table.View(), table.View()
			for n := range 5000 {
				source, now := uint16(lane<<13+n), time.Duration(clock.Add(1))*time.Millisecond/4
				sent.Sent(now, s.out(ip.ProtocolUDP, ports(8, source, 53)))
				if !received.Answers(now, s.back(ip.ProtocolUDP, ports(8, 53, source))) {
					t.Errorf("lane %d, packet %d: the answer is refused", lane, n)
					return
				}
			}
		})
	}
	group.Wait()
}

// FuzzAnswers: whatever comes first, nothing that is parsed reads behind its end, and into an empty table nothing comes but fragments.
func FuzzAnswers(f *testing.F) {
	for _, s := range families {
		for _, story := range stories(s) {
			for _, l := range story {
				f.Add(l.p)
			}
		}
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		n, ok := ip.Length(p)
		if !ok {
			return
		}
		p = p[:n:n]
		table := NewTable()
		if view := table.View(); view.Answers(0, p) {
			if tr, ok := ip.FindTransport(p); !ok || tr.First {
				t.Errorf("% x is an answer to nothing", p)
			}
		}
		table.View().Sent(0, p)
	})
}

func BenchmarkSent(b *testing.B) {
	s, table := families["IPv4"], NewTable()
	view := table.View()
	var packets [2][64][]byte
	for i := range 64 {
		packets[0][i], packets[1][i] = s.udpOut(), s.out(ip.ProtocolUDP, ports(8, uint16(i), 53))
	}
	for i, name := range []string{"one flow", "64 flows"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for n := range b.N {
				view.Sent(time.Hour, packets[i][n%64])
			}
		})
	}
}
