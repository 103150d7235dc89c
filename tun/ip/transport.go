package ip

import "encoding/binary"

// Transport is where a packet's transport header begins.
type Transport struct {
	Protocol uint8
	Offset   int  // bytes from the start of the packet
	Fragment bool // part of a larger packet
	First    bool // the first fragment, or no fragment: the transport header is at Offset
	Routed   bool // an IPv6 routing header names another final destination
	// ID is the identification that the fragments of one packet share; 16 bits in IPv4, whole or not, and 0 in IPv6 without
	// a fragment header.
	ID uint32
}

// maxExtensions bounds the chain of IPv6 extension headers that FindTransport follows.
const maxExtensions = 8

// FindTransport finds the transport header of a packet for which [Length] was ok and which is trimmed to it. Hop-by-hop
// options, routing, fragment and destination options headers are followed (RFC 8200, section 4); everything else,
// AH and ESP among it, counts as transport. Not ok: a header that does not lie in the packet, or a chain longer
// than eight.
func FindTransport(p []byte) (t Transport, ok bool) {
	if p[0]>>4 == 4 {
		h := IPv4(p)
		offset := h.FragmentOffset()
		return Transport{
			Protocol: h.Protocol(),
			Offset:   h.HeaderLen(),
			Fragment: offset != 0 || h.MoreFragments(),
			First:    offset == 0,
			ID:       uint32(h.ID()),
		}, true
	}
	t = Transport{Protocol: p[6], Offset: IPv6HeaderLen, First: true}
	for range maxExtensions + 1 { // the last look finds the transport header
		rest := p[t.Offset:]
		var n int
		switch t.Protocol {
		case ProtocolHopByHop, ProtocolRouting, ProtocolDestOptions:
			if len(rest) < 8 {
				return t, false
			}
			n = 8 + int(rest[1])*8
			if t.Protocol == ProtocolRouting && rest[3] != 0 {
				t.Routed = true
			}
		case ProtocolFragment:
			if len(rest) < 8 {
				return t, false
			}
			n = 8
			word := binary.BigEndian.Uint16(rest[2:4])
			// An "atomic fragment" (RFC 6946) is whole, but it still has the extension header.
			t.Fragment = t.Fragment || word&0xfff9 != 0
			t.First = word&0xfff8 == 0
			t.ID = binary.BigEndian.Uint32(rest[4:8])
		default:
			return t, true
		}
		if n > len(rest) {
			return t, false
		}
		t.Protocol = rest[0]
		t.Offset += n
		if !t.First {
			return t, true
		}
	}
	return t, false
}
