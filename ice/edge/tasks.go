package edge

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/ice"
	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
)

// This file carries out what links want (link.Task), and tells them what came of it.

// byeTimeout is how long a bye may take.
const byeTimeout = 3 * time.Second

// agentID names an agent in this program: of which attempt, and which of it.
type agentID struct {
	serial uint64
	number link.AgentNumber
}

// agent is an ICE agent that a link wanted: a link.Agent.
type agent struct {
	// frozen
	*ice.Agent
	id    agentID
	peer  string
	heard *atomic.Int64 // on the pipeline's clock; 0: never

	found pipeline.PathNumber // the latest path that it has told; owned by the edge's goroutine
}

var _ link.Agent = (*agent)(nil)

// Connect obeys link.Agent.
func (a *agent) Connect(ufrag, pwd string) error {
	return a.Agent.Connect(ice.Credentials{Ufrag: ufrag, Password: pwd})
}

// LastHeard obeys link.Agent.
func (a *agent) LastHeard() time.Duration { return time.Duration(a.heard.Load()) }

// way is where an attempt's datagrams go.
type way struct {
	path    *pipeline.Path
	release func() // lets go of the path's channel
}

// tell gives the link of a peer an input, on control's goroutine.
func (e *Edge) tell(peer string, f func(now time.Duration, l *link.Link)) {
	_ = e.pipeline.Load().Tell(peer, func(now time.Duration, l pipeline.Link) { f(now, l.(*link.Link)) }) // fails when it is gone
}

// tellAll gives all links one.
func (e *Edge) tellAll(f func(now time.Duration, l *link.Link)) {
	_ = e.pipeline.Load().TellAll(func(now time.Duration, _ string, l pipeline.Link) { f(now, l.(*link.Link)) })
}

// obey carries out what links want.
func (e *Edge) obey() {
	for list := e.take(); len(list) > 0; list = e.take() {
		for i := range list {
			e.perform(&list[i])
		}
	}
}

// perform carries out one task.
func (e *Edge) perform(t *link.Task) {
	id := agentID{t.Serial, t.Agent}
	a := e.agents[id] // nil: it could not be made
	switch t.Kind {
	case link.TaskAsk:
		e.questions = append(e.questions, func(err error) {
			e.tell(t.Peer, func(now time.Duration, l *link.Link) { l.HandleAnswer(now, err) })
		})
	case link.TaskAgent:
		e.startAgent(t)
	case link.TaskCloseAgent:
		e.closeAgent(a, t)
	case link.TaskCheck:
		if w, ok := e.ways[t.Serial]; ok && w.path.Channel != 0 {
			e.probeRelays() // a NAT that maps us anew has cut us off from our relay, too
		}
		if a != nil {
			a.Check()
		}
	case link.TaskStray:
		if a != nil {
			from := *t.Path
			if from.Channel != 0 {
				from.Peer, _ = e.relays.Peer(from.Dst, from.Channel)
			}
			a.Stray(from)
		}
	case link.TaskPath:
		e.hold(t.Serial, t.Path)
	case link.TaskSend:
		e.send(t)
	case link.TaskBye:
		e.tasks.Go(func() { e.sendBye(e.ctx, byeTimeout, t) })
	case link.TaskUp:
		if p := e.peers[t.Peer]; p != nil {
			p.share.Known()
		}
	case link.TaskClosed:
		e.hold(t.Serial, nil)
		if r := t.Closed.Reason; r == link.CloseICETimeout || r == link.CloseICEDisconnected {
			e.prober.Doubt()
		}
	}
}

// hold keeps the channel of an attempt's path, in the place of the one before; nil: of none.
func (e *Edge) hold(serial uint64, path *pipeline.Path) {
	release := func() {}
	if path != nil {
		release = e.relays.Hold(path.Dst, path.Channel)
	}
	if old, ok := e.ways[serial]; ok {
		old.release()
		delete(e.ways, serial)
	}
	if path != nil {
		e.ways[serial] = way{path, release}
	}
}

// startAgent starts an ICE agent.
func (e *Edge) startAgent(t *link.Task) {
	e.probeRelays()
	if t.Agent > 1 {
		e.prober.Doubt() // the path may be lost because a NAT maps elsewhere now
	}
	a, err := e.newAgent(t)
	started := link.Started{Err: err, Relays: len(e.relays.URLs())}
	if err != nil {
		e.log.Warn("no ICE agent could be made", "peer", t.Peer, "error", err)
	} else {
		own := a.Credentials()
		started.Agent, started.Ufrag, started.Pwd = a, own.Ufrag, own.Password
	}
	e.tell(t.Peer, func(now time.Duration, l *link.Link) { l.HandleAgent(now, t.Serial, t.Agent, started) })
}

func (e *Edge) newAgent(t *link.Task) (*agent, error) {
	now, share := e.pipeline.Load().Now, new(ice.Share)
	if p := e.peers[t.Peer]; p != nil {
		share = &p.share
	}
	a := &agent{id: agentID{t.Serial, t.Agent}, peer: t.Peer, heard: new(atomic.Int64)}
	var err error
	a.Agent, err = ice.NewAgent(ice.AgentConfig{
		Mux: e.mux, Mailbox: e.mailbox, Prober: e.prober, Relay: e.relays, Share: share, Controlling: t.Controlling,
		Heard: func() { a.heard.Store(int64(now())) },
	})
	if err == nil {
		e.agents[a.id], e.byICE[a.Agent] = a, a
	}
	return a, err
}

// closeAgent closes an ICE agent, if there is one.
func (e *Edge) closeAgent(a *agent, t *link.Task) {
	if a != nil {
		delete(e.agents, a.id)
		delete(e.byICE, a.Agent)
	}
	e.tasks.Go(func() {
		if a != nil {
			_ = a.Close()
		}
		e.tell(t.Peer, func(_ time.Duration, l *link.Link) { l.HandleAgentGone(t.Serial, t.Agent) })
	})
}

// handleEvent takes what is new about an ICE agent.
func (e *Edge) handleEvent(event ice.Event) {
	a := e.byICE[event.Agent]
	if a == nil {
		return
	}
	if event.Path != nil && event.Path.Number > a.found {
		a.found, e.passage.found = event.Path.Number, true
	}
	e.tell(a.peer, func(now time.Duration, l *link.Link) {
		l.HandleNews(now, a.id.serial, link.News{
			Agent: a.id.number, Candidates: event.Candidates, Gathered: event.Gathered, Selected: event.State == ice.StateConnected,
			Failed: event.State == ice.StateFailed, Path: event.Path, Local: event.Local, Remote: event.Remote,
		})
	})
}

// send tells the peer of an agent.
func (e *Edge) send(t *link.Task) {
	msg := t.Message
	msg.PublicKey = e.key.Public()
	e.tasks.Go(func() {
		err := e.config.Signaler.Send(e.ctx, t.Peer, msg)
		e.tell(t.Peer, func(now time.Duration, l *link.Link) { l.HandleSent(now, t.Serial, t.Agent, err) })
	})
}

// sendBye tells the peer why a connection has ended. It waits.
func (e *Edge) sendBye(ctx context.Context, limit time.Duration, t *link.Task) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case e.byes <- struct{}{}:
		defer func() { <-e.byes }()
	case <-ctx.Done():
		return
	}
	if err := e.config.Signaler.Send(ctx, t.Peer, t.Message); err != nil {
		e.log.Debug("the bye did not arrive", "peer", t.Peer, "error", err)
	}
}

// handleMessage takes a message of another node. Who wrote it is what the portal vouches for.
func (e *Edge) handleMessage(msg signal.Msg) {
	if e.peers[msg.From] == nil {
		e.unknown(msg)
		return
	}
	e.tell(msg.From, func(now time.Duration, l *link.Link) { l.HandleMessage(now, msg) })
}

// unknown asks the portal about a node that we do not know of: its offer may be quicker than the portal's news.
func (e *Edge) unknown(msg signal.Msg) {
	if msg.Kind != signal.Offer || !e.strangers.Take(e.now, 1, burst) {
		return
	}
	e.questions = append(e.questions, func(error) {
		if e.peers[msg.From] != nil {
			e.handleMessage(msg)
		}
	})
}
