package stun

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"

	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// Builder appends a message to a buffer; after each call the message is whole. It allocates only where the buffer is too small. The
// attributes stand in the order of the calls, so that MESSAGE-INTEGRITY and FINGERPRINT come last.
type Builder struct {
	b     []byte
	start int // where the message begins
}

// Build begins a message behind dst, which may be nil.
func Build(dst []byte, c Class, m Method, id ID) Builder {
	start := len(dst)
	dst = binary.BigEndian.AppendUint16(dst, messageType(c, m))
	dst = append(dst, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, frame.Cookie)
	return Builder{append(dst, id[:]...), start}
}

// Edit goes on with a message that is whole.
func Edit(b []byte) Builder { return Builder{b, 0} }

// Bytes is the buffer, the message at its end.
func (w *Builder) Bytes() []byte { return w.b }

// begin appends the head of an attribute.
func (w *Builder) begin(kind Attr, size int) {
	w.b = binary.BigEndian.AppendUint16(w.b, uint16(kind))
	w.b = binary.BigEndian.AppendUint16(w.b, uint16(size))
}

// end pads, with zeros since padding must not tell what the buffer held before, and sets the length of the message.
func (w *Builder) end() {
	for (len(w.b)-w.start)%4 != 0 {
		w.b = append(w.b, 0)
	}
	binary.BigEndian.PutUint16(w.b[w.start+2:], uint16(len(w.b)-w.start-frame.HeaderSize))
}

// Add appends an attribute; v is borrowed.
func (w *Builder) Add(kind Attr, v []byte) {
	w.begin(kind, len(v))
	w.b = append(w.b, v...)
	w.end()
}

// Text appends an attribute.
func (w *Builder) Text(kind Attr, v string) {
	w.begin(kind, len(v))
	w.b = append(w.b, v...)
	w.end()
}

// Uint32 appends an attribute of 4 bytes.
func (w *Builder) Uint32(kind Attr, v uint32) {
	w.begin(kind, 4)
	w.b = binary.BigEndian.AppendUint32(w.b, v)
	w.end()
}

// Uint64 appends an attribute of 8 bytes.
func (w *Builder) Uint64(kind Attr, v uint64) {
	w.begin(kind, 8)
	w.b = binary.BigEndian.AppendUint64(w.b, v)
	w.end()
}

// XORAddress appends an address attribute that is XORed with the header.
func (w *Builder) XORAddress(kind Attr, a netip.AddrPort) {
	at := len(w.b)
	w.begin(kind, 0)
	w.b = frame.AppendXORAddress(w.b, a, w.b[w.start:])
	binary.BigEndian.PutUint16(w.b[at+2:], uint16(len(w.b)-at-frame.AttributeSize))
	w.end()
}

// Code appends ERROR-CODE (RFC 8489, section 14.8).
func (w *Builder) Code(code int, reason string) {
	w.begin(ErrorCode, 4+len(reason))
	w.b = append(w.b, 0, 0, byte(code/100), byte(code%100))
	w.b = append(w.b, reason...)
	w.end()
}

// Unknown appends what RFC 8489, section 6.3.1 wants: "an error response with an error code of 420 (Unknown Attribute)" that "includes
// an UNKNOWN-ATTRIBUTES attribute in the response that lists the unknown comprehension-required attributes" of the request. There are
// 64 at most, so the answer is at most twice as long as the request.
func (w *Builder) Unknown(m *Message) {
	w.Code(CodeUnknownAttribute, "")
	head := len(w.b)
	w.begin(UnknownAttributes, 0)
	for at := frame.HeaderSize; at < len(m.raw); {
		kind, _, next := frame.Attribute(m.raw, at) // Parse has seen that it lies inside
		if a := Attr(kind); a.required() && shapes[a.slot()].known&m.reader == 0 {
			w.b = binary.BigEndian.AppendUint16(w.b, kind)
		}
		at = next
	}
	binary.BigEndian.PutUint16(w.b[head+2:], uint16(len(w.b)-head-frame.AttributeSize))
	w.end()
}

// Sign appends MESSAGE-INTEGRITY.
func (w *Builder) Sign(k *Key) {
	h := k.mac(w.b[w.start:], len(w.b)-w.start)
	defer k.macs.Put(h)
	w.Add(Integrity, h.sum[:])
}

// Fingerprint appends FINGERPRINT: the CRC is over the header with the length that includes it (RFC 8489, section 14.7).
func (w *Builder) Fingerprint() {
	from := len(w.b)
	w.Uint32(Fingerprint, 0)
	sum := crc32.ChecksumIEEE(w.b[w.start:from]) ^ fingerprintXOR
	binary.BigEndian.PutUint32(w.b[from+frame.AttributeSize:], sum)
}

// Error codes (RFC 8489, section 14.8; RFC 8656, section 19).
const (
	CodeBadRequest       = 400
	CodeUnauthorized     = 401
	CodeForbidden        = 403
	CodeUnknownAttribute = 420
	CodeMismatch         = 437
	CodeStaleNonce       = 438
	CodeFamily           = 440
	CodeWrongCredentials = 441
	CodeTransport        = 442
	CodePeerFamily       = 443
	CodeQuota            = 486
	CodeInsufficient     = 508
)
