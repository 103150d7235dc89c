package ip

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

var (
	router4 = netip.MustParseAddr("10.0.0.1")
	router6 = netip.MustParseAddr("fd00::1")
)

func packet4(t *testing.T, payload int) []byte {
	n := ipv4(layers.IPProtocolTCP)
	return serialize(t, n, tcp(n), gopacket.Payload(make([]byte, payload)))
}

func packet6(t *testing.T, payload int) []byte {
	n := ipv6(layers.IPProtocolTCP)
	return serialize(t, n, tcp(n), gopacket.Payload(make([]byte, payload)))
}

// checkError decodes an error with gopacket and has its checksums computed there.
func checkError(t *testing.T, got, packet []byte) (gopacket.Packet, []byte) {
	t.Helper()
	first := layers.LayerTypeIPv4
	if got[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	d := gopacket.NewPacket(got, first, gopacket.Default)
	network := d.NetworkLayer().(gopacket.SerializableLayer)
	var again []byte
	var quoted []byte
	switch icmp := d.Layers()[1].(type) {
	case *layers.ICMPv4:
		quoted = icmp.Payload
		again = serialize(t, network, icmp, gopacket.Payload(quoted))
	case *layers.ICMPv6:
		icmp.SetNetworkLayerForChecksum(d.NetworkLayer())
		quoted = icmp.Payload[4:]
		again = serialize(t, network, icmp, gopacket.Payload(icmp.Payload))
	}
	if !bytes.Equal(got, again) {
		t.Errorf("differs from what gopacket makes of it\ngot  %x\nwant %x", got, again)
	}
	if !bytes.HasPrefix(packet, quoted) || len(quoted) < 28 {
		t.Errorf("%d bytes quoted, not of the packet", len(quoted))
	}
	if Destination(got) != Source(packet) {
		t.Errorf("error goes to %v", Destination(got))
	}
	return d, quoted
}

func TestAppendUnreachable(t *testing.T) {
	p := packet4(t, 1000)
	prefix := []byte("prefix")
	got := AppendUnreachable(bytes.Clone(prefix), p, router4)
	if !bytes.HasPrefix(got, prefix) {
		t.Fatal("dst was overwritten")
	}
	d, quoted := checkError(t, got[len(prefix):], p)
	if c := d.Layers()[1].(*layers.ICMPv4).TypeCode; c != layers.CreateICMPv4TypeCode(3, 1) {
		t.Errorf("type and code %v", c)
	}
	if len(quoted) != 548 || Source(got[len(prefix):]) != router4 {
		t.Errorf("%d bytes quoted, source %v", len(quoted), Source(got[len(prefix):]))
	}
	p = packet6(t, 2000)
	got = AppendUnreachable(nil, p, router6)
	d, _ = checkError(t, got, p)
	if c := d.Layers()[1].(*layers.ICMPv6).TypeCode; c != layers.CreateICMPv6TypeCode(1, 3) {
		t.Errorf("type and code %v", c)
	}
	if len(got) != 1280 || Source(got) != router6 {
		t.Errorf("%d bytes, source %v", len(got), Source(got))
	}
	for _, src := range []netip.Addr{{}, router4} {
		if got := AppendUnreachable(nil, p, src); Source(got) != Destination(p) {
			t.Errorf("source %v for src %v", Source(got), src)
		}
	}
}

func TestAppendTooBig(t *testing.T) {
	p := packet4(t, 1400)
	got := AppendTooBig(nil, p, router4, 1280)
	d, _ := checkError(t, got, p)
	icmp := d.Layers()[1].(*layers.ICMPv4)
	// RFC 1191, section 4: next-hop MTU in the low 16 bits, which gopacket calls Seq.
	if icmp.TypeCode != layers.CreateICMPv4TypeCode(3, 4) || icmp.Seq != 1280 || icmp.Id != 0 {
		t.Errorf("%v, MTU %d, unused %d", icmp.TypeCode, icmp.Seq, icmp.Id)
	}
	p[6] = 0
	IPv4(p).SetChecksum()
	if AppendTooBig(nil, p, router4, 1280) != nil {
		t.Error("sent in answer to a packet without DF")
	}
	p = packet6(t, 1400)
	got = AppendTooBig(nil, p, router6, 1300)
	d, _ = checkError(t, got, p)
	icmp6 := d.Layers()[1].(*layers.ICMPv6)
	if icmp6.TypeCode != layers.CreateICMPv6TypeCode(2, 0) || !bytes.Equal(icmp6.Payload[:4], []byte{0, 0, 5, 20}) {
		t.Errorf("%v, MTU %x", icmp6.TypeCode, icmp6.Payload[:4])
	}
}

// "An ICMP error message MUST NOT be sent as the result of receiving: an ICMP error message, or a datagram destined to an IP
// broadcast or IP multicast address, or [...] a non-initial fragment, or a datagram whose source address does not define a
// single host" (RFC 1122, section 3.2.2); RFC 4443, section 2.4 (e), likewise.
func TestNoAnswer(t *testing.T) {
	change4 := func(f func(*layers.IPv4)) []byte {
		n := ipv4(layers.IPProtocolUDP)
		f(n)
		return serialize(t, n, gopacket.Payload(make([]byte, 40)))
	}
	change6 := func(f func(*layers.IPv6)) []byte {
		n := ipv6(layers.IPProtocolUDP)
		f(n)
		return serialize(t, n, gopacket.Payload(make([]byte, 40)))
	}
	icmp4 := func(kind uint8) []byte {
		return serialize(t, ipv4(layers.IPProtocolICMPv4), gopacket.Payload(append([]byte{kind}, make([]byte, 40)...)))
	}
	icmp6 := func(kind uint8) []byte {
		return serialize(t, ipv6(layers.IPProtocolICMPv6), gopacket.Payload(append([]byte{kind}, make([]byte, 40)...)))
	}
	for name, c := range map[string]struct {
		p           []byte
		unreachable bool
		tooBig      bool
	}{
		"IPv4":                   {change4(func(*layers.IPv4) {}), true, true},
		"IPv4 multicast":         {change4(func(n *layers.IPv4) { n.DstIP = net.IPv4(224, 0, 0, 1).To4() }), false, false},
		"IPv4 broadcast":         {change4(func(n *layers.IPv4) { n.DstIP = net.IPv4bcast.To4() }), false, false},
		"IPv4 from zero":         {change4(func(n *layers.IPv4) { n.SrcIP = net.IPv4zero.To4() }), false, false},
		"IPv4 from loopback":     {change4(func(n *layers.IPv4) { n.SrcIP = net.IPv4(127, 0, 0, 1).To4() }), false, false},
		"IPv4 from multicast":    {change4(func(n *layers.IPv4) { n.SrcIP = net.IPv4(224, 0, 0, 1).To4() }), false, false},
		"IPv4 from class E":      {change4(func(n *layers.IPv4) { n.SrcIP = net.IPv4(240, 0, 0, 1).To4() }), false, false},
		"IPv4 from broadcast":    {change4(func(n *layers.IPv4) { n.SrcIP = net.IPv4bcast.To4() }), false, false},
		"IPv4 first fragment":    {change4(func(n *layers.IPv4) { n.Flags |= layers.IPv4MoreFragments }), true, true},
		"IPv4 later fragment":    {change4(func(n *layers.IPv4) { n.FragOffset = 1 }), false, false},
		"IPv4 echo":              {icmp4(8), true, true},
		"IPv4 unreachable":       {icmp4(3), false, false},
		"IPv4 source quench":     {icmp4(4), false, false},
		"IPv4 redirect":          {icmp4(5), false, false},
		"IPv4 time exceeded":     {icmp4(11), false, false},
		"IPv4 parameter problem": {icmp4(12), false, false},
		"IPv4 empty ICMP":        {serialize(t, ipv4(layers.IPProtocolICMPv4)), false, false},
		"IPv6":                   {change6(func(*layers.IPv6) {}), true, true},
		"IPv6 multicast":         {change6(func(n *layers.IPv6) { n.DstIP = net.ParseIP("ff02::1") }), false, true},
		"IPv6 from zero":         {change6(func(n *layers.IPv6) { n.SrcIP = net.IPv6zero }), false, false},
		"IPv6 from multicast":    {change6(func(n *layers.IPv6) { n.SrcIP = net.ParseIP("ff02::1") }), false, false},
		"IPv6 echo":              {icmp6(128), true, true},
		"IPv6 too big":           {icmp6(2), false, false},
		"IPv6 redirect":          {icmp6(137), false, false},
		"IPv6 later fragment":    {chain(ProtocolUDP, []byte{ProtocolFragment, 0, 0, 8}), false, false},
	} {
		if got := AppendUnreachable(nil, c.p, netip.Addr{}); (got != nil) != c.unreachable {
			t.Errorf("%s: unreachable sent: %v", name, got != nil)
		}
		if got := AppendTooBig(nil, c.p, netip.Addr{}, 1280); (got != nil) != c.tooBig {
			t.Errorf("%s: too big sent: %v", name, got != nil)
		}
	}
}

func TestAppendAllocations(t *testing.T) {
	p, dst := packet6(t, 1400), make([]byte, 0, 2000)
	if n := testing.AllocsPerRun(100, func() {
		AppendUnreachable(dst, p, router6)
		AppendTooBig(dst, p, router6, 1280)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// An error with another source is as whole as one that was made with it.
func TestSetErrorSource(t *testing.T) {
	for _, c := range [][3]string{{"10.0.0.1", "10.0.0.2", "192.0.2.7"}, {"fd00::1", "fd00::2", "2001:db8::7"}} {
		packet := make([]byte, 60)
		from, to, src := netip.MustParseAddr(c[0]), netip.MustParseAddr(c[1]), netip.MustParseAddr(c[2])
		if from.Is4() {
			copy(packet, []byte{0x45, 0, 0, 60, 0, 0, 0, 0, 64, ProtocolUDP})
			copy(packet[12:], append(from.AsSlice(), to.AsSlice()...))
		} else {
			copy(packet, []byte{0x60, 0, 0, 0, 0, 20, ProtocolUDP, 64})
			copy(packet[8:], append(from.AsSlice(), to.AsSlice()...))
		}
		want := AppendUnreachable(nil, packet, src)
		got := AppendUnreachable(nil, packet, netip.Addr{})
		SetErrorSource(got, src)
		if !bytes.Equal(got, want) {
			t.Errorf("from %v:\n%x, want\n%x", src, got, want)
		}
		if quoted := Quoted(got); !bytes.Equal(quoted, packet) {
			t.Errorf("quoted:\n%x, want\n%x", quoted, packet)
		}
	}
}
