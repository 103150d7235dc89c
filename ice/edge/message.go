package edge

import (
	"encoding/json"
	"time"

	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
)

// signalMessage is a message of a peer.
type signalMessage = signal.Msg

// maxOffers is how many offers of new attempts a peer may make in a second.
const maxOffers = 5

// handleMessage takes a message of another node. Who wrote it is what the portal vouches for.
func (e *Edge) handleMessage(msg signalMessage) {
	p := e.peers[msg.From]
	if p == nil {
		e.unknown(msg)
		return
	}
	if !e.generations.Accept(&msg) {
		return
	}
	a := p.attempt
	ours := a != nil && a.generation == uint32(msg.Generation) && (a.run == 0 || a.run == msg.Run)
	switch {
	case ours && msg.Kind == signal.Bye:
		a.handle.Bye(byeOf(msg.Message))
	case ours:
		a.run = msg.Run
		e.feed(a, msg.Message)
	case msg.Kind == signal.Bye:
		e.lateBye(p, msg)
	case p.done == finished{msg.Run, msg.Generation}:
	case msg.Kind == signal.Answer || msg.Agent > 1:
		e.tasks.Go(func() { e.sendBye(e.ctx, byeTimeout, unknownBye(msg)) })
	case e.mayOffer(p):
		e.prepare(p, &msg)
	}
}

// unknown asks the portal about a node that we do not know of: it may be quicker than the portal's news. The peer repeats its
// offer.
func (e *Edge) unknown(msg signalMessage) {
	if msg.Kind != signal.Offer || time.Since(e.synced) < time.Second {
		return
	}
	e.synced = time.Now() // at most once a second
	e.tasks.Go(func() {
		answer, err := e.ask(e.ctx, 0, freshTimeout)
		e.post(func() { e.handleSync(answer, err) })
	})
}

// lateBye gives control the bye of a peer whose connection is already over here.
func (e *Edge) lateBye(p *peer, msg signalMessage) {
	if p.last != nil && p.last.generation == uint32(msg.Generation) {
		p.last.handle.Bye(byeOf(msg.Message))
	}
}

// mayOffer bounds how often a peer begins anew.
func (e *Edge) mayOffer(p *peer) bool {
	if now := time.Now(); now.Sub(p.offersAt) >= time.Second {
		p.offersAt, p.offers = now, 0
	}
	p.offers++
	return p.offers <= maxOffers
}

func unknownBye(msg signalMessage) pipeline.Request {
	return pipeline.Request{
		Kind: pipeline.RequestBye, Peer: msg.From,
		Bye: pipeline.Bye{Generation: uint32(msg.Generation), Reason: pipeline.CloseUnknown},
	}
}

// byeMessage is a bye as it is signaled. The counters keep the names that they have in logs.
func byeMessage(b pipeline.Bye) signal.Message {
	msg := signal.Message{Kind: signal.Bye, Generation: uint64(b.Generation), Reason: b.Reason.String()}
	if text, err := json.Marshal(b.Counters); err == nil {
		_ = json.Unmarshal(text, &msg.Counters) // both are objects of numbers
	}
	return msg
}

// byeOf is the reverse of byeMessage. Counters of other names are left out.
func byeOf(msg signal.Message) pipeline.Bye {
	b := pipeline.Bye{Generation: uint32(msg.Generation)}
	_ = b.Reason.UnmarshalText([]byte(msg.Reason)) // cannot fail
	for name, n := range msg.Counters {
		msg.Counters[name] = min(n, 1<<32-1)
	}
	if text, err := json.Marshal(msg.Counters); err == nil {
		_ = json.Unmarshal(text, &b.Counters)
	}
	return b
}
