package stun

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
)

// Facts of RFC 8489 section 5 and 14, and RFC 8656 section 17 and 18.
const (
	relayHeaderSize  = 20
	relayCookie      = 0x2112A442
	relayMaxMessage  = 2048 // bytes; what a client sends through a relay has to fit an internet path
	relayMaxAttrs    = 64   // attributes in one relayMessage
	relayChannelHead = 4    // bytes before the data of a ChannelData relayMessage

	relayMethodBinding          = 0x001
	relayMethodAllocate         = 0x003
	relayMethodRefresh          = 0x004
	relayMethodSend             = 0x006
	relayMethodData             = 0x007
	relayMethodCreatePermission = 0x008
	relayMethodChannelBind      = 0x009

	relayClassRequest    = 0
	relayClassIndication = 1
	relayClassSuccess    = 2
	relayClassError      = 3

	relayAttrMappedAddress      = 0x0001
	relayAttrUsername           = 0x0006
	relayAttrIntegrity          = 0x0008
	relayAttrErrorCode          = 0x0009
	relayAttrUnknown            = 0x000A
	relayAttrChannelNumber      = 0x000C
	relayAttrLifetime           = 0x000D
	relayAttrXORPeer            = 0x0012
	relayAttrData               = 0x0013
	relayAttrRealm              = 0x0014
	relayAttrNonce              = 0x0015
	relayAttrXORRelayed         = 0x0016
	relayAttrRequestedFamily    = 0x0017
	relayAttrEvenPort           = 0x0018
	relayAttrRequestedTransport = 0x0019
	relayAttrDontFragment       = 0x001A
	relayAttrIntegritySHA256    = 0x001C
	relayAttrXORMapped          = 0x0020
	relayAttrReservationToken   = 0x0022
	relayAttrPriority           = 0x0024
	relayAttrUseCandidate       = 0x0025
	relayAttrAdditionalFamily   = 0x8000
	relayAttrSoftware           = 0x8022
	relayAttrAlternateServer    = 0x8023
	relayAttrFingerprint        = 0x8028
	relayAttrICEControlled      = 0x8029
	relayAttrICEControlling     = 0x802A
	relayAttrResponseOrigin     = 0x802B
	relayAttrOtherAddress       = 0x802C

	relayFamilyIPv4 = 1
	relayFamilyIPv6 = 2

	relayIntegritySize  = 20
	relayFingerprintXOR = 0x5354554E

	relayTransportUDP = 17

	relayCodeBadRequest       = 400
	relayCodeUnauthorized     = 401
	relayCodeForbidden        = 403
	relayCodeMismatch         = 437
	relayCodeStaleNonce       = 438
	relayCodeFamily           = 440
	relayCodeWrongCredentials = 441
	relayCodeTransport        = 442
	relayCodePeerFamily       = 443
	relayCodeQuota            = 486
	relayCodeInsufficient     = 508
)

// relayMessage is what the gate wants to know of a STUN relayMessage that passed relayCheckMessage.
type relayMessage struct {
	method, class int
	id            [12]byte
	integrity     bool
	peer          netip.AddrPort // the first XOR-PEER-ADDRESS; invalid without one
	transport     byte           // REQUESTED-TRANSPORT; 0 without one
	family        byte           // REQUESTED-ADDRESS-FAMILY; 0 without one
	channel       uint16         // CHANNEL-NUMBER; 0 without one
	evenPort      bool           // EVEN-PORT is there
	reserve       bool           // and its R bit, or RESERVATION-TOKEN is there
	dontFragment  bool
	nonce         []byte // NONCE, a view into the relayMessage
}

// relayCheckMessage is the strict STUN check: it reports whether b may be given to pion, and what is in it. A relayMessage passes if
//
//   - its length is exactly what its header says, the first two bits are zero and the relayCookie is there;
//   - every attribute with its padding lies inside, and there are at most relayMaxAttrs;
//   - an attribute that has a fixed size has that size; addresses are 8 bytes (IPv4) or 20 (IPv6) long, the first 0;
//   - only FINGERPRINT or MESSAGE-INTEGRITY-SHA256 follow MESSAGE-INTEGRITY, so that nothing unauthenticated counts;
//   - FINGERPRINT, if there, is last and right.
//
// Unknown attributes pass: pion answers with 420 if they have to be understood. b is borrowed; nothing is allocated.
func relayCheckMessage(b []byte) (m relayMessage, ok bool) {
	if len(b) < relayHeaderSize || len(b) > relayMaxMessage || b[0]&0xC0 != 0 ||
		binary.BigEndian.Uint32(b[4:]) != relayCookie || int(binary.BigEndian.Uint16(b[2:])) != len(b)-relayHeaderSize {
		return m, false
	}
	m.method, m.class = relayParseType(binary.BigEndian.Uint16(b))
	copy(m.id[:], b[8:relayHeaderSize])
	rest, count := relayHeaderSize, 0
	for rest < len(b) {
		if count++; count > relayMaxAttrs || len(b)-rest < 4 {
			return m, false
		}
		kind, size := binary.BigEndian.Uint16(b[rest:]), int(binary.BigEndian.Uint16(b[rest+2:]))
		next := rest + 4 + (size+3)&^3
		if next > len(b) {
			return m, false
		}
		value := b[rest+4 : rest+4+size]
		if m.integrity && kind != relayAttrFingerprint && kind != relayAttrIntegritySHA256 ||
			!relaySizeFits(kind, value) || kind == relayAttrFingerprint && !relayFingerprintFits(b, rest, next) {
			return m, false
		}
		m.note(kind, value)
		rest = next
	}
	return m, true
}

// relayParseType splits a relayMessage type into method and class (RFC 8489 section 5, figure 3).
func relayParseType(t uint16) (method, class int) {
	method = int(t&0x000F | t>>1&0x0070 | t>>2&0x0F80)
	class = int(t>>4&1 | t>>7&2)
	return method, class
}

// relayMessageType is the inverse of relayParseType.
func relayMessageType(method, class int) uint16 {
	m, c := uint16(method), uint16(class)
	return m&0x000F | m&0x0070<<1 | m&0x0F80<<2 | c&1<<4 | c&2<<7
}

// relaySizeFits reports whether value may be the value of an attribute of this kind, as far as its size tells.
func relaySizeFits(kind uint16, value []byte) bool {
	n := len(value)
	switch kind {
	case relayAttrMappedAddress, relayAttrXORMapped, relayAttrXORPeer, relayAttrXORRelayed, relayAttrAlternateServer, relayAttrResponseOrigin, relayAttrOtherAddress:
		return n == 8 && value[0] == 0 && value[1] == relayFamilyIPv4 || n == 20 && value[0] == 0 && value[1] == relayFamilyIPv6
	case relayAttrUseCandidate, relayAttrDontFragment:
		return n == 0
	case relayAttrEvenPort:
		return n == 1
	case relayAttrChannelNumber, relayAttrLifetime, relayAttrRequestedTransport, relayAttrRequestedFamily, relayAttrAdditionalFamily, relayAttrFingerprint,
		relayAttrPriority:
		return n == 4
	case relayAttrReservationToken, relayAttrICEControlled, relayAttrICEControlling:
		return n == 8
	case relayAttrIntegrity:
		return n == relayIntegritySize
	case relayAttrIntegritySHA256:
		return n >= 16 && n <= 32 && n%4 == 0
	case relayAttrErrorCode:
		return n >= 4
	case relayAttrUnknown:
		return n%2 == 0
	case relayAttrUsername:
		return n <= relayMaxUsername
	case relayAttrRealm, relayAttrNonce, relayAttrSoftware:
		return n <= 763 // RFC 8489 sections 14.9, 14.10, 14.14
	}
	return true
}

// relayFingerprintFits reports whether the FINGERPRINT at rest is the last attribute and right (RFC 8489 section 14.7).
func relayFingerprintFits(b []byte, rest, next int) bool {
	return next == len(b) && binary.BigEndian.Uint32(b[rest+4:]) == crc32.ChecksumIEEE(b[:rest])^relayFingerprintXOR
}

// note keeps what the gate wants to know of one attribute. The first of a kind counts, as for pion.
func (m *relayMessage) note(kind uint16, value []byte) {
	switch kind {
	case relayAttrIntegrity:
		m.integrity = true
	case relayAttrXORPeer:
		if !m.peer.IsValid() {
			m.peer = relayXorAddress(value, &m.id)
		}
	case relayAttrRequestedTransport:
		if m.transport == 0 {
			m.transport = value[0]
		}
	case relayAttrRequestedFamily:
		if m.family == 0 {
			m.family = value[0]
		}
	case relayAttrNonce:
		if m.nonce == nil {
			m.nonce = value
		}
	case relayAttrChannelNumber:
		if m.channel == 0 {
			m.channel = binary.BigEndian.Uint16(value)
		}
	case relayAttrEvenPort:
		m.evenPort, m.reserve = true, m.reserve || value[0]&0x80 != 0
	case relayAttrReservationToken:
		m.reserve = true
	case relayAttrDontFragment:
		m.dontFragment = true
	}
}

// relayXorAddress decodes an XOR address of 8 or 20 bytes (RFC 8489 section 14.2). A mapped address stays one.
func relayXorAddress(value []byte, id *[12]byte) netip.AddrPort {
	port := binary.BigEndian.Uint16(value[2:]) ^ relayCookie>>16
	var key [16]byte
	binary.BigEndian.PutUint32(key[:], relayCookie)
	copy(key[4:], id[:])
	var a [16]byte
	n := copy(a[:], value[4:])
	for i := range n {
		a[i] ^= key[i]
	}
	if n == 4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[:4])), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(a), port)
}

// relayIsChannelData reports whether a datagram is to be read as ChannelData. RFC 8656 section 12 has channel numbers 0x4000 to
// 0x4FFF; RFC 5766 section 11 had them up to 0x7FFF, and clients of that age, coturn's among them, are served too.
func relayIsChannelData(b []byte) bool { return len(b) > 0 && b[0]&0xC0 == 0x40 }

// relayParseChannelData splits a ChannelData relayMessage. Over UDP padding is optional, so what follows the data is ignored (RFC 8656
// section 12.5). ok is false if the length field is longer than the datagram. data is a view into b.
func relayParseChannelData(b []byte) (number uint16, data []byte, ok bool) {
	if len(b) < relayChannelHead {
		return 0, nil, false
	}
	size := int(binary.BigEndian.Uint16(b[2:]))
	if size > len(b)-relayChannelHead {
		return 0, nil, false
	}
	return binary.BigEndian.Uint16(b), b[relayChannelHead : relayChannelHead+size], true
}

const relayMaxUsername = 508
