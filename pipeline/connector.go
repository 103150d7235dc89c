package pipeline

import (
	"errors"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/count"
)

// This file is the contract between control and whoever finds the paths to peers that have names. Control keeps the protocol's
// cores and the lanes, and draws no conclusion about a path; a link does nothing else, and reaches cores and lanes by orders only.

// ErrUnknownPeer: no peer of that name is configured.
var ErrUnknownPeer = errors.New("pipeline: no peer of that name")

// Connector makes the links to named peers. Its methods are called on the control goroutine.
type Connector interface {
	// Link begins with a peer of that name. The link ends with ChangeRemoved.
	Link(name string) Link
	// Counters are those of all links, the ones that have ended included. Their number does not depend on how many peers there are.
	Counters() []count.Counter
}

// Link finds the path to one named peer and says what its session is to do. All methods are called on the control goroutine, take
// the pipeline's clock, must not block, and must not call the Pipeline's methods: what has to wait is somebody else's work, who tells
// what came of it by Pipeline.Tell.
//
// After each input control calls HandleView and carries out what Poll gives, until it gives nothing; then it asks NextTimeout and
// Stance.
type Link interface {
	// HandleWant notes that traffic, or somebody, wants a session.
	HandleWant(now time.Duration)
	// HandleView draws the conclusions from what was noted, what is due, and what has become of the session.
	HandleView(now time.Duration, v View)
	// HandleVerdict notes what became of a handshake message of the peer, or (Verdict.Peer is nil) of nobody's that came over the path.
	HandleVerdict(now time.Duration, v crypto.Verdict)
	// HandleExpired notes that a handshake series has ended without a session.
	HandleExpired(now time.Duration, e crypto.HandshakeExpired)
	// HandleStray notes that something authentic of the peer came from elsewhere than the path leads to; from is frozen.
	HandleStray(now time.Duration, from *Path)
	// HandleChange notes what was done to the peer or the interface.
	HandleChange(now time.Duration, c Change)
	// HandleTimeout is called when what NextTimeout has told falls due, or earlier.
	HandleTimeout(now time.Duration)
	// NextTimeout returns when the link needs looking after, and the name of what for; 0: not until something happens.
	NextTimeout(now time.Duration) (at time.Duration, why string)
	// Poll returns the next order, oldest first. Not ok: there is none.
	Poll() (o Order, ok bool)
	// Stance tells how the link stands.
	Stance(now time.Duration) Stance
}

// View is what control sees of a named peer at one moment.
type View struct {
	Usable        bool          // there is a keypair to send with
	Created       time.Duration // when it was derived
	SeriesRunning bool          // a handshake is being tried, since SeriesSince
	SeriesSince   time.Duration
	Tally         crypto.Tally
	Activity      crypto.Activity
	LastData      time.Duration // data, not keepalives, either way
	Path          *Path         // where datagrams go, frozen; nil: nowhere
}

// Change is something that was done to a named peer or to the interface.
type Change uint8

// The changes.
const (
	ChangeUp      Change = iota // the interface is up: messages may be sent
	ChangeDown                  // it is down, or the pipeline ends
	ChangeKeys                  // the peer has another key or preshared key, or we have another key
	ChangeRetry                 // what stood in the way of an attempt may be gone
	ChangeRemoved               // the peer is not to be reached any more
)

// OrderKind says what control is to do.
type OrderKind uint8

// The orders.
const (
	// OrderPath: the peer's datagrams go to Path from now on, nil: nowhere. The core repeats an initiation that is under way.
	OrderPath OrderKind = iota
	// OrderForget: nothing may be left of sessions and path.
	OrderForget
	// OrderPurge: drop what waits for a session.
	OrderPurge
	// OrderHandshake: handshake series last Lifetime from now on and retry fast; Initiate: begin one, unless there is a fresh session.
	OrderHandshake
	// OrderSession: begin a series, unless there is a fresh session.
	OrderSession
	// OrderKeepalive: send one.
	OrderKeepalive
)

// Order is one thing that a link wants done. Which fields are set depends on Kind.
type Order struct {
	Kind     OrderKind
	Path     *Path // frozen
	Lifetime time.Duration
	Initiate bool
}

// Stance is how a link stands at one moment.
type Stance struct {
	Reach Reach
	// Alive: there is an attempt to reach the peer, or a connection. What comes from it is nobody's otherwise.
	Alive bool
	// Up: the connection has a session, so that keepalives which were configured are sent.
	Up bool
}

// Reach is what lanes do with packets for a peer that has no path.
type Reach uint32

// Values of Reach.
const (
	ReachNone  Reach = iota // a plain peer: unreachable
	ReachLater              // an attempt has failed lately: unreachable, but control is told
	ReachStage              // an attempt is under way or may begin: packets wait
)

// Tell gives the link of the peer of that name an input: f runs on the control goroutine, which then draws the conclusions. It waits
// for control, so neither a shard nor control itself may call it. ErrUnknownPeer, ErrClosed: f has not run.
func (p *Pipeline) Tell(name string, f func(now time.Duration, l Link)) error {
	err := ErrUnknownPeer
	e := p.call(func() {
		k := p.control
		if peer := k.controller.named[name]; peer != nil {
			f(k.now, peer.link)
			k.controller.touch(k.now, peer)
			err = nil
		}
	})
	if e != nil {
		return e
	}
	return err
}

// TellAll is Tell for every named peer, in the order they were added.
func (p *Pipeline) TellAll(f func(now time.Duration, name string, l Link)) error {
	return p.call(func() {
		k := p.control
		for _, peer := range k.controller.peers {
			if peer.link != nil {
				f(k.now, *peer.title.Load(), peer.link)
				k.controller.touch(k.now, peer)
			}
		}
	})
}

// Want asks for a session with the peer of that name, as traffic does. Unknown names are ignored.
func (p *Pipeline) Want(name string) {
	_ = p.Tell(name, func(now time.Duration, l Link) { l.HandleWant(now) })
}
