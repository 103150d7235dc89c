package ice

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

// roaming is a connection between a, which is behind a NAT, and b, which sees it from outside.
type roaming struct {
	*link
	near, far *node
	conn      *Connection    // b's
	inner     netip.AddrPort // a's, by the family that was selected
	at        netip.Addr     // b's own
}

// newRoaming connects both; controls says whether b does.
func newRoaming(t *testing.T, a, b *node, controls bool) *roaming {
	t.Helper()
	l := &link{t, a.connection(!controls), b.connection(controls)}
	l.restart(1)
	if !signal(a, b, l.peers(), 5*time.Second, l.connected) {
		t.Fatal("not connected")
	}
	synctest.Wait()
	r := &roaming{link: l, near: a, far: b, conn: l.b}
	r.inner, r.at = r.conn.Path().Dst, r.conn.Path().Src
	return r
}

// outer is the nth address outside the NAT.
func (r *roaming) outer(n int) netip.AddrPort {
	if r.inner.Addr().Is4() {
		return netip.AddrPortFrom(netip.MustParseAddr("203.0.113.20"), uint16(50000+n))
	}
	return netip.AddrPortFrom(netip.MustParseAddr("2001:db8:20::1"), uint16(50000+n))
}

// data is what the pipeline tells when data comes from there.
func (r *roaming) data(from netip.AddrPort) { r.conn.Stray(pipeline.Path{Dst: from, Src: r.at}) }

// await lets time pass until the path leads there, and returns how long that took.
func (r *roaming) await(to netip.AddrPort, limit time.Duration) time.Duration {
	r.t.Helper()
	begin := time.Now()
	if !signal(r.near, r.far, r.peers(), limit, func() bool { return r.conn.Path() != nil && r.conn.Path().Dst == to }) {
		r.t.Fatalf("after %v the path leads to %v, not to %v; %v", limit, r.conn.Path(), to, r.far.mux.Counters())
	}
	return time.Since(begin)
}

// idle lets time pass.
func (r *roaming) idle(d time.Duration) {
	signal(r.near, r.far, r.peers(), d, func() bool { return false })
}

// TestRebind: a peer that a NAT maps anew is followed within a second of its first data from there, in either role, and again and
// again; the agents stay.
func TestRebind(t *testing.T) {
	for _, controls := range []bool{false, true} {
		world(t, func(t *testing.T, _ *udptest.Network, a, b *node) {
			r := newRoaming(t, a, b, controls)
			defer r.close()
			began := r.conn.Path().Number
			for n := range 100 { // more than an agent may know addresses
				r.far.beyond.rebind(r.inner, r.outer(n), false)
				r.data(r.outer(n))
				if took := r.await(r.outer(n), 5*time.Second); took > 600*time.Millisecond {
					t.Errorf("b controls %v: moved after %v", controls, took)
				}
				r.idle(5 * time.Second)
			}
			r.idle(30 * time.Second)
			if path := r.conn.Path(); path == nil || path.Dst != r.outer(99) || !path.Fixed || path.Relayed || path.Number != began+100 {
				t.Errorf("b controls %v: path %+v after 100 moves from generation %d", controls, path, began)
			}
			for _, n := range []*node{a, b} {
				if failed := n.counter("ice_agents_failed"); failed != 0 || n.mux.agents() != 1 {
					t.Errorf("%d agents failed, %d are there", failed, n.mux.agents())
				}
			}
			if at, _ := r.conn.LastSeen(); time.Since(at) > 5*time.Second {
				t.Errorf("last seen %v ago", time.Since(at))
			}
		})
	}
}

// TestRebindIdle: without data the peer's own keepalives show where it is.
func TestRebindIdle(t *testing.T) {
	for _, controls := range []bool{false, true} {
		world(t, func(t *testing.T, _ *udptest.Network, a, b *node) {
			r := newRoaming(t, a, b, controls)
			defer r.close()
			r.far.beyond.rebind(r.inner, r.outer(1), false)
			if took := r.await(r.outer(1), 10*time.Second); took > 2*keepaliveInterval+600*time.Millisecond {
				t.Errorf("b controls %v: moved after %v", controls, took)
			}
			// And back, to an address that was left before.
			r.far.beyond.rebind(r.inner, r.inner, false)
			r.data(r.inner)
			if took := r.await(r.inner, 5*time.Second); took > 600*time.Millisecond {
				t.Errorf("back after %v", took)
			}
		})
	}
}

// TestCheckShowsWhereWeAre: the side that is mapped anew and hears nothing asks, and is followed for that.
func TestCheckShowsWhereWeAre(t *testing.T) {
	for _, controls := range []bool{false, true} {
		world(t, func(t *testing.T, _ *udptest.Network, a, b *node) {
			r := newRoaming(t, a, b, controls)
			defer r.close()
			r.far.beyond.rebind(r.inner, r.outer(1), false)
			r.link.a.Check()
			if took := r.await(r.outer(1), 5*time.Second); took > 600*time.Millisecond {
				t.Errorf("b controls %v: moved after %v", controls, took)
			}
			before, _ := r.link.a.LastSeen()
			r.link.a.Check()
			r.link.a.Check() // one is under way
			sent := a.counter("ice_checks_sent")
			r.idle(100 * time.Millisecond)
			if after, _ := r.link.a.LastSeen(); after == before || a.counter("ice_checks_sent") > sent+2 {
				t.Errorf("last seen %v, before %v; %d checks", after, before, a.counter("ice_checks_sent")-sent)
			}
			r.idle(10 * time.Second)
			if n := b.counter("ice_moves"); n != 1 || r.conn.Path().Dst != r.outer(1) {
				t.Errorf("%d moves, to %v", n, r.conn.Path().Dst)
			}
		})
	}
}

// TestBothMappingsWork: a peer that is heard from two addresses in turn, both of which lead to it, is not followed to and fro.
func TestBothMappingsWork(t *testing.T) {
	world(t, func(t *testing.T, _ *udptest.Network, a, b *node) {
		r := newRoaming(t, a, b, false)
		defer r.close()
		r.far.beyond.turns = 1
		r.far.beyond.rebind(r.inner, r.outer(1), true)
		for range 600 {
			r.data(r.outer(1))
			r.data(r.inner)
			r.idle(100 * time.Millisecond)
			if r.conn.Path() == nil {
				t.Fatal("the path was lost")
			}
		}
		if n := b.counter("ice_trials"); n == 0 || n > 125 {
			t.Errorf("%d trials in a minute", n)
		}
		if n := b.counter("ice_moves"); n > 3 {
			t.Errorf("moved %d times in a minute", n)
		}
		// When only one is left, the peer is followed.
		gone, left := r.inner, r.outer(1)
		if r.conn.Path().Dst == left {
			gone, left = left, gone
		}
		r.far.beyond.turns = 0
		r.far.beyond.rebind(r.inner, left, false)
		begin := time.Now()
		for r.conn.Path().Dst != left && time.Since(begin) < 5*time.Second {
			r.data(left)
			r.idle(100 * time.Millisecond)
		}
		if took := time.Since(begin); took > trialLimit {
			t.Errorf("moved from %v after %v", gone, took)
		}
	})
}

// TestOldMappingForwards: a NAT that still forwards what comes to the old address, while all that leaves comes from the new one.
func TestOldMappingForwards(t *testing.T) {
	world(t, func(t *testing.T, _ *udptest.Network, a, b *node) {
		r := newRoaming(t, a, b, false)
		defer r.close()
		r.far.beyond.rebind(r.inner, r.outer(1), true)
		r.data(r.outer(1))
		if took := r.await(r.outer(1), 5*time.Second); took > 600*time.Millisecond {
			t.Errorf("moved after %v", took)
		}
		r.idle(time.Minute)
		if n := b.counter("ice_moves"); n != 1 || r.conn.Path() == nil {
			t.Errorf("%d moves; path %v", n, r.conn.Path())
		}
	})
}

// TestSpoofedSource: data that somebody has stolen and sends from elsewhere moves nothing, since nobody answers there with the peer's
// password; and what is sent to whoever is there is bounded.
func TestSpoofedSource(t *testing.T) {
	world(t, func(t *testing.T, _ *udptest.Network, a, b *node) {
		r := newRoaming(t, a, b, false)
		defer r.close()
		before := r.conn.Path()
		r.far.beyond.rebind(r.inner, r.inner, false)
		for n := range 300 { // of addresses where nobody is
			r.far.beyond.mu.Lock()
			r.far.beyond.ever[r.outer(n)] = true
			r.far.beyond.mu.Unlock()
			r.data(r.outer(n))
			r.data(r.outer(0))
			r.idle(100 * time.Millisecond)
		}
		if r.conn.Path() != before {
			t.Errorf("path %+v, before %+v", r.conn.Path(), before)
		}
		if lost := r.far.beyond.lost; lost == 0 || lost > (30*trialRate+trialBurst)*trialTries {
			t.Errorf("%d checks went to addresses that were only claimed, in 30 s", lost)
		}
		other := "192.0.2.9:9" // of the other family
		if r.inner.Addr().Is4() {
			other = "[2001:db8::9]:9"
		}
		for _, not := range []string{"127.0.0.1:9", "0.0.0.0:9", "224.0.0.1:9", "192.0.2.1:0", "[fe80::1]:9", other} {
			trials := b.counter("ice_trials")
			r.idle(5 * time.Second)
			r.data(netip.MustParseAddrPort(not))
			if b.counter("ice_trials") != trials {
				t.Errorf("%s was tried", not)
			}
		}
	})
}

// TestTrial pins when a trial asks and when it is decided.
func TestTrial(t *testing.T) {
	began := time.Unix(1000, 0)
	at := func(d time.Duration) time.Time { return began.Add(d) }
	x := trial{began: began}
	for sent, want := range []time.Duration{0, 100, 300, 700, 1500} {
		x.sent = sent
		if got, ok := x.sendAt(); !ok || got != at(want*time.Millisecond) {
			t.Errorf("check %d at %v, %v", sent, got.Sub(began), ok)
		}
	}
	if x.sent = trialTries; x.over(at(trialLimit-1)) || !x.over(at(trialLimit)) {
		t.Error("without an answer")
	}
	if _, ok := x.sendAt(); ok {
		t.Error("one check too many")
	}
	x.answered, x.took = at(50*time.Millisecond), 50*time.Millisecond
	if x.over(at(299*time.Millisecond)) || !x.over(at(300*time.Millisecond)) {
		t.Errorf("answered after 50 ms: decided at %v", x.verdictAt().Sub(began))
	}
	x.answered, x.took = at(400*time.Millisecond), 400*time.Millisecond
	if x.over(at(799*time.Millisecond)) || !x.over(at(800*time.Millisecond)) {
		t.Errorf("answered after 400 ms: decided at %v", x.verdictAt().Sub(began))
	}
	if x.stays = true; !x.over(at(400 * time.Millisecond)) {
		t.Error("the old address has answered, and it is not over")
	}
}
