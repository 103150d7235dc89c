package link

import (
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline"
)

// The lifetimes of a connection. ICE must give up before the handshake does, or a second agent could never find another path
// for a handshake that runs.
const (
	candidateTimeout  = 10 * time.Second // an agent without a candidate of the peer
	iceTimeout        = 12 * time.Second // an agent from its first candidate of the peer until it selects a pair
	iceLostAfter      = 12 * time.Second // a selected pair since the last STUN message
	handshakeLifetime = 15 * time.Second
	// confirmKeepalive is how far apart the initiator repeats the keepalive that confirms a first session, until it hears from
	// the responder or the responder's lifetime is over: a single one that is lost would end the connection there.
	confirmKeepalive = 3 * time.Second
	// liveFor is how long something authentic proves that the session works, whatever ICE says.
	liveFor = 15 * time.Second
	// idleAfter is how long no data must pass for the agent to be closed. Keepalives of both sides then keep the path open, and
	// show each of them that it is: two that are missed are a reason to look for another.
	idleAfter     = 20 * time.Second
	idleKeepalive = 25 * time.Second
	idleSuspect   = 2*idleKeepalive + 10*time.Second
	// agentGap is the least age at which an agent that still checks is replaced by another.
	agentGap = time.Second
	// agentLead bounds how far the peer's numbering of agents may be ahead of ours: more than anybody counts while the two
	// do not hear of each other.
	agentLead = 1 << 16
	// seriesDelay is how late after the nomination the core may begin its series (the least gap between two initiations).
	seriesDelay = time.Second
)

// connection is one attempt to reach a peer, and what becomes of it: agents look for a path, the core makes a session over
// it, and 15 s after the path was there the session is as well or all is cleaned up. It is sans-IO: it belongs to the control
// goroutine, never reads a clock, and knows neither ICE nor sockets. Inputs note what happened, advance draws the conclusions,
// poll says what is to be done, and nextTimeout when to call advance again and why.
//
// Both sides of a connection run one, and each keeps all deadlines by itself:
//
//	no_candidates      10 s  the attempt begins .. the peer names a candidate
//	ice_timeout        12 s  the first candidate .. a pair is selected
//	ice_disconnected   12 s  since the last STUN message, unless the session lives
//	handshake_timeout  15 s  who initiates: from the first initiation; who responds: from the first nomination
//
// Nothing moves the last one: no retry, no packet, no change of path. A session lives while its keypair is usable and has
// received something authentic in the last 15 s; it is never closed because STUN went quiet. Instead a second agent looks for
// another path beside the first, and keypairs stay over the change.
//
// After 20 s without data the agent is closed, and both sides keep their NATs' mappings by a keepalive every 25 s. The next
// packet or signal starts an agent again, and so do keepalives that do not come. While there is none, only WireGuard decides
// whether the peer is there.
//
// The link makes one when its back-off lets an attempt begin, with the keys and preshared key that are the peer's at that moment.
//
// What is signaled for a later agent than the first of a connection that is not there is answered by a bye with CloseUnknown: the
// peer then knows that we have restarted, and begins anew. The link keeps a closed connection until the next attempt, so
// that the peer's bye still finds it and status can show how it ended.
//
// Every handshake message goes to handleVerdict: of the connection of Verdict.Peer, or if that is nil of the one over
// whose path it came. One that is accepted after the close makes the core forget again, and must not be answered. Packets
// that wait for a session go to core.Want only if mayInitiate says so.
type connection struct {
	generation  uint32 // frozen
	controlling bool   // frozen
	began       time.Duration

	phase           Phase
	current, second agent    // current is 0 while idle, second while no other path is looked for
	newest          uint32   // the greatest number of an agent so far
	closing         []uint32 // agents that were closed and are not gone
	wanted          bool     // a second agent is, from wantedAt on
	wantedAt        time.Duration
	asking          asking
	remoteAgent     uint32  // the number the peer gave to its second agent, if it is ahead
	retries         backoff // of second agents that are wanted because the first is lost

	paths         uint32 // published so far
	handshakeFrom time.Duration
	asked         bool // StartHandshake was emitted
	counted       bool // handshakeFrom is that of the series
	upSince       time.Duration
	idleSince     time.Duration
	confirmUntil  time.Duration // keepalives confirm a new session until then; 0: they need not
	keepaliveSent time.Duration // the last that was asked for

	now           time.Duration // of the last advance
	view          sessionView   // at the last advance
	handshakeAt   time.Duration // the last accepted handshake message
	authenticated time.Duration // the last proof that the session works
	booked        [crypto.ReasonCount]uint32
	order         CloseReason
	obstacle      CloseCause // why ICE may find nothing, as far as the edge knows
	expired       *crypto.HandshakeExpired
	report        *Bye
	closed        Closed

	outputs []connectionOutput
}

// connectionWhy names what the next timeout of a connection is for.
type connectionWhy uint8

const (
	whyNothing     connectionWhy = iota
	whyCandidates                // no_candidates, of the first or second agent
	whyICE                       // ice_timeout, of the first or second agent
	whyICELost                   // ice_disconnected, or a second agent if the session lives
	whyQuiet                     // nothing is heard over the path: ask
	whySuspect                   // nothing is heard although it was asked
	whyLive                      // ICE is lost and the session may live no longer
	whyHandshake                 // handshake_timeout
	whySession                   // the keypair stops being usable
	whyConfirm                   // the session needs no confirming any more
	whyKeepalive                 // a keepalive is due
	whyIdle                      // no data for idleAfter
	whyIdleSuspect               // no keepalive of the peer's while idle
	whyAgent                     // another agent is wanted and may start
)

var connectionWhyNames = [...]string{
	"nothing", "candidates", "ice", "ice_lost", "quiet", "suspect", "live", "handshake", "session", "confirm", "keepalive",
	"idle", "idle_suspect", "agent",
}

// String returns the timeout's name as logs show it.
func (w connectionWhy) String() string { return nameOf(connectionWhyNames[:], int(w)) }

type connectionOutputKind uint8

const (
	connectionStartAgent     connectionOutputKind = iota // agent
	connectionCloseAgent                                 // agent
	connectionCheckAgent                                 // agent: have it check the pair it has selected, at once
	connectionPublishPath                                // path
	connectionClearPath                                  // the peer cannot be sent to any more
	connectionClearSession                               // forget the core's sessions, what waits for one, and the stamps
	connectionStartHandshake                             // initiate, lifetime
	connectionKeepalive                                  // send one
	connectionUp                                         // the first session is up; emitted once
	connectionSendBye                                    // bye
	connectionClosed                                     // closed; emitted once, nothing follows but PeerReports
	connectionPeerReports                                // closed, with the bye that came late
)

// connectionOutput is one thing that a connection wants done. Which fields are set depends on kind.
type connectionOutput struct {
	kind  connectionOutputKind
	agent uint32
	path  *pipeline.Path // frozen
	// initiate: the first initiation is ours and due now. Either role bounds its series by the lifetime and retries fast.
	initiate bool
	lifetime time.Duration
	bye      Bye
	closed   Closed
}

// sessionView is what control sees of the session, and when STUN was last heard by the agent in use.
type sessionView struct {
	pipeline.View
	lastSTUN time.Duration
}

// Controls tells whether we control ICE and send the first initiation. A client does towards a node that is none; between
// equals it is the one with the smaller name. Keys have no say: they may be what the two sides do not agree on.
func Controls(client, peerClient bool, name, peerName string) bool {
	if client != peerClient {
		return client
	}
	return name < peerName
}

// newConnection begins an attempt: its first agent, number 1, is started. The generation is greater than that of all earlier
// connections with the peer and the same on both sides; see Controls for controlling.
func newConnection(now time.Duration, generation uint32, controlling bool) *connection {
	c := &connection{generation: generation, controlling: controlling, began: now, now: now, newest: 1}
	c.current = agent{number: 1, started: now}
	c.emit(connectionOutput{kind: connectionStartAgent, agent: 1})
	return c
}

// handleVerdict notes what became of a handshake message of the peer's, or of nobody's that came over our path.
func (c *connection) handleVerdict(now time.Duration, v crypto.Verdict) {
	switch {
	case v.Roam && c.over():
		c.emit(connectionOutput{kind: connectionClearSession})
	case v.Roam:
		c.handshakeAt = now
	case v.Peer == nil && !c.over(): // the core has counted the others
		c.booked[v.Reason]++
	}
}

// handleExpired notes that a series of the core has ended without a session.
func (c *connection) handleExpired(e crypto.HandshakeExpired) {
	if e.Quiet || c.phase < PhaseHandshake {
		return
	}
	if c.phase == PhaseHandshake && e.Since < c.handshakeFrom {
		c.asked = false // it began when there was no path, so nobody heard it
		return
	}
	c.expired = &e
}

// handleBye notes that the peer has closed. Of a peer whose first handshake failed the report is kept and our own deadline, which
// is near, stands: so both sides end for the same reason at their own 15 s.
func (c *connection) handleBye(b Bye) {
	if b.Generation != c.generation || c.report != nil {
		return
	}
	c.report = &b
	if c.over() {
		c.closed.PeerReports = c.report
		c.closed.Cause = c.cause(c.closed.Reason)
		c.emit(connectionOutput{kind: connectionPeerReports, closed: c.closed})
		return
	}
	if c.phase != PhaseHandshake || c.upSince != 0 || b.Reason != CloseHandshakeTimeout {
		c.close(ClosePeerClosed)
	}
}

// close ends the connection for a reason of ours. The first reason stays.
func (c *connection) close(reason CloseReason) {
	if c.order == CloseUnspecified {
		c.order = reason
	}
}

// mayInitiate reports whether packets that want a session may have the core begin a series: who responds leaves the first one
// to the other, and without a path an initiation would be lost.
func (c *connection) mayInitiate() bool {
	return c.phase == PhaseUp || c.phase == PhaseIdle || c.phase == PhaseHandshake && c.asked && (c.controlling || c.upSince != 0)
}

// over reports whether the connection has ended.
func (c *connection) over() bool { return c.phase >= PhaseClosing }

// advance draws the conclusions from what was noted and from what has become due. Call it after every input, when nextTimeout
// falls due, and when the core or the stamps have changed.
func (c *connection) advance(now time.Duration, v sessionView) {
	c.now, c.view = now, v
	if c.over() {
		return
	}
	c.noteLife()
	switch {
	case c.order != CloseUnspecified:
		c.end(c.order)
		return
	case c.expired != nil:
		c.view.Tally = c.expired.Tally // the core has begun to count anew
		c.end(c.unanswered())
		return
	}
	c.countSeries()
	if c.phase == PhaseHandshake && !v.Usable && now >= c.handshakeFrom+handshakeLifetime {
		c.end(c.unanswered())
		return
	}
	if reason, lost := c.followAgents(); lost {
		c.end(reason)
		return
	}
	c.followSession()
	if c.report != nil && c.phase == PhaseUp { // the session came up when the peer had already given up
		c.end(ClosePeerClosed)
		return
	}
	c.followConfirm()
	c.followData()
	c.followKeepalive()
	c.followQuiet()
	c.startWanted()
}

// noteLife keeps the last proof that the session works: something authentic was received in it, or it was made. Accepted
// handshake messages are stamped as received, but prove nothing about the session there is.
func (c *connection) noteLife() {
	a := &c.view.Activity
	c.authenticated = max(c.authenticated, a.LastDataReceived)
	if a.LastReceived != c.handshakeAt {
		c.authenticated = max(c.authenticated, a.LastReceived)
	}
	if c.view.Usable {
		c.authenticated = max(c.authenticated, c.view.Created)
	}
}

func (c *connection) live() bool { return c.view.Usable && c.now < c.authenticated+liveFor }

// countSeries takes over from which moment the core's series counts. The first initiation may come a little after the
// nomination, but that is as far as the deadline can move.
func (c *connection) countSeries() {
	if c.phase != PhaseHandshake || !c.controlling || !c.asked || c.counted || !c.view.SeriesRunning {
		return
	}
	if c.view.SeriesSince >= c.handshakeFrom {
		c.counted = true
		c.handshakeFrom = min(c.view.SeriesSince, c.handshakeFrom+seriesDelay)
	}
}

// followSession moves between handshake and up.
func (c *connection) followSession() {
	switch {
	case c.phase < PhaseHandshake:
	case c.view.Usable && c.phase == PhaseHandshake:
		c.startHandshake(false)
		c.phase = PhaseUp
		c.asked, c.counted = false, false
		c.booked = [crypto.ReasonCount]uint32{}
		if c.controlling {
			c.confirmUntil = c.now + handshakeLifetime
		}
		if c.upSince == 0 {
			c.upSince = c.now
			c.emit(connectionOutput{kind: connectionUp})
		}
	case c.view.Usable:
	case c.phase == PhaseHandshake:
		c.startHandshake(c.controlling)
	default:
		c.loseSession()
	}
}

// loseSession goes back to the handshake: another session has as long as the first, from the rekey on if one is being tried.
func (c *connection) loseSession() {
	c.phase, c.handshakeFrom = PhaseHandshake, c.now
	if c.view.SeriesRunning {
		c.handshakeFrom, c.counted = max(c.view.SeriesSince, c.now-handshakeLifetime+1), true
	}
	c.startHandshake(c.controlling)
	if c.current.number == 0 && c.second.number == 0 {
		c.wantAgent(c.now)
	}
}

// startHandshake has the core begin, once.
func (c *connection) startHandshake(initiate bool) {
	if !c.asked {
		c.asked = true
		c.emit(connectionOutput{kind: connectionStartHandshake, initiate: initiate, lifetime: handshakeLifetime})
	}
}

// nextTimeout returns when advance is next to be called, and why; 0 is not until something happens. After advance it is
// later than the now of that call.
func (c *connection) nextTimeout() (at time.Duration, why connectionWhy) {
	sooner := func(t time.Duration, w connectionWhy) {
		if at == 0 || t < at {
			at, why = t, w
		}
	}
	if c.over() {
		return 0, whyNothing
	}
	if c.current.number != 0 {
		sooner(c.agentTimeout())
	}
	if c.second.number != 0 {
		sooner(c.deadline(&c.second))
	}
	if due, ok := c.quietAt(); ok {
		sooner(due, whyQuiet)
	}
	if c.wanted {
		sooner(c.wantedAt, whyAgent)
	}
	switch c.phase {
	case PhaseHandshake:
		sooner(c.handshakeFrom+handshakeLifetime, whyHandshake)
	case PhaseUp, PhaseIdle:
		sooner(c.view.Created+crypto.RejectAfterTime, whySession)
	}
	if c.confirmUntil != 0 {
		sooner(c.confirmUntil, whyConfirm)
	}
	if due, ok := c.keepaliveAt(); ok {
		sooner(due, whyKeepalive)
	}
	switch {
	case c.mayIdle():
		sooner(c.idleAt(), whyIdle)
	case c.phase == PhaseIdle:
		sooner(c.authenticated+idleSuspect, whyIdleSuspect)
	}
	return at, why
}

// poll returns the next output, oldest first. Not ok: there is none.
func (c *connection) poll() (connectionOutput, bool) {
	if len(c.outputs) == 0 {
		c.outputs = nil
		return connectionOutput{}, false
	}
	out := c.outputs[0]
	c.outputs = c.outputs[1:]
	return out, true
}

func (c *connection) emit(out connectionOutput) { c.outputs = append(c.outputs, out) }
