package link

import "time"

// This file is what a connection does when it hears nothing over a path that is needed. pion leaves up to 4 s between two checks of a
// pair that works, so first the agent is asked to check it at once: a peer that has been mapped anew by its NAT hears nothing, and so
// says nothing by itself that would show the other side where it is now. What is not answered is given a second agent.
const (
	// quietAfter is how long nothing may be heard before the pair is checked: less than a second with what a check and the move to
	// another address take, and more than the pauses of most data that flows.
	quietAfter = 400 * time.Millisecond
	// suspectAfter is how long after that still nothing may be heard before a second agent is wanted, beside the one that goes on.
	suspectAfter = 1500 * time.Millisecond
	// lookAgain is how soon after a check control looks whether data flows again: lanes do not tell it.
	lookAgain = time.Second
	// busyFor is how long data is a reason to care whether the path works.
	busyFor = 5 * time.Second
)

// quiet is the latest check that was asked for because the path was quiet.
type quiet struct {
	at    time.Duration
	heard time.Duration // lastHeard then
	data  time.Duration // and when data had last passed
}

// quietAt is when the pair is to be checked unless something is heard, or when to look again whether there is reason to. One silence
// is asked about once, and after data that is over only once. 0: there is no use in it.
func (c *connection) quietAt() (at time.Duration, name deadline) {
	switch {
	case c.phase != PhaseHandshake && c.phase != PhaseUp, c.current.selected == 0, c.parting():
		return 0, deadlineQuiet
	case c.lastHeard() == c.quiet.heard, c.phase == PhaseUp && (!c.busy() || c.view().LastData <= c.quiet.data):
		return c.now + lookAgain, deadlineLook
	}
	return c.lastHeard() + quietAfter, deadlineQuiet
}

// followQuiet has the pair checked.
func (c *connection) followQuiet() {
	if at, _ := c.quietAt(); at != 0 && c.now >= at {
		c.quiet = quiet{c.now, c.lastHeard(), c.view().LastData}
		c.link.task(Task{Kind: TaskCheck, Agent: c.current.number})
	}
}

// busy reports whether data flows, or tries to. A peer that is idle has no agent, so its silence means nothing.
func (c *connection) busy() bool { return c.view().LastData != 0 && c.now < c.view().LastData+busyFor }

// suspect reports whether a handshake or data may be failing because the path is lost.
func (c *connection) suspect() bool {
	at, ok := c.suspectAt()
	return ok && c.now >= at && (c.phase == PhaseHandshake || c.busy())
}

// suspectAt is when the path may be lost, unless something is heard. Not ok: the pair was not checked since something was.
func (c *connection) suspectAt() (at time.Duration, ok bool) {
	return c.quiet.at + suspectAfter, c.quiet.at != 0 && c.quiet.heard == c.lastHeard()
}

// lastHeard is when the path last showed that it works, be it by STUN or by WireGuard.
func (c *connection) lastHeard() time.Duration {
	return max(c.lastSTUN(), c.current.selected, c.authenticated)
}

func (c *connection) quietDeadlines(s *schedule) {
	at, name := c.quietAt()
	s.set(name, at)
}
