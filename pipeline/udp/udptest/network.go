// Package udptest is a network in memory, for tests of whatever stands on [udp.Socket].
//
// A [Network] carries datagrams between [Host] values by address and port. Queues are bounded as those of a kernel are:
// what does not fit is dropped and counted. Loss, duplication, reordering and delay come from a seeded generator; a hook
// sees every datagram and may change it (an address translator is a hook) or drop it. On request equal datagrams that
// wait in a queue are received as one run, as UDP_GRO does, so that code which splits runs meets them.
//
// It uses mutexes, channels and package time only, so it works inside testing/synctest. Each socket counts its own
// datagrams; the order of random decisions is that of the Send calls, so a test that wants the same losses each time
// sends from one goroutine or from goroutines that take turns.
package udptest

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/udp"
)

const (
	// DefaultQueue is how many datagrams wait at a socket before more are dropped.
	DefaultQueue = 1024
	// ephemeralFirst is the first port given to Config.Port 0 (RFC 6335, section 6).
	ephemeralFirst = 49152
)

// Datagram is what travels. A hook may change every field.
type Datagram struct {
	Src, Dst netip.AddrPort
	// Data is owned by the network: a hook may change or replace it, and must copy what it keeps.
	Data []byte
	// TOS is the outer header's byte: DSCP and ECN.
	TOS uint8
}

// Impairment is what may happen to a datagram; the zero value is a perfect link. Loss, Duplicate and Reorder are
// probabilities from 0 to 1.
type Impairment struct {
	Loss, Duplicate float64
	// Reorder is the probability that a datagram is held back until the next one to the same socket has passed it. If
	// none follows it stays held; Flush delivers it.
	Reorder float64
	// Delay holds each datagram, plus an even random share of Jitter. Jitter reorders.
	Delay, Jitter time.Duration
}

// Network is the link between hosts. Its methods may be called from any goroutine. Make one with New.
type Network struct {
	mu      sync.Mutex // guards all below and the queues of every socket
	rng     *rand.Rand
	bound   map[netip.AddrPort][]*socket
	next    uint16
	queue   int
	join    bool
	impair  func(src, dst netip.AddrPort) Impairment
	hook    func(*Datagram) bool
	stalled map[netip.AddrPort]bool
	dropped Drops
}

// Drops counts datagrams that the network did not deliver, by reason.
type Drops struct{ Lost, Hooked, NoSocket, QueueFull int }

// New makes an empty network; seed decides what its impairments hit.
func New(seed uint64) *Network {
	return &Network{
		rng: rand.New(rand.NewPCG(seed, 0x5c1ce)), bound: map[netip.AddrPort][]*socket{}, next: ephemeralFirst,
		queue: DefaultQueue, stalled: map[netip.AddrPort]bool{},
	}
}

// Impair sets what happens to datagrams from src to dst; nil makes every link perfect. The function runs under the
// network's lock: it must not call the network.
func (n *Network) Impair(f func(src, dst netip.AddrPort) Impairment) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.impair = f
}

// Hook sets a function that sees each datagram before it is routed and may change it; false drops it. Nil removes it.
// It runs under the network's lock: it must not call the network.
func (n *Network) Hook(f func(*Datagram) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hook = f
}

// JoinRuns says whether Receive joins equal waiting datagrams of one flow into a run (UDP_GRO). Off at first.
func (n *Network) JoinRuns(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.join = on
}

// QueueLimit sets how many datagrams may wait at a socket.
func (n *Network) QueueLimit(datagrams int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.queue = datagrams
}

// Stall makes the sockets at a local address and port look full to Send until it is called with false; Writable then
// delivers.
func (n *Network) Stall(local netip.AddrPort, full bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stalled[local] = full
	if full {
		return
	}
	for _, s := range n.bound[local] {
		signal(s.writable)
	}
}

// Dropped tells what was not delivered so far.
func (n *Network) Dropped() Drops {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dropped
}

// Flush delivers the datagrams that Reorder still holds back.
func (n *Network) Flush() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, sockets := range n.bound { // each socket is independent, so the order of this loop does not show
		for _, s := range sockets {
			n.releaseHeld(s)
		}
	}
}

// Inject sends a datagram from anywhere, as a stranger might: src need not be bound. Data is copied.
func (n *Network) Inject(d Datagram) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d.Data = append([]byte(nil), d.Data...)
	n.transmit(d)
}

// Listen opens sockets of a host with these addresses; an invalid address leaves its family out. Each listener made this
// way is a host of its own. See Host for machines with several addresses.
func (n *Network) Listen(addr4, addr6 netip.Addr) udp.Listener {
	return n.Host(addr4, addr6).Listen
}

// transmit routes one datagram whose Data is the network's. The lock is held.
func (n *Network) transmit(d Datagram) {
	if n.hook != nil && !n.hook(&d) {
		n.dropped.Hooked++
		return
	}
	var imp Impairment
	if n.impair != nil {
		imp = n.impair(d.Src, d.Dst)
	}
	if n.chance(imp.Loss) {
		n.dropped.Lost++
		return
	}
	copies := 1
	if n.chance(imp.Duplicate) {
		copies = 2
	}
	for i := range copies {
		if i > 0 {
			d.Data = append([]byte(nil), d.Data...)
		}
		n.schedule(d, imp)
	}
}

func (n *Network) schedule(d Datagram, imp Impairment) {
	hold := n.chance(imp.Reorder)
	delay := imp.Delay
	if imp.Jitter > 0 {
		delay += time.Duration(n.rng.Int64N(int64(imp.Jitter)))
	}
	if delay <= 0 {
		n.deliver(d, hold)
		return
	}
	time.AfterFunc(delay, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.deliver(d, hold)
	})
}

// deliver queues d at the socket it is for. The lock is held.
func (n *Network) deliver(d Datagram, hold bool) {
	sockets := n.bound[d.Dst]
	if len(sockets) == 0 {
		n.dropped.NoSocket++
		return
	}
	s := sockets[flowHash(d.Src)%uint32(len(sockets))]
	if hold && s.held == nil {
		s.held = &d
		return
	}
	n.enqueue(s, d)
	n.releaseHeld(s)
}

func (n *Network) releaseHeld(s *socket) {
	if s.held != nil {
		n.enqueue(s, *s.held)
		s.held = nil
	}
}

func (n *Network) enqueue(s *socket, d Datagram) {
	if len(s.queue) >= n.queue {
		n.dropped.QueueFull++
		return
	}
	s.queue = append(s.queue, d)
	signal(s.ready)
}

func (n *Network) chance(p float64) bool { return p > 0 && n.rng.Float64() < p }

// flowHash spreads flows over the shards that share a port, as SO_REUSEPORT does: one flow stays at one socket.
func flowHash(src netip.AddrPort) uint32 {
	h := uint32(2166136261) // FNV-1a
	a := src.Addr().As16()
	for _, b := range a {
		h = (h ^ uint32(b)) * 16777619
	}
	h = (h ^ uint32(src.Port()&0xff)) * 16777619
	return (h ^ uint32(src.Port()>>8)) * 16777619
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
