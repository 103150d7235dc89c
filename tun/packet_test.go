package tun

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/sluice-vpn/sluice/tun/ip"
)

// spec describes a packet for tests; gopacket, which shares no code with us, makes the bytes.
type spec struct {
	six           bool
	udp           bool
	flow          uint8 // last byte of the source address
	tos, ttl      uint8
	id            uint16
	df            bool
	seq, ack      uint32
	flags         uint8 // beside ACK
	window        uint16
	options       []byte // TCP, a multiple of 4 long
	payload       []byte
	zeroChecksum  bool
	flowLabel     uint32
	noAck         bool
	sourcePort    uint16
	ipOptions     bool
	fragment      bool
	badIPChecksum bool
}

var fix = gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}

func (s spec) network() gopacket.SerializableLayer {
	protocol := layers.IPProtocolTCP
	if s.udp {
		protocol = layers.IPProtocolUDP
	}
	ttl := s.ttl
	if ttl == 0 {
		ttl = 64
	}
	if s.six {
		return &layers.IPv6{
			Version: 6, TrafficClass: s.tos, FlowLabel: s.flowLabel, HopLimit: ttl, NextHeader: protocol,
			SrcIP: net.ParseIP(fmt.Sprintf("fd00::%x", s.flow)), DstIP: net.ParseIP("fd00:1::ffff:ff"),
		}
	}
	h := &layers.IPv4{
		Version: 4, TOS: s.tos, TTL: ttl, Protocol: protocol, Id: s.id,
		SrcIP: net.IPv4(10, 0, 0, s.flow).To4(), DstIP: net.IPv4(10, 255, 255, 254).To4(),
	}
	if s.df {
		h.Flags |= layers.IPv4DontFragment
	}
	if s.fragment {
		h.Flags |= layers.IPv4MoreFragments
	}
	if s.ipOptions {
		h.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}
	}
	return h
}

func (s spec) transport(network gopacket.SerializableLayer) gopacket.SerializableLayer {
	port := s.sourcePort
	if port == 0 {
		port = 1000
	}
	if s.udp {
		u := &layers.UDP{SrcPort: layers.UDPPort(port), DstPort: 4433}
		u.SetNetworkLayerForChecksum(network.(gopacket.NetworkLayer))
		return u
	}
	t := &layers.TCP{
		SrcPort: layers.TCPPort(port), DstPort: 443, Seq: s.seq, Ack: s.ack, Window: s.window, ACK: !s.noAck,
		FIN: s.flags&ip.TCPFin != 0, SYN: s.flags&ip.TCPSyn != 0, RST: s.flags&ip.TCPRst != 0, PSH: s.flags&ip.TCPPsh != 0,
		URG: s.flags&ip.TCPUrg != 0, ECE: s.flags&ip.TCPEce != 0, CWR: s.flags&ip.TCPCwr != 0,
	}
	for o := s.options; len(o) > 0; o = o[4:] {
		t.Options = append(t.Options, layers.TCPOption{OptionType: 254, OptionLength: 4, OptionData: o[2:4]})
	}
	t.SetNetworkLayerForChecksum(network.(gopacket.NetworkLayer))
	return t
}

func (s spec) bytes() []byte {
	network := s.network()
	out := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(out, fix, network, s.transport(network), gopacket.Payload(s.payload)); err != nil {
		panic(err)
	}
	b := bytes.Clone(out.Bytes())
	if s.zeroChecksum {
		offset := 26
		if s.six {
			offset = 46
		}
		b[offset], b[offset+1] = 0, 0
	}
	if s.badIPChecksum {
		b[10] ^= 0x55
	}
	return b
}

func (s spec) gso() GSOType {
	switch {
	case s.udp && s.six:
		return GSOUDPv6
	case s.udp:
		return GSOUDPv4
	case s.six:
		return GSOTCPv6
	}
	return GSOTCPv4
}

// segments is the slow twin of Segmenter, from the description in RFC 9293 and RFC 768 by way of gopacket.
func (s spec) segments(size int) [][]byte {
	var all [][]byte
	for from := 0; from < len(s.payload) || from == 0; from += size {
		k := s
		k.payload = s.payload[from:min(from+size, len(s.payload))]
		k.id += uint16(from / size)
		k.seq += uint32(from)
		if from+size < len(s.payload) {
			k.flags &^= ip.TCPFin | ip.TCPPsh
		}
		if from > 0 {
			k.flags &^= ip.TCPCwr
		}
		all = append(all, k.bytes())
	}
	return all
}

// superpacket makes what the kernel would hand over: the whole payload behind one header, with the pseudo-header sum in
// place of the checksum.
func (s spec) superpacket(size int) *Superpacket {
	data := s.bytes()
	p := &Superpacket{Data: data}
	if size > 0 {
		p.Type, p.SegmentSize = s.gso(), uint16(size)
	}
	p.NeedsChecksum = true
	transport, protocol, offset := 20, uint8(ip.ProtocolTCP), 16
	if s.six {
		transport = 40
	}
	if s.udp {
		protocol, offset = ip.ProtocolUDP, 6
	}
	p.ChecksumStart, p.ChecksumOffset = uint16(transport), uint16(offset)
	p.HeaderLen = uint16(len(data) - len(s.payload))
	sum := ip.PseudoSum(data, protocol, len(data)-transport)
	data[transport+offset], data[transport+offset+1] = byte(sum>>8), byte(sum)
	return p
}

// verify decodes a packet with gopacket, builds it anew with lengths and checksums computed there, and compares.
func verify(t *testing.T, packet []byte) {
	t.Helper()
	first := layers.LayerTypeIPv4
	if packet[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	decoded := gopacket.NewPacket(packet, first, gopacket.Default)
	if e := decoded.ErrorLayer(); e != nil {
		t.Fatalf("gopacket: %v\n%x", e.Error(), packet)
	}
	network := decoded.NetworkLayer()
	parts := []gopacket.SerializableLayer{network.(gopacket.SerializableLayer)}
	switch l := decoded.TransportLayer().(type) {
	case *layers.TCP:
		l.SetNetworkLayerForChecksum(network)
		parts = append(parts, l, gopacket.Payload(l.Payload))
	case *layers.UDP:
		l.SetNetworkLayerForChecksum(network)
		parts = append(parts, l, gopacket.Payload(l.Payload))
	default:
		t.Fatalf("no transport layer: %x", packet)
	}
	out := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(out, fix, parts...); err != nil {
		t.Fatal(err)
	}
	if !same(out.Bytes(), packet) {
		t.Fatalf("packet differs from what gopacket makes of it:\ngot  %x\nwant %x", packet, out.Bytes())
	}
}

// same compares packets, where checksums of 0 and 0xffff are the same number.
func same(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	t, ok := ip.FindTransport(a)
	at := t.Offset + 16
	if t.Protocol == ip.ProtocolUDP {
		at = t.Offset + 6
	}
	if !ok || len(a) != len(b) || len(a) < at+2 || !bytes.Equal(a[:at], b[:at]) || !bytes.Equal(a[at+2:], b[at+2:]) {
		return false
	}
	zero := func(p []byte) bool { return p[at] == p[at+1] && (p[at] == 0 || p[at] == 0xff) }
	return zero(a) && zero(b)
}

func randomBytes(random *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}
