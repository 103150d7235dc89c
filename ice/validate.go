package ice

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
)

// The layout of a STUN message (RFC 8489, section 5).
const (
	stunHeader  = 20
	stunCookie  = 0x2112A442
	stunLongest = 1280 // no check or answer of ours comes near; fragments are not worth the risk
)

// transactionID pairs an answer with its request.
type transactionID [12]byte

// stunClass is the class of a message (RFC 8489, section 5).
type stunClass uint8

const (
	classRequest stunClass = iota
	classIndication
	classSuccess
	classError
)

// Attributes that may come in a Binding message (RFC 8489, section 18.3; RFC 8445, section 16.1; RFC 5780, section 7).
const (
	attrMappedAddress     = 0x0001
	attrUsername          = 0x0006
	attrMessageIntegrity  = 0x0008
	attrErrorCode         = 0x0009
	attrUnknownAttributes = 0x000A
	attrRealm             = 0x0014
	attrNonce             = 0x0015
	attrIntegritySHA256   = 0x001C
	attrXORMappedAddress  = 0x0020
	attrPriority          = 0x0024
	attrUseCandidate      = 0x0025
	attrXORMappedOld      = 0x8020 // of a draft; pion takes it for XOR-MAPPED-ADDRESS
	attrSoftware          = 0x8022
	attrAlternateServer   = 0x8023
	attrFingerprint       = 0x8028
	attrICEControlled     = 0x8029
	attrICEControlling    = 0x802A
	attrResponseOrigin    = 0x802B
	attrOtherAddress      = 0x802C
)

// fingerprintXOR is XORed to the CRC (RFC 8489, section 14.7).
const fingerprintXOR = 0x5354554e

// message is a STUN message that passed the check. All fields are views into the datagram, so borrowed as it is.
type message struct {
	raw       []byte
	class     stunClass
	id        transactionID
	username  []byte         // nil if there is none
	integrity int            // offset of the MESSAGE-INTEGRITY attribute, 0 if there is none
	mapped    netip.AddrPort // XOR-MAPPED-ADDRESS, else MAPPED-ADDRESS

	seen     uint32 // one bit for each attribute of attrShape that came
	nominate bool   // USE-CANDIDATE
}

// validate is the gate before pion: it passes Binding messages whose form is beyond doubt and returns why it does not
// pass others. What it passes is safe for pion/stun v0.6.1, which reads addresses without looking at their length
// (CVE-2026-54909) and takes attributes behind MESSAGE-INTEGRITY for genuine:
//
//   - the datagram is the message: the length field is its length, a multiple of 4, at most stunLongest;
//   - attributes and their padding lie inside, those we know have a length that fits and come once;
//   - what must be understood (RFC 8489, section 14) is understood;
//   - behind MESSAGE-INTEGRITY there is nothing but MESSAGE-INTEGRITY-SHA256 and FINGERPRINT, and FINGERPRINT comes last
//     and is right;
//   - a request has USERNAME, MESSAGE-INTEGRITY and FINGERPRINT, as ICE wants it (RFC 8445, section 7.1).
func validate(b []byte) (m message, why dropReason) {
	if len(b) < stunHeader || b[0]&0xC0 != 0 || binary.BigEndian.Uint32(b[4:]) != stunCookie {
		return m, dropNotSTUN
	}
	length := int(binary.BigEndian.Uint16(b[2:]))
	if length != len(b)-stunHeader || length%4 != 0 || len(b) > stunLongest {
		return m, dropMalformed
	}
	kind := binary.BigEndian.Uint16(b)
	if kind&^0x0110 != 1 { // the method's bits around those of the class
		return m, dropNotBinding
	}
	m.raw = b
	m.class = stunClass(kind>>4&1 | kind>>7&2)
	copy(m.id[:], b[8:])
	for at := stunHeader; at < len(b); {
		next, why := m.attribute(at)
		if why != dropNone {
			return m, why
		}
		at = next
	}
	if m.class == classRequest && (m.username == nil || m.integrity == 0 || m.seen&bit(attrFingerprint) == 0) {
		return m, dropMalformed
	}
	return m, dropNone
}

// attribute checks the attribute at an offset and returns the next one's.
func (m *message) attribute(at int) (next int, why dropReason) {
	rest := m.raw[at:]
	if len(rest) < 4 {
		return 0, dropMalformed
	}
	kind, length := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
	padded := (length + 3) &^ 3
	if padded > len(rest)-4 || m.seen&bit(attrFingerprint) != 0 {
		return 0, dropMalformed
	}
	if m.integrity != 0 && kind != attrIntegritySHA256 && kind != attrFingerprint {
		return 0, dropMalformed
	}
	next = at + 4 + padded
	value := rest[4 : 4+length]
	known, fits := attrShape(kind, value)
	switch {
	case !known && kind < 0x8000:
		return 0, dropUnknownAttribute
	case !known:
		return next, dropNone
	case !fits || m.seen&bit(kind) != 0:
		return 0, dropMalformed
	}
	m.seen |= bit(kind)
	return next, m.note(kind, at, value)
}

// note keeps what routing needs, and checks FINGERPRINT.
func (m *message) note(kind uint16, at int, value []byte) dropReason {
	switch kind {
	case attrUsername:
		m.username = value
	case attrMessageIntegrity:
		m.integrity = at
	case attrUseCandidate:
		m.nominate = true
	case attrMappedAddress:
		if !m.mapped.IsValid() {
			m.mapped = address(value, nil)
		}
	case attrXORMappedAddress:
		m.mapped = address(value, m.raw[4:stunHeader])
	case attrFingerprint:
		if binary.BigEndian.Uint32(value) != crc32.ChecksumIEEE(m.raw[:at])^fingerprintXOR {
			return dropFingerprint
		}
	}
	return dropNone
}

// attrShape tells whether an attribute is known and its value has a length that it may have.
func attrShape(kind uint16, v []byte) (known, fits bool) {
	switch kind {
	case attrMappedAddress, attrXORMappedAddress, attrXORMappedOld, attrAlternateServer, attrResponseOrigin, attrOtherAddress:
		if len(v) < 4 || v[0] != 0 {
			return true, false
		}
		return true, v[1] == 1 && len(v) == 8 || v[1] == 2 && len(v) == 20
	case attrUsername:
		return true, len(v) > 0 && len(v) < 509
	case attrMessageIntegrity:
		return true, len(v) == 20
	case attrIntegritySHA256:
		return true, len(v) >= 16 && len(v) <= 32 && len(v)%4 == 0
	case attrErrorCode:
		return true, len(v) >= 4 && len(v) <= 4+763
	case attrUnknownAttributes:
		return true, len(v)%2 == 0
	case attrRealm, attrNonce, attrSoftware:
		return true, len(v) <= 763
	case attrPriority, attrFingerprint:
		return true, len(v) == 4
	case attrUseCandidate:
		return true, len(v) == 0
	case attrICEControlled, attrICEControlling:
		return true, len(v) == 8
	default:
		return false, false
	}
}

// bit is the attribute's in message.seen. Known attributes have bits of their own: the low four bits of the type, and
// which of the three ranges it is from. The old XOR-MAPPED-ADDRESS shares the bit of the new, since pion reads them as one.
func bit(kind uint16) uint32 {
	switch {
	case kind == attrXORMappedAddress || kind == attrXORMappedOld:
		return 1 << 0
	case kind >= 0x8000:
		return 1 << (1 + kind&0xF) // 0x22 to 0x2C: bits 3 to 13
	case kind >= 0x0020:
		return 1 << (10 + kind&0xF) // 0x24, 0x25: bits 14 and 15
	case kind >= 0x0010:
		return 1 << (12 + kind&0xF) // 0x14, 0x15, 0x1C: bits 16, 17 and 24
	default:
		return 1 << (17 + kind&0xF) // 0x01, 0x06 to 0x0A: bits 18, 23 and 25 to 27
	}
}

// address reads an address attribute that has passed attrShape; mask, if any, is the cookie and transaction id that it is
// XORed with (RFC 8489, section 14.2). Mapped IPv4 is unmapped.
func address(v, mask []byte) netip.AddrPort {
	var plain [18]byte
	n := copy(plain[:], v[2:])
	if mask != nil {
		for i := range 2 {
			plain[i] ^= mask[i]
		}
		for i := range n - 2 {
			plain[2+i] ^= mask[i]
		}
	}
	addr, _ := netip.AddrFromSlice(plain[2:n])
	return netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(plain[:]))
}
