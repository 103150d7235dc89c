package crypto

import "time"

// series is a run of initiations until a session exists or the lifetime ends. The deadline is one of its own and not a
// count of attempts, so that neither jitter nor a late wake-up nor traffic moves it.
type series struct {
	running               bool
	since, deadline, next time.Duration // next 0: no more initiations
	attempts              int
}

// Want asks for a new session: the data plane has packets and no usable keypair, or the keypair asks for a rekey. While a
// series runs it does nothing. Less than RekeyTimeout after the last handshake message to the peer (less than 1 s with
// FastRetry and no session) the series begins later, if it is still wanted then.
func (p *Peer) Want(now time.Duration) { p.want(now, false) }

func (p *Peer) want(now time.Duration, clearSource bool) {
	if p.settle(now) || p.series.running || p.place < 0 {
		return
	}
	if at := p.earliest(now); now < at {
		p.wantedAt = at
		return
	}
	p.begin(now, clearSource)
}

// earliest returns the first time at which the next initiation may be sent (section 6.1: "never ... more than once every
// Rekey-Timeout").
func (p *Peer) earliest(now time.Duration) time.Duration {
	if p.handshakeSent == 0 {
		return now
	}
	if p.fast(now) {
		return p.handshakeSent + fastGap
	}
	return p.handshakeSent + RekeyTimeout
}

// Retry says that the path has changed: if a series runs and there is no session, the next initiation leaves now, or as soon
// as one may after the last handshake message, also when no more were planned. The end of the series stays where it is.
func (p *Peer) Retry(now time.Duration) {
	if !p.series.running || now >= p.series.deadline || p.usable(now) {
		return
	}
	at := p.earliest(now)
	switch next := p.series.next; {
	case now >= at:
		p.attempt(now, false)
	case next == 0 || at < next:
		p.retryAt(at)
	}
}

func (p *Peer) fast(now time.Duration) bool { return p.fastRetry && !p.usable(now) }

func (p *Peer) begin(now time.Duration, clearSource bool) {
	p.wantedAt = 0
	p.series = series{running: true, since: now, deadline: later(now, p.lifetime)}
	p.tally = Tally{Since: now}
	p.attempt(now, clearSource)
}

// attempt sends an initiation and sets the time of the next.
func (p *Peer) attempt(now time.Duration, clearSource bool) {
	p.series.attempts++
	msg, reason := p.createInitiation(now)
	p.tally.NotSent = reason
	if reason == Accepted {
		p.noteHandshakeSent(now)
		p.tally.Initiations++
		p.emit(Output{Kind: SendMessage, Message: msg, ClearSource: clearSource})
	}
	p.retryAt(p.nextRetry(now))
}

func (p *Peer) nextRetry(now time.Duration) time.Duration {
	at := now + RekeyTimeout
	if n := p.series.attempts; p.fast(now) && n < len(fastRetries) {
		at = max(p.series.since+fastRetries[n], now+fastGap)
	}
	return at + p.local.jitter()
}

// retryAt sets the time of the next initiation, unless the series will be over by then.
func (p *Peer) retryAt(at time.Duration) {
	if at >= p.series.deadline {
		at = 0
	}
	p.series.next = at
}

// retry sends the next initiation; but after a response, which counts as a handshake message, it waits like a first one.
// It waits a random time more: the peer whose initiation crossed ours waits for the same moment.
func (p *Peer) retry(now time.Duration) {
	if at := p.earliest(now); now < at {
		p.retryAt(at + p.local.jitter())
		return
	}
	p.attempt(now, true)
}

// expire ends the series and says so.
func (p *Peer) expire(now time.Duration, a Activity) {
	report := HandshakeExpired{Tally: p.tally, Quiet: p.quiet(now, a)}
	if !report.Quiet {
		// What the lost session left unanswered must not start the next series; new packets may.
		p.unansweredDone, p.unkeptDone = a.FirstUnanswered, p.unkept(a)
	}
	p.series = series{}
	p.wantedAt = 0
	p.tally = Tally{Since: now}
	p.dropHandshake()
	p.emit(Output{Kind: SeriesExpired, Expired: report})
}

// quiet reports whether a usable session has carried authenticated traffic since the series began. An accepted handshake
// message proves nothing about the session, so it does not count if LastReceived is that.
func (p *Peer) quiet(now time.Duration, a Activity) bool {
	carried := a.LastDataReceived
	if a.LastReceived != p.handshakeReceived {
		carried = max(carried, a.LastReceived)
	}
	return p.usable(now) && carried > p.series.since
}

// NextTimeout returns when HandleTimeout must be called next, and what for. 0: not until something else happens. Call it
// after every input and set the one timer; if the stamps have moved when it falls due, HandleTimeout does nothing.
func (p *Peer) NextTimeout(a Activity) (at time.Duration, why Why) {
	sooner := func(t time.Duration, w Why) {
		if t != 0 && (at == 0 || t < at) {
			at, why = t, w
		}
	}
	if p.place < 0 {
		return 0, WhyNothing
	}
	if p.series.running {
		sooner(p.series.deadline, WhyExpire)
		sooner(p.series.next, WhyRetry)
	} else {
		sooner(p.wantedAt, WhyWanted)
		sooner(p.unansweredAt(a), WhyUnanswered)
	}
	sooner(p.passiveKeepaliveAt(a), WhyKeepalive)
	sooner(p.persistentKeepaliveAt(a), WhyPersistentKeepalive)
	sooner(p.zeroAt, WhyZero)
	return at, why
}

// HandleTimeout acts on everything that is due.
func (p *Peer) HandleTimeout(now time.Duration, a Activity) {
	due := func(t time.Duration) bool { return t != 0 && now >= t }
	if p.place < 0 {
		return
	}
	p.settle(now)
	if due(p.zeroAt) {
		p.dropKeys()
	}
	if p.series.running {
		switch {
		case due(p.series.deadline):
			p.expire(now, a)
		case due(p.series.next):
			p.retry(now)
		}
	}
	if !p.series.running && due(p.unansweredAt(a)) {
		p.unansweredDone = a.FirstUnanswered
		p.unansweredJitter = p.local.jitter()
		p.want(now, true)
	}
	if !p.series.running && due(p.wantedAt) {
		p.want(now, false)
	}
	p.handleKeepalives(now, a, due)
}

func (p *Peer) handleKeepalives(now time.Duration, a Activity, due func(time.Duration) bool) {
	keepalive := false
	if due(p.passiveKeepaliveAt(a)) {
		p.unkeptDone = p.unkept(a)
		keepalive = true
	}
	if due(p.persistentKeepaliveAt(a)) {
		p.keepaliveAt, p.keepaliveFrom = 0, now
		keepalive = true
	}
	switch {
	case !keepalive:
	case p.usable(now):
		p.emit(Output{Kind: SendKeepalive})
	default:
		p.want(now, false) // a keepalive is a packet: it wants a session
	}
}

// unansweredAt is when data went unanswered for too long (section 6.5; kernel timers.c, timer_new_handshake).
func (p *Peer) unansweredAt(a Activity) time.Duration {
	first := a.FirstUnanswered
	if first == 0 || first == p.unansweredDone || first < p.lastReceived || first <= p.clearedAt {
		return 0
	}
	return later(first, unansweredAfter+p.unansweredJitter)
}

// unkept returns when the first data came that nothing was sent after. Should the data plane have lost that stamp to a
// packet that was sent at the same moment, the last data received stands in (kernel: timer_need_another_keepalive).
func (p *Peer) unkept(a Activity) time.Duration {
	if a.FirstUnkept == 0 && a.LastDataReceived > a.LastSent {
		return a.LastDataReceived
	}
	return a.FirstUnkept
}

// passiveKeepaliveAt is when we should have sent something back. Only data asks for that: keepalives do not answer
// keepalives (section 6.5).
func (p *Peer) passiveKeepaliveAt(a Activity) time.Duration {
	first := p.unkept(a)
	if first == 0 || first == p.unkeptDone || first < p.lastSent || first <= p.clearedAt {
		return 0
	}
	return later(first, KeepaliveTimeout)
}

// persistentKeepaliveAt is when nothing authenticated passed either way for the configured time (section 6.5).
func (p *Peer) persistentKeepaliveAt(a Activity) time.Duration {
	if p.persistent == 0 || p.keepaliveAt != 0 {
		return p.keepaliveAt
	}
	from := max(a.LastSent, a.LastReceived, a.LastDataReceived, p.lastSent, p.lastReceived, p.keepaliveFrom)
	if from <= p.clearedAt {
		return 0
	}
	return later(from, p.persistent)
}
