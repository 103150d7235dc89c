package link

import (
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/ice/rate"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// This file is what peers tell one another: offers and answers with the candidates of agents, and byes.

const (
	// gatherPause is how long candidates are collected before they are signaled.
	gatherPause = 10 * time.Millisecond
	// repeatAfter is how soon an offer or answer is sent again while nothing is known of the peer's agent, or of the message. At most
	// maxSending of an agent are under way.
	repeatAfter = time.Second
	maxSending  = 4
)

// HandleMessage takes a message of the peer. That it is the peer's is what the portal vouches for.
func (l *Link) HandleMessage(now time.Duration, msg signal.Msg) {
	c := l.connection
	if !l.alive() {
		c = nil
	}
	if msg.Kind == signal.Offer && c != nil && c.run == 0 && msg.Generation < uint64(c.number) {
		return // both have begun, and the greater number counts: ours, which is told again until the peer has heard it
	}
	switch l.links.Generations.Judge(&msg) {
	case signal.Late:
		return
	case signal.Behind:
		l.catchUp(now)
		return
	case signal.Astray:
		l.answerBye(now, &msg)
		return
	}
	ours := c != nil && c.number == AttemptNumber(msg.Generation)
	switch {
	case msg.Kind == signal.Bye && ours: // of another run: the peer has restarted and knows nothing of it
		c.handleBye(byeOf(msg.Message))
	case msg.Kind == signal.Bye:
		if l.last.is(&msg) && l.connection.number == l.last.number {
			l.connection.handleBye(byeOf(msg.Message))
		}
	case ours && (c.run == 0 || c.run == msg.Run):
		c.run = msg.Run
		c.feed(now, msg.Message)
	case l.asking.begins && msg.Kind == signal.Offer && (msg.Agent == 1 || l.asking.awaits(&msg)):
		l.prepare(now, &msg)
	case msg.Kind == signal.Answer || msg.Agent > 1 || l.last.was(&msg):
		l.answerBye(now, &msg)
	case take(&l.offers, now):
		l.prepare(now, &msg)
	}
}

// catchUp answers a peer that cannot know the number of our newest attempt, which is over, with an offer of a greater one.
func (l *Link) catchUp(now time.Duration) {
	if !l.alive() && !l.asking.begins && take(&l.offers, now) {
		l.asking.wished = true
		l.prepare(now, nil)
	}
}

// answerBye tells a peer that we do not know the attempt that its message is about; or how it ended, since our bye may have been lost.
func (l *Link) answerBye(now time.Duration, msg *signal.Msg) {
	if !take(&l.replies, now) {
		return
	}
	bye := Bye{Attempt: AttemptNumber(msg.Generation), Reason: CloseUnknown}
	if l.last.is(msg) {
		if known, ok := l.closed.Bye(); ok {
			bye = known
		}
	}
	l.task(Task{Kind: TaskBye, Message: byeMessage(bye)})
}

// feed gives an attempt what the peer has signaled.
func (c *connection) feed(now time.Duration, msg signal.Message) {
	number := AgentNumber(msg.Agent)
	a := c.agent(number)
	switch {
	case a != nil && a.ice != nil:
		c.connect(now, a, msg)
		return
	case (a == nil || a.failed) && number <= c.newest: // ours is closed, or could not be made
		if msg.Kind == signal.Offer && number > c.met && !c.checking() {
			c.met = number
			c.wantAgent(now) // the peer's waits for one that we gave up before it came
		}
		return
	}
	if old, known := c.pending[number]; known || len(c.pending) < maxPending {
		if c.pending == nil {
			c.pending = make(map[AgentNumber]signal.Message)
		}
		c.pending[number] = newer(old, msg)
		c.handleRemoteAgent(now, number)
	}
}

// connect gives an agent the peer's candidates and credentials, in this order: a check that came before them waits until the
// credentials are there, and is taken for a peer-reflexive candidate if it comes from an address that is not known then.
func (c *connection) connect(now time.Duration, a *agent, msg signal.Message) {
	first := a.peerUfrag == ""
	if !first && (a.peerUfrag != msg.Ufrag || a.peerPwd != msg.Pwd) {
		return // of an agent that is no more
	}
	for _, text := range msg.Candidates {
		if !slices.Contains(a.seen, text) && a.ice.AddCandidate(text) == nil {
			a.seen = append(a.seen, text)
			c.noteCandidate(now, a)
		}
	}
	a.peerEnd = a.peerEnd || msg.End
	switch {
	case first:
		if err := a.ice.Connect(msg.Ufrag, msg.Pwd); err != nil {
			c.link.log(slog.LevelDebug, "the peer's credentials are refused", slog.Any("error", err))
			return
		}
		a.peerUfrag, a.peerPwd, c.met = msg.Ufrag, msg.Pwd, max(c.met, a.number)
		a.answers = msg.Kind == signal.Offer
	case msg.Kind == signal.Offer && !a.settled && a.sendAt == 0 && a.sending == 0:
		a.sendAt = now + repeatAfter/4 // it has not heard of ours
	}
}

// sendDue tells the peer of the agents that have something to tell.
func (c *connection) sendDue() {
	for _, a := range c.list() {
		if at := a.sendDeadline(); at != 0 && c.now >= at {
			c.send(a)
		}
	}
}

// sendDeadline is when the peer is to be told of the agent; 0: not until something happens.
func (a *agent) sendDeadline() time.Duration {
	switch {
	case a.sending == 0:
		return a.sendAt
	case a.sending < maxSending && !a.settled:
		return a.repeatAt
	}
	return 0
}

// send tells the peer of an agent: credentials and all candidates so far.
func (c *connection) send(a *agent) {
	msg := signal.Message{
		Kind: signal.Offer, Generation: uint64(c.number), Agent: uint32(a.number), Ufrag: a.ufrag, Pwd: a.pwd,
		Candidates: slices.Clone(a.candidates), End: a.end,
	}
	if a.answers {
		msg.Kind = signal.Answer
	}
	a.sending++
	a.sendAt, a.repeatAt = 0, c.now+repeatAfter
	c.link.task(Task{Kind: TaskSend, Agent: a.number, Message: msg})
}

// HandleSent notes what came of TaskSend. An agent of which the peer says nothing is told again.
func (l *Link) HandleSent(now time.Duration, serial uint64, agent AgentNumber, err error) {
	l.absent = errors.Is(err, signal.ErrAbsent)
	c := l.connection
	if c == nil || c.serial != serial {
		return
	}
	a := c.agent(agent)
	if a == nil {
		return
	}
	a.sending--
	switch {
	case l.absent && c.path == nil:
		c.close(CloseNoCandidates)
	case a.sendAt != 0 || a.settled || a.sending > 0:
	case errors.Is(err, signal.ErrDown): // lost with the connection to the portal; Send waits for the next one
		a.sendAt = now + gatherPause
	case err != nil || a.peerUfrag == "":
		a.sendAt = now + repeatAfter
	}
}

// byeMessage is a bye as it is signaled. The counters keep the names that they have in logs.
func byeMessage(b Bye) signal.Message {
	return signal.Message{Kind: signal.Bye, Generation: uint64(b.Attempt), Reason: b.Reason.String(), Counters: b.Counters.ByName()}
}

// byeOf is the reverse of byeMessage. Counters of other names are left out.
func byeOf(msg signal.Message) Bye {
	b := Bye{Attempt: AttemptNumber(msg.Generation)}
	_ = b.Reason.UnmarshalText([]byte(msg.Reason)) // cannot fail
	counters := make(map[string]uint64, len(msg.Counters))
	for name, n := range msg.Counters {
		counters[name] = min(n, 1<<32-1)
	}
	if text, err := json.Marshal(counters); err == nil {
		_ = json.Unmarshal(text, &b.Counters)
	}
	return b
}

// burst is how often a peer may cause something at once; after that it may once a second.
const burst = 5

// take reports whether a peer may cause something now.
func take(b *rate.Bucket, now time.Duration) bool { return b.Take(time.Unix(0, int64(now)), 1, burst) }
