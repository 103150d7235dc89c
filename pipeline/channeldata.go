package pipeline

import "encoding/binary"

// ChannelHeaderSize is the length in bytes of what stands before the payload of a ChannelData message (RFC 8656, section
// 12.4). On a relayed path each datagram is that much longer: over IPv6 an inner MTU of 1416 just fits 1500 bytes.
const ChannelHeaderSize = 4

// PutChannelHeader writes the header `[channel u16][length u16]` of a ChannelData message (RFC 8656, section 12.4) to the
// first 4 bytes of b, whose payload of length bytes follows. There is no padding over UDP. It panics if b is shorter than
// 4 bytes, which is the caller's mistake.
func PutChannelHeader(b []byte, channel, length uint16) {
	_ = b[ChannelHeaderSize-1]
	binary.BigEndian.PutUint16(b, channel)
	binary.BigEndian.PutUint16(b[2:], length)
}

// IsChannelData tells from its first byte whether a datagram of a TURN server can be ChannelData (RFC 8656, section 12).
func IsChannelData(b []byte) bool { return len(b) >= ChannelHeaderSize && b[0]&0xF0 == 0x40 }

// ParseChannelData splits a ChannelData message. The payload aliases b, so who owns b owns it; it may be empty. ok is false if
// the channel number is none or if the message claims more bytes than there are: "If the ChannelData message is received in a
// UDP datagram, and if the UDP datagram is too short to contain the claimed length of the ChannelData message [...], then the
// message is silently discarded" (RFC 8656, section 12.6). Bytes after the payload are padding, which over UDP "is not
// required but MAY be included" (section 12.5).
func ParseChannelData(b []byte) (channel uint16, payload []byte, ok bool) {
	if !IsChannelData(b) {
		return 0, nil, false
	}
	channel = binary.BigEndian.Uint16(b)
	length := int(binary.BigEndian.Uint16(b[2:]))
	if length > len(b)-ChannelHeaderSize {
		return 0, nil, false
	}
	return channel, b[ChannelHeaderSize : ChannelHeaderSize+length : ChannelHeaderSize+length], true
}
