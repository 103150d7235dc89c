package ice

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/count"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

var (
	aliceAddr = netip.MustParseAddr("10.0.0.1")
	bobAddr   = netip.MustParseAddr("10.0.0.2")
	alice6    = netip.MustParseAddr("2001:db8::1")
	bob6      = netip.MustParseAddr("2001:db8::2")
)

// node is one machine: a socket pair, what a shard of the pipeline does with it, and the mux.
type node struct {
	t       *testing.T
	pair    udp.Pair
	mux     *Mux
	mailbox *Mailbox
	prober  *Prober
	pumps   sync.WaitGroup
	stop    chan struct{}
	events  []Event
	beyond  *middle // nil: nothing is between the machine and the network
}

// newNode makes a machine on l. addrs are offered.
func newNode(t *testing.T, l udp.Listener, cfg udp.Config, mux MuxConfig, addrs ...netip.Addr) *node {
	t.Helper()
	pairs, err := l(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, pair: pairs[0], mailbox: NewMailbox(), stop: make(chan struct{})}
	n.beyond = &middle{}
	mux.Sender = pairSender{n.pair, n.beyond}
	if mux.Addresses == nil {
		mux.Addresses = func() []netip.Addr { return addrs }
	}
	n.mux = NewMux(mux)
	for _, s := range []udp.Socket{n.pair.V4, n.pair.V6} {
		if s != nil {
			n.pumps.Go(func() { n.pump(s) })
		}
	}
	return n
}

func (n *node) pump(s udp.Socket) {
	batch := make([]udp.Datagrams, 8)
	for i := range batch {
		batch[i].Buf = make([]byte, udp.BufferSize)
	}
	for {
		k, err := s.Receive(batch)
		if err != nil {
			return
		}
		for _, m := range batch[:k] {
			for rest := m.Data; len(rest) > 0; {
				b := rest[:min(m.SegmentSize, len(rest))]
				rest = rest[len(b):]
				if s := (pipeline.Stray{Data: b, Src: n.beyond.seen(m.Src), Dst: m.Dst, IfIndex: m.IfIndex}); !n.mux.Probed(s) {
					n.mux.Receive(s)
				}
			}
		}
		if k == 0 {
			select {
			case <-s.Ready():
			case <-n.stop:
				return
			}
		}
	}
}

func (n *node) close() {
	if n.prober != nil {
		n.prober.Close()
	}
	n.mux.Close()
	close(n.stop)
	for _, s := range []udp.Socket{n.pair.V4, n.pair.V6} {
		if s != nil {
			s.Close()
		}
	}
	n.pumps.Wait()
}

func (n *node) connection(controlling bool) *Connection {
	return NewConnection(AgentConfig{Mux: n.mux, Mailbox: n.mailbox, Prober: n.prober, Controlling: controlling})
}

func (n *node) counter(name string) uint64 {
	n.t.Helper()
	list := n.mux.Counters()
	i := slices.IndexFunc(list, func(c count.Counter) bool { return c.Name == name })
	if i < 0 {
		n.t.Fatalf("no counter %q", name)
	}
	return list[i].Value
}

// link is a connection between two nodes, with signaling that carries everything at once.
type link struct {
	t    *testing.T
	a, b *Connection
}

func newLink(a, b *node) *link { return &link{a.t, a.connection(true), b.connection(false)} }

// restart begins a generation on both sides.
func (l *link) restart(generation uint32) {
	l.t.Helper()
	ca, err := l.a.Restart(generation)
	if err != nil {
		l.t.Fatal(err)
	}
	cb, err := l.b.Restart(generation)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := l.a.Connect(generation, cb); err != nil {
		l.t.Fatal(err)
	}
	if err := l.b.Connect(generation, ca); err != nil {
		l.t.Fatal(err)
	}
}

func (l *link) close() {
	l.a.Close()
	l.b.Close()
}

// signal carries events of two nodes until both are quiet for a moment of the bubble's time, or done says so.
func signal(a, b *node, peers map[*Connection]*Connection, limit time.Duration, done func() bool) bool {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for {
		for _, n := range []*node{a, b} {
			for e, ok := n.mailbox.Poll(); ok; e, ok = n.mailbox.Poll() {
				n.events = append(n.events, e)
				for _, c := range e.Candidates {
					of, number := ownerOf(e)
					if p := peers[of]; p != nil {
						_ = p.AddCandidate(number, c)
					}
				}
			}
		}
		if done() {
			return true
		}
		select {
		case <-a.mailbox.Wake():
		case <-b.mailbox.Wake():
		case <-deadline.C:
			return false
		}
	}
}

func (l *link) peers() map[*Connection]*Connection {
	return map[*Connection]*Connection{l.a: l.b, l.b: l.a}
}

// world runs f in a bubble with two machines on a network in memory.
func world(t *testing.T, f func(t *testing.T, network *udptest.Network, a, b *node)) {
	synctest.Test(t, func(t *testing.T) {
		network := udptest.New(1)
		network.Impair(func(_, _ netip.AddrPort) udptest.Impairment {
			return udptest.Impairment{Delay: 25 * time.Millisecond}
		})
		a := newNode(t, network.Listen(aliceAddr, alice6), udp.Config{}, MuxConfig{}, aliceAddr, alice6)
		b := newNode(t, network.Listen(bobAddr, bob6), udp.Config{}, MuxConfig{}, bobAddr, bob6)
		f(t, network, a, b)
		a.close()
		b.close()
	})
}

func (l *link) connected() bool { return l.a.Path() != nil && l.b.Path() != nil }

func (n *node) at(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, n.pair.V4.LocalPort()) }

// The accessors below take one lock each and call nothing while they hold it: a lock that is taken twice, or two against the
// order, is a deadlock that a bubble does not see, since who waits for a mutex may go on for all that it knows.

// inUse is the number of the agent in use, 0 if there is none.
func (c *Connection) inUse() uint32 {
	if o, ok := owners.Load(c.used()); ok {
		return o.(owner).number
	}
	return 0
}

// agents is how many agents the mux serves.
func (m *Mux) agents() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.members)
}

// remembered is what the mux holds for agents, all in all.
func (m *Mux) remembered() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.members) + len(m.transactions)
}

// remotes is how many addresses the mux remembers for the agent of that ufrag.
func (m *Mux) remotes(ufrag string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a := m.members[ufrag]; a != nil {
		return len(a.remotes)
	}
	return 0
}

// middle is a NAT that the others are behind, as the machine at its other end sees it. The zero value translates nothing.
type middle struct {
	mu    sync.Mutex
	now   map[netip.AddrPort]netip.AddrPort // by the inner address: the outer one that datagrams come from
	alive map[netip.AddrPort]netip.AddrPort // by the outer address: the inner one that datagrams go to; missing: nowhere
	ever  map[netip.AddrPort]bool           // outer addresses
	lost  int                               // datagrams that went to an outer address without an inner one
	turns int                               // counts what comes, if every second datagram comes from the inner address; 0: none does
}

// rebind has what comes from inner come from outer; outer addresses that there were lead nowhere any more unless they stay.
func (n *middle) rebind(inner, outer netip.AddrPort, stay bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.now == nil {
		n.now, n.alive, n.ever = map[netip.AddrPort]netip.AddrPort{}, map[netip.AddrPort]netip.AddrPort{}, map[netip.AddrPort]bool{}
	}
	if !stay {
		clear(n.alive)
	}
	n.now[inner], n.alive[outer], n.ever[inner], n.ever[outer] = outer, inner, true, true
	if stay {
		n.alive[inner] = inner
	}
}

func (n *middle) seen(src netip.AddrPort) netip.AddrPort {
	n.mu.Lock()
	defer n.mu.Unlock()
	outer, ok := n.now[src]
	if ok && n.turns > 0 {
		n.turns++
	}
	if !ok || n.turns%2 == 1 {
		return src
	}
	return outer
}

func (n *middle) towards(dst netip.AddrPort) (netip.AddrPort, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	inner, ok := n.alive[dst]
	if !ok && n.ever[dst] {
		n.lost++
		return dst, false
	}
	if ok {
		return inner, true
	}
	return dst, true
}

// pairSender sends each datagram from the socket of its family, through what is between.
type pairSender struct {
	udp.Pair
	beyond *middle
}

func (p pairSender) SendOne(r udp.Run) error {
	ok := true
	if p.beyond != nil {
		if r.Dst, ok = p.beyond.towards(r.Dst); !ok {
			return nil
		}
	}
	s := p.Pair.V6
	if r.Dst.Addr().Is4() {
		s = p.Pair.V4
	}
	if s == nil {
		return udp.ErrNoFamily
	}
	return s.SendOne(r)
}
