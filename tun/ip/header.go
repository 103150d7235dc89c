package ip

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Lengths of headers without options, in bytes.
const (
	IPv4HeaderLen = 20
	IPv6HeaderLen = 40
	TCPHeaderLen  = 20
	UDPHeaderLen  = 8
)

// Protocol numbers (IANA).
const (
	ProtocolHopByHop    = 0
	ProtocolICMP        = 1
	ProtocolTCP         = 6
	ProtocolUDP         = 17
	ProtocolRouting     = 43
	ProtocolFragment    = 44
	ProtocolICMPv6      = 58
	ProtocolDestOptions = 60
)

// TCP flags, as in the fourteenth byte of the header (RFC 9293, section 3.1).
const (
	TCPFin = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
	TCPEce
	TCPCwr
)

// Version is the IP version that the first byte says; 0 for an empty packet.
func Version(p []byte) int {
	if len(p) == 0 {
		return 0
	}
	return int(p[0] >> 4)
}

// Length is the length of the IP packet that begins at p[0], in bytes, as its header says. It is ok when p is IPv4 or
// IPv6, the header lies in p, and header <= Length <= len(p). What lies in p behind Length is not part of the packet
// (a tunnel's padding). Jumbograms (RFC 2675) are not ok.
func Length(p []byte) (n int, ok bool) {
	switch Version(p) {
	case 4:
		if len(p) < IPv4HeaderLen {
			return 0, false
		}
		header, n := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
		return n, header >= IPv4HeaderLen && header <= n && n <= len(p)
	case 6:
		if len(p) < IPv6HeaderLen {
			return 0, false
		}
		n := IPv6HeaderLen + int(binary.BigEndian.Uint16(p[4:]))
		return n, n <= len(p)
	}
	return 0, false
}

// Source is the source address of a packet for which [Length] was ok.
func Source(p []byte) netip.Addr {
	if p[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(p[12:16]))
	}
	return netip.AddrFrom16([16]byte(p[8:24]))
}

// Destination is the destination address of a packet for which [Length] was ok.
func Destination(p []byte) netip.Addr {
	if p[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(p[16:20]))
	}
	return netip.AddrFrom16([16]byte(p[24:40]))
}

// Addresses is the source and the destination, one behind the other (8 or 32 bytes), borrowed from a packet for which
// [Length] was ok.
func Addresses(p []byte) []byte {
	if p[0]>>4 == 4 {
		return p[12:20]
	}
	return p[8:40]
}

// IPv4 is a view of an IPv4 packet, trimmed to its total length.
type IPv4 []byte

// The fields of RFC 791, section 3.1. FragmentOffset is in bytes.

func (h IPv4) HeaderLen() int      { return int(h[0]&15) * 4 }
func (h IPv4) ID() uint16          { return binary.BigEndian.Uint16(h[4:6]) }
func (h IPv4) DontFragment() bool  { return h[6]&0x40 != 0 }
func (h IPv4) MoreFragments() bool { return h[6]&0x20 != 0 }
func (h IPv4) FragmentOffset() int { return int(binary.BigEndian.Uint16(h[6:8])&0x1fff) * 8 }
func (h IPv4) Protocol() uint8     { return h[9] }

// ChecksumOK says whether the header's checksum is right.
func (h IPv4) ChecksumOK() bool {
	if h[0]&15 != IPv4HeaderLen/4 {
		return Sum(h[:h.HeaderLen()], 0) == 0xffff
	}
	// The usual header, at a third of the cost.
	b := h[:IPv4HeaderLen]
	acc := binary.LittleEndian.Uint64(b[0:8])
	acc, carry := bits.Add64(acc, binary.LittleEndian.Uint64(b[8:16]), 0)
	acc, carry = bits.Add64(acc, uint64(binary.LittleEndian.Uint32(b[16:20])), carry)
	return fold(acc+carry) == 0xffff
}

// SetTotalLen changes the total length and leaves the checksum alone.
func (h IPv4) SetTotalLen(n int) { binary.BigEndian.PutUint16(h[2:4], uint16(n)) }

// SetChecksum computes the header's checksum and stores it.
func (h IPv4) SetChecksum() {
	h[10], h[11] = 0, 0
	binary.BigEndian.PutUint16(h[10:12], ^Sum(h[:h.HeaderLen()], 0))
}

// IPv6 is a view of an IPv6 packet, trimmed to its payload length.
type IPv6 []byte

// The fields of RFC 8200, section 3.

// Payload is what follows the fixed header, extension headers included, borrowed.
func (h IPv6) Payload() []byte { return h[IPv6HeaderLen:] }

// SetPayloadLen changes the payload length.
func (h IPv6) SetPayloadLen(n int) { binary.BigEndian.PutUint16(h[4:6], uint16(n)) }

// TCP is a view of a TCP header and what follows it.
type TCP []byte

// ParseTCP checks that header and options lie in b.
func ParseTCP(b []byte) (TCP, bool) {
	if len(b) < TCPHeaderLen {
		return nil, false
	}
	n := int(b[12]>>4) * 4
	return TCP(b), n >= TCPHeaderLen && n <= len(b)
}

// The fields of RFC 9293, section 3.1.

func (h TCP) HeaderLen() int { return int(h[12]>>4) * 4 }
func (h TCP) Flags() uint8   { return h[13] }

// SetChecksum stores c, which is complete (inverted) or a pseudo-header sum.
func (h TCP) SetChecksum(c uint16) { binary.BigEndian.PutUint16(h[16:18], c) }

// SetFlags changes the flags.
func (h TCP) SetFlags(f uint8) { h[13] = f }

// UDP is a view of a UDP header and its payload, trimmed to its length.
type UDP []byte

// ParseUDP checks the header's length field against b and trims to it.
func ParseUDP(b []byte) (UDP, bool) {
	if len(b) < UDPHeaderLen {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(b[4:6]))
	if n < UDPHeaderLen || n > len(b) {
		return nil, false
	}
	return UDP(b[:n]), true
}

// The fields of RFC 768.

func (h UDP) SourcePort() uint16      { return binary.BigEndian.Uint16(h[0:2]) }
func (h UDP) DestinationPort() uint16 { return binary.BigEndian.Uint16(h[2:4]) }
func (h UDP) Checksum() uint16        { return binary.BigEndian.Uint16(h[6:8]) }

// SetLen changes the length field.
func (h UDP) SetLen(n int) { binary.BigEndian.PutUint16(h[4:6], uint16(n)) }

// SetChecksum stores c, which is complete (inverted) or a pseudo-header sum.
func (h UDP) SetChecksum(c uint16) { binary.BigEndian.PutUint16(h[6:8], c) }
