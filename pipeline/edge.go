package pipeline

import (
	"errors"
)

// This file is the contract between control and the connectivity edge, which finds paths: what control asks (Request) and
// what it is told (Attempt). Control decides when to try, what a connection is worth and when it is over; the edge gathers,
// signals, checks, and knows the portal.

// ErrUnknownPeer: no peer of that name is configured.
var ErrUnknownPeer = errors.New("pipeline: no peer of that name")

// ErrGeneration: the attempt's generation is not newer than the last one's.
var ErrGeneration = errors.New("pipeline: generation out of date")

// RequestKind says what control asks of the connectivity edge, or tells it.
type RequestKind uint8

// The requests. Which other fields are set stands behind each; Peer always is, and Generation but for RequestAttempt.
const (
	// RequestAttempt: the peer is wanted and its back-off allows it. Ask the portal for the peer's present keys, apply them
	// (Pipeline.Edit), then call Pipeline.Begin. Asked once; again only after an attempt has ended, or after Pipeline.Want.
	RequestAttempt RequestKind = iota
	// RequestAgent: start ICE agent number Agent in the role Controlling: gather, signal, check.
	RequestAgent
	// RequestCloseAgent: close it; then call Attempt.AgentGone.
	RequestCloseAgent
	// RequestPath: the connection's datagrams go to Path from now on, nil: nowhere. A TURN channel in it must be kept.
	RequestPath
	// RequestBye: tell the peer Bye.
	RequestBye
	// RequestUp: the first session of the attempt is up.
	RequestUp
	// RequestClosed: the attempt is over, see Closed. No request follows for it but a RequestCloseAgent that is already due.
	RequestClosed
)

// Request is one thing that control asks of the edge. It is frozen.
type Request struct {
	Kind        RequestKind
	Peer        string // its name
	Generation  uint32 // of the attempt
	Agent       uint32
	Controlling bool
	Path        *Path
	Bye         Bye
	Closed      Closed
}

// Attempt is the edge's handle on one attempt to reach a peer. Its methods may be called by any goroutine but a shard's and
// control's own (Config.Edge). They wait for control to take the news, and do nothing once the attempt is over or the
// pipeline has ended.
type Attempt struct{}

// Begin begins an attempt to reach the peer of that name; an earlier one closes as CloseReplaced. generation must be greater
// than that of every earlier attempt with the peer, and is the same on both sides; controlling is the ICE role, and who
// controls sends the first initiation (see Controls). The first RequestAgent follows, agent 1. Errors: ErrUnknownPeer,
// ErrGeneration, ErrClosed.
func (p *Pipeline) Begin(name string, generation uint32, controlling bool) (*Attempt, error) {
	return nil, ErrClosed
}

// Want asks for a connection to the peer, as traffic does: RequestAttempt follows when the back-off allows it, if there is
// no attempt under way. Unknown names are ignored.
func (p *Pipeline) Want(name string) {}

// Heard notes that a valid STUN message was heard for the agent in use. It never blocks: it may be called by any goroutine
// and under locks.
func (a *Attempt) Heard() {}

// RemoteCandidate notes that the peer has named a candidate for that agent.
func (a *Attempt) RemoteCandidate(agent uint32) {}

// Selected notes that the agent has selected a pair, its first or another one.
func (a *Attempt) Selected(agent uint32, path Path) {}

// AgentFailed notes that the agent has given up by itself.
func (a *Attempt) AgentFailed(agent uint32) {}

// AgentGone notes that nothing is left of an agent that was to be closed.
func (a *Attempt) AgentGone(agent uint32) {}

// RemoteAgent notes that the peer has started the agent of that number.
func (a *Attempt) RemoteAgent(agent uint32) {}

// WantAgent asks for a second agent beside the one in use: the network has changed, or a relayed path is to be made direct.
func (a *Attempt) WantAgent() {}

// Bye notes that the peer has closed.
func (a *Attempt) Bye(b Bye) {}

// Close ends the attempt for a reason of ours.
func (a *Attempt) Close(reason CloseReason) {}
