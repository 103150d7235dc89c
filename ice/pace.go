package ice

import (
	"bytes"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/ice/rate"
	"github.com/sluice-vpn/sluice/ice/stun"
)

// The pacing of checks. pion sends a check for every open pair at every tick of 50 ms, to addresses that the peer named.
// Without bounds it would be an amplifier: one signaled offer makes us send thousands of datagrams to a third party
// (RFC 8445, section 19.5.1).
const (
	// checkPace is the time between two checks of an agent (Ta of RFC 8445, section 14.2, is 50 ms with 5 ms as the least).
	checkPace = 10 * time.Millisecond
	// maxUnanswered is how many checks an agent sends to an address that has not answered since.
	maxUnanswered = 50
	// The first quickChecks of them leave as pion asks for them. The rest spread over the ICE timeout, so that a peer which
	// comes ten seconds late still meets one: 20 in the first second, 30 in the next twelve.
	quickChecks = 20
	slowPace    = 400 * time.Millisecond
	// All agents together may have maxUnanswered checks for one silent address, and addressRate more a second.
	addressRate = 1
	// maxBuckets bounds the addresses that are remembered for that; beyond it silent addresses must wait.
	maxBuckets = 8192
	// globalRate and globalBurst bound what the program sends to silent addresses, in checks a second.
	globalRate  = 1000
	globalBurst = 1000
	// Of what is left of it, so much is not for peers that have used more than an equal share, and so much not for those who never had
	// a session.
	keptForOthers = globalBurst / 2
	keptForKnown  = globalBurst / 4
	// sharedRate is what equal shares are of: less than all, so that what bursts have used comes back.
	sharedRate = globalRate * 4 / 5
	// maxQueue is how many pairs of an agent may wait.
	maxQueue = 128
	// transactionLife is when an answer comes too late for pion; maxTransactions are an agent's checks in that time.
	transactionLife = 4 * time.Second
	maxTransactions = 256
	// maxStarting is how many agents may be starting, each for at most startTime.
	maxStarting = 16
	startTime   = 500 * time.Millisecond
)

// check is a Binding request of an agent that waits for its turn. A newer one for the same pair replaces it.
type check struct {
	conn   *conn
	remote netip.AddrPort
	data   []byte
	urgent bool
}

// remote is an address that an agent checks or is checked from.
type remote struct {
	unanswered int
	alive      bool // has answered at some time
	pairs      []pairPace
	met        []netip.Addr // local addresses that an authentic request of it has come to
}

// pairPace is the latest check from one local address.
type pairPace struct {
	local netip.Addr
	last  time.Time
	// triggered is set by an authentic request until the check in return has left.
	triggered bool
}

// remote finds or makes the entry; nil if there are too many.
func (a *member) remote(at netip.AddrPort) *remote {
	r := a.remotes[at]
	if r == nil && len(a.remotes) < maxRemotes {
		r = new(remote)
		a.remotes[at] = r
	}
	return r
}

func (r *remote) pair(local netip.Addr) *pairPace {
	i := slices.IndexFunc(r.pairs, func(p pairPace) bool { return p.local == local })
	if i < 0 {
		i = len(r.pairs)
		r.pairs = append(r.pairs, pairPace{local: local})
	}
	return &r.pairs[i]
}

// due tells whether a check may be queued now.
func (r *remote) due(local netip.Addr, now time.Time) dropReason {
	last := r.pair(local).last
	switch {
	case r.unanswered >= maxUnanswered:
		return dropUnanswered
	case r.unanswered >= quickChecks && now.Sub(last) < slowPace*time.Duration(len(r.pairs)):
		return dropPaced
	}
	return dropNone
}

// credit notes an authentic request from the address: it may have one check in return, at once, before those that wait already
// (the triggered-check queue of RFC 8445, section 6.1.4.1).
func (a *member) credit(c *conn, from netip.AddrPort, r *remote) {
	local := c.local.Addr()
	r.unanswered = max(0, r.unanswered-1)
	p := r.pair(local)
	p.last, p.triggered = time.Time{}, true
	if !slices.Contains(r.met, local) {
		r.met = append(r.met, local)
	}
	for _, k := range a.queue {
		if k.conn == c && k.remote == from {
			k.urgent = true
		}
	}
}

// met tells whether an authentic request has come to the conn from an address.
func (m *Mux) met(c *conn, from netip.AddrPort) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := c.member.remotes[from]
	return r != nil && slices.Contains(r.met, c.local.Addr())
}

func (r *remote) answered() { r.unanswered, r.alive = 0, true }

// check sends a Binding request of an agent now or queues it. The data is borrowed.
func (m *Mux) check(c *conn, to netip.AddrPort, data []byte) {
	a, now := c.member, time.Now()
	m.mu.Lock()
	if a.removed {
		m.mu.Unlock()
		return
	}
	r := a.remote(to)
	why := dropTooManyRemotes
	if r != nil {
		why = r.due(c.local.Addr(), now)
	}
	if why != dropNone {
		m.mu.Unlock()
		m.counters.drop(why)
		return
	}
	k := &check{conn: c, remote: to, data: data, urgent: r.alive || r.pair(c.local.Addr()).triggered || nominates(data)}
	if len(a.queue) > 0 || now.Before(a.next) {
		m.enqueue(a, k, now)
		m.mu.Unlock()
		return
	}
	ready := m.book(k, now)
	m.mu.Unlock()
	if ready {
		c.send(to, data)
	}
}

// enqueue queues a copy of the check and arms the timer. The lock is held.
func (m *Mux) enqueue(a *member, k *check, now time.Time) {
	k.data = bytes.Clone(k.data)
	i := slices.IndexFunc(a.queue, func(q *check) bool { return q.conn == k.conn && q.remote == k.remote })
	switch {
	case i >= 0:
		a.queue[i] = k
	case len(a.queue) >= maxQueue:
		m.counters.drop(dropChecksFull)
	default:
		a.queue = append(a.queue, k)
	}
	m.arm(a, now)
}

// arm sets the member's timer if it is not set. The lock is held.
func (m *Mux) arm(a *member, now time.Time) {
	if a.timer == nil && len(a.queue) > 0 && !a.removed {
		m.timers.Add(1)
		a.timer = time.AfterFunc(a.next.Sub(now), func() { m.drain(a) })
	}
}

// disarm stops the timer; one that has fired already ends by itself. The lock is held.
func (m *Mux) disarm(a *member) {
	if a.timer != nil && a.timer.Stop() {
		m.timers.Done()
	}
	a.timer = nil
}

// drain sends the check whose turn it is: the first urgent one, else the first.
func (m *Mux) drain(a *member) {
	defer m.timers.Done()
	now := time.Now()
	m.mu.Lock()
	var k *check
	for k == nil && len(a.queue) > 0 {
		i := max(0, slices.IndexFunc(a.queue, func(q *check) bool { return q.urgent }))
		if next := a.queue[i]; m.book(next, now) {
			k = next
		}
		a.queue = slices.Delete(a.queue, i, i+1)
	}
	a.timer = nil
	m.arm(a, now)
	m.mu.Unlock()
	if k != nil {
		k.conn.send(k.remote, k.data)
	}
}

// book counts a check that is about to be sent and remembers its transaction, or says that it may not be sent. The lock
// is held.
func (m *Mux) book(k *check, now time.Time) bool {
	a := k.conn.member
	r := a.remotes[k.remote]
	why := dropNone
	m.expire(a, now)
	switch {
	case r.unanswered >= maxUnanswered:
		why = dropUnanswered
	case len(a.sent) >= maxTransactions:
		why = dropTransactionsFull
	case !r.alive:
		why = m.buckets.take(a.share, k.remote, now)
	}
	if why != dropNone {
		m.counters.drop(why)
		return false
	}
	r.unanswered++
	p := r.pair(k.conn.local.Addr())
	p.last, p.triggered = now, false
	a.next = now.Add(checkPace)
	h, _ := stun.ParseHeader(k.data) // conn.write was given it
	t := &transaction{id: h.ID, conn: k.conn, remote: k.remote, sent: now}
	m.transactions[t.id] = t
	a.sent = append(a.sent, t)
	m.counters.ChecksSent.Add(1)
	return true
}

// expire forgets transactions whose answer would come too late.
func (m *Mux) expire(a *member, now time.Time) {
	n := 0
	for n < len(a.sent) && now.Sub(a.sent[n].sent) >= transactionLife {
		if t := a.sent[n]; m.transactions[t.id] == t {
			delete(m.transactions, t.id)
		}
		n++
	}
	a.sent = slices.Delete(a.sent, 0, n)
}

// nominates tells whether a request of pion has USE-CANDIDATE.
func nominates(b []byte) bool { return stun.Find(b, stun.UseCandidate) != nil }

// buckets bounds checks towards silent addresses over all agents. The zero value is full.
type buckets struct {
	global  rate.Bucket
	of      map[netip.AddrPort]*rate.Bucket // an address without entry is full
	swept   time.Time
	peers   map[*Share]time.Time // who has asked lately, and when last
	counted time.Time            // when those who have not were forgotten
}

// take asks to send one check for a peer.
func (b *buckets) take(s *Share, to netip.AddrPort, now time.Time) dropReason {
	if b.of == nil {
		b.of, b.peers = map[netip.AddrPort]*rate.Bucket{}, map[*Share]time.Time{}
	}
	if b.global.Left(now, globalRate, globalBurst) < 1+b.kept(s, now) {
		return dropGlobalCap
	}
	t := b.of[to]
	if t == nil {
		if len(b.of) >= maxBuckets && !b.sweep(now) {
			return dropAddressCap
		}
		t = new(rate.Bucket)
		b.of[to] = t
	}
	if !t.Take(now, addressRate, maxUnanswered) {
		return dropAddressCap
	}
	b.global.Spend()
	s.checks.Spend()
	return dropNone
}

// kept is how much of the budget of all is for others than this peer. Equal shares of those who have asked lately add up to less
// than there is, so whoever asks for no more is served, however much others want.
func (b *buckets) kept(s *Share, now time.Time) (kept float64) {
	b.peers[s] = now
	if now.Sub(b.counted) >= time.Second {
		b.counted = now
		for other, at := range b.peers {
			if now.Sub(at) >= time.Second {
				delete(b.peers, other)
			}
		}
	}
	if len(b.peers) == 1 {
		return 0
	}
	fair := sharedRate / float64(len(b.peers))
	if s.checks.Left(now, fair, max(fair, quickChecks)) < 1 {
		kept += keptForOthers
	}
	if !s.known.Load() {
		kept += keptForKnown
	}
	return kept
}

// credit allows one check more to an address from which an authentic request came.
func (b *buckets) credit(from netip.AddrPort) {
	if t := b.of[from]; t != nil {
		t.Give(maxUnanswered)
	}
}

// answered forgets that the address was silent.
func (b *buckets) answered(from netip.AddrPort) { delete(b.of, from) }

// sweep forgets addresses whose bucket is full again, at most once a second, and tells whether there is room.
func (b *buckets) sweep(now time.Time) bool {
	if now.Sub(b.swept) < time.Second {
		return false
	}
	b.swept = now
	for at, t := range b.of {
		if t.Left(now, addressRate, maxUnanswered) >= maxUnanswered {
			delete(b.of, at)
		}
	}
	return len(b.of) < maxBuckets
}
