package stun

import (
	"encoding/binary"
	"net/netip"
)

// laneChannelHeaderSize is the length in bytes of what stands before the payload of a ChannelData message (RFC 8656, section
// 12.4). On a relayed path each datagram is that much longer: where the relay is reached over IPv6 the tunnel's MTU must be 1416 at
// most, which just fits an outer MTU of 1500 (40 + 8 + 4 + 32 + 1416). The customary 1420 leaves fragments there; over IPv4 it fits.
const laneChannelHeaderSize = 4

// lanePutChannelHeader writes the header `[channel u16][length u16]` of a ChannelData message (RFC 8656, section 12.4) to the
// first 4 bytes of b, whose payload of length bytes follows. There is no padding over UDP. It panics if b is shorter than
// 4 bytes, which is the caller's mistake.
func lanePutChannelHeader(b []byte, channel, length uint16) {
	_ = b[laneChannelHeaderSize-1]
	binary.BigEndian.PutUint16(b, channel)
	binary.BigEndian.PutUint16(b[2:], length)
}

// laneIsChannelData tells from its first byte whether a datagram of a TURN server is ChannelData (RFC 8656, section 12): the channel
// numbers are 0x4000 through 0x4FFF. Whether it is well-formed tells laneParseChannelData.
func laneIsChannelData(b []byte) bool { return len(b) > 0 && b[0]&0xF0 == 0x40 }

// laneParseChannelData splits a ChannelData message. The payload aliases b, so who owns b owns it; it may be empty. ok is false if
// the channel number is none, if the header is cut, or if the message claims more bytes than there are: "If the ChannelData message is received in a
// UDP datagram, and if the UDP datagram is too short to contain the claimed length of the ChannelData message [...], then the
// message is silently discarded" (RFC 8656, section 12.6). Bytes after the payload are padding, which over UDP "is not
// required but MAY be included" (section 12.5).
func laneParseChannelData(b []byte) (channel uint16, payload []byte, ok bool) {
	if len(b) < laneChannelHeaderSize || !laneIsChannelData(b) {
		return 0, nil, false
	}
	channel = binary.BigEndian.Uint16(b)
	length := int(binary.BigEndian.Uint16(b[2:]))
	if length > len(b)-laneChannelHeaderSize {
		return 0, nil, false
	}
	return channel, b[laneChannelHeaderSize : laneChannelHeaderSize+length : laneChannelHeaderSize+length], true
}

// What laneParseDataIndication knows of STUN (RFC 8489, sections 5 and 14; RFC 8656, sections 17 and 18).
const (
	laneDataIndication     = 0x0017
	laneMagicCookie        = 0x2112A442
	laneSizeSTUNHeader     = 20
	laneAttrXORPeerAddress = 0x0012
	laneAttrData           = 0x0013
)

// laneParseDataIndication splits a Data indication of a TURN server: who has sent the data, and the data, which aliases b. ok is false
// for everything else, for a message that is cut or longer than it says, and for one without one of the two attributes.
func laneParseDataIndication(b []byte) (peer netip.AddrPort, data []byte, ok bool) {
	if len(b) < laneSizeSTUNHeader || binary.BigEndian.Uint16(b) != laneDataIndication ||
		binary.BigEndian.Uint32(b[4:]) != laneMagicCookie || int(binary.BigEndian.Uint16(b[2:])) != len(b)-laneSizeSTUNHeader {
		return peer, nil, false
	}
	for rest := b[laneSizeSTUNHeader:]; len(rest) >= 4; {
		kind, size := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		if size > len(rest)-4 {
			return peer, nil, false
		}
		switch value := rest[4 : 4+size : 4+size]; {
		case kind == laneAttrXORPeerAddress && !peer.IsValid():
			peer = laneXorAddress(value, b[4:laneSizeSTUNHeader])
		case kind == laneAttrData && data == nil:
			data = value
		}
		rest = rest[min(len(rest), 4+(size+3)&^3):]
	}
	return peer, data, peer.IsValid() && data != nil
}

// laneXorAddress reads the value of an XOR address attribute (RFC 8489, section 14.2); mask is the cookie and the transaction ID. The zero
// AddrPort: there is no address in it.
func laneXorAddress(value, mask []byte) netip.AddrPort {
	switch {
	case len(value) == 8 && value[1] == 1:
	case len(value) == 20 && value[1] == 2:
	default:
		return netip.AddrPort{}
	}
	var ip [16]byte
	n := copy(ip[:], value[4:])
	for i := range n {
		ip[i] ^= mask[i]
	}
	addr, _ := netip.AddrFromSlice(ip[:n]) // of 4 or 16 bytes
	return netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(value[2:])^laneMagicCookie>>16)
}
