package edge

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
)

// A client connects to the gateways it may reach without being asked, directly where it can.
func TestDirect(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		took := w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		t.Log("connected after", took)
		w.carries(c, g)
		s := c.connection("gate")
		if s.Via != "direct" || s.Endpoint.Addr() != outer(1) || s.Local != "host" || s.RTTS < 0.049 {
			t.Errorf("status %+v", s)
		}
		if !strings.Contains(s.Explanation, "direct to") {
			t.Error(s.Explanation)
		}
	})
}

// Messages that are lost, repeated and out of order cost time, not the connection.
func TestBadSignaling(t *testing.T) {
	run(t, signal.Faults{Loss: 0.3, LostAck: 0.2, Repeat: 0.3, Reorder: 0.3, Delay: 200 * time.Millisecond}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		var clients []*node
		for _, name := range []string{"c1", "c2", "c3", "c4", "c5", "c6"} {
			clients = append(clients, w.node(name, protocol.Client))
		}
		w.await(2*time.Minute, "all connected", func() bool {
			for _, c := range clients {
				if !up(c, g) {
					return false
				}
			}
			return true
		})
		for _, c := range clients {
			w.carries(c, g)
		}
	})
}

// The mission: the keys are out of step, ICE connects, no handshake completes. Both sides give up 15 s after the first
// initiation, name the cause and keep nothing; when the keys agree again the next attempt works.
func TestKeysOutOfStep(t *testing.T) {
	newKey := func(n *node) {
		_ = n.pipeline.Edit(func(e *pipeline.Edit) error {
			e.SetPrivateKey(&crypto.PrivateKey{77, byte(n.number)})
			return nil
		})
	}
	for name, tt := range map[string]struct {
		wrong                     func(w *world, c, g *node)
		clientCause, gatewayCause string
	}{
		"gateway's key": {func(_ *world, _, g *node) { newKey(g) },
			"we use an old public key of the peer", "the peer uses an old public key of ours"},
		"client's key": {func(_ *world, c, _ *node) { newKey(c) },
			"the peer does not know our public key", "the peer has a key we do not know"},
		"preshared key": {func(w *world, _, _ *node) {
			w.portal.change(func() { w.portal.nodes["gate"].psk = protocol.Key{1} })
		}, "preshared keys differ", "preshared keys differ"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, signal.Faults{}, func(w *world) {
				g := w.node("gate", protocol.Gateway)
				c := w.node("laptop", protocol.Client)
				w.await(5*time.Second, "connected", func() bool { return up(c, g) })
				tt.wrong(w, c, g)
				closed := func(n *node, peer string) *CloseStatus {
					s := n.connection(peer)
					if s.LastClose != nil && s.LastClose.Reason == "handshake_timeout" {
						return s.LastClose
					}
					return nil
				}
				w.await(2*time.Minute, "closed on both sides", func() bool {
					return closed(c, "gate") != nil && closed(g, "laptop") != nil
				})
				for _, side := range []struct {
					n    *node
					peer string
					want string
				}{{c, "gate", tt.clientCause}, {g, "laptop", tt.gatewayCause}} {
					k := closed(side.n, side.peer)
					if k.Cause != side.want {
						t.Errorf("%s names the cause %q, want %q", side.n.name, k.Cause, side.want)
					}
					if k.LastedS < 15 || k.LastedS > 16.5 {
						t.Errorf("%s: the attempt lasted %.2f s", side.n.name, k.LastedS)
					}
				}
			})
		})
	}
}

// A portal that is away does not end what is connected; new connections wait and status says why.
func TestPortalAway(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		w.portal.change(func() { w.portal.down = errAway })
		w.signaling.SetDown(errAway)
		time.Sleep(5 * time.Minute)
		w.carries(c, g)
		w.await(time.Minute, "status tells", func() bool {
			s, _ := c.edge.Status(context.Background())
			return !s.Portal.Up && strings.Contains(s.Portal.Why, "away")
		})
		w.portal.change(func() { w.portal.down = nil })
		w.signaling.SetDown(nil)
		w.await(time.Minute, "the portal is back", func() bool {
			s, _ := c.edge.Status(context.Background())
			return s.Portal.Up
		})
	})
}

// A node that restarts has another key; its peers learn it from the portal and connect again.
func TestRestart(t *testing.T) {
	for _, name := range []string{"gate", "laptop"} {
		t.Run(name, func(t *testing.T) {
			run(t, signal.Faults{}, func(w *world) {
				g := w.node("gate", protocol.Gateway)
				c := w.node("laptop", protocol.Client)
				w.await(5*time.Second, "connected", func() bool { return up(c, g) })
				n := map[string]*node{"gate": g, "laptop": c}[name]
				n.close()
				n.start()
				w.await(5*time.Second, "connected again", func() bool { return up(c, g) })
				w.carries(c, g)
			})
		})
	}
}

// A change of the network moves the connection to another path and keeps the session.
func TestRoaming(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		before := c.connection("gate")
		c.move(99)
		w.await(3*time.Second, "the gateway sends to the new address", func() bool {
			return g.connection("laptop").Endpoint.Addr() == outer(99)
		})
		w.carries(c, g)
		after := c.connection("gate")
		if !after.LastHandshake.Equal(before.LastHandshake) || after.Generation != before.Generation {
			t.Errorf("another session: %+v", after)
		}
	})
}

// Idle connections keep no agent, and come back with the first packet.
func TestIdle(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		w.await(time.Minute, "idle", func() bool {
			return c.connection("gate").State == "idle" && g.connection("laptop").State == "idle"
		})
		time.Sleep(10 * time.Minute)
		if s := c.connection("gate"); s.State != "idle" {
			t.Errorf("state %s after ten minutes, %s", s.State, s.Explanation)
		}
		w.carries(c, g)
		w.await(5*time.Second, "up again", func() bool { return up(c, g) })
	})
}

// A peer that is not connected to the portal costs no 10 s.
func TestAbsent(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		g.close()
		w.await(time.Second, "closed by the bye", func() bool { return c.connection("gate").LastClose != nil })
		if k := c.connection("gate").LastClose; k.Reason != "peer_closed" {
			t.Errorf("%+v", k)
		}
		w.await(30*time.Second, "status tells that the peer is away", func() bool {
			return strings.Contains(c.connection("gate").Explanation, "not connected to the portal")
		})
	})
}
