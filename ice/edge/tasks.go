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

// finder is the ICE half of one attempt: a link.Finder. Owned by the edge's goroutine but for what stands under "any goroutine".
type finder struct {
	// frozen; any goroutine
	connection *ice.Connection
	heard      *atomic.Int64 // on the pipeline's clock; 0: never

	peer    string
	serial  uint64
	path    *pipeline.Path      // as ordered, nil: none
	found   pipeline.PathNumber // the latest that the connection has told
	release func()              // lets go of the path's channel
}

var _ link.Finder = (*finder)(nil)

// AddCandidate obeys link.Finder.
func (f *finder) AddCandidate(agent link.AgentNumber, text string) error {
	return f.connection.AddCandidate(uint32(agent), text)
}

// Connect obeys link.Finder.
func (f *finder) Connect(agent link.AgentNumber, ufrag, pwd string) error {
	return f.connection.Connect(uint32(agent), ice.Credentials{Ufrag: ufrag, Password: pwd})
}

// LastHeard obeys link.Finder.
func (f *finder) LastHeard() time.Duration { return time.Duration(f.heard.Load()) }

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
	f := e.finders[t.Serial]
	switch t.Kind {
	case link.TaskAsk:
		e.questions = append(e.questions, func(err error) {
			e.tell(t.Peer, func(now time.Duration, l *link.Link) { l.HandleAnswer(now, err) })
		})
	case link.TaskAgent:
		e.startAgent(f, t)
	case link.TaskSend:
		e.send(t)
	case link.TaskBye:
		e.tasks.Go(func() { e.sendBye(e.ctx, byeTimeout, t) })
	default:
		if f != nil { // no agent of the attempt could be made
			e.performFor(f, t)
		}
	}
}

// performFor carries out what there is to do with the agents of an attempt.
func (e *Edge) performFor(f *finder, t *link.Task) {
	switch t.Kind {
	case link.TaskCloseAgent:
		e.tasks.Go(func() {
			f.connection.CloseAgent(uint32(t.Agent))
			e.tell(t.Peer, func(_ time.Duration, l *link.Link) { l.HandleAgentGone(t.Serial, t.Agent) })
		})
	case link.TaskCheck:
		if f.path != nil && f.path.Channel != 0 {
			e.probeRelays() // a NAT that maps us anew has cut us off from our relay, too
		}
		f.connection.Check()
	case link.TaskStray:
		from := *t.Path
		if from.Channel != 0 {
			from.Peer, _ = e.relays.Peer(from.Dst, from.Channel)
		}
		f.connection.Stray(from)
	case link.TaskPath:
		release := func() {}
		if t.Path != nil {
			release = e.relays.Hold(*t.Path)
		}
		f.release()
		f.path, f.release = t.Path, release
	case link.TaskUp:
		if p := e.peers[t.Peer]; p != nil {
			p.share.Known()
		}
	case link.TaskClosed:
		e.finish(f, t.Closed.Reason)
	}
}

// finish forgets an attempt that is over.
func (e *Edge) finish(f *finder, reason link.CloseReason) {
	f.release()
	delete(e.finders, f.serial)
	delete(e.byConnection, f.connection)
	e.tasks.Go(func() { _ = f.connection.Close() })
	if reason == link.CloseICETimeout || reason == link.CloseICEDisconnected {
		e.prober.Doubt()
	}
}

// startAgent starts an ICE agent.
func (e *Edge) startAgent(f *finder, t *link.Task) {
	if f == nil {
		f = e.newFinder(t)
	}
	e.probeRelays()
	if t.Agent > 1 {
		e.prober.Doubt() // the path may be lost because a NAT maps elsewhere now
	}
	local, err := f.connection.Restart(uint32(t.Agent))
	if err != nil {
		e.log.Warn("no ICE agent could be made", "peer", t.Peer, "error", err)
	}
	started := link.Started{Finder: f, Ufrag: local.Ufrag, Pwd: local.Password, Relays: len(e.relays.URLs()), Err: err}
	e.tell(t.Peer, func(now time.Duration, l *link.Link) { l.HandleAgent(now, t.Serial, t.Agent, started) })
}

// newFinder makes what finds the paths of an attempt.
func (e *Edge) newFinder(t *link.Task) *finder {
	p := e.pipeline.Load()
	heard := new(atomic.Int64)
	share := new(ice.Share)
	if peer := e.peers[t.Peer]; peer != nil {
		share = &peer.share
	}
	f := &finder{heard: heard, peer: t.Peer, serial: t.Serial, release: func() {}}
	f.connection = ice.NewConnection(ice.ConnectionConfig{
		Mux: e.mux, Mailbox: e.mailbox, Prober: e.prober, Relay: e.relays, Share: share, Controlling: t.Controlling,
		Heard: func() { heard.Store(int64(p.Now())) },
	})
	e.finders[t.Serial], e.byConnection[f.connection] = f, f
	return f
}

// handleEvent takes what is new about an ICE agent.
func (e *Edge) handleEvent(event ice.Event) {
	f := e.byConnection[event.Connection]
	if f == nil {
		return
	}
	if event.Path != nil && event.Path.Number > f.found {
		f.found, e.passage.found = event.Path.Number, true
	}
	e.tell(f.peer, func(now time.Duration, l *link.Link) {
		l.HandleNews(now, f.serial, link.News{
			Agent: link.AgentNumber(event.Generation), Candidates: event.Candidates, Gathered: event.Gathered,
			Selected: event.State == ice.StateConnected, Failed: event.State == ice.StateFailed,
			Path: event.Path, FoundBy: link.AgentNumber(event.FoundBy), Local: event.Local, Remote: event.Remote,
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
	if msg.Kind != signal.Offer || !e.strangers.Take(e.pipeline.Load().Now(), 1) {
		return
	}
	e.questions = append(e.questions, func(error) {
		if e.peers[msg.From] != nil {
			e.handleMessage(msg)
		}
	})
}
