package link

import (
	"log/slog"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
)

// This file is how an attempt begins: by a wish of ours that the back-off allows, or because of the peer's offer. Either way it begins
// with the portal's present answer, and not before there is a relay if there is to be one soon.

const (
	// askTimeout is how long the portal and the relays may take from a wish to its attempt.
	askTimeout = 10 * time.Second
	// maxPending bounds the agents of a peer that are signaled before ours start.
	maxPending = 4
)

// asking is the way to an attempt.
type asking struct {
	since   time.Duration // when we wished for one that has not begun yet; 0: we do not
	wished  bool          // one of ours is to begin if the peer offers none
	begins  bool          // the portal is asked, or a relay waited for
	held    bool          // for a first relay
	err     error         // of the question to the portal, while held
	waiting []signal.Msg  // offers of the peer meanwhile
}

// ended is what is kept of an attempt that is over: so that a late offer does not begin it again.
type ended struct {
	number AttemptNumber // 0: there was none
	run    uint64        // of the peer's program
}

// is reports whether the attempt is the one of a message.
func (e ended) is(msg *signal.Msg) bool {
	return e.number != 0 && e.number == AttemptNumber(msg.Generation)
}

// was is is, for the same run of the peer's program.
func (e ended) was(msg *signal.Msg) bool { return e.run == msg.Run && e.is(msg) }

// grant has an attempt begin that is wanted and may.
func (l *Link) grant(now time.Duration) {
	if l.up && !l.removed && !l.alive() && l.asking.since == 0 && l.backoff.due(now) {
		l.ask(now)
	}
}

// ask begins the way to an attempt of ours.
func (l *Link) ask(now time.Duration) {
	l.asking.since, l.asking.wished = now, true
	l.prepare(now, nil)
}

// HandleTimeout obeys pipeline.Link: it acts on what is due beside the connection, which HandleView sees to.
func (l *Link) HandleTimeout(now time.Duration) {
	l.logDue(now)
	if l.asking.since != 0 && now >= l.asking.since+askTimeout {
		l.asking.since = 0
		l.backoff.ended(now, 0, l.links.config.Random())
		l.order(pipeline.Order{Kind: pipeline.OrderPurge})
		l.log(slog.LevelInfo, "no connection attempt: the portal or the peer is not reachable")
	}
	l.resume(now)
	l.grant(now)
}

// prepare begins an attempt with the portal's present answer: on our own wish, or because of the peer's offer.
func (l *Link) prepare(now time.Duration, offer *signal.Msg) {
	if offer != nil {
		l.asking.keep(*offer)
	}
	if l.asking.begins {
		return
	}
	l.asking.begins = true
	if offer != nil && offer.PublicKey == l.peer.PublicKey { // the portal has told us already
		l.HandleAnswer(now, nil)
		return
	}
	l.task(Task{Kind: TaskAsk})
}

// keep takes an offer that waits for the portal; of one agent the latest with the most candidates.
func (a *asking) keep(offer signal.Msg) {
	for i := range a.waiting {
		w := &a.waiting[i]
		if w.Generation == offer.Generation && w.Run == offer.Run && w.Agent == offer.Agent {
			w.Message = newer(w.Message, offer.Message)
			return
		}
	}
	if len(a.waiting) < maxPending {
		a.waiting = append(a.waiting, offer)
	}
}

// awaits reports whether the offer of the attempt that a message is about waits for the portal.
func (a *asking) awaits(msg *signal.Msg) bool {
	return slices.ContainsFunc(a.waiting, func(w signal.Msg) bool { return w.Generation == msg.Generation && w.Run == msg.Run })
}

// newer is which of two messages about one agent says more. A message tells all candidates until then, and may be overtaken.
func newer(old, msg signal.Message) signal.Message {
	if old.Ufrag == msg.Ufrag && len(old.Candidates) > len(msg.Candidates) {
		return old
	}
	return msg
}

// HandleAnswer notes that the portal has answered TaskAsk, and that its answer is applied; err: it has not.
func (l *Link) HandleAnswer(now time.Duration, err error) {
	if l.asking.begins && !l.asking.held && !l.removed {
		l.asking.err, l.asking.held = err, true
		l.resume(now)
	}
}

// resume begins the attempt that has waited for a relay, if there is one or none is waited for any more.
func (l *Link) resume(now time.Duration) {
	if f := &l.links.Facts; l.asking.held && (now >= f.RelaysUntil || f.RelaysUp > 0) {
		l.asking.held, l.asking.begins = false, false
		l.begin(now)
	}
}

// begin begins the attempt that was prepared: the newest offer's, else one of ours.
func (l *Link) begin(now time.Duration) {
	waiting, wished, err := l.asking.waiting, l.asking.wished, l.asking.err
	l.asking.waiting, l.asking.wished, l.asking.err = nil, false, nil
	taken := false
	for i := range waiting {
		msg := &waiting[i]
		if c := l.connection; !l.alive() || c.number != AttemptNumber(msg.Generation) || c.run != msg.Run && c.run != 0 {
			if msg.Generation != l.links.Generations.Newest(l.name) || msg.Agent != 1 {
				continue
			}
			l.noteKey(msg.PublicKey)
			if !l.beginAs(now, AttemptNumber(msg.Generation), msg.Run) {
				return
			}
		}
		taken = true
		l.connection.feed(now, msg.Message)
	}
	// If nothing can be signaled the wish fails, and comes again when the portal is back.
	if wished && !taken && !l.alive() && (err == nil || l.links.config.Signaling()) {
		l.beginAs(now, AttemptNumber(l.links.Generations.Next(l.name)), 0)
	}
}

// noteKey warns of a peer that announces another key than the portal has for it, once.
func (l *Link) noteKey(key [32]byte) {
	if key != l.peer.PublicKey && key != l.announced && l.peer.Distrust == CloseUnspecified {
		l.announced = key
		l.log(slog.LevelWarn, "the peer announces another key than the portal has for it")
	}
}

// beginAs begins an attempt of that number; one that is under way is replaced. One with a peer that is not trusted ends at once, so
// that the peer is told why. False: there is none.
func (l *Link) beginAs(now time.Duration, number AttemptNumber, run uint64) bool {
	if !l.up {
		return false
	}
	if l.alive() {
		l.connection.close(CloseReplaced)
		l.connection.advance(now)
	}
	l.asking.since, l.backoff.wanted = 0, false
	controlling := controls(l.links.config.Client, l.peer.Client, l.links.config.Name, l.name)
	l.links.serials++
	l.connection = &connection{link: l, serial: l.links.serials, number: number, run: run, controlling: controlling, began: now, now: now}
	l.logConnection(slog.LevelDebug, "connection attempt", slog.Bool("controlling", controlling))
	l.connection.startAgent(&l.connection.current, 1)
	if l.peer.Distrust != CloseUnspecified {
		l.connection.close(l.peer.Distrust)
	}
	return l.peer.Distrust == CloseUnspecified
}

// controls tells whether we control ICE and send the first initiation. A client does towards a node that is none; between
// equals it is the one with the smaller name. Keys have no say: they may be what the two sides do not agree on.
func controls(client, peerClient bool, name, peerName string) bool {
	if client != peerClient {
		return client
	}
	return name < peerName
}
