package link

import (
	"log/slog"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
)

// Phase is how far a connection has come.
type Phase uint8

// The phases of a connection, in their order. From PhaseHandshake on there is a path. PhaseUp may go to PhaseIdle and back,
// and falls back to PhaseHandshake when the session is lost; every other step is forward.
const (
	PhaseCandidates Phase = iota // the peer has named no candidate yet
	PhaseChecking                // candidate pairs are being checked
	PhaseHandshake               // a pair is selected, there is no session
	PhaseUp                      // there is a session
	PhaseIdle                    // there is a session and no data for a while: no agent, keepalives hold the path
	PhaseClosing                 // over, but an agent is not gone yet
	PhaseClosed                  // over, nothing is left
)

var phaseNames = [...]string{"candidates", "checking", "handshake", "up", "idle", "closing", "closed"}

// String returns the phase's name as status and logs show it.
func (p Phase) String() string { return nameOf(phaseNames[:], int(p)) }

// CloseReason says why a connection ended. It travels by its name.
type CloseReason uint8

// The reasons for a close. The first four are the deadlines, which both sides keep.
const (
	CloseUnspecified      CloseReason = iota // the peer gave a reason that we do not know
	CloseNoCandidates                        // the peer named no candidate
	CloseICETimeout                          // no candidate pair worked
	CloseICEDisconnected                     // neither ICE nor WireGuard heard the peer any more
	CloseHandshakeTimeout                    // ICE worked and the WireGuard handshake did not complete
	ClosePeerClosed                          // the peer said bye
	CloseReplaced                            // the peer began a newer connection
	CloseKeysChanged                         // a key or preshared key was changed: the next attempt takes the new ones
	CloseRemoved                             // the peer is not to be reached any more
	CloseShutdown                            // we end
	CloseUnknown                             // only in byes: what was signaled belongs to no connection, as after a restart
	CloseIdentityChanged                     // the peer is not the one that was met under its name
	CloseKeyUnsigned                         // the peer's identity has not signed the key that it is said to have
)

var closeReasonNames = [...]string{
	"unspecified", "no_candidates", "ice_timeout", "ice_disconnected", "handshake_timeout", "peer_closed", "replaced",
	"keys_changed", "removed", "shutdown", "unknown_connection", "identity_changed", "key_unsigned",
}

// String returns the reason's name as status, logs and byes show it.
func (r CloseReason) String() string { return nameOf(closeReasonNames[:], int(r)) }

// MarshalText obeys encoding.TextMarshaler; it cannot fail.
func (r CloseReason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText obeys encoding.TextUnmarshaler; it cannot fail. A name of a later version is CloseUnspecified.
func (r *CloseReason) UnmarshalText(text []byte) error {
	*r = CloseUnspecified
	for i, name := range closeReasonNames {
		if name == string(text) {
			*r = CloseReason(i)
		}
	}
	return nil
}

// backsOff reports whether the next attempt must wait after a connection that ended so: not if something changed.
func (r CloseReason) backsOff() bool {
	return r != CloseReplaced && r != CloseKeysChanged && r != CloseRemoved && r != CloseShutdown
}

// failed reports whether something is wrong where a connection ends so, as opposed to an end that somebody wanted.
func (r CloseReason) failed() bool {
	switch r {
	case CloseNoCandidates, CloseICETimeout, CloseICEDisconnected, CloseHandshakeTimeout, CloseIdentityChanged, CloseKeyUnsigned:
		return true
	}
	return false
}

// farewell reports whether the peer is to be told of it.
func (r CloseReason) farewell() bool { return r != ClosePeerClosed && r != CloseReplaced }

// CloseCause is what most likely stood in the way of a handshake, or of ICE.
type CloseCause uint8

// The causes. CauseNone belongs to closes that are about neither, or of which no more is known than the reason says.
const (
	CauseNone           CloseCause = iota
	CausePeerHasOldKey             // mac1_mismatch: initiations were made for another public key than ours
	CausePeerKeyUnknown            // unknown_static: initiations came from a public key that is no peer's
	CausePresharedKeys             // responses were rejected, or sent and never confirmed
	CauseWeHaveOldKey              // as CausePeerHasOldKey, seen by the peer
	CauseOurKeyUnknown             // as CausePeerKeyUnknown, seen by the peer
	CauseNoPrivateKey              // no initiation could be made
	CauseBadPeerKey                // the peer's public key is of low order
	CausePeerClock                 // ts_replay: the peer's initiations are older than one that we accepted
	CauseOurClock                  // the same, seen by the peer
	CauseInboundLost               // nothing came, but the peer has sent responses
	CauseOutboundLost              // responses were sent, and the peer has seen none
	CauseLateResponses             // responses came after their initiations were given up
	CausePeerLoaded                // only cookie replies came
	CauseWeAreLoaded               // initiations were refused for our load
	CauseDamaged                   // messages came, but none that opens
	CauseSilence                   // nothing came
	// What the edge knows of ICE, see Facts.
	CauseUDPBlocked       // nothing comes back over UDP, from no relay and no peer
	CausePeerUDPBlocked   // the peer names no address that a relay has seen, although relays are there
	CauseRelayCredentials // no relay is up, and one refuses our credentials
)

var closeCauseNames = [...]string{
	"",
	"the peer uses an old public key of ours",
	"the peer has a key we do not know",
	"preshared keys differ",
	"we use an old public key of the peer",
	"the peer does not know our public key",
	"we have no private key",
	"the peer's public key is not a valid one",
	"the peer's clock was set back: its initiations are older than one we accepted",
	"our clock was set back: our initiations are older than one the peer accepted",
	"the peer's WireGuard messages do not arrive here although ICE works",
	"our WireGuard messages do not arrive at the peer although ICE works",
	"responses come too late",
	"the peer is under load",
	"we are under load",
	"WireGuard messages arrive damaged",
	"no WireGuard message arrived although ICE works",
	"UDP is blocked here, or no relay is up: none of them answers",
	"UDP is blocked at the peer: it names no address that a relay has seen",
	"the relay refuses our credentials",
}

// String returns the cause as status and logs show it, "" for CauseNone.
func (c CloseCause) String() string { return nameOf(closeCauseNames[:], int(c)) }

func nameOf(names []string, i int) string {
	if i >= len(names) {
		return "unknown"
	}
	return names[i]
}

// HandshakeCounters is what became of the handshake messages of a connection since its last session came up, or since its
// series began. The peer's come in its bye; they are only believed so far as a cause is named after them.
type HandshakeCounters struct {
	Initiations       uint32 `json:"initiations,omitempty"` // sent
	Responses         uint32 `json:"responses,omitempty"`   // sent, each to an accepted initiation
	ResponsesRejected uint32 `json:"responses_rejected,omitempty"`
	Mac1Mismatch      uint32 `json:"mac1_mismatch,omitempty"`
	UnknownStatic     uint32 `json:"unknown_static,omitempty"`
	OldTimestamps     uint32 `json:"ts_replay,omitempty"`
	LateResponses     uint32 `json:"late_responses,omitempty"`
	CookieReplies     uint32 `json:"cookie_replies,omitempty"`
	Refused           uint32 `json:"refused,omitempty"` // under load, or too fast
	Damaged           uint32 `json:"damaged,omitempty"` // whatever else was dropped
	// NotSent is why no initiation could be made or taken: no_private_key, low_order. The peer is not told.
	NotSent crypto.Reason `json:"-"`
}

// countersOf adds what was dropped before the peer was known, and booked to the connection, to what the core has counted.
func countersOf(t *crypto.Tally, booked *[crypto.ReasonCount]uint32) HandshakeCounters {
	c := HandshakeCounters{
		Initiations: uint32(t.Initiations), Responses: uint32(t.ResponsesSent), CookieReplies: uint32(t.CookieReplies),
		ResponsesRejected: t.ResponsesRejected[crypto.BadAEAD], NotSent: t.NotSent,
	}
	for r := range crypto.ReasonCount {
		dropped := t.InitiationsRejected[r] + booked[r]
		switch r {
		case crypto.Accepted:
		case crypto.CookieSent, crypto.RateLimited, crypto.Flood:
			c.Refused += dropped + t.ResponsesRejected[r]
		case crypto.Mac1Mismatch:
			c.Mac1Mismatch = dropped + t.ResponsesRejected[r]
		case crypto.UnknownStatic:
			c.UnknownStatic = dropped
		case crypto.ReplayedTimestamp:
			c.OldTimestamps = dropped
		case crypto.UnknownIndex, crypto.WrongState:
			c.LateResponses += dropped + t.ResponsesRejected[r]
		case crypto.BadAEAD:
			c.Damaged += dropped
		case crypto.NoPrivateKey:
			if dropped > 0 {
				c.NotSent = r
			}
		default:
			c.Damaged += dropped + t.ResponsesRejected[r]
		}
	}
	return c
}

// silent reports whether no handshake message of the peer was seen.
func (c *HandshakeCounters) silent() bool {
	seen := *c
	seen.Initiations, seen.NotSent = 0, crypto.Accepted
	return seen == HandshakeCounters{}
}

// causeOf names what most likely stood in the way of a handshake: first by what we saw, then by what the peer did.
func causeOf(own HandshakeCounters, peer *Bye) CloseCause {
	switch {
	case own.Mac1Mismatch > 0:
		return CausePeerHasOldKey
	case own.UnknownStatic > 0:
		return CausePeerKeyUnknown
	case own.ResponsesRejected > 0:
		return CausePresharedKeys
	case own.NotSent == crypto.NoPrivateKey:
		return CauseNoPrivateKey
	case own.NotSent == crypto.LowOrder:
		return CauseBadPeerKey
	case own.OldTimestamps > 0 && own.Responses == 0:
		return CausePeerClock
	}
	if peer != nil {
		if cause := reportedCause(own, peer.Counters); cause != CauseNone {
			return cause
		}
	}
	switch {
	case own.Responses > 0:
		return CausePresharedKeys
	case own.LateResponses > 0:
		return CauseLateResponses
	case own.CookieReplies > 0:
		return CausePeerLoaded
	case own.Refused > 0:
		return CauseWeAreLoaded
	case own.Damaged > 0:
		return CauseDamaged
	}
	return CauseSilence
}

// reportedCause is the part of causeOf that needs the peer's counters, CauseNone if they say nothing.
func reportedCause(own, peer HandshakeCounters) CloseCause {
	switch {
	case peer.Mac1Mismatch > 0:
		return CauseWeHaveOldKey
	case peer.UnknownStatic > 0:
		return CauseOurKeyUnknown
	case peer.ResponsesRejected > 0:
		return CausePresharedKeys
	case peer.OldTimestamps > 0 && peer.Responses == 0:
		return CauseOurClock
	case own.silent() && peer.Responses > 0:
		return CauseInboundLost
	case own.Responses > 0 && peer.silent():
		return CauseOutboundLost
	}
	return CauseNone
}

// Bye is what the side that closes a connection tells the other through signaling.
type Bye struct {
	Attempt  AttemptNumber     `json:"gen"`
	Reason   CloseReason       `json:"reason"`
	Counters HandshakeCounters `json:"counters"`
}

// LogValue shows the bye in one group.
func (b Bye) LogValue() slog.Value {
	return slog.GroupValue(append([]slog.Attr{slog.String("reason", b.Reason.String())}, b.Counters.attrs()...)...)
}

// attrs are the counters that are not 0, under their names.
func (c *HandshakeCounters) attrs() (list []slog.Attr) {
	c.each(func(name string, value uint32) { list = append(list, slog.Uint64(name, uint64(value))) })
	return list
}

// ByName returns the counters that are not 0, under their names.
func (c *HandshakeCounters) ByName() map[string]uint64 {
	counters := make(map[string]uint64)
	c.each(func(name string, value uint32) { counters[name] = uint64(value) })
	return counters
}

func (c *HandshakeCounters) each(f func(name string, value uint32)) {
	for _, counter := range [...]struct {
		name  string
		value uint32
	}{
		{"initiations", c.Initiations}, {"responses", c.Responses}, {"responses_rejected", c.ResponsesRejected},
		{"mac1_mismatch", c.Mac1Mismatch}, {"unknown_static", c.UnknownStatic}, {"ts_replay", c.OldTimestamps},
		{"late_responses", c.LateResponses}, {"cookie_replies", c.CookieReplies}, {"refused", c.Refused},
		{"damaged", c.Damaged},
	} {
		if counter.value > 0 {
			f(counter.name, counter.value)
		}
	}
}

// Closed is how a connection ended.
type Closed struct {
	Attempt  AttemptNumber
	Reason   CloseReason
	Cause    CloseCause
	Phase    Phase         // in which it ended
	Lasted   time.Duration // since the attempt began
	Up       time.Duration // since it first had a session, 0 if it never had one
	Waited   time.Duration // since the handshake's deadline was set, if it ended in PhaseHandshake
	Counters HandshakeCounters
	// PeerReports is the peer's bye, nil if none came. Frozen.
	PeerReports *Bye
}

// failed reports whether something is wrong, for us or for the peer that has ended it.
func (c *Closed) failed() bool {
	return c.Reason.failed() || c.Reason == ClosePeerClosed && c.PeerReports != nil && c.PeerReports.Reason.failed()
}

// Bye is what the peer is to be told of the close. Not ok: it knows.
func (c *Closed) Bye() (b Bye, ok bool) {
	return Bye{Attempt: c.Attempt, Reason: c.Reason, Counters: c.Counters}, c.Reason.farewell()
}

// LogAttrs describes the close for one line of the log.
func (c *Closed) LogAttrs() []slog.Attr {
	list := []slog.Attr{slog.String("reason", c.Reason.String())}
	if c.Cause != CauseNone {
		list = append(list, slog.String("cause", c.Cause.String()))
	}
	list = append(list, slog.String("phase", c.Phase.String()), slog.Duration("lasted", c.Lasted))
	if c.Waited > 0 {
		list = append(list, slog.Duration("handshake", c.Waited))
	}
	list = append(list, c.Counters.attrs()...)
	if c.PeerReports != nil {
		list = append(list, slog.Any("peer_reports", *c.PeerReports))
	}
	return list
}
