package link

import "time"

// This file is what a connection does while no data passes, and its keepalives: they confirm a new session, and hold a path that
// no agent holds.

// followData closes the agent when no data has passed for a while, and wants one when some has or the peer's keepalives do not
// come.
func (c *connection) followData() {
	switch {
	case c.phase == PhaseIdle && (c.view.LastData > c.idleSince || c.now >= c.authenticated+idleSuspect):
		c.phase = PhaseUp
		c.retryAgent()
	case c.mayIdle() && c.now >= c.idleAt():
		if c.current.number != 0 {
			c.closeAgent(c.current.number)
			c.current = agent{}
		}
		c.becomeIdle()
	}
}

func (c *connection) mayIdle() bool { return c.phase == PhaseUp && c.second.number == 0 && !c.wanted }

func (c *connection) idleAt() time.Duration {
	return max(c.view.LastData, c.current.selected, c.upSince) + idleAfter
}

// becomeIdle is idle mode, without an agent. A keepalive leaves at once, so that the peer, whose agent goes quiet, sees that we
// live.
func (c *connection) becomeIdle() {
	c.phase, c.idleSince = PhaseIdle, c.now
	c.sendKeepalive()
}

// followConfirm ends the repeated confirming: something came in the new session, or the responder waits no longer.
func (c *connection) followConfirm() {
	if c.confirmUntil == 0 {
		return
	}
	a := &c.view.Activity
	heard := a.LastDataReceived > c.view.Created || a.LastReceived > c.view.Created && a.LastReceived != c.handshakeAt
	if heard || c.now >= c.confirmUntil || c.phase != PhaseUp {
		c.confirmUntil = 0
	}
}

// keepaliveAt is when the next keepalive is due: soon while a first session is to be confirmed, and while no agent holds the
// path so often that no NAT forgets it. What comes from the peer does not count, as some NATs keep a mapping only for what
// leaves (RFC 4787, section 4.3). Not ok: none is.
func (c *connection) keepaliveAt() (at time.Duration, ok bool) {
	interval := idleKeepalive
	switch {
	case c.phase != PhaseUp && c.phase != PhaseIdle:
		return 0, false
	case c.confirmUntil != 0:
		interval = confirmKeepalive
	case c.current.number != 0:
		return 0, false
	}
	return max(c.view.Activity.LastSent, c.keepaliveSent) + interval, true
}

func (c *connection) followKeepalive() {
	if at, ok := c.keepaliveAt(); ok && c.now >= at {
		c.sendKeepalive()
	}
}

func (c *connection) sendKeepalive() {
	c.keepaliveSent = c.now
	c.emit(connectionOutput{kind: connectionKeepalive})
}
