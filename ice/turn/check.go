package turn

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/pion/stun/v3"
)

const (
	stunHeaderSize = 20
	magicCookie    = 0x2112A442

	// maxAttributes bounds the work on one message. The longest answer that we understand has nine.
	maxAttributes = 32
	// maxText is the largest REALM and NONCE, RFC 8489, sections 14.9 and 14.10: "fewer than 128 characters [...], which can be
	// as long as 509 bytes"; RFC 5389 allowed 763.
	maxText = 763

	integritySize    = 20
	fingerprintSize  = 4
	fingerprintXOR   = 0x5354554e // RFC 8489, section 14.7
	oldXORMapped     = 0x8020     // pion's decoder takes it for XOR-MAPPED-ADDRESS
	lastMustBeKnown  = 0x7FFF     // attributes up to here "MUST be understood" (RFC 8489, section 14)
	familyIPv4       = 1
	familyIPv6       = 2
	addressSizeIPv4  = 8
	addressSizeIPv6  = 20
	smallestErrorNum = 300
	largestErrorNum  = 699
)

// check is the strict test in front of the decoder. It demands the exact length, attributes that lie inside of the message,
// values that have the length of their type, known attributes where these must be known, and nothing behind the integrity but
// FINGERPRINT, which must be right. What it lets pass can be decoded without looking at lengths again.
func check(b []byte) Drop {
	if len(b) < stunHeaderSize || b[0]&0xC0 != 0 || binary.BigEndian.Uint32(b[4:]) != magicCookie {
		return DropNotSTUN
	}
	if size := int(binary.BigEndian.Uint16(b[2:])); size%4 != 0 || size != len(b)-stunHeaderSize {
		return DropLength
	}
	signed, count := false, 0
	for at := stunHeaderSize; at < len(b); count++ {
		rest := b[at:] // at least 4 bytes, as all lengths are multiples of 4
		kind, size := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		padded := 4 + (size+3)&^3
		if padded > len(rest) || count == maxAttributes {
			return DropAttribute
		}
		if signed && kind != uint16(stun.AttrFingerprint) {
			return DropOrder
		}
		if kind == uint16(stun.AttrFingerprint) {
			return checkFingerprint(b, at, size)
		}
		if drop := checkValue(stun.AttrType(kind), rest[4:4+size]); drop != DropNone {
			return drop
		}
		signed = signed || kind == uint16(stun.AttrMessageIntegrity)
		at += padded
	}
	return DropNone
}

// checkFingerprint: the attribute at b[at:] "MUST be the last attribute in the message" (RFC 8489, section 14.7).
func checkFingerprint(b []byte, at, size int) Drop {
	switch {
	case size != fingerprintSize:
		return DropValue
	case at+4+fingerprintSize != len(b):
		return DropOrder
	case binary.BigEndian.Uint32(b[at+4:]) != crc32.ChecksumIEEE(b[:at])^fingerprintXOR:
		return DropFingerprint
	}
	return DropNone
}

// checkValue judges the value of one attribute.
func checkValue(kind stun.AttrType, v []byte) Drop {
	ok := true
	switch kind {
	case stun.AttrMappedAddress, stun.AttrXORMappedAddress, stun.AttrXORPeerAddress, stun.AttrXORRelayedAddress,
		stun.AttrSourceAddress, stun.AttrChangedAddress, stun.AttrAlternateServer, stun.AttrResponseOrigin,
		stun.AttrOtherAddress, oldXORMapped:
		if !addressFits(v) {
			return DropAddress
		}
	case stun.AttrMessageIntegrity:
		ok = len(v) == integritySize
	case stun.AttrErrorCode:
		ok = len(v) >= 4 && len(v) <= 4+maxText && codeFits(v)
	case stun.AttrLifetime, stun.AttrChannelNumber, stun.AttrRequestedTransport, stun.AttrRequestedAddressFamily:
		ok = len(v) == 4
	case stun.AttrReservationToken:
		ok = len(v) == 8
	case stun.AttrRealm, stun.AttrNonce:
		ok = len(v) > 0 && len(v) <= maxText
	case stun.AttrUsername, stun.AttrUnknownAttributes, stun.AttrData, stun.AttrEvenPort, stun.AttrDontFragment:
	default:
		if kind <= lastMustBeKnown {
			return DropUnknown
		}
	}
	if !ok {
		return DropValue
	}
	return DropNone
}

// addressFits tells whether v has the length of its family (RFC 8489, section 14.1). The first byte is ignored by the RFC, but
// pion reads it as a part of the family.
func addressFits(v []byte) bool {
	if len(v) < 2 || v[0] != 0 {
		return false
	}
	return v[1] == familyIPv4 && len(v) == addressSizeIPv4 || v[1] == familyIPv6 && len(v) == addressSizeIPv6
}

// codeFits: "The Class represents the hundreds digit of the error code. The value MUST be between 3 and 6. The Number [...]
// MUST be between 0 and 99" (RFC 8489, section 14.8).
func codeFits(v []byte) bool {
	class, number := int(v[2]&7), int(v[3])
	code := class*100 + number
	return number < 100 && code >= smallestErrorNum && code <= largestErrorNum
}
