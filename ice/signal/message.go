package signal

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Limits of a message. What breaks one is refused as a whole, by the sender and by the receiver.
const (
	MaxMessage    = 16 << 10 // bytes of JSON
	MaxCandidates = 16
	MaxCandidate  = 256 // bytes of one candidate
	MaxReason     = 64  // bytes of a close reason or of a counter's name
	MaxCounters   = 32
	MaxGeneration = 1<<32 - 1
	// Lengths of ICE credentials (RFC 8839, section 5.4: "ice-pwd = 22*256ice-char", "ice-ufrag = 4*256ice-char").
	MinUfrag, MinPwd, MaxCredential = 4, 22, 256
)

// Kind tells what a message is for.
type Kind uint8

// The kinds of message. The zero Kind is invalid.
const (
	// Offer opens an attempt to connect, or adds candidates to it.
	Offer Kind = iota + 1
	// Answer accepts the offer of the same generation, or adds candidates.
	Answer
	// Bye says that the connection of this generation was closed, and why.
	Bye
)

var kindNames = [...]string{Offer: "offer", Answer: "answer", Bye: "bye"}

// String returns the kind as it is called in a message.
func (k Kind) String() string {
	if k < Offer || k > Bye {
		return "invalid"
	}
	return kindNames[k]
}

// Message is what nodes tell one another. Offers and answers have Agent, PublicKey, Ufrag, Pwd, Candidates and End; a bye has
// Reason and Counters; the other fields are zero.
type Message struct {
	Kind Kind
	// Run names the run of the sending program: a random number that is not 0, drawn when its Signaler is made, which sets it
	// in Send. It tells messages from before a restart apart without a clock. See Generations.
	Run uint64
	// Generation numbers the attempts of a pair of nodes, from 1. Answer and bye repeat the number of the offer.
	Generation uint64
	// Agent numbers the ICE agents of an attempt, from 1. Each has an offer and an answer of its own, or two offers if both
	// sides began it. 0 in a bye.
	Agent uint32

	// PublicKey is the sender's current WireGuard key.
	PublicKey [32]byte
	// Ufrag and Pwd are the ICE credentials of the sender's agent.
	Ufrag, Pwd string
	// Candidates are candidate attributes (RFC 8839, section 5.1) without "candidate:" in front.
	Candidates []string
	// End: no further candidates will come in this generation.
	End bool

	// Reason is the close reason, in lower case with underscores.
	Reason string
	// Counters are what the closing side counted, by names like the reason's.
	Counters map[string]uint64
}

// wire is the JSON form. Keys that a kind does not have are left out, and refused.
type wire struct {
	Type       string            `json:"type"`
	Run        uint64            `json:"run"`
	Generation uint64            `json:"gen"`
	Agent      uint32            `json:"agent,omitempty"`
	PublicKey  string            `json:"public_key,omitempty"`
	Ufrag      string            `json:"ufrag,omitempty"`
	Pwd        string            `json:"pwd,omitempty"`
	Candidates []string          `json:"candidates,omitempty"`
	End        bool              `json:"end,omitempty"`
	Reason     string            `json:"reason,omitempty"`
	Counters   map[string]uint64 `json:"counters,omitempty"`
}

// Encode returns the message as JSON, at most MaxMessage bytes that the caller owns. An error wraps ErrMessage.
func (m *Message) Encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	w := wire{Type: m.Kind.String(), Run: m.Run, Generation: m.Generation, Agent: m.Agent, Ufrag: m.Ufrag,
		Pwd: m.Pwd, Candidates: m.Candidates, End: m.End, Reason: m.Reason, Counters: m.Counters}
	if m.Kind != Bye {
		w.PublicKey = base64.StdEncoding.EncodeToString(m.PublicKey[:])
	}
	data, err := json.Marshal(&w)
	if err == nil && len(data) > MaxMessage {
		err = errTooLong
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return data, nil
}

// Decode parses data, which is borrowed, and checks everything that Encode does. It takes each key once, spelled exactly, and
// nothing behind the object. An error wraps ErrMessage and quotes nothing of data.
func Decode(data []byte) (Message, error) {
	m, err := decode(data)
	if err == nil {
		err = m.check()
	}
	if err != nil {
		return Message{}, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return m, nil
}

var (
	errTooLong = fmt.Errorf("longer than %d bytes", MaxMessage)
	errSyntax  = errors.New("not a JSON object of the right form")
)

func decode(data []byte) (m Message, err error) {
	if len(data) > MaxMessage {
		return m, errTooLong
	}
	if !utf8.Valid(data) {
		return m, errSyntax
	}
	w, err := decodeWire(data)
	if err != nil {
		return m, err
	}
	m = Message{Run: w.Run, Generation: w.Generation, Agent: w.Agent, Ufrag: w.Ufrag, Pwd: w.Pwd,
		Candidates: w.Candidates, End: w.End, Reason: w.Reason, Counters: w.Counters}
	for kind, name := range kindNames {
		if name != "" && name == w.Type {
			m.Kind = Kind(kind)
		}
	}
	if (m.Kind == Bye) != (w.PublicKey == "") {
		return m, errors.New("public key where none belongs, or none where one does")
	}
	if w.PublicKey != "" {
		// DecodeString skips line ends, so the length is checked first.
		key, err := base64.StdEncoding.Strict().DecodeString(w.PublicKey)
		if err != nil || len(w.PublicKey) != base64.StdEncoding.EncodedLen(32) || len(key) != 32 {
			return m, errors.New("public key is not 32 bytes in base64")
		}
		m.PublicKey = [32]byte(key)
	}
	return m, nil
}

// decodeWire reads the object key by key, because encoding/json by itself ignores case and takes a key twice.
func decodeWire(data []byte) (w wire, err error) {
	fields := map[string]any{"type": &w.Type, "run": &w.Run, "gen": &w.Generation, "agent": &w.Agent, "public_key": &w.PublicKey,
		"ufrag": &w.Ufrag, "pwd": &w.Pwd, "candidates": &w.Candidates, "end": &w.End, "reason": &w.Reason, "counters": &w.Counters}
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return w, errSyntax
	}
	for d.More() {
		t, err := d.Token()
		key, ok := t.(string)
		if err != nil || !ok {
			return w, errSyntax
		}
		field, ok := fields[key]
		if !ok {
			return w, errors.New("unknown or repeated key")
		}
		delete(fields, key)
		if err := d.Decode(field); err != nil {
			return w, errSyntax
		}
	}
	if t, err := d.Token(); err != nil || t != json.Delim('}') {
		return w, errSyntax
	}
	if rest := bytes.TrimLeft(data[d.InputOffset():], " \t\r\n"); len(rest) != 0 {
		return w, errSyntax
	}
	return w, nil
}

// check holds the rules that a message must obey on both sides.
func (m *Message) check() error {
	switch {
	case m.Kind < Offer || m.Kind > Bye:
		return errors.New("unknown type")
	case m.Run == 0:
		return errors.New("no run")
	case m.Generation == 0 || m.Generation > MaxGeneration:
		return errors.New("no generation, or one out of range")
	case m.Kind == Bye:
		return m.checkBye()
	default:
		return m.checkOffer()
	}
}

func (m *Message) checkOffer() error {
	switch {
	case m.Reason != "" || len(m.Counters) != 0:
		return errors.New("a close reason in an offer or answer")
	case m.Agent == 0:
		return errors.New("no agent")
	case m.PublicKey == [32]byte{}:
		return errors.New("no public key")
	case !iceChars(m.Ufrag, MinUfrag) || !iceChars(m.Pwd, MinPwd):
		return errors.New("invalid ICE credentials")
	case len(m.Candidates) > MaxCandidates:
		return errors.New("too many candidates")
	}
	for _, c := range m.Candidates {
		if len(c) > MaxCandidate || !printable(c) {
			return errors.New("a candidate is too long or holds control characters")
		}
	}
	return nil
}

func (m *Message) checkBye() error {
	switch {
	case m.Agent != 0 || m.PublicKey != [32]byte{} || m.Ufrag != "" || m.Pwd != "" || len(m.Candidates) != 0 || m.End:
		return errors.New("parts of an offer in a bye")
	case !word(m.Reason):
		return errors.New("no close reason, or an invalid one")
	case len(m.Counters) > MaxCounters:
		return errors.New("too many counters")
	}
	for name := range m.Counters {
		if !word(name) {
			return errors.New("invalid name of a counter")
		}
	}
	return nil
}

// iceChars: "ice-char = ALPHA / DIGIT / "+" / "/"" (RFC 8839, section 5.1).
func iceChars(s string, least int) bool {
	if len(s) < least || len(s) > MaxCredential {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '+' || c == '/') {
			return false
		}
	}
	return true
}

// printable reports whether s is ASCII without control characters.
func printable(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// word reports whether s is a name like handshake_timeout.
func word(s string) bool {
	if len(s) == 0 || len(s) > MaxReason {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_') {
			return false
		}
	}
	return true
}
