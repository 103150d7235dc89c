package edge

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/ice"
	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
)

const (
	// gatherPause is how long candidates are collected before they are signaled.
	gatherPause = 10 * time.Millisecond
	// repeatAfter is how soon an offer or answer is sent again while nothing is known of the peer's agent, or of the message. At most
	// maxSending of an agent are under way.
	repeatAfter = time.Second
	maxSending  = 4
	// upgradeFirst and upgradeEvery are when a relayed connection tries to become direct.
	upgradeFirst = 15 * time.Second
	upgradeEvery = 2 * time.Minute
	byeTimeout   = 3 * time.Second
	// maxPending bounds the agents of a peer that are signaled before ours start.
	maxPending = 4
)

// attempt is one attempt to reach a peer, or the connection it became.
type attempt struct {
	peer        *peer
	handle      *link.Attempt
	generation  uint32
	run         uint64 // of the peer's program, 0 before its first message
	controlling bool
	connection  *ice.Connection
	agents      map[uint32]*agent
	newest      uint32                    // agent that was asked for
	heard       uint32                    // the newest of the peer's agents that ours has met
	pending     map[uint32]signal.Message // of the peer's agents that ours do not match yet

	path          *pipeline.Path // as control has published it, nil: none
	found         uint32         // generation of the ice.Connection's path that control was told
	local, remote string         // candidate types of the path
	release       func()         // lets go of the path's channel
	upgradeAt     time.Time      // zero: not planned
	obstacle      link.CloseCause
}

// attemptName is how control names an attempt.
type attemptName struct {
	peer       string
	generation uint32
}

// agent is one ICE agent of an attempt.
type agent struct {
	number     uint32
	local      ice.Credentials
	candidates []string
	end        bool
	relays     int             // that it was made with, without those that were lost since
	remote     ice.Credentials // zero: not known yet
	seen       []string        // the peer's candidates
	remoteEnd  bool            // those are all
	answers    bool            // the peer began it
	settled    bool            // it has selected a pair or failed
	sendAt     time.Time       // zero: nothing to send
	sending    int             // messages of which nothing is known yet
	repeatAt   time.Time       // while there are some: when the latest counts as lost
}

// obey carries out what control asked.
func (e *Edge) obey() {
	for _, r := range e.take() {
		if r.Kind == link.RequestAttempt {
			if p := e.peers[r.Peer]; p != nil {
				p.wished = true
				e.prepare(p, nil)
			}
			continue
		}
		a := e.named[attemptName{r.Peer, r.Generation}]
		switch r.Kind {
		case link.RequestBye:
			e.tasks.Go(func() { e.sendBye(e.ctx, byeTimeout, r.Peer, r.Bye) })
		case link.RequestClosed:
			if a != nil {
				e.finish(a, r.Closed)
			}
		default:
			if a != nil {
				e.obeyFor(a, r)
			}
		}
	}
}

// obeyFor carries out what control asked about an attempt.
func (e *Edge) obeyFor(a *attempt, r link.Request) {
	switch r.Kind {
	case link.RequestAgent:
		e.startAgent(a, r.Agent)
	case link.RequestCloseAgent:
		delete(a.agents, r.Agent)
		e.tasks.Go(func() {
			a.connection.CloseAgent(r.Agent)
			a.handle.AgentGone(r.Agent)
		})
	case link.RequestCheck:
		if a.path != nil && a.path.Channel != 0 {
			e.probeRelays() // a NAT that maps us anew has cut us off from our relay, too
		}
		a.connection.Check()
	case link.RequestUp:
		a.peer.share.Known()
	case link.RequestStray:
		from := *r.Path
		if from.Channel != 0 {
			from.Peer, _ = e.relays.Peer(from.Dst, from.Channel)
		}
		a.connection.Stray(from)
	case link.RequestPath:
		release := func() {}
		if r.Path != nil {
			release = e.relays.Hold(*r.Path)
		}
		a.release()
		a.path, a.release = r.Path, release
		e.planUpgrade(a)
	}
}

// prepare begins an attempt with the portal's present answer: on our own wish, or because of the peer's offer.
func (e *Edge) prepare(p *peer, offer *signalMessage) {
	if offer != nil {
		p.keep(*offer)
	}
	if p.beginning {
		return
	}
	p.beginning = true
	name := p.Name
	fresh := offer == nil || protocol.Key(offer.PublicKey) != p.PublicKey // else the portal has told us already
	begin := func(err error) {
		switch p := e.peers[name]; {
		case p == nil || !p.beginning:
		case e.awaitsRelay():
			p.askError = err
			e.held = append(e.held, p)
		default:
			p.beginning = false
			e.begin(p, err)
		}
	}
	if fresh {
		e.questions = append(e.questions, begin)
	} else {
		e.tasks.Go(func() { e.post(func() { begin(nil) }) })
	}
}

// keep takes an offer that waits for the portal; of one agent the latest with the most candidates.
func (p *peer) keep(offer signalMessage) {
	for i := range p.waiting {
		w := &p.waiting[i]
		if w.Generation == offer.Generation && w.Run == offer.Run && w.Agent == offer.Agent {
			w.Message = newer(w.Message, offer.Message)
			return
		}
	}
	if len(p.waiting) < maxPending {
		p.waiting = append(p.waiting, offer)
	}
}

// newer is which of two messages about one agent says more. A message tells all candidates until then, and may be overtaken.
func newer(old, msg signal.Message) signal.Message {
	if old.Ufrag == msg.Ufrag && len(old.Candidates) > len(msg.Candidates) {
		return old
	}
	return msg
}

// begin begins the attempt that was prepared: the newest offer's, else one of ours.
func (e *Edge) begin(p *peer, err error) {
	waiting, wished := p.waiting, p.wished
	p.waiting, p.wished = nil, false
	taken := false
	for _, msg := range waiting {
		if p.attempt == nil || p.attempt.generation != uint32(msg.Generation) || p.attempt.run != msg.Run && p.attempt.run != 0 {
			if msg.Generation != e.generations.Newest(p.Name) || msg.Agent != 1 {
				continue
			}
			key := protocol.Key(msg.PublicKey)
			if key != p.PublicKey && key != p.announced && e.distrust(p.Name) == link.CloseUnspecified {
				p.announced = key
				e.log.Warn("the peer announces another key than the portal has for it", "peer", p.Name)
			}
			if !e.beginAs(p, uint32(msg.Generation), msg.Run) {
				return
			}
		}
		taken = true
		e.feed(p.attempt, msg.Message)
	}
	// If nothing can be signaled the wish fails, and comes again when the portal is back.
	if wished && !taken && p.attempt == nil && (err == nil || e.signaling()) {
		e.beginAs(p, uint32(e.generations.Next(p.Name)), 0)
	}
}

// beginAs begins an attempt of that generation; one that is under way is replaced. One with a peer that is not trusted ends at once,
// so that control and the peer are told why.
func (e *Edge) beginAs(p *peer, generation uint32, run uint64) bool {
	if old := p.attempt; old != nil {
		old.handle.Close(link.CloseReplaced)
		e.obey()
	}
	controlling := link.Controls(e.config.Role == protocol.Client, p.Role == protocol.Client, e.config.Name, p.Name)
	handle, err := link.Begin(e.pipeline.Load(), p.Name, generation, controlling)
	if err != nil {
		if !errors.Is(err, pipeline.ErrClosed) && !errors.Is(err, link.ErrDown) {
			e.log.Error("the attempt did not begin", "peer", p.Name, "error", err)
		}
		return false
	}
	a := &attempt{
		peer: p, handle: handle, generation: generation, run: run, controlling: controlling, agents: make(map[uint32]*agent),
		pending: make(map[uint32]signal.Message), release: func() {},
	}
	a.connection = ice.NewConnection(ice.ConnectionConfig{
		Mux: e.mux, Mailbox: e.mailbox, Prober: e.prober, Relay: e.relays, Share: &p.share, Controlling: controlling, Heard: handle.Heard,
	})
	p.attempt = a
	e.attempts[a.connection] = a
	e.named[attemptName{p.Name, generation}] = a
	reason := e.distrust(p.Name)
	if reason != link.CloseUnspecified {
		handle.Close(reason)
	}
	e.obey() // the first agent
	return reason == link.CloseUnspecified
}

// finish forgets an attempt that is over.
func (e *Edge) finish(a *attempt, closed link.Closed) {
	p := a.peer
	a.release()
	p.attempt, p.last = nil, ended{a.handle, a.run, closed}
	delete(e.attempts, a.connection)
	delete(e.named, attemptName{p.Name, a.generation})
	e.tasks.Go(func() { _ = a.connection.Close() })
	if closed.Reason == link.CloseICETimeout || closed.Reason == link.CloseICEDisconnected {
		e.prober.Doubt()
	}
	if closed.Reason != link.CloseReplaced && e.peers[p.Name] == p && e.wants(p) && e.reachable() {
		e.pipeline.Load().Want(p.Name)
	}
}

// startAgent starts an agent that control wants.
func (e *Edge) startAgent(a *attempt, number uint32) {
	a.newest = max(a.newest, number)
	e.probeRelays()
	if number > 1 {
		e.prober.Doubt() // the path may be lost because a NAT maps elsewhere now
	}
	local, err := a.connection.Restart(number)
	if err != nil {
		e.log.Warn("no ICE agent could be made", "peer", a.peer.Name, "error", err)
		a.handle.AgentFailed(number)
		return
	}
	agent := &agent{number: number, local: local, relays: len(e.relays.URLs()), sendAt: time.Now().Add(gatherPause)}
	a.agents[number] = agent
	if msg, ok := a.pending[number]; ok {
		e.connect(a, agent, msg)
	}
	for n := range a.pending {
		if n <= number {
			delete(a.pending, n)
		}
	}
}

// feed gives an attempt what the peer has signaled.
func (e *Edge) feed(a *attempt, msg signal.Message) {
	if agent := a.agents[msg.Agent]; agent != nil {
		e.connect(a, agent, msg)
		return
	}
	if msg.Agent <= a.newest { // ours is closed
		if msg.Kind == signal.Offer && msg.Agent > a.heard && !a.checking() {
			a.heard = msg.Agent
			a.handle.WantAgent() // the peer's waits for one that we gave up before it came
		}
		return
	}
	if old, known := a.pending[msg.Agent]; known || len(a.pending) < maxPending {
		a.pending[msg.Agent] = newer(old, msg)
		a.handle.RemoteAgent(msg.Agent)
	}
}

// connect gives an agent the peer's candidates and credentials, in this order: a check that came before them waits until the
// credentials are there, and is taken for a peer-reflexive candidate if it comes from an address that is not known then.
func (e *Edge) connect(a *attempt, agent *agent, msg signal.Message) {
	remote := ice.Credentials{Ufrag: msg.Ufrag, Password: msg.Pwd}
	first := agent.remote == (ice.Credentials{})
	if !first && agent.remote != remote {
		return // of an agent that is no more
	}
	for _, text := range msg.Candidates {
		if slices.Contains(agent.seen, text) {
			continue
		}
		if err := a.connection.AddCandidate(agent.number, text); err == nil {
			agent.seen = append(agent.seen, text)
			if len(agent.seen) == 1 {
				a.handle.RemoteCandidate(agent.number)
			}
		}
	}
	agent.remoteEnd = agent.remoteEnd || msg.End
	switch {
	case first:
		if err := a.connection.Connect(agent.number, remote); err != nil {
			e.log.Debug("the peer's credentials are refused", "peer", a.peer.Name, "error", err)
			return
		}
		agent.remote, a.heard = remote, max(a.heard, agent.number)
		agent.answers = msg.Kind == signal.Offer
	case msg.Kind == signal.Offer && !agent.settled && agent.sendAt.IsZero() && agent.sending == 0:
		agent.sendAt = time.Now().Add(repeatAfter / 4) // it has not heard of ours
	}
}

// handleEvent takes what is new about an ICE agent.
func (e *Edge) handleEvent(event ice.Event) {
	a := e.attempts[event.Connection]
	if a == nil {
		return
	}
	if agent := a.agents[event.Generation]; agent != nil {
		agent.note(event)
	}
	if event.State == ice.StateFailed {
		a.handle.AgentFailed(event.Generation)
	}
	if event.Path != nil && event.Path.Generation > a.found {
		a.found, a.local, a.remote = event.Path.Generation, event.Local, event.Remote
		e.passage.found = true
		a.handle.Selected(event.FoundBy, *event.Path)
	}
}

// note takes the news of one agent.
func (g *agent) note(event ice.Event) {
	for _, text := range event.Candidates {
		if len(g.candidates) < signal.MaxCandidates && len(text) <= signal.MaxCandidate {
			g.candidates = append(g.candidates, text)
		}
	}
	g.settled = g.settled || event.State == ice.StateConnected || event.State == ice.StateFailed
	done := event.Gathered && !g.end
	g.end = g.end || event.Gathered
	switch {
	case done:
		g.sendAt = time.Now()
	case len(event.Candidates) > 0 && g.sendAt.IsZero():
		g.sendAt = time.Now().Add(gatherPause)
	}
}

// send tells the peer of an agent: credentials and all candidates so far.
func (e *Edge) send(a *attempt, g *agent) {
	kind := signal.Offer
	if g.answers {
		kind = signal.Answer
	}
	msg := signal.Message{
		Kind: kind, Generation: uint64(a.generation), Agent: g.number, PublicKey: e.key.Public(), Ufrag: g.local.Ufrag,
		Pwd: g.local.Password, Candidates: slices.Clone(g.candidates), End: g.end,
	}
	g.sending++
	g.sendAt, g.repeatAt = time.Time{}, time.Now().Add(repeatAfter)
	to := a.peer.Name
	e.tasks.Go(func() {
		err := e.config.Signaler.Send(e.ctx, to, msg)
		e.post(func() { e.sent(a, g, err) })
	})
}

// sent notes what came of it. An agent of which the peer says nothing is told again.
func (e *Edge) sent(a *attempt, g *agent, err error) {
	g.sending--
	a.peer.absent = errors.Is(err, signal.ErrAbsent)
	switch {
	case a.agents[g.number] != g:
	case a.peer.absent && a.path == nil:
		a.handle.Close(link.CloseNoCandidates)
	case !g.sendAt.IsZero() || g.settled || g.sending > 0:
	case errors.Is(err, signal.ErrDown): // lost with the connection to the portal; Send waits for the next one
		g.sendAt = time.Now().Add(gatherPause)
	case err != nil || g.remote == (ice.Credentials{}):
		g.sendAt = time.Now().Add(repeatAfter)
	}
}

// sendBye tells the peer why a connection has ended. It waits.
func (e *Edge) sendBye(ctx context.Context, limit time.Duration, to string, bye link.Bye) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case e.byes <- struct{}{}:
		defer func() { <-e.byes }()
	case <-ctx.Done():
		return
	}
	err := e.config.Signaler.Send(ctx, to, byeMessage(bye))
	if err != nil {
		e.log.Debug("the bye did not arrive", "peer", to, "error", err)
	}
}

// checking reports whether an agent still looks for a path.
func (a *attempt) checking() bool {
	for _, g := range a.agents {
		if !g.settled {
			return true
		}
	}
	return false
}

// lacksRelay reports whether an agent that still looks for a path has fewer relays than are up now. While there is no path it
// must have none at all: one that may be about to find a path is not given up for a second relay.
func (a *attempt) lacksRelay(up int) bool {
	for _, g := range a.agents {
		if !g.settled && g.relays < up && (a.path != nil || g.relays == 0) {
			return true
		}
	}
	return false
}

// relayed reports whether the attempt's datagrams take the way over a relay, ours or the peer's.
func (a *attempt) relayed() bool { return a.path != nil && a.path.Relayed }

// planUpgrade says when to look for a direct path; only one side does.
func (e *Edge) planUpgrade(a *attempt) {
	switch {
	case !a.controlling || !a.relayed():
		a.upgradeAt = time.Time{}
	case a.upgradeAt.IsZero():
		a.upgradeAt = time.Now().Add(upgradeFirst)
	}
}
