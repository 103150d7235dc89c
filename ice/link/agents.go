package link

import (
	"slices"
	"strings"
	"time"

	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
)

// This file is what a connection does about its agents: the first one, the second beside it, and none while idle.

const (
	candidateTimeout = 10 * time.Second // an agent without a candidate of the peer
	iceTimeout       = 12 * time.Second // an agent from its first candidate of the peer until it selects a pair
	iceLostAfter     = 12 * time.Second // a selected pair since the last STUN message
	// liveFor is how long something authentic proves that the session works, whatever ICE says.
	liveFor = 15 * time.Second
	// agentGap is the least age at which an agent that still checks is replaced by another.
	agentGap = time.Second
	// agentLead bounds how far the peer's numbering of agents may be ahead of ours: more than anybody counts while the two
	// do not hear of each other.
	agentLead = 1 << 16
)

// agents are those of a connection.
type agents struct {
	current, second agent         // current is 0 while idle, second while no other path is looked for
	newest          AgentNumber   // the greatest number of an agent so far
	closing         []AgentNumber // agents that were closed and are not gone
	wanted          bool          // a second agent is, from wantedAt on
	wantedAt        time.Duration
	peers           AgentNumber // the number the peer gave to its second agent, if it is ahead
	met             AgentNumber // the newest of the peer's agents that ours has met
	retries         backoff     // of second agents that are wanted because the first is lost
}

// agent is an ICE agent as the link sees it. Number 0: none.
type agent struct {
	number   AgentNumber
	started  time.Duration       // asked for
	checks   time.Duration       // when the peer named its first candidate; 0: not yet
	selected time.Duration       // when the first pair was selected; 0: not yet
	found    pipeline.PathNumber // its own number of the path that it has told last
	failed   bool                // it has given up by itself
	settled  bool                // it has selected a pair or failed

	// What the peer is told.
	ice        Agent // nil: it is not there yet
	ufrag, pwd string
	candidates []string
	end        bool          // these are all
	relays     int           // that it was made with, without those that were lost since
	answers    bool          // the peer began it
	sendAt     time.Duration // 0: nothing to send
	sending    int           // messages of which nothing is known yet
	repeatAt   time.Duration // while there are some: when the latest counts as lost

	// What the peer has told.
	peerUfrag, peerPwd string   // "": not known yet
	seen               []string // its candidates
	peerEnd            bool     // those are all
}

// list are the agents there are.
func (c *connection) list() []*agent {
	var list []*agent
	for _, a := range [...]*agent{&c.current, &c.second} {
		if a.number != 0 {
			list = append(list, a)
		}
	}
	return list
}

// agent returns the current or second agent if it has that number, else nil.
func (c *connection) agent(number AgentNumber) *agent {
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

// startAgent starts an agent in a place that is free.
func (c *connection) startAgent(a *agent, number AgentNumber) {
	c.newest = number
	*a = agent{number: number, started: c.now, checks: a.checks}
	c.link.task(Task{Kind: TaskAgent, Agent: number})
}

// HandleAgent notes what came of TaskAgent: the agent is there, and gathers candidates.
func (l *Link) HandleAgent(now time.Duration, serial uint64, number AgentNumber, s Started) {
	c := l.connection
	if c == nil || c.serial != serial {
		return
	}
	a := c.agent(number)
	switch {
	case a == nil: // it was closed meanwhile
		return
	case s.Err != nil:
		a.failed, a.settled = true, true
		return
	}
	a.ice, a.ufrag, a.pwd, a.relays, a.sendAt = s.Agent, s.Ufrag, s.Pwd, s.Relays, now+gatherPause
	if msg, ok := c.pending[number]; ok {
		c.connect(now, a, msg)
	}
	for n := range c.pending { // any order leaves the same
		if n <= number {
			delete(c.pending, n)
		}
	}
}

// HandleNews takes what is new about an agent.
func (l *Link) HandleNews(now time.Duration, serial uint64, n News) {
	c := l.connection
	if c == nil || c.serial != serial {
		return
	}
	a := c.agent(n.Agent)
	if a == nil { // it comes too late and changes nothing
		return
	}
	a.note(now, &n)
	// That it gives up does not shorten any deadline: it is another reason to look for a second path.
	a.failed = a.failed || n.Failed
	if n.Path != nil && n.Path.Number > a.found {
		a.found, c.local, c.remote = n.Path.Number, n.Local, n.Remote
		c.handlePath(now, a, *n.Path)
	}
}

// note takes what there is to tell the peer.
func (a *agent) note(now time.Duration, n *News) {
	for _, text := range n.Candidates {
		if len(a.candidates) < signal.MaxCandidates && len(text) <= signal.MaxCandidate {
			a.candidates = append(a.candidates, text)
		}
	}
	a.settled = a.settled || n.Selected || n.Failed
	done := n.Gathered && !a.end
	a.end = a.end || n.Gathered
	switch {
	case done:
		a.sendAt = now
	case len(n.Candidates) > 0 && a.sendAt == 0:
		a.sendAt = now + gatherPause
	}
}

// noteCandidate notes that the peer has named a candidate for an agent.
func (c *connection) noteCandidate(now time.Duration, a *agent) {
	if a.checks != 0 {
		return
	}
	a.checks = now
	if c.phase == PhaseCandidates {
		c.phase = PhaseChecking
	}
}

// handlePath notes that an agent has selected a pair, its first or another.
func (c *connection) handlePath(now time.Duration, a *agent, path pipeline.Path) {
	a.failed = false
	if a.selected == 0 {
		a.selected = now
	}
	if a == &c.second {
		c.promote()
	}
	c.paths++
	path.Fixed, path.Number = true, c.paths
	c.link.publishPath(&path)
	if c.phase < PhaseHandshake {
		c.phase, c.handshake.from = PhaseHandshake, now
	}
}

// promote makes the second agent the current one.
func (c *connection) promote() {
	c.closeAgent(&c.current)
	c.current, c.second = c.second, agent{}
	c.retries = backoff{}
}

// HandleAgentGone notes that nothing is left of an agent that was closed.
func (l *Link) HandleAgentGone(serial uint64, number AgentNumber) {
	if c := l.connection; c != nil && c.serial == serial {
		c.closing = slices.DeleteFunc(c.closing, func(n AgentNumber) bool { return n == number })
		c.noteGone()
	}
}

// noteGone notes that nothing is left of a connection that is over, if so.
func (c *connection) noteGone() {
	if c.phase == PhaseClosing && len(c.closing) == 0 {
		c.phase = PhaseClosed
	}
}

// handleRemoteAgent notes that the peer has started the agent of that number. Ours of the same number starts, if it is not
// there already because both sides had the same thought.
func (c *connection) handleRemoteAgent(now time.Duration, number AgentNumber) {
	if number <= c.newest || number-c.newest > agentLead {
		return
	}
	c.peers = max(c.peers, number)
	c.wantAgent(now)
}

// wantAgent asks for another agent: the network changed, or a relayed path is to be made direct.
func (c *connection) wantAgent(now time.Duration) {
	c.wanted, c.wantedAt = true, now
	if a := c.place(); a.number != 0 {
		c.wantedAt = max(now, a.started+agentGap)
	}
	if c.phase == PhaseIdle {
		c.phase = PhaseUp
	}
}

// retryAgent wants another agent, no sooner than the last ones that found nothing allow.
func (c *connection) retryAgent() { c.wanted, c.wantedAt = true, max(c.now, c.retries.earliest) }

// place is where the next agent belongs: beside the current one, or where that is if it has found nothing yet.
func (c *connection) place() *agent {
	if c.current.number != 0 && c.current.selected == 0 {
		return &c.current
	}
	return &c.second
}

// startWanted starts the agent that is wanted, in the place of one that still checks. That of the attempt's first one has no more time
// for it.
func (c *connection) startWanted() {
	if !c.wanted || c.now < c.wantedAt {
		return
	}
	c.wanted = false
	a := c.place()
	checks := a.checks
	if a == &c.second {
		checks = 0
	}
	c.closeAgent(a)
	a.checks = checks
	c.startAgent(a, max(c.newest+1, c.peers))
}

// closeAgent has an agent closed, if there is one.
func (c *connection) closeAgent(a *agent) {
	if a.number != 0 {
		c.closing = append(c.closing, a.number)
		c.link.task(Task{Kind: TaskCloseAgent, Agent: a.number})
	}
	*a = agent{}
}

// deadline returns when an agent that has selected nothing is given up, and what for. That of the first one is the attempt's,
// which another in its place does not move.
func (c *connection) deadline(a *agent) (time.Duration, deadline) {
	switch {
	case a.checks != 0:
		return a.checks + iceTimeout, deadlineICE
	case a == &c.current:
		return c.began + candidateTimeout, deadlineCandidates
	}
	return a.started + candidateTimeout, deadlineCandidates
}

// followAgents acts on the deadlines of the agents. lost: the connection is to end.
func (c *connection) followAgents() (reason CloseReason, lost bool) {
	if s := &c.second; s.number != 0 {
		if at, _ := c.deadline(s); s.failed || c.now >= at {
			c.closeAgent(s)
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
		c.closeAgent(&c.current)
		c.phase, c.handshake.from = PhaseHandshake, c.now
		c.retryAgent()
		return 0, false
	case why == deadlineCandidates:
		return CloseNoCandidates, true
	}
	return CloseICETimeout, true
}

// lostAt is when the current agent counts as lost, unless it hears something.
func (c *connection) lostAt() time.Duration {
	return max(c.lastSTUN(), c.current.selected) + iceLostAfter
}

// parting reports whether the peer has said bye and only our own handshake deadline is waited for: it has no agent any more.
func (c *connection) parting() bool { return c.phase == PhaseHandshake && c.report != nil }

// checking reports whether an agent still looks for a path.
func (c *connection) checking() bool {
	return slices.ContainsFunc(c.list(), func(a *agent) bool { return !a.settled })
}

// lacksRelay reports whether an agent that still looks for a path has fewer relays than are up now. While there is no path it
// must have none at all: one that may be about to find a path is not given up for a second relay.
func (c *connection) lacksRelay(up int) bool {
	return slices.ContainsFunc(c.list(), func(a *agent) bool {
		return a.ice != nil && !a.settled && a.relays < up && (c.path != nil || a.relays == 0)
	})
}

// peerUnseen reports whether the peer has named all its addresses and none of them is one that a relay has seen, or has given it.
func (c *connection) peerUnseen() bool {
	a := c.agent(c.newest)
	return a != nil && a.peerEnd && len(a.seen) > 0 && !slices.ContainsFunc(a.seen, func(candidate string) bool {
		return strings.Contains(candidate, " typ srflx") || strings.Contains(candidate, " typ relay")
	})
}

func (c *connection) agentDeadlines(s *schedule) {
	if c.current.number != 0 {
		at, name := c.agentTimeout()
		s.set(name, at)
	}
	if c.second.number != 0 {
		at, name := c.deadline(&c.second)
		s.set(name, at)
	}
	for _, a := range c.list() {
		s.set(deadlineSend, a.sendDeadline())
	}
	if c.wanted {
		s.set(deadlineAgent, c.wantedAt)
	}
}

// agentTimeout is when the current agent needs looking after.
func (c *connection) agentTimeout() (time.Duration, deadline) {
	switch {
	case c.current.selected == 0:
		return c.deadline(&c.current)
	case c.parting():
		return c.handshake.deadline(), deadlineHandshake
	}
	at, name := c.lostAt(), deadlineICELost
	if at <= c.now {
		at, name = c.authenticated+liveFor, deadlineLive
	}
	if early, ok := c.suspectAt(); ok && early > c.now && early < at {
		return early, deadlineSuspect
	}
	return at, name
}
