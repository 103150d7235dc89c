package signal

import (
	"context"
	"errors"
	"time"
)

// Signaler exchanges messages with other nodes. [Bus] and [Memory] are the two there are. Both may be used by several
// goroutines.
type Signaler interface {
	// Send delivers msg to the node called to. It blocks until the peer has queued the message, an error is known, ctx
	// ends or the Signaler's own time limit has passed, so a control goroutine calls it from another one. nil means that
	// the peer queued it. Errors wrap one of the sentinels below or are ctx's.
	//
	// msg is borrowed until Send returns. Run is filled in by the Signaler.
	Send(ctx context.Context, to string, msg Message) error
	// Recv returns the queue of received messages, always the same one. It is closed when the Signaler is closed. What
	// does not fit in it is dropped, counted, and not confirmed.
	Recv() <-chan Msg
}

// Msg is a received message. It is owned by who receives it.
type Msg struct {
	// From is the sending node's name, as the broker vouches for it.
	From string
	Message
}

// Errors that Send and Request wrap.
var (
	// ErrAbsent: the broker is reachable and no node of this name is connected to it.
	ErrAbsent = errors.New("peer is not connected to the portal")
	// ErrUnanswered: the message left, and nothing was heard in time. The peer may have it.
	ErrUnanswered = errors.New("no answer in time")
	// ErrDown: the portal was not reachable for as long as Send may wait, or was lost before the answer came.
	ErrDown = errors.New("portal is not reachable")
	// ErrRefused: the portal does not accept the token: it is wrong, or has been revoked. It comes together with ErrDown.
	ErrRefused = errors.New("portal refuses the token")
	// ErrBusy: the portal has as many connections as it takes, in all or from our network. It comes together with ErrDown.
	ErrBusy = errors.New("the portal is busy: too many connections")
	// ErrForbidden: the portal does not let this node write to that one.
	ErrForbidden = errors.New("portal does not allow it")
	// ErrFingerprint: the portal's certificate is not the one that the token names. It comes together with ErrDown.
	ErrFingerprint = errors.New("certificate has another fingerprint")
	// ErrName: not the name of a node, or this node's own.
	ErrName = errors.New("invalid node name")
	// ErrMessage: the message breaks a limit or a rule of its format.
	ErrMessage = errors.New("invalid message")
	// ErrClosed: the Signaler was closed.
	ErrClosed = errors.New("signaling is closed")
)

// State says whether the portal is reachable, for a status page.
type State struct {
	// Up: connected and subscribed.
	Up bool
	// Since is when Up took its value.
	Since time.Time
	// Why is nil while Up, else the reason of the last failure; it wraps ErrRefused, ErrBusy, ErrForbidden, ErrFingerprint or ErrClosed
	// where that is the reason. The text may hold what the portal sent.
	Why error
	// Attempts counts failed attempts to connect since the connection was last up.
	Attempts int
}

// Counters are the messages that a Signaler did not deliver, by reason. All only grow.
type Counters struct {
	Received   uint64 `help:"Messages of peers received through the portal."` // queued for Recv
	Sender     uint64 `name:"drop_signal_sender" drop:"signal sender" help:"Messages on a subject that names no node, or this node itself."`
	Oversize   uint64 `name:"drop_signal_oversize" drop:"signal oversize" help:"Messages longer than any may be."`
	Malformed  uint64 `name:"drop_signal_malformed" drop:"signal malformed" help:"Messages that break a rule of the format."`
	Full       uint64 `name:"drop_signal_full" drop:"signal full" help:"Messages that came faster than they were read."`
	Closed     uint64 `name:"drop_signal_closed" drop:"signal closed" help:"Messages that came after the end."`
	Reply      uint64 `name:"drop_signal_reply" drop:"signal reply" help:"Messages that asked to be confirmed elsewhere than in their sender's inbox."`
	Candidates uint64 `name:"drop_signal_candidates" drop:"signal candidates" help:"Single candidates that were left out of a message."`
}
