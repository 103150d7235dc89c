package stun

// Policy says who reads a message, and so what it may be.
type Policy uint8

// The readers.
const (
	Client Policy = iota // of a STUN or TURN server: takes answers, and what peers have relayed to it
	Peer                 // an ICE agent: takes checks, and answers to its own
	Server               // of STUN and TURN: takes what clients ask and send
)

// policies is a set of readers.
type policies uint8

const (
	client policies = 1 << Client
	peer   policies = 1 << Peer
	server policies = 1 << Server
	all             = client | peer | server
)

func (p Policy) bit() policies { return 1 << p }

// longest is the largest message in bytes.
func (p Policy) longest() int {
	if p == Peer {
		return 1280 // no check or answer comes near; fragments are not worth the risk
	}
	return 2048 // what is sent through a relay has to fit an internet path
}

// takes reports what is wrong with class and method. RFC 8489, section 6.3: "the method is a method that the agent supports"; a
// message that is none is silently discarded.
func (p Policy) takes(h Header) Drop {
	switch p {
	case Client:
		if h.Class == Request {
			return DropRequest
		}
		if h.Class == Indication && h.Method != DataMethod {
			return DropIndication
		}
	case Peer:
		if h.Method != Binding {
			return DropMethod
		}
		if h.Class == Indication {
			return DropIndication // it carries no proof of who has sent it
		}
	case Server:
		if !serves(h) {
			return DropMethod
		}
	}
	return DropNone
}

// serves reports whether a server for UDP takes it; Binding indications are keepalives and want no answer (RFC 8489, section 6.3.2).
func serves(h Header) bool {
	switch h.Method {
	case Binding:
		return h.Class == Request || h.Class == Indication
	case Send:
		return h.Class == Indication
	case Allocate, Refresh, CreatePermission, ChannelBind:
		return h.Class == Request
	}
	return false
}

// Drop is why a message was not taken. Who reads it counts it, under names of its own.
type Drop uint8

// The reasons, in the order that they are looked for.
const (
	DropNone        Drop = iota
	DropNotSTUN          // the header is that of no STUN message
	DropLength           // the length is not the header's, no multiple of 4, or too much
	DropMethod           // a method, or a class of one, that the reader does not take
	DropRequest          // a request to a client
	DropIndication       // an indication that the reader does not take
	DropAttribute        // an attribute reaches out of the message, or there are too many
	DropOrder            // an attribute after MESSAGE-INTEGRITY or FINGERPRINT
	DropUnknown          // an attribute that must be understood is not, and no answer is due
	DropAddress          // an address attribute has an impossible length or family
	DropValue            // an attribute's length or value is impossible
	DropFingerprint      // FINGERPRINT is wrong
	DropIncomplete       // a check without what it must have

	// DropCount is the number of reasons.
	DropCount
)
