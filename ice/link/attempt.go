package link

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/pipeline"
)

// This file is the contract between the links and the connectivity edge, which finds paths: what links ask (Request) and
// what they are told (Attempt). They decide when to try, what a connection is worth and when it is over; the edge gathers,
// signals, checks, and knows the portal.

// ErrDown: the interface is down, so there is nothing to connect.
var ErrDown = errors.New("link: the interface is down")

// RequestKind says what control asks of the connectivity edge, or tells it.
type RequestKind uint8

// The requests. Which other fields are set stands behind each; Peer always is, and Generation but for RequestAttempt.
const (
	// RequestAttempt: the peer is wanted and its back-off allows it. Ask the portal for the peer's present keys, apply them
	// (Pipeline.Edit), then call Begin. If that does not follow within 10 s the wish has failed, as an attempt does.
	RequestAttempt RequestKind = iota
	// RequestAgent: start ICE agent number Agent, in the role that Begin was given: gather, signal, check.
	RequestAgent
	// RequestCloseAgent: close it; then call Attempt.AgentGone.
	RequestCloseAgent
	// RequestPath: the connection's datagrams go to Path from now on, nil: nowhere. A TURN channel in it must be kept.
	RequestPath
	// RequestCheck: nothing is heard over the pair that agent number Agent has selected; have it checked at once. Attempt.Heard tells
	// the answer.
	RequestCheck
	// RequestStray: authentic data of the peer came from Path.Dst to Path.Src, or over our relay at Path.Dst from Path.Peer or, if that
	// is not set, over Path.Channel; and not from where the connection's path leads. If the peer is there now, tell by
	// Attempt.Selected.
	RequestStray
	// RequestBye: tell the peer Bye.
	RequestBye
	// RequestUp: the first session of the attempt is up.
	RequestUp
	// RequestClosed: the attempt is over, see Closed. No request follows for it.
	RequestClosed
)

// Request is one thing that control asks of the edge. It is frozen.
type Request struct {
	Kind       RequestKind
	Peer       string // its name
	Generation uint32 // of the attempt
	Agent      uint32
	Path       *pipeline.Path
	Bye        Bye
	Closed     Closed
}

// Attempt is the edge's handle on one attempt to reach a peer. Its methods may be called by any goroutine but a shard's and
// control's own. They wait for control to take the news, and do nothing once another attempt has begun, the peer was removed or
// the pipeline has ended.
type Attempt struct {
	pipeline *pipeline.Pipeline
	name     string
	link     *link        // owned by control
	heard    atomic.Int64 // on the pipeline's clock; 0: never
}

// Begin begins an attempt to reach the peer of that name; an earlier one closes as CloseReplaced. generation is the same on
// both sides, and another than that of the attempt before unless the peer has restarted; controlling is the ICE role, and who
// controls sends the first initiation (see Controls). The first RequestAgent follows, agent 1. Errors: pipeline.ErrUnknownPeer,
// ErrDown, pipeline.ErrClosed.
func Begin(p *pipeline.Pipeline, name string, generation uint32, controlling bool) (*Attempt, error) {
	a := &Attempt{pipeline: p, name: name}
	var err error
	if e := p.Tell(name, func(now time.Duration, l pipeline.Link) { err = l.(*link).begin(now, generation, controlling, a) }); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, err
	}
	return a, nil
}

// Heard notes that a valid STUN message was heard for the agent in use. It never blocks: it may be called by any goroutine
// and under locks.
func (a *Attempt) Heard() { a.heard.Store(int64(a.pipeline.Now())) }

// RemoteCandidate notes that the peer has named a candidate for that agent.
func (a *Attempt) RemoteCandidate(agent uint32) {
	a.tell(func(now time.Duration, c *connection) { c.handleCandidate(now, agent) })
}

// Selected notes that the agent has selected a pair, its first or another one.
func (a *Attempt) Selected(agent uint32, path pipeline.Path) {
	a.tell(func(now time.Duration, c *connection) { c.handlePath(now, agent, path) })
}

// Obstacle notes what ICE most likely fails for, if it does; CauseNone: nothing that is known.
func (a *Attempt) Obstacle(cause CloseCause) {
	a.tell(func(_ time.Duration, c *connection) { c.obstacle = cause })
}

// AgentFailed notes that the agent has given up by itself.
func (a *Attempt) AgentFailed(agent uint32) {
	a.tell(func(_ time.Duration, c *connection) { c.handleAgentFailed(agent) })
}

// AgentGone notes that nothing is left of an agent that was to be closed.
func (a *Attempt) AgentGone(agent uint32) {
	a.tell(func(_ time.Duration, c *connection) { c.handleAgentGone(agent) })
}

// RemoteAgent notes that the peer has started the agent of that number.
func (a *Attempt) RemoteAgent(agent uint32) {
	a.tell(func(now time.Duration, c *connection) { c.handleRemoteAgent(now, agent) })
}

// WantAgent asks for another agent, beside the one in use or in the place of one that has found nothing yet: the network has
// changed, or a relayed path is to be made direct.
func (a *Attempt) WantAgent() {
	a.tell(func(now time.Duration, c *connection) { c.wantAgent(now) })
}

// Bye notes that the peer has closed.
func (a *Attempt) Bye(b Bye) { a.tell(func(_ time.Duration, c *connection) { c.handleBye(b) }) }

// Close ends the attempt for a reason of ours.
func (a *Attempt) Close(reason CloseReason) {
	a.tell(func(_ time.Duration, c *connection) { c.close(reason) })
}

// tell gives the connection an input, on control's goroutine.
func (a *Attempt) tell(input func(now time.Duration, c *connection)) {
	_ = a.pipeline.Tell(a.name, func(now time.Duration, l pipeline.Link) {
		if l == a.link && a.link.attempt == a {
			input(now, a.link.connection)
		}
	})
}
