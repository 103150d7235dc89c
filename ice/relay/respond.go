package relay

import (
	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// reasons are the reason phrases of the errors that the gate writes itself (RFC 8489 section 14.8, RFC 8656 section 19).
var reasons = map[int]string{
	stun.CodeBadRequest:       "Bad Request",
	stun.CodeForbidden:        "Forbidden",
	stun.CodeMismatch:         "Allocation Mismatch",
	stun.CodeFamily:           "Address Family not Supported",
	stun.CodeWrongCredentials: "Wrong Credentials",
	stun.CodeTransport:        "Unsupported Transport Protocol",
	stun.CodeQuota:            "Allocation Quota Reached",
	stun.CodeInsufficient:     "Insufficient Capacity",
}

// errorOf is an error response to the present request with REALM and NONCE, or MESSAGE-INTEGRITY, still to come.
func (g *gate) errorOf(code int, reason string) stun.Builder {
	w := stun.Build(g.work.out[:0], stun.Error, g.now.Method, g.now.ID)
	w.Code(code, reason)
	return w
}

// zeroPadding clears the padding of a message that we are about to send: whatever was in that memory is nobody's business.
// It must run before MESSAGE-INTEGRITY is made. pion pads with zeros today; this makes it our promise.
func zeroPadding(b []byte) {
	for at := frame.HeaderSize; at < len(b); {
		_, value, next := frame.Attribute(b, at)
		if next == 0 {
			return
		}
		clear(b[at+frame.AttributeSize+len(value) : next])
		at = next
	}
}

// rewrite appends message b to out, which is empty, with the value that edit makes of each, an attribute left out if keep is false. A
// MESSAGE-INTEGRITY does not stay valid.
func rewrite(out, b []byte, edit func(kind stun.Attr, value []byte) (instead []byte, keep bool)) []byte {
	w := stun.Edit(append(out, b[:frame.HeaderSize]...))
	for at := frame.HeaderSize; at < len(b); {
		kind, value, next := frame.Attribute(b, at)
		if next == 0 {
			break
		}
		if value, keep := edit(stun.Attr(kind), value); keep {
			w.Add(stun.Attr(kind), value)
		}
		at = next
	}
	return w.Bytes()
}

// withoutToken leaves out RESERVATION-TOKEN, and MESSAGE-INTEGRITY, which is to be made anew.
func withoutToken(kind stun.Attr, value []byte) ([]byte, bool) {
	return value, kind != stun.ReservationToken && kind != stun.Integrity
}

// withoutReason leaves out the reason phrase of ERROR-CODE.
func withoutReason(kind stun.Attr, value []byte) ([]byte, bool) {
	if kind == stun.ErrorCode && len(value) > 4 {
		value = value[:4]
	}
	return value, true
}

// sign appends MESSAGE-INTEGRITY to a message.
func sign(b []byte, key *stun.Key) []byte {
	w := stun.Edit(b)
	w.Sign(key)
	return w.Bytes()
}
