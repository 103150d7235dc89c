package edge

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

// router is a NAT in front of one node: its mapping does not depend on the endpoint, its filtering does on address and port
// (RFC 4787, sections 4.1 and 5).
type router struct {
	mu           sync.Mutex
	inner, outer netip.AddrPort // port 0: nothing has left yet
	talkedTo     map[netip.AddrPort]bool
	open         bool // it filters nothing
}

// rebind maps the node anew: to another port, and to another address if that is valid.
func (r *router) rebind(to netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !to.IsValid() {
		to = r.outer.Addr()
	}
	r.outer = netip.AddrPortFrom(to, r.outer.Port()+1)
	clear(r.talkedTo)
}

// pass translates a datagram, or drops it.
func (r *router) pass(d *udptest.Datagram) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case d.Src.Addr() == r.inner.Addr():
		r.inner = d.Src
		r.talkedTo[d.Dst] = true
		d.Src = r.outer
	case d.Dst.Addr() == r.inner.Addr():
		return false // not of a network that others reach
	case d.Dst == r.outer:
		d.Dst = r.inner
		return r.open || r.talkedTo[d.Src]
	}
	return true
}

// behind puts a node behind a router, and lets the confined ones talk to nobody but relays. Call it before traffic.
func (w *world) behind(n *node, confined ...*node) *router {
	r := &router{
		inner: netip.AddrPortFrom(n.outer(), 0), outer: netip.MustParseAddrPort("192.0.2.77:40000"), talkedTo: map[netip.AddrPort]bool{},
	}
	only := map[netip.Addr]bool{}
	for _, c := range confined {
		only[c.outer()] = true
	}
	w.network.Hook(func(d *udptest.Datagram) bool {
		if only[d.Src.Addr()] && d.Dst.Port() != 3478 {
			return false
		}
		ok := r.pass(d)
		return ok && (!only[d.Dst.Addr()] || d.Src.Port() == 3478)
	})
	return r
}

// gaps sends packets both ways, 20 in a second, and returns the longest silence at either node.
func (w *world) gaps(a, b *node, during time.Duration) time.Duration {
	longest := time.Duration(0)
	last := map[*node]time.Time{a: time.Now(), b: time.Now()}
	for end, i := time.Now().Add(during), 0; time.Now().Before(end); i++ {
		for _, n := range []*node{a, b} {
			to := map[*node]*node{a: b, b: a}[n]
			n.device.InjectData(ipPacket(inner(n.number), inner(to.number), fmt.Sprint("packet ", i)))
		}
		time.Sleep(50 * time.Millisecond)
		for _, n := range []*node{a, b} {
			if len(n.device.TakeSegments()) > 0 {
				last[n] = time.Now()
			}
			longest = max(longest, time.Since(last[n]))
		}
	}
	return longest
}

// A NAT that maps a node anew while packets flow interrupts them for a second at most, whichever relays are between, whoever is behind
// it, and again and again.
func TestRebindUnderTraffic(t *testing.T) {
	for _, test := range []struct {
		name   string
		client bool // is behind the NAT
		// which nodes reach relays only
		confine func(near, far *node) []*node
	}{
		{"direct, client", true, func(near, far *node) []*node { return nil }},
		{"direct, gateway", false, func(near, far *node) []*node { return nil }},
		{"the other's relay, client", true, func(near, far *node) []*node { return []*node{far} }},
		{"the other's relay, gateway", false, func(near, far *node) []*node { return []*node{far} }},
		{"its own relay, client", true, func(near, far *node) []*node { return []*node{near} }},
		{"its own relay, gateway", false, func(near, far *node) []*node { return []*node{near} }},
		{"two relays, client", true, func(near, far *node) []*node { return []*node{near, far} }},
		{"two relays, gateway", false, func(near, far *node) []*node { return []*node{near, far} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			run(t, signal.Faults{}, func(w *world) {
				one, _ := w.relayNamed("north", 1)
				w.portal.relays = []protocol.Relay{one}
				w.network.Hook(func(d *udptest.Datagram) bool { return false })
				g := w.node("gate", protocol.Gateway)
				c := w.node("laptop", protocol.Client)
				near, far := g, c
				if test.client {
					near, far = c, g
				}
				r := w.behind(near, test.confine(near, far)...)
				w.await(30*time.Second, "connected", func() bool { return up(c, g) })
				w.gaps(c, g, 5*time.Second)
				worst := time.Duration(0)
				for i := range 3 {
					r.rebind(netip.Addr{})
					gap := w.gaps(c, g, 20*time.Second)
					// A new allocation is five round trips away, and the old address has a while to answer. Where either node's relay would
					// do, ICE may take the other one after the first time.
					if gap > time.Second {
						t.Errorf("rebinding %d: %v of silence, want a second at most; %s", i, gap, near.connection(far.name).Explanation)
					}
					worst = max(worst, gap)
				}
				t.Log(worst, c.connection("gate").Explanation, "|", g.connection("laptop").Explanation)
			})
		})
	}
}
