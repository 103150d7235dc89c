package edge

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// signalMessage is a message of a peer.
type signalMessage = signal.Msg

// burst is how many offers of new attempts a peer may make at once; after that one a second.
const burst = 5

// bucket bounds how often something happens: burst times at once, and then so many times a second. The zero value is full.
type bucket struct {
	tokens float64
	at     time.Time
}

// take reports whether it may happen now.
func (b *bucket) take(now time.Time, perSecond float64) bool {
	b.tokens = min(burst, b.tokens+perSecond*now.Sub(b.at).Seconds())
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// handleMessage takes a message of another node. Who wrote it is what the portal vouches for.
func (e *Edge) handleMessage(msg signalMessage) {
	p := e.peers[msg.From]
	if p == nil {
		e.unknown(msg)
		return
	}
	a := p.attempt
	if msg.Kind == signal.Offer && a != nil && a.run == 0 && msg.Generation < uint64(a.generation) {
		return // both have begun, and the greater number counts: ours, which is told again until the peer has heard it
	}
	switch e.generations.Judge(&msg) {
	case signal.Late:
		return
	case signal.Behind:
		e.catchUp(p)
		return
	case signal.Astray:
		e.answerBye(p, msg)
		return
	}
	ours := a != nil && a.generation == uint32(msg.Generation)
	switch {
	case msg.Kind == signal.Bye && ours: // of another run: the peer has restarted and knows nothing of it
		a.handle.Bye(byeOf(msg.Message))
	case msg.Kind == signal.Bye:
		p.lateBye(msg)
	case ours && (a.run == 0 || a.run == msg.Run):
		a.run = msg.Run
		e.feed(a, msg.Message)
	case p.beginning && msg.Kind == signal.Offer && (msg.Agent == 1 || p.awaits(msg)):
		e.prepare(p, &msg)
	case msg.Kind == signal.Answer || msg.Agent > 1 || p.last.was(msg):
		e.answerBye(p, msg)
	case p.offers.take(time.Now(), 1):
		e.prepare(p, &msg)
	}
}

// catchUp answers a peer that cannot know the number of our newest attempt, which is over, with an offer of a greater one.
func (e *Edge) catchUp(p *peer) {
	if p.attempt == nil && !p.beginning && p.offers.take(time.Now(), 1) {
		p.wished = true
		e.prepare(p, nil)
	}
}

// answerBye tells a peer that we do not know the attempt that its message is about.
func (e *Edge) answerBye(p *peer, msg signalMessage) {
	if p.replies.take(time.Now(), 1) {
		bye := p.reply(msg)
		e.tasks.Go(func() { e.sendBye(e.ctx, byeTimeout, msg.From, bye) })
	}
}

// unknown asks the portal about a node that we do not know of: its offer may be quicker than the portal's news.
func (e *Edge) unknown(msg signalMessage) {
	if msg.Kind != signal.Offer || !e.strangers.take(time.Now(), 1) {
		return
	}
	e.questions = append(e.questions, func(error) {
		if e.peers[msg.From] != nil {
			e.handleMessage(msg)
		}
	})
}

// lateBye gives control the bye of a peer whose connection is already over here.
func (p *peer) lateBye(msg signalMessage) {
	if p.last.is(msg) {
		p.last.handle.Bye(byeOf(msg.Message))
	}
}

// awaits reports whether the offer of the attempt that a message is about waits for the portal.
func (p *peer) awaits(msg signalMessage) bool {
	return slices.ContainsFunc(p.waiting, func(w signalMessage) bool {
		return w.Generation == msg.Generation && w.Run == msg.Run
	})
}

// reply is the bye for a message about an attempt that is over, or never was.
func (p *peer) reply(msg signalMessage) link.Bye {
	if p.last.is(msg) {
		if bye, ok := p.last.closed.Bye(); ok {
			return bye // it may have been lost
		}
	}
	return link.Bye{Generation: uint32(msg.Generation), Reason: link.CloseUnknown}
}

// byeMessage is a bye as it is signaled. The counters keep the names that they have in logs.
func byeMessage(b link.Bye) signal.Message {
	msg := signal.Message{Kind: signal.Bye, Generation: uint64(b.Generation), Reason: b.Reason.String()}
	if text, err := json.Marshal(b.Counters); err == nil {
		_ = json.Unmarshal(text, &msg.Counters) // both are objects of numbers
	}
	return msg
}

// byeOf is the reverse of byeMessage. Counters of other names are left out.
func byeOf(msg signal.Message) link.Bye {
	b := link.Bye{Generation: uint32(msg.Generation)}
	_ = b.Reason.UnmarshalText([]byte(msg.Reason)) // cannot fail
	for name, n := range msg.Counters {
		msg.Counters[name] = min(n, 1<<32-1)
	}
	if text, err := json.Marshal(msg.Counters); err == nil {
		_ = json.Unmarshal(text, &b.Counters)
	}
	return b
}
