package ice

import (
	"net/netip"
	"time"

	"github.com/sluice-vpn/sluice/ice/rate"
	"github.com/sluice-vpn/sluice/ice/stun"
)

// This file follows a peer that a NAT maps anew while its agent is in use. Who is behind that NAT sees nothing of it: its checks are
// answered as before. And pion gives up the other side only after 11 s, since an ICE agent, once it has selected a pair, moves to no
// other that was not nominated.
//
// What comes from another address than the pair leads to, a check or WireGuard data, is the reason to ask: one check goes there and
// one to the old address at the same moment. If the new one answers and the old one does not, the pair leads to the new address from
// then on. pion does not notice: to the agent the peer stays where it was, and the mux translates. So
//
//   - nothing moves by the word of a source address, which others can forge: the answer to a check proves by the peer's ICE password
//     that the peer has read what was sent there;
//   - a peer that is heard from two addresses, because a NAT balances its load or somebody duplicates, stays where it is as long as
//     the old one works;
//   - an address that does not answer is sent five checks of some 110 bytes in 1.5 s. An agent begins two trials a second at most,
//     each for a datagram that bore the peer's own proof, and all keep within what the pacing allows for silent addresses.
const (
	// trialTries is how many checks go to each of the two addresses, trialGap the time from the first to the second; it doubles.
	trialTries = 5
	trialGap   = 100 * time.Millisecond
	// trialGrace is how long, at least, the old address may answer after the new one has. It has as long again as the answer of
	// the new one took, and so more than one check where the round trip is a usual one. Where it was asked already before the new one was
	// heard, since nothing came from it, that time is counted.
	trialGrace = 250 * time.Millisecond
	trialLimit = 3 * time.Second
	// trialRest is how long an address is not looked at that did not answer, or to which the peer has not moved.
	trialRest = time.Second
	// trialRate, in a second, and trialBurst bound the trials of an agent.
	trialRate  = 2
	trialBurst = 4
	maxRefused = 16
)

// roam is where the peer of an agent in use is. Guarded by the mux's lock. Zero: there is no pair.
type roam struct {
	conn     *conn
	base, at netip.AddrPort // the pair's end as pion knows it, and as it is
	// moved tells that the peer has moved, and is told whether it can be followed there. Called without the mux's lock.
	moved   func(from, to netip.AddrPort) bool
	trial   *trial                       // nil: none runs
	refused map[netip.AddrPort]time.Time // not looked at until then
	budget  rate.Bucket                  // of trials
}

// trial asks an address whether the peer is there, and the old one whether it is there still. It has a goroutine while it runs.
type trial struct {
	to       netip.AddrPort // zero: only the old one is asked
	began    time.Time
	asked    time.Time // since when the old one was asked without an answer, also by the trial before
	sent     int
	answered time.Time     // when to answered first; zero: it has not
	took     time.Duration // how long that answer did
	channel  bool          // nothing more is to be done to send to the new one: its relay, if there is one, has a channel to it
	stays    bool          // the old one answered
	ids      []stun.ID
	news     chan struct{} // one slot: something was answered
	ended    chan struct{} // closed when the trial is not to go on
}

// verdictAt is when the trial is decided if nothing more is answered.
func (t *trial) verdictAt() time.Time {
	if t.answered.IsZero() {
		return t.began.Add(trialLimit)
	}
	grace := max(trialGrace, t.took)
	if t.channel {
		grace = max(0, grace-t.began.Sub(t.asked))
	}
	return t.answered.Add(grace)
}

// over tells whether it is decided.
func (t *trial) over(now time.Time) bool { return t.stays || !now.Before(t.verdictAt()) }

// sendAt is when the next check is due; ok false: there is none.
func (t *trial) sendAt() (at time.Time, ok bool) {
	return t.began.Add(trialGap * (1<<t.sent - 1)), t.sent < trialTries
}

// follow makes a pair that an agent has selected the one to be followed: from the local address to remote. What was followed before is
// not any more.
func (m *Mux) follow(a *member, local, remote netip.AddrPort, moved func(from, to netip.AddrPort) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a.endTrial()
	a.roam = roam{}
	c := a.relayed[local]
	if c == nil {
		c = a.conns[local.Addr()]
	}
	if c != nil && !a.removed {
		a.roam = roam{
			conn: c, base: remote, at: remote, moved: moved, refused: map[netip.AddrPort]time.Time{},
		}
	}
}

// bind has a relay bind a channel for the pair of an agent that leads from the relayed address to remote.
func (m *Mux) bind(a *member, relayed, remote netip.AddrPort) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := a.relayed[relayed]; c != nil {
		c.bind(remote)
	}
}

// introduce tells the mux the peer's credentials, and whether we control.
func (m *Mux) introduce(a *member, peer Credentials, controlling bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a.peer, a.peerKey, a.controlling = peer, stun.ShortTerm(peer.Password), controlling
}

// known is the address by which pion knows the one that something came from. The lock is held.
func (a *member) known(c *conn, from netip.AddrPort) netip.AddrPort {
	if r := &a.roam; r.conn == c && r.at == from {
		return r.base
	}
	return from
}

// actual is where what pion sends to an address has to go.
func (m *Mux) actual(c *conn, to netip.AddrPort) netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r := &c.member.roam; r.conn == c && r.base == to {
		return r.at
	}
	return to
}

// heardFrom notes that the peer of an agent was authentically heard from an address, at one of ours. If that is not where it should be,
// a trial begins. The lock is held.
func (m *Mux) heardFrom(c *conn, from netip.AddrPort, now time.Time) {
	a := c.member
	r := &a.roam
	switch {
	case a.removed || a.peer.Ufrag == "" || from == r.at || !m.rules.allow(from.Addr()) || from.Port() == 0:
		return
	case c != r.conn || from.Addr().Is4() != r.at.Addr().Is4():
		return // another pair: that is for ICE to select
	case r.trial != nil && (r.trial.to == from || !r.trial.answered.IsZero()) || now.Before(r.refused[from]):
		return
	}
	if !r.budget.Take(now, trialRate, trialBurst) {
		return
	}
	m.counters.Trials.Add(1)
	m.begin(a, from, now)
}

// askAgain checks the pair that an agent has selected, at once and again until the peer answers, unless a trial does so already. The
// answer is heard. The lock is held.
func (m *Mux) askAgain(a *member, now time.Time) {
	if !a.removed && a.roam.conn != nil && a.peer.Ufrag != "" && a.roam.trial == nil {
		m.begin(a, netip.AddrPort{}, now)
	}
}

// begin begins a trial in the place of the one that there may be. The lock is held.
func (m *Mux) begin(a *member, to netip.AddrPort, now time.Time) {
	asked := now
	if before := a.roam.trial; before != nil {
		asked = before.asked // one that was answered by the old address has ended
	}
	a.endTrial()
	t := &trial{to: to, began: now, asked: asked, news: make(chan struct{}, 1), ended: make(chan struct{})}
	a.roam.trial = t
	m.timers.Go(func() { m.try(a, t) })
}

// endTrial forgets the trial. The lock is held.
func (a *member) endTrial() {
	t := a.roam.trial
	if t == nil {
		return
	}
	for _, id := range t.ids {
		delete(a.roam.conn.mux.transactions, id)
	}
	close(t.ended)
	a.roam.trial = nil
}

// try runs a trial to its end.
func (m *Mux) try(a *member, t *trial) {
	for {
		now := time.Now()
		m.mu.Lock()
		if a.roam.trial != t {
			m.mu.Unlock()
			return
		}
		if t.over(now) {
			from, moved := a.roam.at, a.roam.moved
			m.mu.Unlock()
			m.settleTrial(a, t, !t.stays && !t.answered.IsZero() && moved(from, t.to), now)
			return
		}
		wake := t.verdictAt()
		var checks []*check
		if at, ok := t.sendAt(); ok && !now.Before(at) {
			checks = m.trialChecks(a, now)
		}
		if at, ok := t.sendAt(); ok && at.Before(wake) {
			wake = at
		}
		m.mu.Unlock()
		for _, k := range checks {
			k.conn.emit(k.remote, k.data)
		}
		select {
		case <-time.After(wake.Sub(now)):
		case <-t.news:
		case <-t.ended:
			return
		}
	}
}

// settleTrial ends a trial that is decided, unless it was ended meanwhile.
func (m *Mux) settleTrial(a *member, t *trial, moves bool, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &a.roam
	if r.trial != t {
		return
	}
	a.endTrial()
	switch {
	case moves:
		r.at = t.to
		clear(r.refused)
		m.counters.Moves.Add(1)
	case t.to.IsValid():
		if len(r.refused) >= maxRefused {
			clear(r.refused)
		}
		r.refused[t.to] = now.Add(trialRest)
	}
}

// trialChecks makes the next check for each of the two addresses; the new one gets none after its answer. The lock is held.
func (m *Mux) trialChecks(a *member, now time.Time) (list []*check) {
	r := &a.roam
	t := r.trial
	t.sent++
	for _, to := range [...]netip.AddrPort{r.at, t.to} {
		if !to.IsValid() || to == t.to && (!t.answered.IsZero() || m.buckets.take(a.share, to, now) != dropNone) {
			continue
		}
		id := newTransactionID()
		t.ids = append(t.ids, id)
		m.transactions[id] = &transaction{id: id, conn: r.conn, remote: to, sent: now, trial: t}
		m.counters.ChecksSent.Add(1)
		list = append(list, &check{conn: r.conn, remote: to, data: a.checkRequest(id)})
	}
	return list
}

// trialPriority is that of a peer-reflexive candidate (RFC 8445, section 7.1.1).
const trialPriority = 110<<24 | 65535<<8 | 255

// checkRequest builds a check of the agent's (RFC 8445, section 7.1). It nominates nothing.
func (a *member) checkRequest(id stun.ID) []byte {
	role := stun.ICEControlled
	if a.controlling {
		role = stun.ICEControlling
	}
	w := stun.Build(make([]byte, 0, 160), stun.Request, stun.Binding, id)
	w.Text(stun.Username, a.peer.Ufrag+":"+a.ufrag)
	w.Uint64(role, a.tieBreaker)
	w.Uint32(stun.Priority, trialPriority)
	w.Sign(a.peerKey)
	w.Fingerprint()
	return w.Bytes()
}

// answerTrial takes the answer to a check of a trial. A NAT may forward what comes to an old address while all that leaves it comes from
// a new one: then the old one does not count as there, since the mapping lives on by what leaves. The lock is held.
func (m *Mux) answerTrial(t *transaction, msg *stun.Message, from netip.AddrPort) dropReason {
	a, k, now := t.conn.member, t.trial, time.Now()
	switch {
	case msg.Class == stun.Error:
		return dropErrorResponse
	case !a.peerKey.Authentic(msg):
		return dropUnauthentic
	case from != t.remote: // RFC 8445, section 7.2.5.2.1
		return dropTransaction
	case t.remote != k.to:
		k.stays = true
	case k.answered.IsZero():
		k.answered, k.took = now, now.Sub(t.sent)
		if k.channel = t.conn.over == nil; !k.channel {
			t.conn.bind(k.to) // before the verdict
		}
		m.buckets.answered(k.to)
	}
	a.lastSeen = now
	a.heard()
	m.counters.Answers.Add(1)
	k.tell()
	return dropNone
}

// tell wakes the trial's goroutine.
func (t *trial) tell() {
	select {
	case t.news <- struct{}{}:
	default:
	}
}

// channelBound notes that a channel is there that an agent has wanted.
func (m *Mux) channelBound(a *member) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := a.roam.trial; t != nil && !t.answered.IsZero() {
		t.channel = true
		t.tell()
	}
}
