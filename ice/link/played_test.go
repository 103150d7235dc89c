package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
)

// This file plays what is around links: it carries out their tasks.

// told writes what a node does for a peer.
func (n *node) told(t *Task, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if len(n.w.nodes) > 2 {
		text += " (" + t.Peer + ")"
	}
	n.w.write(n, "%s", text)
}

// find is the remote of a peer by name.
func (n *node) find(name string) *remote {
	for _, r := range n.peers {
		if r.other.name == name {
			return r
		}
	}
	return nil
}

// finder is that of an attempt, nil if there is none.
func (n *node) finder(serial uint64) *finder {
	for _, f := range n.finders {
		if f.serial == serial {
			return f
		}
	}
	return nil
}

// later tells a link what came of a task.
func (n *node) later(d time.Duration, peer string, f func(r *remote, now time.Duration)) {
	n.w.plan(d, n, func() {
		if r := n.find(peer); r != nil {
			f(r, n.w.now())
			r.touch()
		}
	})
}

// task is Config.Task.
func (n *node) task(t Task) {
	f := n.finder(t.Serial)
	switch t.Kind {
	case TaskAsk:
		n.told(&t, "asks the portal")
		n.ask(t.Peer)
	case TaskAgent:
		n.told(&t, "starts agent %d", t.Agent)
		n.later(0, t.Peer, func(r *remote, now time.Duration) { n.startAgent(r, &t) })
	case TaskCloseAgent:
		n.told(&t, "closes agent %d", t.Agent)
		n.later(0, t.Peer, func(r *remote, now time.Duration) {
			if f := n.finder(t.Serial); f != nil {
				f.agents = slices.DeleteFunc(f.agents, func(a *fakeAgent) bool { return a.number == t.Agent })
			}
			r.link.HandleAgentGone(t.Serial, t.Agent)
		})
	case TaskCheck:
		n.later(2*time.Millisecond, t.Peer, func(*remote, time.Duration) {
			if f != nil {
				f.listen()
			}
		})
	case TaskPath:
		if t.Path == nil {
			n.told(&t, "has no path")
		}
	case TaskSend:
		n.told(&t, "sends %s of agent %d", t.Message.Kind, t.Agent)
		t.Message.PublicKey = n.machine.Local.PublicKey()
		n.send(&t)
	case TaskBye:
		n.told(&t, "says bye: %s", t.Message.Reason)
		n.send(&t)
	case TaskClosed:
		if c := t.Closed; !n.slept && c.Reason == CloseHandshakeTimeout && c.Phase == PhaseHandshake && c.Waited != 15*time.Second {
			n.w.t.Fatalf("%s gave up %s after %v, want 15 s", n.name, t.Peer, c.Waited)
		}
		n.later(0, t.Peer, func(*remote, time.Duration) {
			n.finders = slices.DeleteFunc(n.finders, func(f *finder) bool { return f.serial == t.Serial })
		})
	}
}

var errAway = errors.New("the portal is away")

// ask asks the portal.
func (n *node) ask(peer string) {
	if !n.w.portal {
		n.later(3*time.Second, peer, func(r *remote, now time.Duration) { r.link.HandleAnswer(now, errAway) })
		return
	}
	n.w.plan(portalLatency, n, func() {
		n.apply()
		if r := n.find(peer); r != nil {
			r.link.HandleAnswer(n.w.now(), nil)
			r.touch()
		}
	})
}

// send carries a message to a peer, and tells what became of it.
func (n *node) send(t *Task) {
	w, msg := n.w, signal.Msg{From: n.name, Message: t.Message}
	msg.Run = n.run
	if _, err := msg.Encode(); err != nil {
		w.t.Fatal(err)
	}
	to := w.nodes[slices.IndexFunc(w.nodes, func(o *node) bool { return o.name == t.Peer })]
	after, err := 2*signalLatency, error(nil)
	bye := t.Kind == TaskBye
	switch {
	case !w.signaling:
		after, err = 2*time.Second, signal.ErrDown
	case to.run == 0:
		err = signal.ErrAbsent
	case to.machine.Asleep, bye && w.byesLost, w.random.Float64() < w.loss:
		after, err = 5*time.Second, signal.ErrUnanswered
	default:
		latency := signalLatency
		if w.random.Float64() < w.reorder {
			latency += time.Duration(w.random.IntN(60)) * time.Millisecond
		}
		for copies := 0; copies < 1 || w.twice && copies < 2; copies++ {
			w.plan(latency, to, func() {
				if r := to.find(n.name); r != nil && !to.machine.Asleep {
					r.link.HandleMessage(w.now(), msg)
					r.touch()
				}
			})
			latency += 100 * time.Millisecond
		}
	}
	if !bye {
		n.later(after, t.Peer, func(r *remote, now time.Duration) { r.link.HandleSent(now, t.Serial, t.Agent, err) })
	}
}

// startAgent makes a played agent.
func (n *node) startAgent(r *remote, t *Task) {
	f := n.finder(t.Serial)
	if f == nil {
		f = &finder{remote: r, serial: t.Serial, number: t.Attempt}
		n.finders = append(n.finders, f)
		f.tick()
	}
	a := &fakeAgent{finder: f, number: t.Agent, ufrag: fmt.Sprintf("%s%d%d%d", n.name, n.run, t.Serial, t.Agent)}
	f.agents = append(f.agents, a)
	r.link.HandleAgent(n.w.now(), t.Serial, t.Agent, Started{Agent: a, Ufrag: a.ufrag, Pwd: "abcdefghijklmnopqrstuvwxyz", Relays: n.relays()})
	candidates := []string{"host at " + n.name}
	if n.w.relay {
		candidates = append(candidates, "relayed typ relay")
	}
	n.later(5*time.Millisecond, r.other.name, func(r *remote, now time.Duration) {
		r.link.HandleNews(now, t.Serial, News{Agent: t.Agent, Candidates: candidates, Gathered: true})
	})
}

// AddCandidate obeys Agent.
func (a *fakeAgent) AddCandidate(string) error { return nil }

// LastHeard obeys Agent.
func (a *fakeAgent) LastHeard() time.Duration {
	if a != a.finder.using {
		return 0
	}
	return a.finder.heard
}

// Connect obeys Agent.
func (a *fakeAgent) Connect(ufrag, _ string) error {
	a.peerUfrag = ufrag
	after := controlledICE
	if a.finder.remote.link.connection.controlling {
		after = controllerICE
	}
	a.finder.meet(a, after)
	return nil
}

// there reports whether the agent is not closed.
func (f *finder) there(a *fakeAgent) bool {
	return slices.Contains(f.agents, a) && slices.Contains(f.remote.node.finders, f)
}

// partner is the agent of the peer that ours talks to, nil if it is not there.
func (f *finder) partner(a *fakeAgent) *fakeAgent {
	for _, o := range f.remote.other.finders {
		for _, b := range o.agents {
			if b.ufrag == a.peerUfrag && b.peerUfrag == a.ufrag && o.remote.other == f.remote.node {
				return b
			}
		}
	}
	return nil
}

// meet has an agent select a pair as soon as there is one.
func (f *finder) meet(a *fakeAgent, after time.Duration) {
	n, o := f.remote.node, f.remote.other
	n.w.plan(after, n, func() {
		if !f.there(a) || a.selected {
			return
		}
		both := func(relayed bool) bool { return n.w.passes(n, o, relayed) && n.w.passes(o, n, relayed) }
		if direct := both(false); f.partner(a) != nil && (direct || both(true)) {
			a.selected, a.relayed, f.using = true, !direct, a
			f.paths++
			f.heard = n.w.now()
			f.remote.places = [2]int{n.place, o.place}
			path := &pipeline.Path{Dst: o.machine.Addr, Relayed: a.relayed, Number: f.paths}
			local := "host"
			if a.relayed {
				path.Dst, path.Channel, local = netip.MustParseAddrPort("203.0.113.1:3478"), 0x4000, "relay"
			}
			f.remote.link.HandleNews(n.w.now(), f.serial, News{Agent: a.number, Selected: true, Path: path, Local: local, Remote: "host"})
			f.remote.touch()
			return
		}
		f.meet(a, checkEvery)
	})
}

// listen hears the peer's agent, if it is there and datagrams pass both ways.
func (f *finder) listen() {
	n, o, a := f.remote.node, f.remote.other, f.using
	if a != nil && f.there(a) && f.partner(a) != nil && n.w.passes(n, o, a.relayed) && n.w.passes(o, n, a.relayed) &&
		f.remote.places == [2]int{n.place, o.place} {
		f.heard = n.w.now()
		f.remote.touch()
	}
}

// tick is STUN every now and then.
func (f *finder) tick() {
	n := f.remote.node
	n.w.plan(stunEvery, n, func() {
		if !slices.Contains(n.finders, f) {
			return
		}
		f.listen()
		if a := f.using; a != nil && f.there(a) && n.w.now() >= f.heard+stunFailed {
			f.remote.link.HandleNews(n.w.now(), f.serial, News{Agent: a.number, Failed: true})
			f.remote.touch()
		}
		f.tick()
	})
}
