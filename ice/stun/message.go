package stun

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"net/netip"

	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// ID is a transaction ID: 96 bits that pair an answer with its request.
type ID [12]byte

// Class is the class of a message (RFC 8489, section 5).
type Class uint8

// The classes.
const (
	Request Class = iota
	Indication
	Success
	Error
)

// Method is the method of a message (RFC 8489, section 18.2; RFC 8656, section 17).
type Method uint16

// The methods.
const (
	Binding          Method = 0x001
	Allocate         Method = 0x003
	Refresh          Method = 0x004
	Send             Method = 0x006
	DataMethod       Method = 0x007
	CreatePermission Method = 0x008
	ChannelBind      Method = 0x009
)

// messageType joins class and method (RFC 8489, section 5, figure 3).
func messageType(c Class, m Method) uint16 {
	return uint16(m&0x000F | m&0x0070<<1 | m&0x0F80<<2 | Method(c)&1<<4 | Method(c)&2<<7)
}

// Header is the header of a message.
type Header struct {
	Class  Class
	Method Method
	ID     ID
}

// ParseHeader reads the header of what may be a message; nothing else of it was looked at. It is for messages of our own process,
// and for who asks first whether a message is for him at all.
func ParseHeader(b []byte) (h Header, ok bool) {
	if !frame.IsMessage(b) {
		return Header{}, false
	}
	t := binary.BigEndian.Uint16(b)
	h.Class, h.Method = Class(t>>4&1|t>>7&2), Method(t&0x000F|t>>1&0x0070|t>>2&0x0F80)
	copy(h.ID[:], b[8:])
	return h, true
}

// maxAttributes bounds the work on one message. CreatePermission may name many peers; no other message comes near.
const maxAttributes = 64

// Message is a view of a message that has passed Parse. It aliases the datagram, so it is borrowed as that is. The zero value is a
// message without attributes.
type Message struct {
	Header
	raw     []byte
	reader  policies
	unknown bool
	at      [slots]uint16 // where the first attribute of a kind is; 0: there is none
}

// Parse makes m the view of the message in b, if the policy takes it; else m must not be used. It is the one check of a datagram on
// its way: what passes can be read without looking at lengths again, by us and by pion, whose decoders are easier to please. Nothing is
// allocated. A message passes if
//
//   - the datagram is the message, no longer than the policy allows;
//   - the policy takes its class and method;
//   - every attribute lies inside, is well-formed (shapes), and there are 64 at most;
//   - nothing unauthenticated follows MESSAGE-INTEGRITY, and FINGERPRINT, if there, is last and right;
//   - what must be understood is, except in a request: that is to be answered, see Unknown;
//   - a request to a peer has USERNAME, MESSAGE-INTEGRITY and FINGERPRINT.
func (m *Message) Parse(b []byte, p Policy) Drop {
	h, ok := ParseHeader(b)
	if !ok {
		return DropNotSTUN
	}
	// "The Message Length field MUST contain the size of the message in bytes, not including the 20-byte STUN header. Since all STUN
	// attributes are padded to a multiple of 4 bytes, the last 2 bits of this field are always zero" (RFC 8489, section 5).
	if length := int(binary.BigEndian.Uint16(b[2:])); length%4 != 0 || length != len(b)-frame.HeaderSize || len(b) > p.longest() {
		return DropLength
	}
	if drop := p.takes(h); drop != DropNone {
		return drop
	}
	m.Header, m.raw, m.reader, m.unknown = h, b, p.bit(), false
	clear(m.at[:])
	if drop := m.attributes(); drop != DropNone {
		return drop
	}
	// "A Binding request for a connectivity check MUST include USERNAME [...], MESSAGE-INTEGRITY" and FINGERPRINT (RFC 8445, section 7.1
	// and 7.2.2; RFC 8489, section 7): whatever else asks an agent for something is none of its peers.
	if p == Peer && h.Class == Request && !(m.Has(Username) && m.Has(Integrity) && m.Has(Fingerprint)) {
		return DropIncomplete
	}
	return DropNone
}

// attributes walks over all of them.
func (m *Message) attributes() Drop {
	b, count, sealed := m.raw, 0, Attr(0)
	for at := frame.HeaderSize; at < len(b); count++ {
		t, v, next := frame.Attribute(b, at)
		if next == 0 || count == maxAttributes {
			return DropAttribute
		}
		kind := Attr(t)
		if drop := follows(sealed, kind); drop != DropNone {
			return drop
		}
		slot := kind.slot()
		s := &shapes[slot]
		if kind.required() && s.known&m.reader == 0 {
			// RFC 8489, section 6.3.2: "If the indication contains unknown comprehension-required attributes, the indication is discarded";
			// of a response, 6.3.3 and 6.3.4: "the transaction is considered to have failed". A request is answered, see Unknown.
			if m.unknown = true; m.Class != Request {
				return DropUnknown
			}
		}
		if drop := s.fits(kind, v); drop != DropNone { // also if it is only unknown to this reader, since pion reads more
			return drop
		}
		switch kind {
		case Integrity, IntegritySHA256:
			sealed = kind
		case Fingerprint:
			if drop := m.fingerprint(at, next, v); drop != DropNone {
				return drop
			}
		}
		// "Any attribute type MAY appear more than once in a STUN message. Unless specified otherwise, the order of appearance is
		// significant: only the first occurrence needs to be processed by a receiver, and any duplicates MAY be ignored by a receiver"
		// (RFC 8489, section 14). Slot 0 takes those that nobody asks for.
		if m.at[slot] == 0 {
			m.at[slot] = uint16(at)
		}
		at = next
	}
	m.at[0] = 0
	return DropNone
}

// follows reports what is wrong with an attribute behind the latest integrity of the message. "With the exception of the
// MESSAGE-INTEGRITY-SHA256 and FINGERPRINT attributes, which appear after MESSAGE-INTEGRITY, agents MUST ignore all other attributes that
// follow MESSAGE-INTEGRITY" (RFC 8489, section 14.5), and after the former only the latter counts (14.6). pion does not ignore them. So
// a message that has any is no message.
func follows(sealed, kind Attr) Drop {
	if sealed == 0 || kind == Fingerprint || sealed == Integrity && kind == IntegritySHA256 {
		return DropNone
	}
	return DropOrder
}

// fingerprintXOR is XORed to the CRC (RFC 8489, section 14.7).
const fingerprintXOR = 0x5354554E

// fingerprint: "When present, the FINGERPRINT attribute MUST be the last attribute in the message" and is "the CRC-32 of the STUN
// message up to (but excluding) the FINGERPRINT attribute itself, XOR'ed with the 32-bit value 0x5354554e" (RFC 8489, section 14.7).
func (m *Message) fingerprint(at, next int, v []byte) Drop {
	switch {
	case next != len(m.raw):
		return DropOrder
	case binary.BigEndian.Uint32(v) != crc32.ChecksumIEEE(m.raw[:at])^fingerprintXOR:
		return DropFingerprint
	}
	return DropNone
}

// Has reports whether the message has an attribute.
func (m *Message) Has(kind Attr) bool { return m.at[kind.slot()] != 0 }

// Get returns the value of the first attribute of a kind, nil if there is none. It aliases the datagram.
func (m *Message) Get(kind Attr) []byte {
	at := int(m.at[kind.slot()])
	if at == 0 {
		return nil
	}
	from := at + frame.AttributeSize
	end := from + int(binary.BigEndian.Uint16(m.raw[at+2:]))
	return m.raw[from:end:end]
}

// Uint32 is the value of an attribute of 4 bytes.
func (m *Message) Uint32(kind Attr) (value uint32, ok bool) {
	v := m.Get(kind)
	if v == nil {
		return 0, false
	}
	return binary.BigEndian.Uint32(v), true
}

// Address is the value of an address attribute, plain or XORed as it should be; the zero AddrPort if there is none. A mapped IPv4
// address stays one, so that a server can tell it from IPv4.
func (m *Message) Address(kind Attr) netip.AddrPort {
	switch v := m.Get(kind); {
	case v == nil:
		return netip.AddrPort{}
	case kind == XORMappedAddress || kind == XORPeerAddress || kind == XORRelayedAddress || kind == XORMappedOld:
		return frame.Address(v, m.raw)
	default:
		return frame.Address(v, nil)
	}
}

// Mapped is where the sender of an answer has seen the one who asked, Unmap()ed: XOR-MAPPED-ADDRESS, else MAPPED-ADDRESS.
func (m *Message) Mapped() netip.AddrPort {
	a := m.Address(XORMappedAddress)
	if !a.IsValid() {
		a = m.Address(MappedAddress)
	}
	return Unmap(a)
}

// Unmap is an address with mapped IPv4 as IPv4.
func Unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// Code is the error code, 0 if there is none.
func (m *Message) Code() int { return codeOf(m.Get(ErrorCode)) }

// codeOf reads the value of ERROR-CODE; 0: there is no code in it.
func codeOf(v []byte) int {
	if len(v) < 4 {
		return 0
	}
	return int(v[2]&7)*100 + int(v[3])
}

// Recipient is the part of USERNAME that names whom a check is for (RFC 8445, section 7.2.2); nil if there is none.
func (m *Message) Recipient() []byte {
	before, _, found := bytes.Cut(m.Get(Username), []byte{':'})
	if !found || len(before) == 0 {
		return nil
	}
	return before
}

// Unknown reports whether a request has comprehension-required attributes that its reader does not know. Once it is authenticated it is
// to be answered with Builder.Unknown and in no other way.
func (m *Message) Unknown() bool { return m.unknown }

// Find returns the value of the first attribute of a kind in a message of our own process, which was not checked; nil if there is none.
func Find(b []byte, kind Attr) []byte {
	for at := frame.HeaderSize; at < len(b); {
		t, v, next := frame.Attribute(b, at)
		switch {
		case next == 0:
			return nil
		case Attr(t) == kind:
			return v
		}
		at = next
	}
	return nil
}

// CodeOf is the error code of such a message, 0 if it has none.
func CodeOf(b []byte) int { return codeOf(Find(b, ErrorCode)) }
