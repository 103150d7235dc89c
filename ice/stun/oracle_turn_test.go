package stun

import (
	"encoding/binary"
	"hash/crc32"

	pion "github.com/pion/stun/v4"
)

const (
	turnStunHeaderSize = 20
	turnMagicCookie    = 0x2112A442

	// turnMaxAttributes bounds the work on one message. The longest answer that we understand has nine.
	turnMaxAttributes = 32
	// turnMaxText is the largest REALM and NONCE, RFC 8489, sections 14.9 and 14.10: "fewer than 128 characters [...], which can be
	// as long as 509 bytes"; RFC 5389 allowed 763.
	turnMaxText = 763

	turnIntegritySize    = 20
	turnFingerprintSize  = 4
	turnFingerprintXOR   = 0x5354554e // RFC 8489, section 14.7
	turnOldXORMapped     = 0x8020     // pion's decoder takes it for XOR-MAPPED-ADDRESS
	turnLastMustBeKnown  = 0x7FFF     // attributes up to here "MUST be understood" (RFC 8489, section 14)
	turnFamilyIPv4       = 1
	turnFamilyIPv6       = 2
	turnAddressSizeIPv4  = 8
	turnAddressSizeIPv6  = 20
	turnSmallestErrorNum = 300
	turnLargestErrorNum  = 699
)

// turnCheck is the strict test in front of the decoder. It demands the exact length, attributes that lie inside of the message,
// values that have the length of their type, known attributes where these must be known, and nothing behind the integrity but
// FINGERPRINT, which must be right. What it lets pass can be decoded without looking at lengths again.
func turnCheck(b []byte) turnDrop {
	if len(b) < turnStunHeaderSize || b[0]&0xC0 != 0 || binary.BigEndian.Uint32(b[4:]) != turnMagicCookie {
		return turnDropNotSTUN
	}
	if size := int(binary.BigEndian.Uint16(b[2:])); size%4 != 0 || size != len(b)-turnStunHeaderSize {
		return turnDropLength
	}
	signed, count := false, 0
	for at := turnStunHeaderSize; at < len(b); count++ {
		rest := b[at:] // at least 4 bytes, as all lengths are multiples of 4
		kind, size := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		padded := 4 + (size+3)&^3
		if padded > len(rest) || count == turnMaxAttributes {
			return turnDropAttribute
		}
		if signed && kind != uint16(pion.AttrFingerprint) {
			return turnDropOrder
		}
		if kind == uint16(pion.AttrFingerprint) {
			return turnCheckFingerprint(b, at, size)
		}
		if drop := turnCheckValue(pion.AttrType(kind), rest[4:4+size]); drop != turnDropNone {
			return drop
		}
		signed = signed || kind == uint16(pion.AttrMessageIntegrity)
		at += padded
	}
	return turnDropNone
}

// turnCheckFingerprint: the attribute at b[at:] "MUST be the last attribute in the message" (RFC 8489, section 14.7).
func turnCheckFingerprint(b []byte, at, size int) turnDrop {
	switch {
	case size != turnFingerprintSize:
		return turnDropValue
	case at+4+turnFingerprintSize != len(b):
		return turnDropOrder
	case binary.BigEndian.Uint32(b[at+4:]) != crc32.ChecksumIEEE(b[:at])^turnFingerprintXOR:
		return turnDropFingerprint
	}
	return turnDropNone
}

// turnCheckValue judges the value of one attribute.
func turnCheckValue(kind pion.AttrType, v []byte) turnDrop {
	ok := true
	switch kind {
	case pion.AttrMappedAddress, pion.AttrXORMappedAddress, pion.AttrXORPeerAddress, pion.AttrXORRelayedAddress,
		pion.AttrSourceAddress, pion.AttrChangedAddress, pion.AttrAlternateServer, pion.AttrResponseOrigin,
		pion.AttrOtherAddress, turnOldXORMapped:
		if !turnAddressFits(v) {
			return turnDropAddress
		}
	case pion.AttrMessageIntegrity:
		ok = len(v) == turnIntegritySize
	case pion.AttrErrorCode:
		ok = len(v) >= 4 && len(v) <= 4+turnMaxText && turnCodeFits(v)
	case pion.AttrLifetime, pion.AttrChannelNumber, pion.AttrRequestedTransport, pion.AttrRequestedAddressFamily:
		ok = len(v) == 4
	case pion.AttrReservationToken:
		ok = len(v) == 8
	case pion.AttrRealm, pion.AttrNonce:
		ok = len(v) > 0 && len(v) <= turnMaxText
	case pion.AttrUsername, pion.AttrUnknownAttributes, pion.AttrData, pion.AttrEvenPort, pion.AttrDontFragment:
	default:
		if kind <= turnLastMustBeKnown {
			return turnDropUnknown
		}
	}
	if !ok {
		return turnDropValue
	}
	return turnDropNone
}

// turnAddressFits tells whether v has the length of its family (RFC 8489, section 14.1). The first byte is ignored by the RFC, but
// pion reads it as a part of the family.
func turnAddressFits(v []byte) bool {
	if len(v) < 2 || v[0] != 0 {
		return false
	}
	return v[1] == turnFamilyIPv4 && len(v) == turnAddressSizeIPv4 || v[1] == turnFamilyIPv6 && len(v) == turnAddressSizeIPv6
}

// turnCodeFits: "The Class represents the hundreds digit of the error code. The value MUST be between 3 and 6. The Number [...]
// MUST be between 0 and 99" (RFC 8489, section 14.8).
func turnCodeFits(v []byte) bool {
	class, number := int(v[2]&7), int(v[3])
	code := class*100 + number
	return number < 100 && code >= turnSmallestErrorNum && code <= turnLargestErrorNum
}

type turnDrop uint8

// The reasons to drop a datagram.
const (
	turnDropNone          turnDrop = iota
	turnDropStranger               // not from the server
	turnDropNotSTUN                // neither STUN nor ChannelData
	turnDropLength                 // the length is not the header's, or no multiple of 4
	turnDropAttribute              // an attribute reaches out of the message, or there are too many
	turnDropAddress                // an address attribute has an impossible length or family
	turnDropValue                  // an attribute's length or value is impossible
	turnDropUnknown                // an attribute that must be understood is not (RFC 8489, section 6.3.3)
	turnDropOrder                  // an attribute after MESSAGE-INTEGRITY or FINGERPRINT
	turnDropFingerprint            // FINGERPRINT is wrong
	turnDropIntegrity              // MESSAGE-INTEGRITY is wrong, or is missing in a success response
	turnDropRequest                // a request, on a socket that serves none
	turnDropIndication             // an indication other than Data
	turnDropTransaction            // a response to nothing that we asked
	turnDropIncomplete             // a response without the attributes that it must have
	turnDropChannelLength          // ChannelData claims more bytes than there are
	turnDropChannel                // ChannelData on a channel that nobody holds
	turnDropPermission             // a Data indication from a peer that nobody permits

	// turnDropCount is the number of reasons.
	turnDropCount
)
