package pipeline

import (
	"slices"
	"time"
)

// This file is what a connection does about its agents: the first one, the second beside it, and none while idle.

// agent is an ICE agent as control sees it. Number 0: none.
type agent struct {
	number   uint32
	started  time.Duration
	checks   time.Duration // when the peer named its first candidate; 0: not yet
	selected time.Duration // when the first pair was selected; 0: not yet
	failed   bool          // it has given up by itself
	silent   bool          // it says that its pair is, sooner than we would
}

// deadline returns when an agent that has selected nothing is given up, and what for.
func (a *agent) deadline() (time.Duration, connectionWhy) {
	if a.checks == 0 {
		return a.started + candidateTimeout, whyCandidates
	}
	return a.checks + iceTimeout, whyICE
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
func (c *connection) handlePath(now time.Duration, number uint32, path Path) {
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
	if c.confirmUntil == 0 {
		c.setKeepalive(0)
	}
}

// handleAgentFailed notes that an agent has given up by itself. That does not shorten any deadline: it is another reason to
// look for a second path.
func (c *connection) handleAgentFailed(number uint32) {
	if a := c.agent(number); a != nil {
		a.failed = true
	}
}

// handleAgentSilent notes that an agent has not heard its pair for some seconds, or hears it again. That ends nothing, but
// while data flows another path is looked for at once.
func (c *connection) handleAgentSilent(number uint32, silent bool) {
	if a := c.agent(number); a != nil {
		a.silent = silent
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

// wantAgent asks for a second agent beside the first: the network changed, or a relayed path is to be made direct. Before
// the first agent has selected a pair the wish waits.
func (c *connection) wantAgent(now time.Duration) {
	if c.over() {
		return
	}
	c.wanted, c.wantedAt = true, now
	if c.second.number != 0 {
		c.wantedAt = max(now, c.second.started+agentGap)
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
		if at, _ := s.deadline(); s.failed || c.now >= at {
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
		at, why := c.current.deadline()
		if why == whyCandidates {
			return CloseNoCandidates, c.now >= at
		}
		return CloseICETimeout, c.now >= at
	}
	if c.parting() {
		return 0, false
	}
	quiet := c.now >= c.lostAt()
	if quiet && !c.live() {
		return CloseICEDisconnected, true
	}
	if (quiet || c.suspect() || c.current.failed || c.current.silent && c.busy()) && c.second.number == 0 && !c.wanted {
		c.wanted, c.wantedAt = true, max(c.now, c.retries.earliest)
	}
	return 0, false
}

// busy reports whether data flows, or tries to. A peer that is idle has no agent, so its silence means nothing.
func (c *connection) busy() bool { return c.view.lastData != 0 && c.now < c.view.lastData+suspectAfter }

// lostAt is when the current agent counts as lost, unless it hears something.
func (c *connection) lostAt() time.Duration {
	return max(c.view.lastSTUN, c.current.selected) + iceLostAfter
}

// parting reports whether the peer has said bye and only our own handshake deadline is waited for: it has no agent any more.
func (c *connection) parting() bool { return c.phase == PhaseHandshake && c.report != nil }

// suspect reports whether a handshake may be failing because the path is lost.
func (c *connection) suspect() bool {
	return c.phase == PhaseHandshake && c.now >= c.lostAt()-iceLostAfter+suspectAfter
}

// followData closes the agent when no data has passed for a while, and wants one when some has.
func (c *connection) followData() {
	switch {
	case c.phase == PhaseIdle && c.view.lastData > c.idleSince:
		c.phase = PhaseUp
		c.wanted, c.wantedAt = true, max(c.now, c.retries.earliest)
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
	return max(c.view.lastData, c.current.selected, c.upSince) + idleAfter
}

// becomeIdle is idle mode, without an agent. The keepalive goes on at once, so that the peer, whose agent goes quiet, sees that
// we live.
func (c *connection) becomeIdle() {
	c.phase, c.idleSince = PhaseIdle, c.now
	c.setKeepalive(idleKeepalive)
}

func (c *connection) setKeepalive(interval time.Duration) {
	if c.keepalive != interval {
		c.keepalive = interval
		c.emit(connectionOutput{kind: connectionKeepalive, keepalive: interval})
	}
}

// startSecond starts the second agent that is wanted, in the place of one that still checks.
func (c *connection) startSecond() {
	if !c.wanted || c.now < c.wantedAt || c.phase < PhaseHandshake || c.current.number != 0 && c.current.selected == 0 {
		return
	}
	c.wanted = false
	if c.second.number != 0 {
		c.closeAgent(c.second.number)
	}
	c.newest = max(c.newest+1, c.remoteAgent)
	c.second = agent{number: c.newest, started: c.now}
	c.emit(connectionOutput{kind: connectionStartAgent, agent: c.newest, controlling: c.controlling})
}

func (c *connection) closeAgent(number uint32) {
	c.closing = append(c.closing, number)
	c.emit(connectionOutput{kind: connectionCloseAgent, agent: number})
}

// agentTimeout is when the current agent needs looking after.
func (c *connection) agentTimeout() (time.Duration, connectionWhy) {
	switch {
	case c.current.selected == 0:
		return c.current.deadline()
	case c.parting():
		return c.handshakeFrom + handshakeLifetime, whyHandshake
	}
	at := c.lostAt()
	if early := at - iceLostAfter + suspectAfter; c.phase == PhaseHandshake && early > c.now {
		return early, whySuspect
	}
	if at > c.now {
		return at, whyICELost
	}
	return c.authenticated + liveFor, whyLive
}
