package link

import (
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
)

// connection is one attempt to reach a peer, and what becomes of it: agents look for a path, the core makes a session over
// it, and 15 s after the path was there the session is as well or all is cleaned up. Inputs note what happened, and advance draws
// the conclusions.
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
// A closed connection stays until the next attempt, so that the peer's bye still finds it and status can show how it ended. A
// handshake message that is accepted after the close makes the core forget again, and must not be answered.
type connection struct {
	// frozen
	link        *Link
	serial      uint64
	number      AttemptNumber
	controlling bool
	began       time.Duration

	run     uint64 // of the peer's program, 0 before its first message
	phase   Phase
	agents  // embedded: most of what a connection does is about them
	upSince time.Duration

	handshake handshake
	confirm   confirm
	idle      idle
	quiet     quiet
	upgrade   upgrade

	path          *pipeline.Path // nil: none
	paths         pipeline.PathNumber
	local, remote string                         // candidate types of the path
	pending       map[AgentNumber]signal.Message // of the peer's agents that ours do not match yet

	now           time.Duration // of the last advance
	authenticated time.Duration // the last proof that the session works
	order         CloseReason
	report        *Bye
	closed        Closed
	blocked       CloseCause // obstacle at the end
}

// view is what control sees of the session.
func (c *connection) view() *pipeline.View { return &c.link.view }

// lastSTUN is when STUN was last heard by the agent in use.
func (c *connection) lastSTUN() time.Duration {
	if c.current.ice == nil {
		return 0
	}
	return c.current.ice.LastHeard()
}

// relayed reports whether the datagrams take the way over a relay, ours or the peer's.
func (c *connection) relayed() bool { return c.path != nil && c.path.Relayed }

// handleVerdict notes what became of a handshake message of the peer's, or of nobody's that came over our path.
func (c *connection) handleVerdict(now time.Duration, v crypto.Verdict) {
	switch {
	case v.Roam && c.over():
		c.clearSession()
	case v.Roam:
		c.handshake.heardAt = now
	case v.Peer == nil && !c.over(): // the core has counted the others
		c.handshake.booked[v.Reason]++
	}
}

// handleBye notes that the peer has closed. Of a peer whose first handshake failed the report is kept and our own deadline, which
// is near, stands: so both sides end for the same reason at their own 15 s.
func (c *connection) handleBye(b Bye) {
	if b.Attempt != c.number || c.report != nil {
		return
	}
	c.report = &b
	if c.over() {
		c.closed.PeerReports = c.report
		c.closed.Cause = c.cause(c.closed.Reason)
		c.link.noteReport(c.closed)
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
	return c.phase == PhaseUp || c.phase == PhaseIdle || c.phase == PhaseHandshake && c.handshake.asked && (c.controlling || c.upSince != 0)
}

// over reports whether the connection has ended.
func (c *connection) over() bool { return c.phase >= PhaseClosing }

// advance draws the conclusions from what was noted and from what has become due, in the order in which one may make another needless.
func (c *connection) advance(now time.Duration) {
	c.now = now
	if c.over() {
		return
	}
	c.noteLife()
	switch {
	case c.order != CloseUnspecified:
		c.end(c.order)
		return
	case c.handshake.expired != nil:
		c.link.view.Tally = c.handshake.expired.Tally // the core has begun to count anew
		c.end(c.unanswered())
		return
	}
	c.countSeries()
	if c.phase == PhaseHandshake && !c.view().Usable && now >= c.handshake.deadline() {
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
	c.followUpgrade()
	c.startWanted()
	c.sendDue()
}

// noteLife keeps the last proof that the session works: something authentic was received in it, or it was made. Accepted
// handshake messages are stamped as received, but prove nothing about the session there is.
func (c *connection) noteLife() {
	a := &c.view().Activity
	c.authenticated = max(c.authenticated, a.LastDataReceived)
	if a.LastReceived != c.handshake.heardAt {
		c.authenticated = max(c.authenticated, a.LastReceived)
	}
	if c.view().Usable {
		c.authenticated = max(c.authenticated, c.view().Created)
	}
}

// live reports whether the session is proved to work.
func (c *connection) live() bool { return c.view().Usable && c.now < c.authenticated+liveFor }

// clearSession has control forget the sessions. What waits for one waits no more, unless it does so for the next attempt.
func (c *connection) clearSession() {
	c.link.order(pipeline.Order{Kind: pipeline.OrderForget})
	if c.link.asking.since == 0 && c.closed.Reason != CloseReplaced {
		c.link.order(pipeline.Order{Kind: pipeline.OrderPurge})
	}
}

// end cleans up and says why.
func (c *connection) end(reason CloseReason) {
	c.closed = Closed{
		Attempt: c.number, Reason: reason, Phase: c.phase, Lasted: c.now - c.began, PeerReports: c.report,
		Counters: countersOf(&c.view().Tally, &c.handshake.booked),
	}
	if c.upSince != 0 {
		c.closed.Up = c.now - c.upSince
	}
	if c.phase == PhaseHandshake {
		c.closed.Waited = c.now - c.handshake.from
	}
	c.blocked = c.obstacle()
	c.closed.Cause = c.cause(reason)
	if c.paths > 0 {
		c.link.publishPath(nil)
	}
	for _, a := range c.list() {
		c.closeAgent(a)
	}
	c.clearSession()
	if bye, ok := c.closed.Bye(); ok {
		c.link.task(Task{Kind: TaskBye, Message: byeMessage(bye)})
	}
	c.link.noteClosed(c.now, c.closed)
	c.phase, c.wanted, c.handshake.expired = PhaseClosing, false, nil
	c.noteGone()
	if reason != CloseReplaced {
		c.link.HandlePortal(c.now)
	}
}

// cause names what stood in the way: of the handshake, or of ICE.
func (c *connection) cause(reason CloseReason) CloseCause {
	if reason == ClosePeerClosed && c.report != nil {
		reason = c.report.Reason // it has ended for the same
	}
	switch reason {
	case CloseHandshakeTimeout:
		return causeOf(c.closed.Counters, c.report)
	case CloseNoCandidates, CloseICETimeout, CloseICEDisconnected:
		return c.obstacle()
	}
	return CauseNone
}

// obstacle is what ICE most likely fails for, if it does; CauseNone: nothing that is known.
func (c *connection) obstacle() CloseCause {
	facts := &c.link.links.Facts
	switch {
	case c.over():
		return c.blocked
	case c.path != nil:
		return CauseNone
	case facts.Obstacle == CauseNone && facts.RelaysUp > 0 && c.peerUnseen():
		return CausePeerUDPBlocked
	}
	return facts.Obstacle
}
