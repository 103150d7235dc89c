package ip

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

var fix = gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}

func serialize(t testing.TB, parts ...gopacket.SerializableLayer) []byte {
	t.Helper()
	out := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(out, fix, parts...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(out.Bytes())
}

func ipv4(protocol layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{
		Version: 4, TOS: 0xb9, Id: 0x1234, TTL: 61, Protocol: protocol, Flags: layers.IPv4DontFragment,
		SrcIP: net.IPv4(192, 0, 2, 1).To4(), DstIP: net.IPv4(198, 51, 100, 2).To4(),
	}
}

func ipv6(next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{
		Version: 6, TrafficClass: 0xb9, FlowLabel: 0xabcde, HopLimit: 61, NextHeader: next,
		SrcIP: net.ParseIP("2001:db8::1"), DstIP: net.ParseIP("2001:db8:1::2"),
	}
}

func tcp(network gopacket.NetworkLayer) *layers.TCP {
	h := &layers.TCP{
		SrcPort: 1234, DstPort: 443, Seq: 0xdeadbeef, Ack: 0xcafebabe, Window: 777, SYN: true, ECE: true,
		Options: []layers.TCPOption{{OptionType: 254, OptionLength: 4, OptionData: []byte{1, 2}}},
	}
	h.SetNetworkLayerForChecksum(network)
	return h
}

func TestViews4(t *testing.T) {
	n := ipv4(layers.IPProtocolTCP)
	p := serialize(t, n, tcp(n), gopacket.Payload("payload"))
	h := IPv4(p)
	if h.HeaderLen() != 20 || h.ID() != 0x1234 || !h.DontFragment() || h.MoreFragments() || h.FragmentOffset() != 0 || h.Protocol() != ProtocolTCP ||
		!h.ChecksumOK() {
		t.Errorf("wrong field: %x", h[:20])
	}
	if Source(p) != netip.MustParseAddr("192.0.2.1") || Destination(p) != netip.MustParseAddr("198.51.100.2") || !bytes.Equal(Addresses(p), p[12:20]) {
		t.Errorf("addresses %v, %v, %x", Source(p), Destination(p), Addresses(p))
	}
	checkTCP(t, p, p[20:])
	h.SetTotalLen(30)
	if h.ChecksumOK() {
		t.Error("a changed length is not seen")
	}
	if h.SetChecksum(); p[3] != 30 || !h.ChecksumOK() {
		t.Errorf("a Set method: %x", h[:20])
	}
}

func checkTCP(t *testing.T, packet, body []byte) {
	t.Helper()
	h, ok := ParseTCP(body)
	if !ok || h.HeaderLen() != 24 || h.Flags() != TCPSyn|TCPEce {
		t.Errorf("TCP: %v %x", ok, body)
	}
	if Sum(body, PseudoSum(packet, ProtocolTCP, len(body))) != 0xffff {
		t.Error("TCP checksum of gopacket does not verify")
	}
	again := TCP(bytes.Clone(h))
	again.SetFlags(TCPAck)
	again.SetChecksum(0x1234)
	if again.Flags() != TCPAck || again[16] != 0x12 || again[17] != 0x34 {
		t.Errorf("a Set method: %x", again)
	}
}

func TestChecksumOK(t *testing.T) {
	random := rand.New(rand.NewPCG(21, 22))
	for i := range 20000 {
		h := make(IPv4, 20+4*(i%11))
		for j := range h {
			h[j] = []byte{0, 0xff, byte(random.Uint32())}[i%3]
		}
		h[0] = 0x40 | byte(len(h)/4)
		if got, want := h.ChecksumOK(), sumPlain(h, 0) == 0xffff; got != want {
			t.Fatalf("%x: %v, want %v", h, got, want)
		}
		if h.SetChecksum(); !h.ChecksumOK() {
			t.Fatalf("%x: its own checksum is refused", h)
		}
		h[i%len(h)] ^= 1
		if h[0]&15 == byte(len(h)/4) && h.ChecksumOK() {
			t.Fatalf("%x: a changed bit is not seen", h)
		}
	}
}

func TestViews6(t *testing.T) {
	n := ipv6(layers.IPProtocolTCP)
	p := serialize(t, n, tcp(n), gopacket.Payload("payload"))
	h := IPv6(p)
	if Source(p) != netip.MustParseAddr("2001:db8::1") || Destination(p) != netip.MustParseAddr("2001:db8:1::2") || !bytes.Equal(Addresses(p), p[8:40]) {
		t.Errorf("addresses %v, %v, %x", Source(p), Destination(p), Addresses(p))
	}
	checkTCP(t, p, h.Payload())
	if h.SetPayloadLen(9); p[4] != 0 || p[5] != 9 || Version(h) != 6 {
		t.Errorf("a Set method: %x", h[:8])
	}
}

func TestViewUDP(t *testing.T) {
	n := ipv4(layers.IPProtocolUDP)
	u := &layers.UDP{SrcPort: 53, DstPort: 5353}
	u.SetNetworkLayerForChecksum(n)
	p := serialize(t, n, u, gopacket.Payload("abc"))
	h, ok := ParseUDP(append(bytes.Clone(p[20:]), 9, 9))
	if !ok || len(h) != 11 || h.SourcePort() != 53 || h.DestinationPort() != 5353 {
		t.Errorf("%v %x", ok, h)
	}
	if Sum(h, PseudoSum(p, ProtocolUDP, len(h))) != 0xffff {
		t.Error("UDP checksum of gopacket does not verify")
	}
	h.SetLen(8)
	h.SetChecksum(7)
	if h[5] != 8 || h.Checksum() != 7 {
		t.Errorf("a Set method: %x", h)
	}
	for n := range 11 {
		if _, ok := ParseUDP(p[20 : 20+n]); ok {
			t.Errorf("%d bytes of 11 accepted", n)
		}
	}
	binary.BigEndian.PutUint16(p[24:], 7)
	if _, ok := ParseUDP(p[20:]); ok {
		t.Error("a length of 7 accepted")
	}
}

func TestLength(t *testing.T) {
	four, six := make([]byte, 60), make([]byte, 60)
	set4 := func(ihl, total int) []byte {
		four[0] = 0x40 | byte(ihl)
		binary.BigEndian.PutUint16(four[2:], uint16(total))
		return four
	}
	set6 := func(payload int) []byte {
		six[0] = 0x60
		binary.BigEndian.PutUint16(six[4:], uint16(payload))
		return six
	}
	for _, c := range []struct {
		p  []byte
		n  int
		ok bool
	}{
		{nil, 0, false}, {make([]byte, 60), 0, false}, {[]byte{0x45}, 0, false}, {[]byte{0x60}, 0, false},
		{bytes.Clone(set4(5, 60)), 60, true}, {bytes.Clone(set4(5, 20)), 20, true}, {bytes.Clone(set4(5, 19)), 0, false},
		{bytes.Clone(set4(5, 61)), 0, false}, {bytes.Clone(set4(4, 60)), 0, false}, {bytes.Clone(set4(15, 60)), 60, true},
		{bytes.Clone(set4(15, 59)), 0, false}, {bytes.Clone(set4(5, 0xffff)), 0, false},
		{bytes.Clone(set6(20)), 60, true}, {bytes.Clone(set6(0)), 40, true}, {bytes.Clone(set6(21)), 0, false},
		// 40 + 0xffff must not wrap around.
		{bytes.Clone(set6(0xffff)), 0, false}, {bytes.Clone(set6(0xffd8)), 0, false}, {bytes.Clone(set6(0xffff)[:39]), 0, false},
	} {
		n, ok := Length(c.p)
		if ok != c.ok || ok && n != c.n {
			t.Errorf("%x: %d, %v, want %d, %v", c.p, n, ok, c.n, c.ok)
		}
	}
}

func TestParseTCPTruncated(t *testing.T) {
	n := ipv4(layers.IPProtocolTCP)
	p := serialize(t, n, tcp(n))[20:]
	for i := range p {
		if _, ok := ParseTCP(p[:i]); ok {
			t.Errorf("%d bytes of %d accepted", i, len(p))
		}
	}
	p[12] = 4 << 4
	if _, ok := ParseTCP(p); ok {
		t.Error("data offset 4 accepted")
	}
}

// chain makes an IPv6 packet with extension headers of 8 bytes: each is its own number and what follows the next header
// field. 20 zero bytes stand for the transport.
func chain(last uint8, headers ...[]byte) []byte {
	p := make([]byte, IPv6HeaderLen+8*len(headers)+20)
	p[0] = 0x60
	next := 6
	for i, h := range headers {
		p[next] = h[0]
		next = IPv6HeaderLen + 8*i
		copy(p[next+1:], h[1:])
	}
	p[next] = last
	IPv6(p).SetPayloadLen(len(p) - IPv6HeaderLen)
	return p
}

func TestFindTransport(t *testing.T) {
	hop, dst := []byte{ProtocolHopByHop}, []byte{ProtocolDestOptions}
	routing := []byte{ProtocolRouting, 0, 4, 1}
	routed := []byte{ProtocolRouting, 0, 4, 0}
	first, later, whole := []byte{ProtocolFragment, 0, 0, 1}, []byte{ProtocolFragment, 0, 0, 8}, []byte{ProtocolFragment}
	identified := []byte{ProtocolFragment, 0, 0, 8, 1, 2, 3, 4}
	four := func(fragment uint16) []byte {
		p := make([]byte, 40)
		p[0], p[9] = 0x46, ProtocolTCP
		binary.BigEndian.PutUint16(p[2:], 40)
		binary.BigEndian.PutUint16(p[4:], fragment>>13<<8)
		binary.BigEndian.PutUint16(p[6:], fragment)
		return p
	}
	for i, c := range []struct {
		p    []byte
		want Transport
		ok   bool
	}{
		{chain(ProtocolTCP), Transport{ProtocolTCP, 40, false, true, false, 0}, true},
		{chain(ProtocolUDP, hop, dst), Transport{ProtocolUDP, 56, false, true, false, 0}, true},
		{chain(ProtocolTCP, routing), Transport{ProtocolTCP, 48, false, true, true, 0}, true},
		{chain(ProtocolTCP, routed), Transport{ProtocolTCP, 48, false, true, false, 0}, true},
		{chain(ProtocolTCP, first), Transport{ProtocolTCP, 48, true, true, false, 0}, true},
		{chain(ProtocolTCP, later), Transport{ProtocolTCP, 48, true, false, false, 0}, true},
		{chain(ProtocolHopByHop, later), Transport{ProtocolHopByHop, 48, true, false, false, 0}, true},
		{chain(ProtocolTCP, identified), Transport{ProtocolTCP, 48, true, false, false, 0x01020304}, true},
		{chain(ProtocolTCP, whole), Transport{ProtocolTCP, 48, false, true, false, 0}, true},
		{chain(59, dst), Transport{59, 48, false, true, false, 0}, true},
		{chain(ProtocolTCP, dst, dst, dst, dst, dst, dst, dst), Transport{ProtocolTCP, 96, false, true, false, 0}, true},
		{chain(ProtocolTCP, dst, dst, dst, dst, dst, dst, dst, dst), Transport{ProtocolTCP, 104, false, true, false, 0}, true},
		{chain(ProtocolTCP, dst, dst, dst, dst, dst, dst, dst, dst, dst), Transport{}, false},
		{chain(ProtocolTCP, []byte{ProtocolDestOptions, 255}), Transport{}, false},
		{four(0), Transport{ProtocolTCP, 24, false, true, false, 0}, true},
		{four(0x4000), Transport{ProtocolTCP, 24, false, true, false, 0x200}, true},
		{four(0x2000), Transport{ProtocolTCP, 24, true, true, false, 0x100}, true},
		{four(0x0001), Transport{ProtocolTCP, 24, true, false, false, 0}, true},
	} {
		got, ok := FindTransport(c.p)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("case %d: %+v, %v, want %+v, %v", i, got, ok, c.want, c.ok)
		}
	}
	p := chain(ProtocolTCP, hop, dst)
	for n := 40; n < 56; n++ {
		if _, ok := FindTransport(p[:n]); ok {
			t.Errorf("chain cut to %d bytes accepted", n)
		}
	}
}

func FuzzFindTransport(f *testing.F) {
	f.Add(chain(ProtocolTCP, []byte{ProtocolHopByHop}, []byte{ProtocolFragment, 0, 0, 1}))
	f.Add(serialize(f, ipv4(layers.IPProtocolICMPv4), gopacket.Payload("abc")))
	f.Fuzz(func(t *testing.T, p []byte) {
		n, ok := Length(p)
		if !ok {
			return
		}
		p = p[:n]
		if found, ok := FindTransport(p); ok && found.Offset > len(p) {
			t.Fatalf("offset %d of %d bytes", found.Offset, len(p))
		}
		Source(p)
		Destination(p)
		for _, answer := range [][]byte{
			AppendUnreachable(nil, p, netip.Addr{}), AppendTooBig(nil, p, netip.MustParseAddr("::1"), 1280),
		} {
			if len(answer) == 0 {
				continue
			}
			if n, ok := Length(answer); !ok || n != len(answer) {
				t.Fatalf("answer of %d bytes says %d", len(answer), n)
			}
			if AppendUnreachable(nil, answer, netip.Addr{}) != nil {
				t.Fatal("an error was answered with an error")
			}
		}
		mark := Mark(p)
		before := bytes.Clone(p)
		SetMark(p, CE)
		if Mark(p) != CE {
			t.Fatal("mark not set")
		}
		SetMark(p, mark)
		if !bytes.Equal(p[:10], before[:10]) || !bytes.Equal(p[12:], before[12:]) {
			t.Fatal("mark not restored")
		}
	})
}

// What a host sends to its link by itself, and what only looks like it.
func TestIsHousekeeping(t *testing.T) {
	six := func(to string, kind uint8, headers ...[]byte) []byte {
		p := chain(ProtocolICMPv6, headers...)
		copy(p[24:], netip.MustParseAddr(to).AsSlice())
		p[IPv6HeaderLen+8*len(headers)] = kind
		return p
	}
	four := func(to string, protocol uint8) []byte {
		p := make([]byte, 28)
		p[0], p[3], p[9] = 0x45, 28, protocol
		copy(p[16:], netip.MustParseAddr(to).AsSlice())
		return p
	}
	for name, c := range map[string]struct {
		packet []byte
		want   bool
	}{
		"router solicitation": {six("ff02::2", 133), true}, "listener report": {six("ff02::16", 143, []byte{ProtocolHopByHop}), true},
		"IGMP report": {four("224.0.0.22", 2), true}, "ping to a group": {six("ff02::1", 128), false}, "advertisement": {six("ff02::1", 134), false},
		"solicitation to a host": {six("fd00::2", 133), false}, "wider group": {six("ff05::2", 143), false}, "OSPF": {four("224.0.0.5", 89), false},
		"mDNS": {four("224.0.0.251", ProtocolUDP), false}, "IGMP to a host": {four("10.0.0.1", 2), false}, "no ICMP at all": {six("ff02::2", 133)[:IPv6HeaderLen], false},
	} {
		if got := IsHousekeeping(c.packet); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
