package relay

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"net/netip"
)

// reasons are the reason phrases of the errors that the gate writes itself (RFC 8489 section 14.8, RFC 8656 section 19).
var reasons = map[int]string{
	codeBadRequest:       "Bad Request",
	codeForbidden:        "Forbidden",
	codeMismatch:         "Allocation Mismatch",
	codeFamily:           "Address Family not Supported",
	codeWrongCredentials: "Wrong Credentials",
	codeTransport:        "Unsupported Transport Protocol",
	codeQuota:            "Allocation Quota Reached",
	codeInsufficient:     "Insufficient Capacity",
}

// appendHeader appends the header of a message with no attributes yet.
func appendHeader(b []byte, method, class int, id *[12]byte) []byte {
	b = binary.BigEndian.AppendUint16(b, messageType(method, class))
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint32(b, cookie)
	return append(b, id[:]...)
}

// appendAttr appends one attribute, padded with zeros, to a message that begins at b[0].
func appendAttr(b []byte, kind uint16, value []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-headerSize))
	return b
}

// xorValue is the inverse of xorAddress.
func xorValue(p netip.AddrPort, id *[12]byte) []byte {
	a, family := p.Addr().AsSlice(), byte(familyIPv6)
	if p.Addr().Is4() {
		family = familyIPv4
	}
	key := append(binary.BigEndian.AppendUint32(nil, cookie), id[:]...)
	for i := range a {
		a[i] ^= key[i]
	}
	return append(binary.BigEndian.AppendUint16([]byte{0, family}, p.Port()^cookie>>16), a...)
}

// appendError appends an ERROR-CODE attribute (RFC 8489 section 14.8).
func appendError(b []byte, code int, reason string) []byte {
	value := append([]byte{0, 0, byte(code / 100), byte(code % 100)}, reason...)
	return appendAttr(b, attrErrorCode, value)
}

// appendIntegrity appends MESSAGE-INTEGRITY: the HMAC is over all before it, with the length field as if it were
// there (RFC 8489 section 14.5).
func appendIntegrity(b, key []byte) []byte {
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-headerSize+4+integritySize))
	mac := hmac.New(sha1.New, key)
	mac.Write(b)
	return appendAttr(b, attrIntegrity, mac.Sum(nil))
}

// eachAttr calls visit for every attribute of a well-formed message; padding is what follows the value.
func eachAttr(b []byte, visit func(kind uint16, value, padding []byte)) {
	for at := headerSize; at+4 <= len(b); {
		size := int(binary.BigEndian.Uint16(b[at+2:]))
		end, next := at+4+size, at+4+(size+3)&^3
		if next > len(b) {
			return
		}
		visit(binary.BigEndian.Uint16(b[at:]), b[at+4:end], b[end:next])
		at = next
	}
}

// zeroPadding clears the padding of a message that we are about to send: whatever was in that memory is nobody's business.
// It must run before MESSAGE-INTEGRITY is made. pion pads with zeros today; this makes it our promise.
func zeroPadding(b []byte) {
	eachAttr(b, func(_ uint16, _, padding []byte) { clear(padding) })
}

// errorOf is the code of an error response, 0 if it has none.
func errorOf(b []byte) (code int) {
	eachAttr(b, func(kind uint16, value, _ []byte) {
		if kind == attrErrorCode && len(value) >= 4 && code == 0 {
			code = int(value[2]&7)*100 + int(value[3])
		}
	})
	return code
}

// hasAttr reports whether a message has an attribute of a kind.
func hasAttr(b []byte, kind uint16) (found bool) {
	eachAttr(b, func(k uint16, _, _ []byte) { found = found || k == kind })
	return found
}

// without appends message b to out with the attributes of a kind left out. It may not be a message with MESSAGE-INTEGRITY that
// is to stay valid.
func without(out, b []byte, kind uint16) []byte {
	out = append(out, b[:headerSize]...)
	eachAttr(b, func(k uint16, value, _ []byte) {
		if k != kind {
			out = appendAttr(out, k, value)
		}
	})
	return out
}

// withoutReason appends message b to out with the reason phrase of its ERROR-CODE left out. It may not be a message with
// MESSAGE-INTEGRITY.
func withoutReason(out, b []byte) []byte {
	out = append(out, b[:headerSize]...)
	eachAttr(b, func(kind uint16, value, _ []byte) {
		if kind == attrErrorCode && len(value) > 4 {
			value = value[:4]
		}
		out = appendAttr(out, kind, value)
	})
	return out
}
