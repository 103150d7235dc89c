package stun

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"hash/crc32"
	"net/netip"
)

// The layout of a STUN agentMessage (RFC 8489, section 5).
const (
	agentStunHeader  = 20
	agentStunCookie  = 0x2112A442
	agentStunLongest = 1280 // no check or answer of ours comes near; fragments are not worth the risk
)

// agentTransactionID pairs an answer with its request.
type agentTransactionID [12]byte

// agentStunClass is the class of a agentMessage (RFC 8489, section 5).
type agentStunClass uint8

const (
	agentClassRequest agentStunClass = iota
	agentClassIndication
	agentClassSuccess
	agentClassError
)

// Attributes that may come in a Binding agentMessage (RFC 8489, section 18.3; RFC 8445, section 16.1; RFC 5780, section 7).
const (
	agentAttrMappedAddress     = 0x0001
	agentAttrUsername          = 0x0006
	agentAttrMessageIntegrity  = 0x0008
	agentAttrErrorCode         = 0x0009
	agentAttrUnknownAttributes = 0x000A
	agentAttrRealm             = 0x0014
	agentAttrNonce             = 0x0015
	agentAttrIntegritySHA256   = 0x001C
	agentAttrXORMappedAddress  = 0x0020
	agentAttrPriority          = 0x0024
	agentAttrUseCandidate      = 0x0025
	agentAttrXORMappedOld      = 0x8020 // of a draft; pion takes it for XOR-MAPPED-ADDRESS
	agentAttrSoftware          = 0x8022
	agentAttrAlternateServer   = 0x8023
	agentAttrFingerprint       = 0x8028
	agentAttrICEControlled     = 0x8029
	agentAttrICEControlling    = 0x802A
	agentAttrResponseOrigin    = 0x802B
	agentAttrOtherAddress      = 0x802C
)

// agentFingerprintXOR is XORed to the CRC (RFC 8489, section 14.7).
const agentFingerprintXOR = 0x5354554e

// agentMessage is a STUN agentMessage that passed the check. All fields are views into the datagram, so borrowed as it is.
type agentMessage struct {
	raw       []byte
	class     agentStunClass
	id        agentTransactionID
	username  []byte         // nil if there is none
	integrity int            // offset of the MESSAGE-INTEGRITY attribute, 0 if there is none
	mapped    netip.AddrPort // XOR-MAPPED-ADDRESS, else MAPPED-ADDRESS

	seen     uint32 // one agentBit for each attribute of agentAttrShape that came
	nominate bool   // USE-CANDIDATE
}

// agentValidate is the gate before pion: it passes Binding messages whose form is beyond doubt and returns why it does not
// pass others. What it passes is safe for pion/stun v0.6.1, which reads addresses without looking at their length
// (CVE-2026-54909) and takes attributes behind MESSAGE-INTEGRITY for genuine:
//
//   - the datagram is the agentMessage: the length field is its length, a multiple of 4, at most agentStunLongest;
//   - attributes and their padding lie inside, those we know have a length that fits and come once;
//   - what must be understood (RFC 8489, section 14) is understood;
//   - behind MESSAGE-INTEGRITY there is nothing but MESSAGE-INTEGRITY-SHA256 and FINGERPRINT, and FINGERPRINT comes last
//     and is right;
//   - a request has USERNAME, MESSAGE-INTEGRITY and FINGERPRINT, as ICE wants it (RFC 8445, section 7.1).
func agentValidate(b []byte) (m agentMessage, why agentDropReason) {
	if len(b) < agentStunHeader || b[0]&0xC0 != 0 || binary.BigEndian.Uint32(b[4:]) != agentStunCookie {
		return m, agentDropNotSTUN
	}
	length := int(binary.BigEndian.Uint16(b[2:]))
	if length != len(b)-agentStunHeader || length%4 != 0 || len(b) > agentStunLongest {
		return m, agentDropMalformed
	}
	kind := binary.BigEndian.Uint16(b)
	if kind&^0x0110 != 1 { // the method's bits around those of the class
		return m, agentDropNotBinding
	}
	m.raw = b
	m.class = agentStunClass(kind>>4&1 | kind>>7&2)
	copy(m.id[:], b[8:])
	for at := agentStunHeader; at < len(b); {
		next, why := m.attribute(at)
		if why != agentDropNone {
			return m, why
		}
		at = next
	}
	if m.class == agentClassRequest && (m.username == nil || m.integrity == 0 || m.seen&agentBit(agentAttrFingerprint) == 0) {
		return m, agentDropMalformed
	}
	return m, agentDropNone
}

// attribute checks the attribute at an offset and returns the next one's.
func (m *agentMessage) attribute(at int) (next int, why agentDropReason) {
	rest := m.raw[at:]
	if len(rest) < 4 {
		return 0, agentDropMalformed
	}
	kind, length := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
	padded := (length + 3) &^ 3
	if padded > len(rest)-4 || m.seen&agentBit(agentAttrFingerprint) != 0 {
		return 0, agentDropMalformed
	}
	if m.integrity != 0 && kind != agentAttrIntegritySHA256 && kind != agentAttrFingerprint {
		return 0, agentDropMalformed
	}
	next = at + 4 + padded
	value := rest[4 : 4+length]
	known, fits := agentAttrShape(kind, value)
	switch {
	case !known && kind < 0x8000:
		return 0, agentDropUnknownAttribute
	case !known:
		return next, agentDropNone
	case !fits || m.seen&agentBit(kind) != 0:
		return 0, agentDropMalformed
	}
	m.seen |= agentBit(kind)
	return next, m.note(kind, at, value)
}

// note keeps what routing needs, and checks FINGERPRINT.
func (m *agentMessage) note(kind uint16, at int, value []byte) agentDropReason {
	switch kind {
	case agentAttrUsername:
		m.username = value
	case agentAttrMessageIntegrity:
		m.integrity = at
	case agentAttrUseCandidate:
		m.nominate = true
	case agentAttrMappedAddress:
		if !m.mapped.IsValid() {
			m.mapped = agentAddress(value, nil)
		}
	case agentAttrXORMappedAddress:
		m.mapped = agentAddress(value, m.raw[4:agentStunHeader])
	case agentAttrFingerprint:
		if binary.BigEndian.Uint32(value) != crc32.ChecksumIEEE(m.raw[:at])^agentFingerprintXOR {
			return agentDropFingerprint
		}
	}
	return agentDropNone
}

// agentAttrShape tells whether an attribute is known and its value has a length that it may have.
func agentAttrShape(kind uint16, v []byte) (known, fits bool) {
	switch kind {
	case agentAttrMappedAddress, agentAttrXORMappedAddress, agentAttrXORMappedOld, agentAttrAlternateServer, agentAttrResponseOrigin, agentAttrOtherAddress:
		if len(v) < 4 || v[0] != 0 {
			return true, false
		}
		return true, v[1] == 1 && len(v) == 8 || v[1] == 2 && len(v) == 20
	case agentAttrUsername:
		return true, len(v) > 0 && len(v) < 509
	case agentAttrMessageIntegrity:
		return true, len(v) == 20
	case agentAttrIntegritySHA256:
		return true, len(v) >= 16 && len(v) <= 32 && len(v)%4 == 0
	case agentAttrErrorCode:
		return true, len(v) >= 4 && len(v) <= 4+763
	case agentAttrUnknownAttributes:
		return true, len(v)%2 == 0
	case agentAttrRealm, agentAttrNonce, agentAttrSoftware:
		return true, len(v) <= 763
	case agentAttrPriority, agentAttrFingerprint:
		return true, len(v) == 4
	case agentAttrUseCandidate:
		return true, len(v) == 0
	case agentAttrICEControlled, agentAttrICEControlling:
		return true, len(v) == 8
	default:
		return false, false
	}
}

// agentBit is the attribute's in agentMessage.seen. Known attributes have bits of their own: the low four bits of the type, and
// which of the three ranges it is from. The old XOR-MAPPED-ADDRESS shares the agentBit of the new, since pion reads them as one.
func agentBit(kind uint16) uint32 {
	switch {
	case kind == agentAttrXORMappedAddress || kind == agentAttrXORMappedOld:
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

// agentAddress reads an agentAddress attribute that has passed agentAttrShape; mask, if any, is the cookie and transaction id that it is
// XORed with (RFC 8489, section 14.2). Mapped IPv4 is unmapped.
func agentAddress(v, mask []byte) netip.AddrPort {
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

type agentDropReason uint8

// The drop reasons, in packet order: agentValidate, the mux, checks on their way out. dropTable says what each means.
const (
	agentDropNone agentDropReason = iota
	agentDropNotSTUN
	agentDropMalformed
	agentDropNotBinding
	agentDropUnknownAttribute
	agentDropFingerprint
	agentDropIndication
	agentDropSource
	agentDropUnknownUsername
	agentDropUnauthentic
	agentDropLocalAddress
	agentDropTooManyRemotes
	agentDropInboxFull
	agentDropTransaction
	agentDropErrorResponse
	agentDropDestination
	agentDropInterface
	agentDropPaced
	agentDropUnanswered
	agentDropAddressCap
	agentDropGlobalCap
	agentDropChecksFull
	agentDropTransactionsFull
	agentDropSendFailed
	agentDropTaken // none: the mux itself has asked for it. Not counted
	agentDropReasons
)

// authentic tells whether MESSAGE-INTEGRITY was made with the short-term credential password (RFC 8489, section 14.5):
// HMAC-SHA1 over what precedes it, the length field reaching to its end.
func (m *agentMessage) authentic(password string) bool {
	if m.integrity == 0 {
		return false
	}
	var header [agentStunHeader]byte
	copy(header[:], m.raw)
	binary.BigEndian.PutUint16(header[2:], uint16(m.integrity+24-agentStunHeader))
	mac := hmac.New(sha1.New, []byte(password))
	mac.Write(header[:])
	mac.Write(m.raw[agentStunHeader:m.integrity])
	var sum [sha1.Size]byte
	return hmac.Equal(mac.Sum(sum[:0]), m.raw[m.integrity+4:m.integrity+24])
}

// recipient is the part of USERNAME that names whom a request is for (RFC 8445, section 7.2.2); nil if there is none.
func (m *agentMessage) recipient() []byte {
	before, _, found := bytes.Cut(m.username, []byte{':'})
	if !found || len(before) == 0 {
		return nil
	}
	return before
}
