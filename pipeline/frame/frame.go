// Package frame is how STUN messages and ChannelData lie in a datagram (RFC 8489, section 5; RFC 8656, section 12.4): bytes to
// bytes, nothing allocated, nothing kept, and no opinion on what may come. All slices that it returns alias the datagram.
//
// It stands below pipeline, which finds no paths but strips and writes ChannelData on its lanes and looks into the Data
// indications of relays. Package ice/stun builds on it: that one says which messages are taken, and by whom.
package frame

import (
	"encoding/binary"
	"net/netip"
)

// ChannelHeaderSize is the length in bytes of what stands before the payload of a ChannelData message (RFC 8656, section
// 12.4). On a relayed path each datagram is that much longer: where the relay is reached over IPv6 the tunnel's MTU must be 1416 at
// most, which just fits an outer MTU of 1500 (40 + 8 + 4 + 32 + 1416). The customary 1420 leaves fragments there; over IPv4 it fits.
const ChannelHeaderSize = 4

// Channel numbers. RFC 8656, section 12: "0x4000 through 0x4FFF: These values are the allowed channel numbers". RFC 5766, section
// 11, had them up to 0x7FFF, and a server still meets clients of that age.
const (
	FirstChannel   = 0x4000
	LastChannel    = 0x4FFF
	LastOldChannel = 0x7FFF
)

// PutChannelHeader writes the header `[channel u16][length u16]` of a ChannelData message (RFC 8656, section 12.4) to the
// first 4 bytes of b, whose payload of length bytes follows. There is no padding over UDP. It panics if b is shorter than
// 4 bytes, which is the caller's mistake.
func PutChannelHeader(b []byte, channel, length uint16) {
	_ = b[ChannelHeaderSize-1]
	binary.BigEndian.PutUint16(b, channel)
	binary.BigEndian.PutUint16(b[2:], length)
}

// IsChannelData reports whether a datagram is ChannelData with a number up to last, by its first byte alone: last is LastChannel or
// LastOldChannel. Whether it is well-formed tells ParseChannelData.
func IsChannelData(b []byte, last uint16) bool {
	return len(b) > 0 && b[0] >= FirstChannel>>8 && b[0] <= byte(last>>8)
}

// ParseChannelData splits a ChannelData message. The payload may be empty. ok is false if the channel number is none up to last, if
// the header is cut, or if the message claims more bytes than there are: "If the ChannelData message is received in a UDP datagram,
// and if the UDP datagram is too short to contain the claimed length of the ChannelData message [...], then the message is silently
// discarded" (RFC 8656, section 12.6). Bytes after the payload are padding, which over UDP "is not required but MAY be included"
// (section 12.5).
func ParseChannelData(b []byte, last uint16) (channel uint16, payload []byte, ok bool) {
	if len(b) < ChannelHeaderSize || !IsChannelData(b, last) {
		return 0, nil, false
	}
	channel = binary.BigEndian.Uint16(b)
	length := int(binary.BigEndian.Uint16(b[2:]))
	if length > len(b)-ChannelHeaderSize {
		return 0, nil, false
	}
	return channel, b[ChannelHeaderSize : ChannelHeaderSize+length : ChannelHeaderSize+length], true
}

// The header of a STUN message is type, length of what follows it, cookie and transaction ID (RFC 8489, section 5).
const (
	HeaderSize     = 20
	AttributeSize  = 4 // bytes before the value of an attribute
	Cookie         = 0x2112A442
	dataIndication = 0x0017
	xorPeerAddress = 0x0012
	dataAttribute  = 0x0013
)

// Families of an address attribute (RFC 8489, section 14.1), and the lengths of its value.
const (
	familyIPv4, sizeIPv4 = 1, 8
	familyIPv6, sizeIPv6 = 2, 20
)

// IsMessage reports whether b begins with the header of a STUN message: "The most significant 2 bits of every STUN message MUST be
// zeroes" and "The Magic Cookie field MUST contain the fixed value 0x2112A442" (RFC 8489, section 5).
func IsMessage(b []byte) bool {
	return len(b) >= HeaderSize && b[0]&0xC0 == 0 && binary.BigEndian.Uint32(b[4:]) == Cookie
}

// Attribute returns the attribute at an offset and where the next one begins, which is len(b) after the last. next is 0 if it does
// not lie inside, "padded to a multiple of 4 bytes" (RFC 8489, section 14).
func Attribute(b []byte, at int) (kind uint16, value []byte, next int) {
	if at > len(b)-AttributeSize {
		return 0, nil, 0
	}
	head := b[at : at+AttributeSize]
	kind, size := binary.BigEndian.Uint16(head), int(binary.BigEndian.Uint16(head[2:]))
	from := at + AttributeSize
	if next = from + (size+3)&^3; next > len(b) {
		return 0, nil, 0
	}
	return kind, b[from : from+size : from+size], next
}

// AddressFits reports whether a value has the length of its family (RFC 8489, section 14.1). Of the first byte the RFC says that it
// "MUST be ignored", but pion reads it as a part of the family: so it must be 0.
func AddressFits(v []byte) bool {
	if len(v) < sizeIPv4 || v[0] != 0 {
		return false
	}
	return v[1] == familyIPv4 && len(v) == sizeIPv4 || v[1] == familyIPv6 && len(v) == sizeIPv6
}

// Address reads the value of an address attribute (RFC 8489, section 14.1), mapped IPv4 as what it is; the zero AddrPort if it does not
// fit. header is that of the message if the address is XORed with it (section 14.2), else nil.
func Address(v, header []byte) netip.AddrPort {
	if !AddressFits(v) {
		return netip.AddrPort{}
	}
	port := binary.BigEndian.Uint16(v[2:])
	var ip [16]byte
	n := copy(ip[:], v[4:])
	if header != nil {
		port ^= Cookie >> 16
		for i, x := range header[4 : 4+n] {
			ip[i] ^= x
		}
	}
	if n == 4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[:])), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(ip), port)
}

// AppendXORAddress appends the value of an address attribute that is XORed with the message's header (RFC 8489, section 14.2).
func AppendXORAddress(b []byte, a netip.AddrPort, header []byte) []byte {
	ip, n, family := a.Addr().As16(), 16, byte(familyIPv6)
	from := ip[:]
	if a.Addr().Is4() {
		from, n, family = ip[12:], 4, familyIPv4
	}
	for i, x := range header[4 : 4+n] {
		from[i] ^= x
	}
	b = append(b, 0, family)
	b = binary.BigEndian.AppendUint16(b, a.Port()^Cookie>>16)
	return append(b, from...)
}

// ParseDataIndication splits a Data indication of a TURN server (RFC 8656, section 11.3): who has sent the data, Unmap()ed, and the
// data. ok is false for everything else, for a message that is cut or longer than it says, and for one without one of the two
// attributes, of which "only the first occurrence needs to be processed" (RFC 8489, section 14).
func ParseDataIndication(b []byte) (peer netip.AddrPort, payload []byte, ok bool) {
	if !IsMessage(b) || binary.BigEndian.Uint16(b) != dataIndication || int(binary.BigEndian.Uint16(b[2:])) != len(b)-HeaderSize {
		return netip.AddrPort{}, nil, false
	}
	for at := HeaderSize; at < len(b); {
		kind, value, next := Attribute(b, at)
		if next == 0 {
			return netip.AddrPort{}, nil, false
		}
		switch {
		case kind == xorPeerAddress && !peer.IsValid():
			peer = Address(value, b)
		case kind == dataAttribute && payload == nil:
			payload = value
		}
		at = next
	}
	peer = netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
	return peer, payload, peer.IsValid() && payload != nil
}
