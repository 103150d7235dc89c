package ip

import "encoding/binary"

// ECN is the congestion mark of a packet: the two low bits of TOS or traffic class (RFC 3168, section 5).
type ECN uint8

// The four marks.
const (
	NotECT ECN = 0
	ECT1   ECN = 1
	ECT0   ECN = 2
	CE     ECN = 3
)

// Mark is the mark of a packet for which [Length] was ok. In normal mode it is also what an encapsulating tunnel puts on the
// outer header (RFC 6040, section 4.1).
func Mark(p []byte) ECN {
	if p[0]>>4 == 4 {
		return ECN(p[1] & 3)
	}
	return ECN(p[1] >> 4 & 3)
}

// SetMark changes the mark of a packet for which [Length] was ok and updates the IPv4 header checksum (RFC 1624,
// equation 3). A checksum that was wrong stays wrong.
func SetMark(p []byte, mark ECN) {
	if p[0]>>4 == 6 {
		p[1] = p[1]&^0x30 | uint8(mark)<<4
		return
	}
	before := binary.BigEndian.Uint16(p[0:2])
	p[1] = p[1]&^3 | uint8(mark)
	after := binary.BigEndian.Uint16(p[0:2])
	sum := Add(^binary.BigEndian.Uint16(p[10:12]), Add(^before, after))
	binary.BigEndian.PutUint16(p[10:12], ^sum)
}

// DecapsulateECN is the mark that the inner packet leaves the tunnel with. drop says that the packet must be dropped
// instead: "If the inner ECN field is Not-ECT [...] if the outer is CE, the egress MUST drop the packet" (RFC 6040,
// section 4.2, whose figure 4 this is).
func DecapsulateECN(inner, outer ECN) (mark ECN, drop bool) {
	switch {
	case outer == CE:
		return CE, inner == NotECT
	case outer == ECT1 && inner == ECT0:
		return ECT1, false
	}
	return inner, false
}
