package pipeline

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/count"
)

// playedLinks is a Connector whose links do what a test says.
type playedLinks map[string]*playedLink

func (l playedLinks) Link(name string) Link {
	l[name] = &playedLink{}
	return l[name]
}

func (l playedLinks) Counters() []count.Counter {
	return []count.Counter{count.Plain(count.Gauge, "played_links", "Links.", uint64(len(l)))}
}

// playedLink notes what it is told and orders what the test has queued.
type playedLink struct {
	stance   Stance
	wants    int
	changes  []Change
	verdicts []crypto.Verdict
	strays   []Path
	view     View
	orders   []Order
}

func (l *playedLink) HandleWant(time.Duration)           { l.wants++ }
func (l *playedLink) HandleView(_ time.Duration, v View) { l.view = v }
func (l *playedLink) HandleVerdict(_ time.Duration, v crypto.Verdict) {
	l.verdicts = append(l.verdicts, v)
}
func (l *playedLink) HandleExpired(time.Duration, crypto.HandshakeExpired)     {}
func (l *playedLink) HandleStray(_ time.Duration, from *Path)                  { l.strays = append(l.strays, *from) }
func (l *playedLink) HandleChange(_ time.Duration, c Change)                   { l.changes = append(l.changes, c) }
func (l *playedLink) HandleTimeout(time.Duration)                              {}
func (l *playedLink) NextTimeout(time.Duration) (at time.Duration, why string) { return 0, "" }
func (l *playedLink) Stance(time.Duration) Stance                              { return l.stance }
func (l *playedLink) Poll() (o Order, ok bool) {
	if len(l.orders) == 0 {
		return o, false
	}
	o, l.orders = l.orders[0], l.orders[1:]
	return o, true
}

// runPlayed runs test in a world whose A reaches B by name.
func runPlayed(t *testing.T, test func(w *world, l *playedLink)) {
	links := playedLinks{}
	runWorldWith(t, plain, func(cfg *Config) { cfg.Connector = links }, func(w *world) {
		_ = w.a.Edit(func(e *Edit) error { e.Peer(w.b.key.Public()).SetName("b"); return nil })
		w.settle()
		test(w, links["b"])
	})
}

// connect has the link order a path to B and a session over it.
func (l *playedLink) connect(w *world) {
	w.t.Helper()
	w.order(l, Stance{Reach: ReachStage, Alive: true, Up: true}, Order{Kind: OrderPath, Path: &Path{Dst: w.b.outer, Fixed: true}},
		Order{Kind: OrderHandshake, Lifetime: 15 * time.Second, Initiate: true})
	w.sleep(time.Millisecond)
	if !l.view.Usable {
		w.t.Fatal("no session")
	}
}

// order has A's link say how it stands and order something.
func (w *world) order(l *playedLink, s Stance, orders ...Order) {
	w.t.Helper()
	if err := w.a.Tell("b", func(time.Duration, Link) { l.stance, l.orders = s, orders }); err != nil {
		w.t.Fatal(err)
	}
	w.settle()
}

// packet is a packet from A to B.
func (w *world) packet(i int) []byte { return datagram(w.a.inner4, w.b.inner4, i, 100) }

// Packets for a named peer wait as long as its link says so, are dropped when it says that they are to be, and are sent over the path
// that it orders.
func TestLinkOrders(t *testing.T) {
	runPlayed(t, func(w *world, l *playedLink) {
		if !slices.Equal(l.changes, []Change{ChangeUp}) || w.a.counter("played_links") != 1 {
			t.Errorf("changes %v, %d links", l.changes, w.a.counter("played_links"))
		}
		w.order(l, Stance{Reach: ReachStage})
		w.a.device.InjectData(w.packet(1))
		w.settle()
		if l.wants != 1 || w.a.counter("staged_packets") != 1 {
			t.Fatalf("wanted %d times, %d packets wait; want 1 and 1", l.wants, w.a.counter("staged_packets"))
		}
		w.order(l, Stance{Reach: ReachStage}, Order{Kind: OrderPurge})
		if got := w.a.counter("staged_packets"); got != 0 {
			t.Errorf("%d packets wait after a purge", got)
		}
		w.a.device.InjectData(w.packet(2))
		l.connect(w)
		w.wantPackets(w.b, w.packet(2))
		if s, err := w.a.Status(); err != nil || s.Peers[0].Name != "b" || s.Peers[0].Path.Dst != w.b.outer {
			t.Errorf("%+v, %v", s.Peers, err)
		}
		w.order(l, Stance{Reach: ReachLater}, Order{Kind: OrderPath}, Order{Kind: OrderForget})
		if l.view.Usable || l.view.Path != nil {
			t.Errorf("after the end: %+v", l.view)
		}
		before := l.wants
		w.sleep(time.Second) // lanes do not repeat themselves at once
		w.a.device.InjectData(w.packet(3))
		w.settle()
		if l.wants != before+1 || w.a.counter("staged_packets") != 0 {
			t.Errorf("in the back-off: wanted %d times, %d packets wait; want 1 and 0", l.wants-before, w.a.counter("staged_packets"))
		}
	})
}

// The link is told of what comes from elsewhere than its path leads to, once in a while, and of handshake messages that are nobody's
// and came over its path; and of what is done to its peer.
func TestLinkIsTold(t *testing.T) {
	runPlayed(t, func(w *world, l *playedLink) {
		l.connect(w)
		elsewhere := netip.MustParseAddrPort("198.51.100.9:9")
		_ = w.a.call(func() {
			c, p := w.a.control.controller, w.a.control.controller.peers[0]
			for _, from := range []Path{{Dst: w.b.outer}, {Dst: elsewhere, Channel: 0x4001}, {Dst: elsewhere}} {
				if p.stray(w.a.control.now, from) {
					c.notice(w.a.control.now, p, signalStray)
				}
			}
		})
		if len(l.strays) != 1 || l.strays[0].Dst != elsewhere {
			t.Errorf("strays %+v, want one from %v", l.strays, elsewhere)
		}
		l.verdicts = nil
		for _, from := range []Path{{Dst: elsewhere}, {Dst: w.b.outer, Channel: 0x4001}, {Dst: w.b.outer}} {
			_ = w.a.call(func() {
				w.a.control.controller.book(w.a.control.now, crypto.Verdict{Reason: crypto.Mac1Mismatch}, &from)
			})
		}
		if len(l.verdicts) != 1 || l.verdicts[0].Reason != crypto.Mac1Mismatch {
			t.Errorf("verdicts %+v, want one", l.verdicts)
		}
		l.changes = nil
		_ = w.a.Edit(func(e *Edit) error {
			p := e.Peer(w.b.key.Public())
			p.SetPresharedKey(&crypto.PresharedKey{9})
			p.SetPresharedKey(&crypto.PresharedKey{9}) // the same
			p.Retry()
			return nil
		})
		w.a.device.SetUp(false)
		w.settle()
		w.a.device.SetUp(true)
		w.settle()
		_ = w.a.Edit(func(e *Edit) error { e.Peer(w.b.key.Public()).SetName(""); return nil })
		if want := []Change{ChangeKeys, ChangeRetry, ChangeRetry, ChangeDown, ChangeUp, ChangeRemoved}; !slices.Equal(l.changes, want) {
			t.Errorf("changes %v, want %v", l.changes, want)
		}
		if err := w.a.Tell("b", func(time.Duration, Link) { t.Error("a link is told that is no more") }); !errors.Is(err, ErrUnknownPeer) {
			t.Errorf("Tell: %v, want ErrUnknownPeer", err)
		}
	})
}

// A packet that a lane has staged before control knew that the interface is up is a wish.
func TestLinkStagedBeforeUp(t *testing.T) {
	runPlayed(t, func(w *world, l *playedLink) {
		w.order(l, Stance{Reach: ReachStage})
		_ = w.a.call(func() { w.a.control.controller.setUp(w.a.control.now, false) })
		w.a.device.InjectData(w.packet(1))
		w.settle()
		before := l.wants
		_ = w.a.call(func() { w.a.control.controller.setUp(w.a.control.now, true) })
		if l.wants != before+1 {
			t.Errorf("%d wishes, want %d", l.wants, before+1)
		}
	})
}

// A keepalive that is configured counts while there is a session, and is a plain peer's again without the name.
func TestLinkPersistentKeepalive(t *testing.T) {
	runPlayed(t, func(w *world, l *playedLink) {
		keepalive := func(want time.Duration) {
			t.Helper()
			_ = w.a.call(func() {
				if got := w.a.control.controller.peers[0].core.PersistentKeepalive(); got != want {
					t.Errorf("keepalive %v, want %v", got, want)
				}
			})
		}
		set := func(f func(p *PeerEdit)) {
			_ = w.a.Edit(func(e *Edit) error { f(e.Peer(w.b.key.Public())); return nil })
		}
		set(func(p *PeerEdit) { p.SetPersistentKeepalive(5) })
		keepalive(0)
		l.connect(w)
		keepalive(5 * time.Second)
		set(func(p *PeerEdit) { p.SetPersistentKeepalive(60) })
		keepalive(time.Minute)
		w.order(l, Stance{Reach: ReachLater}, Order{Kind: OrderForget})
		keepalive(0)
		set(func(p *PeerEdit) { p.SetName("") })
		keepalive(time.Minute)
	})
}

// A peer with another key keeps its link, and what waits for it.
func TestLinkOutlivesKey(t *testing.T) {
	runPlayed(t, func(w *world, l *playedLink) {
		w.order(l, Stance{Reach: ReachStage})
		w.a.device.InjectData(w.packet(1))
		w.settle()
		next, err := crypto.GeneratePrivateKey(w.b.config.Rand)
		if err != nil {
			t.Fatal(err)
		}
		_ = w.a.Edit(func(e *Edit) error { e.Peer(w.b.key.Public()).SetPublicKey(next.Public()); return nil })
		_ = w.b.Edit(func(e *Edit) error { e.SetPrivateKey(&next); return nil })
		l.connect(w)
		w.wantPackets(w.b, w.packet(1))
		w.wantCounter(w.a, "drop_staged_expired", 0)
	})
}

// Without a Connector there is nobody to find a path for a name, so peers have none.
func TestWithoutConnector(t *testing.T) {
	runWorld(t, plain, func(w *world) {
		_ = w.a.Edit(func(e *Edit) error { e.Peer(w.b.key.Public()).SetName("b"); return nil })
		w.exchange(t)
		if s, err := w.a.Status(); err != nil || s.Peers[0].Name != "" {
			t.Errorf("%+v, %v", s.Peers, err)
		}
		w.a.Want("b")
	})
}
