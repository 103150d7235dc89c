package relay

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/turn/v5"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// gate is one listening socket and the net.PacketConn that pion sees of it. Each gate has a pion server of its own, so that
// everything pion calls back while it handles a request happens on the gate's reading goroutine, between two calls of
// ReadFrom, and belongs to g.now.
type gate struct {
	// frozen
	server *Server
	sock   *socket
	turn   *turn.Server

	// owned by the reading goroutine
	work *scratch
	left received // what is not yet read of the last message
	now  request

	mu          sync.RWMutex
	allocations map[netip.AddrPort]*allocation // by client
	ended       chan struct{}                  // closed when the reading goroutine is through
}

// request is the STUN message that pion handles now.
type request struct {
	stun.Message
	active        bool
	src           netip.AddrPort
	local         netip.Addr
	size          int
	judged        bool   // authenticate was asked: the nonce was good
	user          string // whom it found
	key           *stun.Key
	authenticated bool
	answered      bool
	code          int         // the error code to answer with, instead of pion's; 0 leaves it
	opened        *allocation // made for this request
}

func newGate(s *Server, sock *socket) *gate {
	return &gate{
		server: s, sock: sock, work: new(scratch),
		allocations: map[netip.AddrPort]*allocation{},
		ended:       make(chan struct{}),
	}
}

// ReadFrom returns the next STUN message that pion may see. It blocks, and relays ChannelData meanwhile. Only the closing of
// the socket is an error: pion stops for good at the first.
func (g *gate) ReadFrom(p []byte) (int, net.Addr, error) {
	g.settle()
	for {
		for len(g.left.data) > 0 {
			if one, pass := g.next(); pass {
				return copy(p, one), net.UDPAddrFromAddrPort(g.now.src), nil
			}
		}
		r, err := g.sock.receive(g.work.in[:])
		if g.server.receiveFailed(err) {
			close(g.ended)
			return 0, nil, err
		}
		if err == nil && g.welcome(r) {
			g.left = r
		}
	}
}

// welcome looks at the source. RFC 768 makes a source port of 0 mean "no reply wanted"; an answer to an address that is no
// host's would be a broadcast or worse.
func (g *gate) welcome(r received) bool {
	a := r.src.Addr()
	if len(r.data) == 0 {
		g.server.stats.drop(dropNotSTUN)
		return false
	}
	if r.src.Port() != 0 && a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a != broadcast {
		return true
	}
	g.server.stats.dropN(dropSource, segments(len(r.data), r.segment))
	return false
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// next takes the first datagram from g.left: ChannelData is relayed, with all that follow of the same channel and size; a
// STUN message that passes is returned.
func (g *gate) next() (one []byte, pass bool) {
	one = g.left.data[:min(g.left.segment, len(g.left.data))]
	if isChannelData(one) {
		g.relayRun()
		return nil, false
	}
	g.left.data = g.left.data[len(one):]
	g.now = request{src: g.left.src, local: g.left.local, size: len(one)}
	switch why := g.now.Parse(one, stun.Server); {
	case why == stun.DropNone:
		if g.now.active = g.admit(&g.now); g.now.active && g.reflected() { // pion knows nothing of that
			g.now = request{}
		}
	case why == stun.DropMethod:
		g.server.stats.drop(dropMethod)
	case one[0]&0xC0 != 0:
		g.server.stats.drop(dropNotSTUN)
	default:
		g.server.stats.drop(dropMalformed)
	}
	return one, g.now.active
}

// relayRun relays the ChannelData messages at the head of g.left that can leave as one run.
func (g *gate) relayRun() {
	r, rest := closeUp(g.left.data, g.left.segment)
	g.left.data = rest
	a := g.find(g.left.src)
	switch {
	case r.data == nil:
		g.server.stats.drop(dropChannelLength)
	case a == nil:
		g.server.stats.dropN(dropNoAllocation, segments(len(r.data), r.size))
	default:
		a.toChannel(r.number, r.data, r.size, g.work.oob[:])
	}
}

// lastSecond is how long before its end an allocation gets no more permissions. pion up to 5.1.2 panics if an allocation expires
// in the instant between putting a permission in its books and starting the permission's timer (Allocation.AddPermission,
// Allocation.Close), and a client could aim at that. A client that wants permissions has refreshed long before.
const lastSecond = time.Second

// admit decides whether pion may see a message that is well formed.
func (g *gate) admit(r *request) bool {
	stats := &g.server.stats
	switch {
	case r.Class == stun.Indication && r.Method == stun.Binding: // a keepalive: wants no answer, and pion knows it not
		return false
	case r.Method == stun.Send:
		return g.admitSend(r)
	case r.Method == stun.Binding:
		if !g.server.bindings.allow(r.src.Addr(), g.server.since()) {
			stats.drop(dropBindingLimited)
			return false
		}
		return true
	case r.Method == stun.CreatePermission || r.Method == stun.ChannelBind:
		if a := g.find(r.src); a != nil && a.expires-g.server.since() < int64(lastSecond) {
			stats.drop(dropExpiring)
			return false
		}
	}
	return r.Has(stun.Integrity) || g.mayRefuse(r)
}

// mayRefuse takes one from what the source may be refused.
func (g *gate) mayRefuse(r *request) bool {
	if g.server.refusals.allow(r.src.Addr(), g.server.since()) {
		return true
	}
	g.server.stats.drop(dropUnauthorizedLimited)
	return false
}

// admitSend decides on a Send indication. RFC 8656 section 11.2: a server that cannot set the DF bit treats DONT-FRAGMENT as
// an unknown comprehension-required attribute, and so discards the indication.
func (g *gate) admitSend(r *request) bool {
	a, peer := g.find(r.src), r.Address(stun.XORPeerAddress)
	switch {
	case a == nil:
		g.server.stats.drop(dropNoAllocation)
	case r.Has(stun.DontFragment):
		g.server.stats.drop(dropDontFragment)
	case !peer.IsValid():
		g.server.stats.drop(dropMalformed)
	default:
		return a.permitted(peer, 1)
	}
	return false
}

// find returns the allocation of a client, or nil.
func (g *gate) find(client netip.AddrPort) *allocation {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.allocations[client]
}

// forget ends what the gate and the quotas know of an allocation.
func (g *gate) forget(a *allocation) {
	g.mu.Lock()
	if g.allocations[a.client] == a {
		delete(g.allocations, a.client)
	}
	g.mu.Unlock()
	g.server.inside.remove(a)
	g.server.quota.release(a.user)
}

// LocalAddr is the address the socket is bound to. pion takes it for the server's half of every 5-tuple.
func (g *gate) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(g.sock.local) }

// Close closes the socket; the reading goroutine and pion end.
func (g *gate) Close() error { return g.sock.conn.Close() }

func (g *gate) SetDeadline(time.Time) error      { return errNoDeadline }
func (g *gate) SetReadDeadline(time.Time) error  { return errNoDeadline }
func (g *gate) SetWriteDeadline(time.Time) error { return errNoDeadline }
