package ice

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline"
)

// Bounds of the mux's tables.
const (
	maxAgents  = 4096
	maxRemotes = 64 // addresses that one agent checks or is checked from
	inboxSlots = 16 // messages that wait for pion at one of an agent's addresses
)

// MuxConfig describes a Mux. Sender and Addresses are required.
type MuxConfig struct {
	Sender Sender
	// Addresses lists the local addresses to offer, the best first; see Uplinks. It is called for every agent, by any goroutine.
	Addresses func() []netip.Addr
	// Leads tells whether what is sent from one of them reaches an address by the interface that has it; nil: it always does. Called
	// as Addresses is.
	Leads func(from, to netip.Addr) bool
	// Tunnel tells the addresses that are in the tunnel: never offered, never checked. It decides by address and not by range, since
	// what tunnels take their addresses from is also what carriers give to their customers (RFC 6598). Nil: none is.
	Tunnel func(netip.Addr) bool
	// Loopback allows loopback addresses, for tests.
	Loopback bool
}

// Mux shares the pipeline's sockets among ICE agents. It is the ice.UDPMux of each; see the package comment for how it
// routes. Its methods may be called by any goroutine. Make it with NewMux, end it with Close.
type Mux struct {
	// frozen
	sender    Sender
	addresses func() []netip.Addr
	leads     func(from, to netip.Addr) bool
	rules     rules
	starts    chan struct{} // holds a value for each agent that is starting

	counters counters
	prober   atomic.Pointer[Prober]

	mu           sync.Mutex // a leaf; guards all below, the members' maps and queues included
	closed       bool
	members      map[string]*member // by local ufrag
	transactions map[stun.ID]*transaction
	buckets      buckets
	timers       sync.WaitGroup // members' timers that are armed or run, and trials
}

// member is what the mux knows of one agent.
type member struct {
	ufrag       string    // frozen
	key         *stun.Key // frozen; of the agent's password
	heard       func()    // frozen; called under the lock
	bound       func()    // frozen; see Relayed.Bound
	share       *Share    // frozen
	conns       map[netip.Addr]*conn
	relayed     map[netip.AddrPort]*conn // by the relayed address
	remotes     map[netip.AddrPort]*remote
	queue       []*check
	next        time.Time // earliest time of the next check
	timer       *time.Timer
	sent        []*transaction // in the order they were sent
	removed     bool
	peer        Credentials // zero: not known yet
	peerKey     *stun.Key   // of the peer's password
	controlling bool
	tieBreaker  uint64 // frozen; of the mux's own checks
	roam        roam
	lastSeen    time.Time
	roundTrip   time.Duration // as measured then
	measured    time.Time
	trips       trips
}

// transaction is a check that is on its way.
type transaction struct {
	id     stun.ID
	conn   *conn
	remote netip.AddrPort
	sent   time.Time
	trial  *trial // whose it is; nil: pion's
}

// NewMux makes a Mux. It starts no goroutine.
func NewMux(cfg MuxConfig) *Mux {
	m := &Mux{
		sender: cfg.Sender, addresses: cfg.Addresses, leads: cfg.Leads, rules: rules{tunnel: cfg.Tunnel, loopback: cfg.Loopback},
		starts: make(chan struct{}, maxStarting), members: map[string]*member{}, transactions: map[stun.ID]*transaction{},
	}
	if m.leads == nil {
		m.leads = func(netip.Addr, netip.Addr) bool { return true }
	}
	return m
}

// Receive takes a datagram that the pipeline found not to be WireGuard and that came from no TURN server of ours. It
// never blocks; Data is borrowed until it returns. What is dropped is counted and costs no allocation.
func (m *Mux) Receive(s pipeline.Stray) {
	var msg stun.Message
	why := dropOf[msg.Parse(s.Data, stun.Peer)]
	switch {
	case why != dropNone:
	case impossible(s.Src):
		why = dropSource
	case msg.Class == stun.Request:
		why = m.request(&s, &msg)
	default:
		why = m.answer(&s, &msg)
	}
	if why != dropNone {
		m.counters.drop(why)
	}
}

// Probed takes a datagram if it answers a question of the prober, and says whether it did. TURN servers answer those too.
func (m *Mux) Probed(s pipeline.Stray) bool {
	p := m.prober.Load()
	h, ok := stun.ParseHeader(s.Data)
	return p != nil && ok && p.answer(&s, h.ID)
}

// impossible tells whether nobody can have this address.
func impossible(a netip.AddrPort) bool {
	return a.Port() == 0 || !a.IsValid() || a.Addr().IsUnspecified() || a.Addr().IsMulticast()
}

// request gives a check to the agent that USERNAME names, if it is authentic.
func (m *Mux) request(s *pipeline.Stray, msg *stun.Message) dropReason {
	name := msg.Recipient()
	m.mu.Lock()
	a := m.members[string(name)]
	m.mu.Unlock()
	if a == nil {
		return dropUnknownUsername
	}
	if !a.key.Authentic(msg) {
		return dropUnauthentic
	}
	m.mu.Lock()
	c := a.at(s.Dst, s.Src.Addr().Is4())
	if c == nil {
		m.mu.Unlock()
		return dropLocalAddress
	}
	from, why := m.requested(c, s.Src, msg)
	if why == dropNone {
		why = c.deliver(s.Data, from)
	}
	m.mu.Unlock()
	if why == dropUnknownAttribute {
		c.refuse(from, msg)
	}
	return why
}

// requested notes an authentic request that came to a conn, and tells whom pion knows it by. The lock is held.
func (m *Mux) requested(c *conn, src netip.AddrPort, msg *stun.Message) (known netip.AddrPort, _ dropReason) {
	known = c.member.known(c, src)
	switch {
	case msg.Unknown():
		return known, dropUnknownAttribute // which is to be answered, see conn.refuse
	case !msg.Has(stun.UseCandidate): // else ICE moves there by itself
		m.heardFrom(c, src, time.Now())
	case c.over != nil:
		c.bind(src)
	}
	return known, m.heard(c, known)
}

// heard notes an authentic request that came to an agent's conn. The lock is held.
func (m *Mux) heard(c *conn, from netip.AddrPort) dropReason {
	r := c.member.remote(from)
	if r == nil {
		return dropTooManyRemotes
	}
	c.member.credit(c, from, r)
	m.buckets.credit(from)
	c.member.lastSeen = time.Now()
	c.member.heard()
	m.counters.Requests.Add(1)
	return dropNone
}

// at finds the conn at a local address; where the platform does not tell it, that of the pair in use, or one of the family.
func (a *member) at(local netip.Addr, is4 bool) *conn {
	if local.IsValid() {
		return a.conns[local]
	}
	if c := a.roam.conn; c != nil && c.over == nil && c.local.Addr().Is4() == is4 {
		return c
	}
	var first *conn
	for addr, c := range a.conns {
		if addr.Is4() == is4 && (first == nil || addr.Less(first.local.Addr())) {
			first = c
		}
	}
	return first
}

// answer gives an answer to the agent that asked.
func (m *Mux) answer(s *pipeline.Stray, msg *stun.Message) dropReason {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.transactions[msg.ID]
	if t == nil || t.conn.over != nil {
		return dropTransaction
	}
	if t.trial != nil {
		return m.answerTrial(t, msg, s.Src)
	}
	if why := m.settle(t, msg); why != dropNone {
		return why
	}
	return t.conn.deliver(s.Data, t.conn.member.known(t.conn, s.Src))
}

// settle notes the answer to a check. The lock is held.
func (m *Mux) settle(t *transaction, msg *stun.Message) dropReason {
	delete(m.transactions, msg.ID)
	if msg.Class == stun.Error {
		return dropErrorResponse
	}
	a, now := t.conn.member, time.Now()
	a.lastSeen, a.roundTrip, a.measured = now, now.Sub(t.sent), now
	a.trips.note(now, a.roundTrip)
	m.counters.RTTSeconds.Observe(uint64(max(a.roundTrip, 0) / (100 * time.Microsecond)))
	a.heard()
	if r := a.remotes[t.remote]; r != nil {
		r.answered()
	}
	m.buckets.answered(t.remote)
	m.counters.Answers.Add(1)
	return dropNone
}

// add makes a member for an agent that is about to be made.
func (m *Mux) add(ufrag, password string, share *Share, heard, bound func()) (*member, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return nil, ErrClosed
	case len(m.members) >= maxAgents:
		return nil, ErrTooMany
	case m.members[ufrag] != nil:
		return nil, errors.New("ice: ufrag in use")
	}
	a := &member{
		ufrag: ufrag, key: stun.ShortTerm(password), share: share, heard: heard, bound: bound, conns: map[netip.Addr]*conn{}, relayed: map[netip.AddrPort]*conn{},
		remotes:    map[netip.AddrPort]*remote{},
		tieBreaker: rand.Uint64(),
	}
	m.members[ufrag] = a
	return a, nil
}

// GetConn returns the conn of an agent at a local address, made at the first call. It is part of ice.UDPMux.
func (m *Mux) GetConn(ufrag string, addr net.Addr) (net.PacketConn, error) {
	at, ok := unmapped(addr)
	if !ok {
		return nil, &net.AddrError{Err: "ice: not a UDP address", Addr: addr.String()}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.members[ufrag]
	if a == nil {
		return nil, net.ErrClosed
	}
	c := a.conns[at.Addr()]
	if c == nil {
		c = newConn(m, a, at)
		a.conns[at.Addr()] = c
	}
	return c, nil
}

// RemoveConnByUfrag forgets an agent and closes its conns. It is part of ice.UDPMux.
func (m *Mux) RemoveConnByUfrag(ufrag string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.members[ufrag]; a != nil {
		m.remove(a)
	}
}

// remove is called with the lock held.
func (m *Mux) remove(a *member) {
	a.removed = true
	delete(m.members, a.ufrag)
	for _, c := range a.conns {
		c.shut()
	}
	for _, t := range a.sent {
		if m.transactions[t.id] == t {
			delete(m.transactions, t.id)
		}
	}
	a.queue, a.sent = nil, nil
	a.endTrial()
	a.roam = roam{}
	m.disarm(a)
}

// GetListenAddresses lists the addresses that an agent offers as host candidates. It is part of ice.UDPMux.
func (m *Mux) GetListenAddresses() []net.Addr {
	port := m.sender.LocalPort()
	var list []net.Addr
	for _, a := range m.rules.local(m.addresses()) {
		list = append(list, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, port)))
	}
	return list
}

// Close forgets all agents and waits for what the mux has under way. The sockets stay open; agents must be closed
// before. It is part of ice.UDPMux.
func (m *Mux) Close() error {
	m.mu.Lock()
	m.closed = true
	for _, a := range m.members {
		m.remove(a)
	}
	m.mu.Unlock()
	m.timers.Wait()
	return nil
}

// unmapped reads the address of a net.UDPAddr.
func unmapped(addr net.Addr) (netip.AddrPort, bool) {
	u, ok := addr.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}, false
	}
	at := u.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), at.IsValid()
}
