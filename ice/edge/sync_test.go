package edge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// A node that reports another's key gets nothing of the other's, neither at once nor when it changes the key again.
func TestStolenKey(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		before := c.connection("gate")
		thief := func(key protocol.Key) {
			w.portal.change(func() {
				w.portal.nodes["a-thief"] = &entry{role: protocol.Gateway, number: 66, key: key, thief: true, away: true}
			})
			time.Sleep(time.Second)
		}
		stolen := protocol.Key(g.edge.PublicKey())
		for _, key := range []protocol.Key{stolen, {5}, stolen, protocol.Key(c.edge.PublicKey()), {6}} {
			thief(key)
			s := c.connection("gate")
			if s.PublicKey != before.PublicKey || !s.LastHandshake.Equal(before.LastHandshake) || s.State != "up" {
				t.Fatalf("with key %x..: %+v", key[0], s)
			}
			w.carries(c, g)
		}
		w.portal.change(func() { delete(w.portal.nodes, "a-thief") })
		time.Sleep(time.Second)
		w.carries(c, g)
		if c.log.count("has the key of another node") == 0 {
			t.Error("no word about it")
		}
	})
}

// Who may not reach a gateway any more is cut off at once, also if he does not hear of it; so is who has signed in with a token
// that is not good any more, whose key the portal forgets. When he may again, the connection comes back.
func TestRightsEnd(t *testing.T) {
	for name, end := range map[string]func(*entry){
		"not linked":    func(e *entry) { e.hidden = true },
		"token renewed": func(e *entry) { e.lie = new(protocol.Key) },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, signal.Faults{}, func(w *world) {
				g := w.node("gate", protocol.Gateway)
				c := w.node("laptop", protocol.Client)
				w.await(5*time.Second, "connected", func() bool { return up(c, g) })
				w.carries(c, g)
				var before entry
				w.portal.change(func() {
					before = *w.portal.nodes["laptop"]
					end(w.portal.nodes["laptop"])
				})
				time.Sleep(100 * time.Millisecond)
				g.device.Take()
				for range 100 { // he tries with what he has, and anew
					c.device.InjectData(ipPacket(inner(c.number), inner(g.number), "still here?"))
					time.Sleep(time.Second)
				}
				if got := g.device.TakeSegments(); len(got) != 0 {
					t.Errorf("%d packets came through", len(got))
				}
				if s := g.connection("laptop"); s.Peer != "" {
					t.Errorf("the gateway has %+v", s)
				}
				if s := c.connection("gate"); s.State == "up" {
					t.Errorf("the client has %+v", s)
				}
				w.portal.change(func() { *w.portal.nodes["laptop"] = before })
				w.await(2*time.Minute, "connected again", func() bool { return up(c, g) })
				w.carries(c, g)
			})
		})
	}
}

// A node that goes by another name with the same key is reached under it.
func TestRenamed(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		for _, name := range []string{"zebra", "ape"} { // behind and before in the order of names
			w.portal.change(func() {
				e := *w.portal.nodes["gate"]
				e.hidden, w.portal.nodes["gate"].hidden = false, true
				w.portal.nodes["zebra"], w.portal.nodes["ape"] = &entry{hidden: true}, &entry{hidden: true}
				e.away = true // so that nobody calls it
				w.portal.nodes[name] = &e
			})
			time.Sleep(time.Second)
			s := c.connection(name)
			if s.PublicKey != g.edge.PublicKey().Encode() || c.connection("gate").Peer != "" {
				t.Fatalf("%s: %+v", name, s)
			}
			var of []string
			status, err := c.pipeline.Status()
			for _, p := range status.Peers {
				of = append(of, fmt.Sprint(p.Name, p.AllowedIPs))
			}
			if err != nil || strings.Join(of, " ") != name+"[100.64.0.1/32]" {
				t.Errorf("the pipeline has %s, %v", of, err)
			}
		}
	})
}

// After an outage of the network and the portal a client connects again by itself, though the portal has no news.
func TestEverythingBack(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		w.portal.set(func() { w.portal.down = errAway })
		w.signaling.SetDown(errAway)
		w.direct(false)
		w.await(3*time.Minute, "closed", func() bool { return c.connection("gate").LastClose != nil })
		time.Sleep(5 * time.Minute)
		if s := c.connection("gate"); s.State == "up" || strings.Contains(s.Explanation, "direct") {
			t.Errorf("%+v", s)
		}
		w.portal.set(func() { w.portal.down = nil })
		w.signaling.SetDown(nil)
		w.direct(true)
		took := w.await(2*time.Minute, "connected again", func() bool { return up(c, g) })
		t.Log("connected again after", took)
		w.carries(c, g)
		for text, n := range map[string]int{"the portal does not answer": 1, "the portal answers again": 1} {
			if got := c.log.count(text); got != n {
				t.Errorf("%q is logged %d times", text, got)
			}
		}
	})
}

// Who knows how it stands with the portal is heeded: everything is back as soon as the portal is.
func TestPortalBack(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		c.close()
		c.state = func() signal.State {
			w.portal.mu.Lock()
			defer w.portal.mu.Unlock()
			return signal.State{Up: w.portal.down == nil, Why: w.portal.down}
		}
		c.start()
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		w.portal.change(func() { w.portal.down = errAway })
		w.signaling.SetDown(errAway)
		w.direct(false)
		time.Sleep(10 * time.Minute)
		s := c.connection("gate")
		if s.LastClose == nil || s.State != "none" || !strings.Contains(s.Explanation, "the portal cannot be reached") {
			t.Errorf("%+v", s)
		}
		w.portal.set(func() { w.portal.down = nil })
		w.signaling.SetDown(nil)
		w.direct(true)
		took := w.await(time.Minute, "connected again", func() bool { return c.connection("gate").State == "up" })
		if took > 2*time.Second {
			t.Error("connected again after", took)
		}
		if n := c.log.count("the portal does not answer"); n != 0 {
			t.Errorf("logged %d times, though another tells", n)
		}
	})
}

// An answer that is not understood is not told as none.
func TestPortalNotUnderstood(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		c := w.node("laptop", protocol.Client)
		time.Sleep(time.Second)
		_, strange := protocol.DecodeSync([]byte("[]"))
		w.portal.change(func() { w.portal.down = strange })
		time.Sleep(time.Minute)
		w.portal.set(func() { w.portal.down = nil })
		time.Sleep(time.Minute)
		for text, n := range map[string]int{
			"the portal's answer is not understood; connections that are up stay up": 1, "the portal does not answer": 0, "the portal answers again": 1,
		} {
			if got := c.log.count(text); got != n {
				t.Errorf("%q is logged %d times, want %d", text, got, n)
			}
		}
	})
}

// A question that fails once is no news: the portal has its nodes connect anew when what they may do has changed.
func TestPortalBlinks(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		c := w.node("laptop", protocol.Client)
		time.Sleep(time.Second)
		w.portal.change(func() { w.portal.down = errAway })
		time.Sleep(syncRetry / 2)
		w.portal.set(func() { w.portal.down = nil })
		time.Sleep(time.Minute)
		if s, err := c.edge.Status(context.Background()); err != nil || !s.Portal.Up || c.log.count("WARN") != 0 {
			t.Errorf("%+v, %v; log:\n%s", s.Portal, err, c.log)
		}
	})
}

// A portal that takes too long does not keep nodes apart that know each other.
func TestSlowPortal(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		w.portal.set(func() { w.portal.slow = time.Minute })
		c.end("gate", link.CloseICETimeout)
		took := w.await(10*time.Second, "connected again", func() bool {
			return c.generation("gate") == 2 && up(c, g)
		})
		if took > freshTimeout+2*time.Second {
			t.Error("connected after", took)
		}
		w.portal.set(func() { w.portal.slow = 0 })
	})
}

// While the portal keeps each question for 20 s, control waits for nobody: those who have a session go on, others begin with what is
// known, and it answers at once.
func TestPortalHoldsQuestions(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		var others []*node
		for _, name := range []string{"ann", "bob", "cyd"} {
			others = append(others, w.node(name, protocol.Client))
		}
		w.await(5*time.Second, "all connected", func() bool {
			return up(others[0], g) && up(others[1], g) && up(others[2], g)
		})
		w.portal.set(func() { w.portal.slow = 20 * time.Second })
		for _, o := range others {
			end(o, g, link.CloseReplaced) // without a bye
		}
		begin, slowest := time.Now(), time.Duration(0)
		for time.Since(begin) < 20*time.Second { // load, and questions without end
			g.pipeline.Want("ann")
			c.device.InjectData(ipPacket(inner(c.number), inner(g.number), "load"))
			g.device.Take()
			asked := time.Now()
			_ = g.status()
			slowest = max(slowest, time.Since(asked))
			if s := c.connection("gate"); s.State != "up" {
				t.Fatalf("after %v: %+v", time.Since(begin), s)
			}
			for _, o := range others {
				o.pipeline.Want("gate")
			}
			time.Sleep(100 * time.Millisecond)
		}
		if slowest != 0 { // of virtual time
			t.Errorf("control answered after %v", slowest)
		}
		for _, o := range others {
			if !up(o, g) {
				t.Errorf("%s is not connected: %+v", o.name, o.connection("gate"))
			}
		}
	})
}

// An answer of the portal that another has overtaken changes nothing. Which of two is the newer only the order of
// the questions tells: revisions have none.
func TestOvertaken(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		c := w.node("laptop", protocol.Client)
		time.Sleep(time.Second)
		list := func(names ...string) (peers []protocol.Peer) {
			for _, name := range names {
				peers = append(peers, protocol.Peer{Name: name, Role: protocol.Gateway, PublicKey: protocol.Key{name[0]}})
			}
			return peers
		}
		early := c.edge.asked.Add(1)
		for i, tt := range []struct {
			asked    uint64 // 0: now
			revision uint64
			peers    []protocol.Peer
			want     string
		}{
			{0, 10, list("a", "b"), "a b"},
			{early, 9, list("a"), "a b"},
			{early, 11, list("a", "b", "c"), "a b"},
			{early, 10, list("a", "b"), "a b"},
			{0, 2, list("c"), "c"},
		} {
			var got []string
			c.owner(func(e *Edge) {
				if tt.asked == 0 {
					tt.asked = e.asked.Add(1)
				}
				e.handleSync(tt.asked, protocol.Sync{Revision: tt.revision, Peers: tt.peers})
				for _, k := range e.status().Connections {
					got = append(got, k.Peer)
				}
			})
			if strings.Join(got, " ") != tt.want {
				t.Errorf("%d: %s", i, got)
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// A hundred thousand peers are too many.
func TestAdmit(t *testing.T) {
	e := &Edge{peers: map[string]*peer{}, log: slog.New(slog.DiscardHandler)}
	e.config.Name = "self"
	var list []protocol.Peer
	for i := range 3 * maxPeers {
		key := protocol.Key{1, byte(i), byte(i >> 8), byte(i >> 16)}
		list = append(list, protocol.Peer{Name: fmt.Sprint("n", i/2), PublicKey: key})
	}
	list[4].PublicKey = protocol.Key{}
	list = append([]protocol.Peer{{Name: "self", PublicKey: protocol.Key{9}}}, list...)
	got, names := e.admit(list), map[string]bool{}
	for _, p := range got {
		if names[p.Name] || p.Name == "self" || p.PublicKey == (protocol.Key{}) {
			t.Fatal("not to be admitted: ", p.Name)
		}
		names[p.Name] = true
	}
	if len(got) != maxPeers {
		t.Errorf("%d peers", len(got))
	}
}

// What is refused is said once, and what is connected stays.
func TestRefused(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		w.portal.change(func() { w.portal.nodes["laptop"].refuse = "the token was withdrawn: ask for another" })
		time.Sleep(2 * time.Minute)
		w.carries(c, g)
		s, err := c.edge.Status(context.Background())
		if err != nil || s.Portal.Refused == "" || len(s.Connections) != 1 {
			t.Errorf("%+v, %v", s.Portal, err)
		}
		if n := c.log.count("refuses this node"); n != 1 {
			t.Errorf("logged %d times", n)
		}
		w.portal.change(func() { w.portal.nodes["laptop"].refuse = "" })
		time.Sleep(time.Minute)
		if s, _ := c.edge.Status(context.Background()); s.Portal.Refused != "" {
			t.Error("still refused")
		}
		if n := c.log.count("accepts this node again"); n != 1 {
			t.Errorf("that all is well again is logged %d times", n)
		}
	})
}

// A node that another program has displaced lets go of its peers and does nothing under the name, and comes back at once when it is the
// node again.
func TestDisplaced(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		displaced := func(yes bool, why string) {
			w.portal.change(func() { w.portal.nodes["laptop"].refuse, w.portal.nodes["laptop"].other = why, yes })
		}
		displaced(true, "another program has signed in")
		w.await(5*time.Second, "the peer hears of it", func() bool { return g.connection("laptop").State == "none" })
		before := g.generation("laptop")
		time.Sleep(2 * time.Minute)
		s, err := c.edge.Status(context.Background())
		if err != nil || s.Portal.Refused == "" || len(s.Connections) != 0 {
			t.Errorf("%+v, %v", s, err)
		}
		if n := g.generation("laptop"); n != before {
			t.Errorf("%d attempts were made under the name of another program", n-before)
		}
		displaced(false, "")
		w.await(syncRetryMax*5/4+5*time.Second, "connected again", func() bool { return up(c, g) })
		w.carries(c, g)
	})
}

// What the portal has allowed does not last for ever: a node that it cannot reach lets go of all peers when the lease ends, however it
// has slept, and takes them again.
func TestLease(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		w.portal.lease = 600
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		there := func() bool { state := c.connection("gate").State; return state == "up" || state == "idle" }
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		time.Sleep(25 * time.Minute) // each answer renews it
		if !there() {
			t.Fatal("the connection has ended though the portal is there")
		}
		w.portal.change(func() { w.portal.down = errAway })
		time.Sleep(9 * time.Minute)
		if !there() {
			t.Error("the connection has ended before the lease")
		}
		w.await(2*time.Minute, "the client lets go", func() bool {
			s, err := c.edge.Status(context.Background())
			return err == nil && len(s.Connections) == 0
		})
		if n := c.log.count("the portal was not heard for longer"); n != 1 {
			t.Errorf("logged %d times that the lease has ended", n)
		}
		w.portal.set(func() { w.portal.down = nil })
		w.await(time.Minute, "connected again", func() bool { return up(c, g) })
		w.carries(c, g)
	})
}

func TestClock(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		w.portal.ahead = -2 * time.Hour
		c := w.node("laptop", protocol.Client)
		time.Sleep(5 * time.Minute)
		s, _ := c.edge.Status(context.Background())
		if s.Portal.AheadS > -7190 || s.Portal.AheadS < -7210 {
			t.Errorf("ahead by %v", s.Portal.AheadS)
		}
		w.portal.change(func() { w.portal.ahead = 0 })
		time.Sleep(time.Minute)
		for text, n := range map[string]int{"ours differ": 1, "ours agree again": 1} {
			if got := c.log.count(text); got != n {
				t.Errorf("%q is logged %d times", text, got)
			}
		}
	})
}

// The host is configured when what it depends on has changed, and again after an error.
func TestApply(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		w.portal.change(func() {
			w.portal.nodes["gate"] = &entry{role: protocol.Gateway, number: 9, key: protocol.Key{9}, away: true}
		})
		c := &node{w: w, name: "laptop", role: protocol.Client, number: 1, log: &record{}}
		c.place.Store(1)
		w.portal.nodes["laptop"] = &entry{role: protocol.Client, number: 1}
		var calls []protocol.Sync
		fail := errors.New("no such device")
		c.apply = func(s protocol.Sync) error { calls = append(calls, s); return fail }
		c.host = w.network.Host(outer(1))
		w.nodes = append(w.nodes, c)
		c.start()
		time.Sleep(time.Second)
		n := 0
		c.owner(func(e *Edge) {
			n = len(calls)
			if s := e.status(); n == 0 || s.Problem != fail.Error() || len(calls[0].Addresses) != 1 {
				t.Errorf("%d calls, problem %q", n, s.Problem)
			}
		})
		time.Sleep(time.Minute)
		c.owner(func(*Edge) { n, fail = len(calls), nil })
		if n < 3 || c.log.count("could not be configured") != 1 {
			t.Errorf("%d calls, %d log lines", n, c.log.count("could not be configured"))
		}
		time.Sleep(time.Minute)
		c.owner(func(*Edge) { n = len(calls) })
		w.portal.change(func() { w.portal.nodes["gate"].away = false })
		time.Sleep(time.Minute)
		c.owner(func(*Edge) {
			if len(calls) != n {
				t.Errorf("%d calls for nothing", len(calls)-n)
			}
		})
		w.portal.change(func() { w.portal.nodes["gate"].number = 10 })
		time.Sleep(time.Second)
		c.owner(func(*Edge) {
			if len(calls) != n+1 {
				t.Errorf("%d calls for a change", len(calls)-n)
			}
		})
		if s, _ := c.edge.Status(context.Background()); s.Problem != "" {
			t.Error(s.Problem)
		}
	})
}

// Addresses that the portal has given out in the tunnel are not checked; others of the same range are a carrier's (RFC 6598).
func TestTunnelAddresses(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		w.portal.overlay = protocol.DefaultOverlay()
		w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		time.Sleep(time.Second)
		given := 0
		c.owner(func(e *Edge) {
			for _, p := range append(slices.Clone(e.view.Addresses), e.peers["gate"].AllowedIPs...) {
				if given++; !e.inTunnel(p.Addr()) {
					t.Errorf("%v is given and may be checked", p)
				}
			}
			for _, p := range e.view.Overlay {
				if last := lastOf(p); e.inTunnel(last) {
					t.Errorf("%v is not given and may not be checked", last)
				}
			}
		})
		if given < 2 {
			t.Errorf("%d addresses are given", given)
		}
		if outside := netip.MustParseAddr("100.72.3.77"); c.edge.inTunnel(outside) {
			t.Errorf("%v is a carrier's", outside)
		}
	})
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// Status holds what is public only.
func TestStatusHoldsNoSecret(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		one, _ := w.relayNamed("north", 1)
		one.Password = "password"
		w.portal.relays = []protocol.Relay{one}
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		s, err := c.edge.Status(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(s)
		if err != nil || len(s.Relays) != 1 || len(s.Mappings) != 0 && s.Mappings[0].Server != one.Addrs[0] {
			t.Errorf("%v %s", err, text)
		}
		for _, secret := range []string{"password", "psk", "private", c.edge.key.Encode()} {
			if strings.Contains(string(text), secret) {
				t.Errorf("%q is in %s", secret, text)
			}
		}
	})
}
