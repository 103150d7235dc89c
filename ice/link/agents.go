package link

import (
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/pipeline"
)

// This file is what a connection does about its agents: the first one, the second beside it, and none while idle.

// agent is an ICE agent as control sees it. Number 0: none.
type agent struct {
	number   uint32
	started  time.Duration
	checks   time.Duration // when the peer named its first candidate; 0: not yet
	selected time.Duration // when the first pair was selected; 0: not yet
	failed   bool          // it has given up by itself
}

// deadline returns when an agent that has selected nothing is given up, and what for. That of the first one is the attempt's,
// which another in its place does not move.
func (c *connection) deadline(a *agent) (time.Duration, connectionWhy) {
	switch {
	case a.checks != 0:
		return a.checks + iceTimeout, whyICE
	case a == &c.current:
		return c.began + candidateTimeout, whyCandidates
	}
	return a.started + candidateTimeout, whyCandidates
}

// handleCandidate notes that the peer has named a candidate for the agent of that number.
func (c *connection) handleCandidate(now time.Duration, number uint32) {
	a := c.agent(number)
	if a == nil || a.checks != 0 {
		return
	}
	a.checks = now
	if c.phase == PhaseCandidates {
		c.phase = PhaseChecking
	}
}

// handlePath notes that an agent has selected a pair, its first or another. What an agent says that is neither the current
// nor the second one comes too late and changes nothing.
func (c *connection) handlePath(now time.Duration, number uint32, path pipeline.Path) {
	a := c.agent(number)
	if a == nil {
		return
	}
	a.failed = false
	if a.selected == 0 {
		a.selected = now
	}
	if a == &c.second {
		c.promote()
	}
	c.paths++
	path.Fixed, path.Generation = true, c.paths
	c.emit(connectionOutput{kind: connectionPublishPath, path: &path})
	if c.phase < PhaseHandshake {
		c.phase, c.handshakeFrom = PhaseHandshake, now
	}
}

// promote makes the second agent the current one.
func (c *connection) promote() {
	old := c.current.number
	c.current, c.second = c.second, agent{}
	c.retries = backoff{}
	if old != 0 {
		c.closeAgent(old)
	}
}

// handleAgentFailed notes that an agent has given up by itself. That does not shorten any deadline: it is another reason to
// look for a second path.
func (c *connection) handleAgentFailed(number uint32) {
	if a := c.agent(number); a != nil {
		a.failed = true
	}
}

// handleAgentGone notes that nothing is left of an agent that was closed.
func (c *connection) handleAgentGone(number uint32) {
	c.closing = slices.DeleteFunc(c.closing, func(n uint32) bool { return n == number })
	if c.phase == PhaseClosing && len(c.closing) == 0 {
		c.phase = PhaseClosed
	}
}

// handleRemoteAgent notes that the peer has started the agent of that number. Ours of the same number starts, if it is not
// there already because both sides had the same thought.
func (c *connection) handleRemoteAgent(now time.Duration, number uint32) {
	if number <= c.newest || number-c.newest > agentLead {
		return
	}
	c.remoteAgent = max(c.remoteAgent, number)
	c.wantAgent(now)
}

// wantAgent asks for another agent: the network changed, or a relayed path is to be made direct.
func (c *connection) wantAgent(now time.Duration) {
	if c.over() {
		return
	}
	c.wanted, c.wantedAt = true, now
	if a := c.place(); a.number != 0 {
		c.wantedAt = max(now, a.started+agentGap)
	}
	if c.phase == PhaseIdle {
		c.phase = PhaseUp
	}
}

// agent returns the current or second agent if it has that number, else nil.
func (c *connection) agent(number uint32) *agent {
	switch {
	case number == 0 || c.over():
		return nil
	case number == c.current.number:
		return &c.current
	case number == c.second.number:
		return &c.second
	}
	return nil
}

// followAgents acts on the deadlines of the agents. lost: the connection is to end.
func (c *connection) followAgents() (reason CloseReason, lost bool) {
	if s := &c.second; s.number != 0 {
		if at, _ := c.deadline(s); s.failed || c.now >= at {
			c.closeAgent(s.number)
			*s = agent{}
			c.retries.ended(c.now, 0, 0)
			if c.current.number == 0 && c.phase == PhaseUp {
				c.becomeIdle()
			}
		}
	}
	switch {
	case c.current.number == 0:
		return 0, false
	case c.current.selected == 0:
		return c.followFirst()
	case c.parting():
		return 0, false
	}
	quiet := c.now >= c.lostAt()
	if quiet && !c.live() {
		return CloseICEDisconnected, true
	}
	if (quiet || c.suspect() || c.current.failed) && c.second.number == 0 && !c.wanted {
		c.retryAgent()
	}
	return 0, false
}

// followFirst acts on the deadline of an attempt that has no pair yet. But a session that the peer, which has one, has made
// with us is not closed for that: it goes on as an idle one does, over the way that the peer is heard from.
func (c *connection) followFirst() (reason CloseReason, lost bool) {
	at, why := c.deadline(&c.current)
	switch {
	case c.now < at:
		return 0, false
	case c.live():
		c.closeAgent(c.current.number)
		c.current, c.phase, c.handshakeFrom = agent{}, PhaseHandshake, c.now
		c.retryAgent()
		return 0, false
	case why == whyCandidates:
		return CloseNoCandidates, true
	}
	return CloseICETimeout, true
}

// retryAgent wants another agent, no sooner than the last ones that found nothing allow.
func (c *connection) retryAgent() { c.wanted, c.wantedAt = true, max(c.now, c.retries.earliest) }

// lostAt is when the current agent counts as lost, unless it hears something.
func (c *connection) lostAt() time.Duration {
	return max(c.view.lastSTUN, c.current.selected) + iceLostAfter
}

// parting reports whether the peer has said bye and only our own handshake deadline is waited for: it has no agent any more.
func (c *connection) parting() bool { return c.phase == PhaseHandshake && c.report != nil }

// closeAgent has an agent closed.
func (c *connection) closeAgent(number uint32) {
	c.closing = append(c.closing, number)
	c.emit(connectionOutput{kind: connectionCloseAgent, agent: number})
}

// place is where the next agent belongs: beside the current one, or where that is if it has found nothing yet.
func (c *connection) place() *agent {
	if c.current.number != 0 && c.current.selected == 0 {
		return &c.current
	}
	return &c.second
}

// startWanted starts the agent that is wanted, in the place of one that still checks.
func (c *connection) startWanted() {
	if !c.wanted || c.now < c.wantedAt {
		return
	}
	c.wanted = false
	a := c.place()
	next := agent{started: c.now}
	if a.number != 0 {
		c.closeAgent(a.number)
	}
	if a == &c.current {
		next.checks = a.checks
	}
	c.newest = max(c.newest+1, c.remoteAgent)
	next.number = c.newest
	*a = next
	c.emit(connectionOutput{kind: connectionStartAgent, agent: c.newest})
}

// agentTimeout is when the current agent needs looking after.
func (c *connection) agentTimeout() (time.Duration, connectionWhy) {
	switch {
	case c.current.selected == 0:
		return c.deadline(&c.current)
	case c.parting():
		return c.handshakeFrom + handshakeLifetime, whyHandshake
	}
	at, why := c.lostAt(), whyICELost
	if at <= c.now {
		at, why = c.authenticated+liveFor, whyLive
	}
	if early, ok := c.suspectAt(); ok && early > c.now && early < at {
		return early, whySuspect
	}
	return at, why
}
