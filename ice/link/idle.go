package link

import "time"

// This file is what a connection does while no data passes.

const (
	// idleAfter is how long no data must pass for the agent to be closed. Keepalives of both sides then keep the path open, and
	// show each of them that it is: two that are missed are a reason to look for another.
	idleAfter     = 20 * time.Second
	idleKeepalive = 25 * time.Second
	idleSuspect   = 2*idleKeepalive + 10*time.Second
)

// idle is since when nothing passes.
type idle struct{ since time.Duration }

// followData closes the agent when no data has passed for a while, and wants one when some has or the peer's keepalives do not
// come.
func (c *connection) followData() {
	switch {
	case c.phase == PhaseIdle && (c.view().LastData > c.idle.since || c.now >= c.authenticated+idleSuspect):
		c.phase = PhaseUp
		c.retryAgent()
	case c.mayIdle() && c.now >= c.idleAt():
		c.closeAgent(&c.current)
		c.becomeIdle()
	}
}

func (c *connection) mayIdle() bool { return c.phase == PhaseUp && c.second.number == 0 && !c.wanted }

func (c *connection) idleAt() time.Duration {
	return max(c.view().LastData, c.current.selected, c.upSince) + idleAfter
}

// becomeIdle is idle mode, without an agent. A keepalive leaves at once, so that the peer, whose agent goes quiet, sees that we
// live.
func (c *connection) becomeIdle() {
	c.phase, c.idle.since = PhaseIdle, c.now
	c.sendKeepalive()
}

func (c *connection) idleDeadlines(s *schedule) {
	switch {
	case c.mayIdle():
		s.set(deadlineIdle, c.idleAt())
	case c.phase == PhaseIdle:
		s.set(deadlineIdleSuspect, c.authenticated+idleSuspect)
	}
}
