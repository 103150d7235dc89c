package edge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
)

// crossing is signaling whose messages take so long that offers of both sides cross.
var crossing = signal.Faults{Reorder: 1, Delay: 40 * time.Millisecond}

// end ends the attempts of two nodes with each other at one moment.
func end(a, b *node, reason link.CloseReason) {
	for _, side := range [][2]*node{{a, b}, {b, a}} {
		side[0].end(side[1].name, reason)
	}
}

// Both sides begin at once with the same generation: one connection comes of it.
func TestGlare(t *testing.T) {
	run(t, crossing, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		end(c, g, link.CloseReplaced) // without a bye
		g.pipeline.Want("laptop")
		c.pipeline.Want("gate")
		time.Sleep(20 * time.Millisecond)
		for _, side := range [][2]*node{{c, g}, {g, c}} {
			if s := side[0].link(side[1].name); s.Phase != link.PhaseCandidates || s.Attempt != 2 {
				t.Errorf("%s has not begun by itself: %+v", side[0].name, s)
			}
		}
		w.await(5*time.Second, "connected again", func() bool { return up(c, g) })
		if n, k := c.generation("gate"), g.generation("laptop"); n != 2 || k != 2 {
			t.Errorf("generations %d and %d", n, k)
		}
		w.carries(c, g)
		if s := c.connection("gate"); s.LastClose.Reason != "replaced" {
			t.Errorf("%+v", s.LastClose)
		}
	})
}

// Both begin at once with different generations: the greater one wins on both sides.
func TestGlareOfGenerations(t *testing.T) {
	for name, ahead := range map[string]string{"client ahead": "laptop", "gateway ahead": "gate"} {
		t.Run(name, func(t *testing.T) {
			run(t, crossing, func(w *world) {
				g := w.node("gate", protocol.Gateway)
				c := w.node("laptop", protocol.Client)
				w.await(5*time.Second, "connected", func() bool { return up(c, g) })
				end(c, g, link.CloseReplaced)
				for _, n := range []*node{g, c} {
					if n.name == ahead {
						n.skip(map[string]string{"laptop": "gate", "gate": "laptop"}[ahead], 5)
					}
				}
				g.pipeline.Want("laptop")
				c.pipeline.Want("gate")
				w.await(5*time.Second, "connected again", func() bool { return up(c, g) })
				w.carries(c, g)
				if n, k := c.generation("gate"), g.generation("laptop"); n != 7 || k != 7 {
					t.Errorf("generations %d and %d", n, k)
				}
			})
		})
	}
}

// A newer attempt of the peer replaces a connection that is up; the back-off does not count that.
func TestReplaced(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		g.end("laptop", link.CloseReplaced) // without a bye
		g.pipeline.Want("laptop")
		took := w.await(5*time.Second, "connected again", func() bool { return c.generation("gate") == 2 && up(c, g) })
		if took > time.Second {
			t.Error("connected after", took)
		}
		for _, n := range []*node{c, g} {
			n.owner(func(e *Edge) {
				if len(e.agents) != 1 || len(e.byICE) != 1 || len(e.ways) != 1 {
					t.Errorf("%s keeps %d agents, %d by ICE's, %d ways", n.name, len(e.agents), len(e.byICE), len(e.ways))
				}
			})
		}
		if s := c.connection("gate"); s.LastClose == nil || s.LastClose.Reason != "replaced" {
			t.Errorf("%+v", s.LastClose)
		}
		w.carries(c, g)
	})
}

// A bye ends the other side at once, tells why, and the client comes back after the back-off.
func TestBye(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		g.end("laptop", link.CloseICEDisconnected)
		w.await(time.Second, "closed", func() bool { return c.connection("gate").LastClose != nil })
		s := c.connection("gate").LastClose
		if s.Reason != "peer_closed" || s.PeerReports == nil || s.PeerReports.Reason != "ice_disconnected" {
			t.Errorf("%+v", s)
		}
		if s := c.connection("gate"); s.State != "waiting" || !strings.Contains(s.Explanation, "tries again in") {
			t.Errorf("%+v", s)
		}
		w.await(5*time.Second, "connected again", func() bool { return up(c, g) })
	})
}

// A bye that is lost: the peer's next agent is answered with it.
func TestLostBye(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		w.signaling.SetDown(errAway)
		g.end("laptop", link.CloseICEDisconnected)
		time.Sleep(100 * time.Millisecond)
		w.signaling.SetDown(nil)
		if c.connection("gate").State != "up" {
			t.Fatal("the bye was not lost")
		}
		c.edge.NetworkChanged()
		w.await(time.Second, "closed", func() bool { return c.connection("gate").LastClose != nil })
		if s := c.connection("gate").LastClose; s.Reason != "peer_closed" || s.PeerReports == nil || s.PeerReports.Reason != "ice_disconnected" {
			t.Errorf("%+v", s)
		}
		w.await(5*time.Second, "connected again", func() bool { return up(c, g) })
		w.carries(c, g)
	})
}

// A message that is lost is not waited for: it is sent again while nothing is known of it.
func TestLostAnswer(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		var lost atomic.Int32
		w.lose = func(to string, msg signal.Message) bool {
			return to == "laptop" && msg.Kind == signal.Answer && lost.Add(1) == 1
		}
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(time.Second+time.Second, "connected", func() bool { return up(c, g) })
		if lost.Load() < 2 {
			t.Errorf("%d answers", lost.Load())
		}
	})
}

// Second agents come and go, wanted by either side or both at once, with signaling that loses, repeats and reorders; the
// session stays and nothing is left of the agents before.
func TestManyAgents(t *testing.T) {
	run(t, signal.Faults{Loss: 0.2, LostAck: 0.2, Repeat: 0.2, Reorder: 0.3, Delay: 100 * time.Millisecond}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(time.Minute, "connected", func() bool { return up(c, g) })
		before := c.connection("gate")
		for i := range 12 {
			if i%3 != 0 {
				c.edge.NetworkChanged()
			}
			if i%3 != 1 {
				g.edge.NetworkChanged()
			}
			time.Sleep(2500 * time.Millisecond)
			w.carries(c, g)
		}
		after := c.connection("gate")
		if after.Generation != before.Generation || !after.LastHandshake.Equal(before.LastHandshake) {
			t.Errorf("another session: %+v", after)
		}
		if a, b := c.link("gate").Newest, g.link("laptop").Newest; a < 8 || a != b {
			t.Errorf("agents %d and %d", a, b)
		}
		time.Sleep(15 * time.Second)
		for _, n := range []*node{c, g} {
			if s := n.link(map[*node]string{c: "gate", g: "laptop"}[n]); s.Agents > 1 || s.Waiting > 0 {
				t.Errorf("%s keeps %d agents, %d messages", n.name, s.Agents, s.Waiting)
			}
		}
	})
}

// Fifty clients of one gateway, all at once and over bad signaling; then the gateway restarts, and all come back.
func TestFiftyPeers(t *testing.T) {
	run(t, signal.Faults{Loss: 0.05, Repeat: 0.05, Reorder: 0.1}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		var clients []*node
		for i := range 50 {
			clients = append(clients, w.node(fmt.Sprintf("c%02d", i), protocol.Client))
		}
		all := func() bool {
			s, err := g.edge.Status(context.Background())
			if err != nil || len(s.Connections) != len(clients) {
				return false
			}
			for _, k := range s.Connections {
				if k.State != "up" && k.State != "idle" {
					return false
				}
			}
			for _, c := range clients {
				if state := c.connection("gate").State; state != "up" && state != "idle" {
					return false
				}
			}
			return true
		}
		t.Log("connected after", w.await(time.Minute, "all connected", all))
		for _, c := range clients[:5] {
			w.carries(c, g)
		}
		g.close()
		g.start()
		t.Log("connected again after", w.await(2*time.Minute, "all connected again", all))
		for _, c := range clients[45:] {
			w.carries(c, g)
		}
	})
}

// Whenever a node ends, it ends soon, and nothing is left: the bubble fails if a goroutine is.
func TestEnds(t *testing.T) {
	for wait := time.Duration(0); wait < 400*time.Millisecond; wait += 23 * time.Millisecond {
		run(t, crossing, func(w *world) {
			one, _ := w.relayNamed("north", 1)
			w.portal.relays = []protocol.Relay{one}
			w.node("gate", protocol.Gateway)
			c := w.node("laptop", protocol.Client)
			time.Sleep(wait)
			begin := time.Now()
			c.close()
			if took := time.Since(begin); took > closeWait+time.Second {
				t.Errorf("after %v it took %v to end", wait, took)
			}
			if _, err := c.edge.Status(context.Background()); !errors.Is(err, pipeline.ErrClosed) {
				t.Errorf("Status: %v", err)
			}
			c.edge.NetworkChanged()
			c.edge.want(link.Task{})
			c.edge.Stray(pipeline.Stray{Data: []byte("late")})
		})
	}
}

// A pipeline that has ended cannot be configured: Run says so and leaves nothing.
func TestRunWithoutPipeline(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		c := w.node("laptop", protocol.Client)
		c.close()
		e, err := New(Config{Name: "other", Role: protocol.Client, Identity: identityOf("other"), Signaler: c.memory, Sync: c.edge.config.Sync})
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Run(context.Background(), c.pipeline); !errors.Is(err, pipeline.ErrClosed) {
			t.Errorf("Run: %v", err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		unused, _ := New(c.edge.config)
		if _, err := unused.Status(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Status: %v", err)
		}
	})
}

func TestConfig(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no name": {}, "bad name": {Name: "a.b", Signaler: &signal.Memory{}}, "no signaler": {Name: "a"},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A path that works needs no other one, however the ticks of both agents fall.
func TestHealthyPathStays(t *testing.T) {
	for wait := time.Duration(0); wait < 2*time.Second; wait += 300 * time.Millisecond {
		run(t, signal.Faults{}, func(w *world) {
			g := w.node("gate", protocol.Gateway)
			time.Sleep(wait)
			c := w.node("laptop", protocol.Client)
			w.await(5*time.Second, "connected", func() bool { return up(c, g) })
			for range 300 {
				c.device.InjectData(ipPacket(inner(c.number), inner(g.number), "hello"))
				time.Sleep(time.Second / 2)
				g.device.InjectData(ipPacket(inner(g.number), inner(c.number), "hello"))
				time.Sleep(time.Second / 2)
			}
			if a, b := c.agent("gate"), g.agent("laptop"); a != 1 || b != 1 {
				t.Errorf("after %v: agents %d and %d", wait, a, b)
			}
		})
	}
}
