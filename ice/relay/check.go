package relay

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
)

// Facts of RFC 8489 section 5 and 14, and RFC 8656 section 17 and 18.
const (
	headerSize  = 20
	cookie      = 0x2112A442
	maxMessage  = 2048 // bytes; what a client sends through a relay has to fit an internet path
	maxAttrs    = 64   // attributes in one message
	channelHead = 4    // bytes before the data of a ChannelData message

	methodBinding          = 0x001
	methodAllocate         = 0x003
	methodRefresh          = 0x004
	methodSend             = 0x006
	methodData             = 0x007
	methodCreatePermission = 0x008
	methodChannelBind      = 0x009

	classRequest    = 0
	classIndication = 1
	classSuccess    = 2
	classError      = 3

	attrMappedAddress      = 0x0001
	attrUsername           = 0x0006
	attrIntegrity          = 0x0008
	attrErrorCode          = 0x0009
	attrUnknown            = 0x000A
	attrChannelNumber      = 0x000C
	attrLifetime           = 0x000D
	attrXORPeer            = 0x0012
	attrData               = 0x0013
	attrRealm              = 0x0014
	attrNonce              = 0x0015
	attrXORRelayed         = 0x0016
	attrRequestedFamily    = 0x0017
	attrEvenPort           = 0x0018
	attrRequestedTransport = 0x0019
	attrDontFragment       = 0x001A
	attrIntegritySHA256    = 0x001C
	attrXORMapped          = 0x0020
	attrReservationToken   = 0x0022
	attrPriority           = 0x0024
	attrUseCandidate       = 0x0025
	attrAdditionalFamily   = 0x8000
	attrSoftware           = 0x8022
	attrAlternateServer    = 0x8023
	attrFingerprint        = 0x8028
	attrICEControlled      = 0x8029
	attrICEControlling     = 0x802A
	attrResponseOrigin     = 0x802B
	attrOtherAddress       = 0x802C

	familyIPv4 = 1
	familyIPv6 = 2

	integritySize  = 20
	fingerprintXOR = 0x5354554E

	transportUDP = 17

	codeBadRequest       = 400
	codeUnauthorized     = 401
	codeForbidden        = 403
	codeMismatch         = 437
	codeStaleNonce       = 438
	codeFamily           = 440
	codeWrongCredentials = 441
	codeTransport        = 442
	codePeerFamily       = 443
	codeQuota            = 486
	codeInsufficient     = 508
)

// message is what the gate wants to know of a STUN message that passed checkMessage.
type message struct {
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
	nonce         []byte // NONCE, a view into the message
}

// checkMessage is the strict STUN check: it reports whether b may be given to pion, and what is in it. A message passes if
//
//   - its length is exactly what its header says, the first two bits are zero and the cookie is there;
//   - every attribute with its padding lies inside, and there are at most maxAttrs;
//   - an attribute that has a fixed size has that size; addresses are 8 bytes (IPv4) or 20 (IPv6) long, the first 0;
//   - only FINGERPRINT or MESSAGE-INTEGRITY-SHA256 follow MESSAGE-INTEGRITY, so that nothing unauthenticated counts;
//   - FINGERPRINT, if there, is last and right.
//
// Unknown attributes pass: pion answers with 420 if they have to be understood. b is borrowed; nothing is allocated.
func checkMessage(b []byte) (m message, ok bool) {
	if len(b) < headerSize || len(b) > maxMessage || b[0]&0xC0 != 0 ||
		binary.BigEndian.Uint32(b[4:]) != cookie || int(binary.BigEndian.Uint16(b[2:])) != len(b)-headerSize {
		return m, false
	}
	m.method, m.class = parseType(binary.BigEndian.Uint16(b))
	copy(m.id[:], b[8:headerSize])
	rest, count := headerSize, 0
	for rest < len(b) {
		if count++; count > maxAttrs || len(b)-rest < 4 {
			return m, false
		}
		kind, size := binary.BigEndian.Uint16(b[rest:]), int(binary.BigEndian.Uint16(b[rest+2:]))
		next := rest + 4 + (size+3)&^3
		if next > len(b) {
			return m, false
		}
		value := b[rest+4 : rest+4+size]
		if m.integrity && kind != attrFingerprint && kind != attrIntegritySHA256 ||
			!sizeFits(kind, value) || kind == attrFingerprint && !fingerprintFits(b, rest, next) {
			return m, false
		}
		m.note(kind, value)
		rest = next
	}
	return m, true
}

// parseType splits a message type into method and class (RFC 8489 section 5, figure 3).
func parseType(t uint16) (method, class int) {
	method = int(t&0x000F | t>>1&0x0070 | t>>2&0x0F80)
	class = int(t>>4&1 | t>>7&2)
	return method, class
}

// messageType is the inverse of parseType.
func messageType(method, class int) uint16 {
	m, c := uint16(method), uint16(class)
	return m&0x000F | m&0x0070<<1 | m&0x0F80<<2 | c&1<<4 | c&2<<7
}

// sizeFits reports whether value may be the value of an attribute of this kind, as far as its size tells.
func sizeFits(kind uint16, value []byte) bool {
	n := len(value)
	switch kind {
	case attrMappedAddress, attrXORMapped, attrXORPeer, attrXORRelayed, attrAlternateServer, attrResponseOrigin, attrOtherAddress:
		return n == 8 && value[0] == 0 && value[1] == familyIPv4 || n == 20 && value[0] == 0 && value[1] == familyIPv6
	case attrUseCandidate, attrDontFragment:
		return n == 0
	case attrEvenPort:
		return n == 1
	case attrChannelNumber, attrLifetime, attrRequestedTransport, attrRequestedFamily, attrAdditionalFamily, attrFingerprint,
		attrPriority:
		return n == 4
	case attrReservationToken, attrICEControlled, attrICEControlling:
		return n == 8
	case attrIntegrity:
		return n == integritySize
	case attrIntegritySHA256:
		return n >= 16 && n <= 32 && n%4 == 0
	case attrErrorCode:
		return n >= 4
	case attrUnknown:
		return n%2 == 0
	case attrUsername:
		return n <= maxUsername
	case attrRealm, attrNonce, attrSoftware:
		return n <= 763 // RFC 8489 sections 14.9, 14.10, 14.14
	}
	return true
}

// fingerprintFits reports whether the FINGERPRINT at rest is the last attribute and right (RFC 8489 section 14.7).
func fingerprintFits(b []byte, rest, next int) bool {
	return next == len(b) && binary.BigEndian.Uint32(b[rest+4:]) == crc32.ChecksumIEEE(b[:rest])^fingerprintXOR
}

// note keeps what the gate wants to know of one attribute. The first of a kind counts, as for pion.
func (m *message) note(kind uint16, value []byte) {
	switch kind {
	case attrIntegrity:
		m.integrity = true
	case attrXORPeer:
		if !m.peer.IsValid() {
			m.peer = xorAddress(value, &m.id)
		}
	case attrRequestedTransport:
		if m.transport == 0 {
			m.transport = value[0]
		}
	case attrRequestedFamily:
		if m.family == 0 {
			m.family = value[0]
		}
	case attrNonce:
		if m.nonce == nil {
			m.nonce = value
		}
	case attrChannelNumber:
		if m.channel == 0 {
			m.channel = binary.BigEndian.Uint16(value)
		}
	case attrEvenPort:
		m.evenPort, m.reserve = true, m.reserve || value[0]&0x80 != 0
	case attrReservationToken:
		m.reserve = true
	case attrDontFragment:
		m.dontFragment = true
	}
}

// xorAddress decodes an XOR address of 8 or 20 bytes (RFC 8489 section 14.2). A mapped address stays one.
func xorAddress(value []byte, id *[12]byte) netip.AddrPort {
	port := binary.BigEndian.Uint16(value[2:]) ^ cookie>>16
	var key [16]byte
	binary.BigEndian.PutUint32(key[:], cookie)
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

// isChannelData reports whether a datagram is to be read as ChannelData. RFC 8656 section 12 has channel numbers 0x4000 to
// 0x4FFF; RFC 5766 section 11 had them up to 0x7FFF, and clients of that age, coturn's among them, are served too.
func isChannelData(b []byte) bool { return len(b) > 0 && b[0]&0xC0 == 0x40 }

// parseChannelData splits a ChannelData message. Over UDP padding is optional, so what follows the data is ignored (RFC 8656
// section 12.5). ok is false if the length field is longer than the datagram. data is a view into b.
func parseChannelData(b []byte) (number uint16, data []byte, ok bool) {
	if len(b) < channelHead {
		return 0, nil, false
	}
	size := int(binary.BigEndian.Uint16(b[2:]))
	if size > len(b)-channelHead {
		return 0, nil, false
	}
	return binary.BigEndian.Uint16(b), b[channelHead : channelHead+size], true
}

// channelRun is the data of ChannelData messages of one channel, one behind the other.
type channelRun struct {
	number uint16
	data   []byte // nil: the first message was malformed
	size   int    // of each but the last, which may be shorter; at least 1
}

// closeUp takes the messages at the head of d that make a run, and the datagrams they came in, of step bytes each but the
// last. The data are moved together in place, so that they can leave at once. The run and the rest are views into d.
func closeUp(d []byte, step int) (r channelRun, rest []byte) {
	read := min(step, len(d))
	number, data, ok := parseChannelData(d[:read])
	if !ok {
		return channelRun{}, d[read:]
	}
	size, end := len(data), channelHead+len(data)
	for last := size == 0; !last && read < len(d); {
		next := min(read+step, len(d))
		n, more, ok := parseChannelData(d[read:next])
		if !ok || n != number || len(more) == 0 || len(more) > size {
			break
		}
		end += copy(d[end:], more)
		read, last = next, len(more) < size
	}
	return channelRun{number, d[channelHead:end], max(size, 1)}, d[read:]
}
