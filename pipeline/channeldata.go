package pipeline

import "encoding/binary"

// ChannelHeaderSize is the length in bytes of what stands before the payload of a ChannelData message (RFC 8656, section
// 12.4). On a relayed path each datagram is that much longer: where the relay is reached over IPv6 the tunnel's MTU must be 1416 at
// most, which just fits an outer MTU of 1500 (40 + 8 + 4 + 32 + 1416). The customary 1420 leaves fragments there; over IPv4 it fits.
const ChannelHeaderSize = 4

// PutChannelHeader writes the header `[channel u16][length u16]` of a ChannelData message (RFC 8656, section 12.4) to the
// first 4 bytes of b, whose payload of length bytes follows. There is no padding over UDP. It panics if b is shorter than
// 4 bytes, which is the caller's mistake.
func PutChannelHeader(b []byte, channel, length uint16) {
	_ = b[ChannelHeaderSize-1]
	binary.BigEndian.PutUint16(b, channel)
	binary.BigEndian.PutUint16(b[2:], length)
}

// IsChannelData tells from its first byte whether a datagram of a TURN server is ChannelData (RFC 8656, section 12): the channel
// numbers are 0x4000 through 0x4FFF. Whether it is well-formed tells ParseChannelData.
func IsChannelData(b []byte) bool { return len(b) > 0 && b[0]&0xF0 == 0x40 }

// ParseChannelData splits a ChannelData message. The payload aliases b, so who owns b owns it; it may be empty. ok is false if
// the channel number is none, if the header is cut, or if the message claims more bytes than there are: "If the ChannelData message is received in a
// UDP datagram, and if the UDP datagram is too short to contain the claimed length of the ChannelData message [...], then the
// message is silently discarded" (RFC 8656, section 12.6). Bytes after the payload are padding, which over UDP "is not
// required but MAY be included" (section 12.5).
func ParseChannelData(b []byte) (channel uint16, payload []byte, ok bool) {
	if len(b) < ChannelHeaderSize || !IsChannelData(b) {
		return 0, nil, false
	}
	channel = binary.BigEndian.Uint16(b)
	length := int(binary.BigEndian.Uint16(b[2:]))
	if length > len(b)-ChannelHeaderSize {
		return 0, nil, false
	}
	return channel, b[ChannelHeaderSize : ChannelHeaderSize+length : ChannelHeaderSize+length], true
}
