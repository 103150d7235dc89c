package crypto

import "encoding/binary"

// MessageType is the first byte of a WireGuard message (paper, section 5.4). On the wire it is a 32-bit little-endian
// word whose upper three bytes are zero.
type MessageType uint8

// The four messages of WireGuard.
const (
	MessageInitiation  MessageType = 1 // section 5.4.2
	MessageResponse    MessageType = 2 // section 5.4.3
	MessageCookieReply MessageType = 3 // section 5.4.7
	MessageTransport   MessageType = 4 // section 5.4.6
)

// Sizes of the messages in bytes.
const (
	SizeInitiation      = 148
	SizeResponse        = 92
	SizeCookieReply     = 64
	SizeTransportHeader = 16
	SizeKeepalive       = 32 // the header and the tag of an empty plaintext: the shortest transport data message
)

// Field offsets. A message is encoded and parsed in place, little endian.
const (
	offsetSender   = 4 // initiation and response: the sender's index
	offsetReceiver = 4 // cookie reply and transport data: the receiver's index
	offsetCounter  = 8 // transport data

	initiationEphemeral = 8
	initiationStatic    = 40 // 32 bytes and a tag
	initiationTimestamp = 88 // 12 bytes and a tag
	initiationMac1      = 116

	responseReceiver  = 8
	responseEphemeral = 12
	responseEmpty     = 44 // a tag alone
	responseMac1      = 60

	cookieReplyNonce  = 8 // 24 bytes
	cookieReplySealed = 32

	tagSize = 16
	macSize = 16
)

// Classify tells which message b is by the 32-bit type word and the length: exact for the three handshake messages, at
// least [SizeKeepalive] for transport data (kernel receive.c, validate_header_len). Nothing in b is authenticated yet.
func Classify(b []byte) (kind MessageType, ok bool) {
	kind, reason := classify(b)
	return kind, reason == Accepted
}

func classify(b []byte) (MessageType, Reason) {
	if len(b) < 4 {
		return 0, BadLength
	}
	right := false
	word := binary.LittleEndian.Uint32(b)
	switch word {
	case uint32(MessageInitiation):
		right = len(b) == SizeInitiation
	case uint32(MessageResponse):
		right = len(b) == SizeResponse
	case uint32(MessageCookieReply):
		right = len(b) == SizeCookieReply
	case uint32(MessageTransport):
		right = len(b) >= SizeKeepalive
	default:
		return 0, BadType
	}
	if !right {
		return MessageType(word), BadLength
	}
	return MessageType(word), Accepted
}

// Index is the index that each message bears behind its type word: the sender's in an initiation or response, the receiver's
// in a cookie reply or transport data. b is a message for which [Classify] was ok.
func Index(b []byte) uint32 { return binary.LittleEndian.Uint32(b[offsetSender:]) }

// PutTransportHeader writes the header of a transport data message into the first [SizeTransportHeader] bytes of b,
// which must be that long. The ciphertext follows it.
func PutTransportHeader(b []byte, index uint32, counter uint64) {
	_ = b[SizeTransportHeader-1]
	binary.LittleEndian.PutUint32(b, uint32(MessageTransport))
	binary.LittleEndian.PutUint32(b[offsetReceiver:], index)
	binary.LittleEndian.PutUint64(b[offsetCounter:], counter)
}

// ParseTransport reads the header of a transport data message; the ciphertext is b[SizeTransportHeader:]. Not ok: b is
// no such message.
func ParseTransport(b []byte) (index uint32, counter uint64, ok bool) {
	if len(b) < SizeKeepalive || binary.LittleEndian.Uint32(b) != uint32(MessageTransport) {
		return 0, 0, false
	}
	return binary.LittleEndian.Uint32(b[offsetReceiver:]), binary.LittleEndian.Uint64(b[offsetCounter:]), true
}
