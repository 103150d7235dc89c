package pipeline

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

// These tests drive two pipelines whose edges are played (link_world_test.go) through the life of connections.

// Traffic makes a connection. What was sent before it is there waits for it, also while the portal and ICE take their time.
func TestLinkComesUp(t *testing.T) {
	for _, v := range []variant{plain, queues, outer6} {
		t.Run(v.name, func(t *testing.T) {
			runLinks(t, v, func(w *linkWorld) {
				w.edges(func() { w.delay = 4 * time.Second })
				w.a.send(1)
				w.sleep(time.Second)
				w.a.send(2)
				w.wantPhase(PhaseChecking)
				w.sleep(3 * time.Second)
				w.wantPackets(w.b.node)
				w.sleep(200 * time.Millisecond)
				w.wantPackets(w.b.node, w.a.packet(1), w.a.packet(2))
				w.wantUp()
				w.wantCounter(w.a.node, "drop_no_endpoint", 0)
				for _, s := range []*side{w.a, w.b} {
					s.wantKinds(RequestAgent, RequestPath, RequestUp)
					c := s.status().Connection
					if c.Generation != 1 || c.Controlling != (s == w.a) || c.Path == nil || c.Path.Dst != s.other.outer || c.Up == 0 ||
						c.Wanted {
						t.Errorf("%s: %+v", s.name, c)
					}
					if up := s.log.lines("level=INFO", `msg="connection up"`, "peer="+s.other.name, "via=direct"); len(up) != 1 {
						t.Errorf("%s: %d lines say that it is up", s.name, len(up))
					}
				}
			})
		})
	}
}

// wantKinds fails the test unless exactly these requests were made, RequestAttempt aside.
func (s *side) wantKinds(kinds ...RequestKind) {
	s.world.t.Helper()
	var got []RequestKind
	s.world.edges(func() {
		for _, r := range s.seen {
			if r.Kind != RequestAttempt && r.Kind != RequestCheck { // those come by themselves
				got = append(got, r.Kind)
			}
		}
	})
	if !slices.Equal(got, kinds) {
		s.world.t.Errorf("%s: requests %v, want %v", s.name, got, kinds)
	}
}

// The side that controls may have its pair first: its initiation is answered before the other side has nominated any.
func TestLinkEarlyInitiation(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.a.send(1)
		w.sleep(20 * time.Millisecond)
		w.wantPhase(PhaseChecking)
		w.edges(func() {
			w.a.using = 1
			w.a.attempt.Selected(1, Path{Dst: w.b.outer})
			w.b.agents = map[uint32]bool{} // selects nothing for now
		})
		w.sleep(10 * time.Millisecond)
		w.wantPackets(w.b.node, w.a.packet(1))
		w.b.send(2)
		w.settle()
		w.wantPackets(w.a.node, w.b.packet(2))
		if c := w.b.status().Connection; c.Phase != PhaseChecking || c.Path == nil || c.Path.Fixed {
			t.Errorf("%+v", c)
		}
		w.edges(func() {
			w.b.agents[1], w.b.using = true, 1
			w.b.attempt.Selected(1, Path{Dst: w.a.outer})
		})
		w.wantUp()
		if c := w.b.status().Connection; !c.Path.Fixed {
			t.Errorf("%+v", c)
		}
	})
}

// The selected pair owns the path: what is authentic and comes from elsewhere is delivered and moves nothing.
func TestLinkDoesNotRoam(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.connect()
		elsewhere := netip.AddrPortFrom(netip.MustParseAddr("203.0.113.9"), 9)
		w.network.Hook(func(d *udptest.Datagram) bool {
			if d.Dst == w.b.outer {
				d.Src = elsewhere
			}
			return true
		})
		w.a.send(7)
		w.settle()
		w.wantPackets(w.b.node, w.a.packet(7))
		_ = w.b.Edit(func(e *Edit) error { e.Peer(w.a.key.Public()).SetEndpoint(elsewhere); return nil })
		if got := w.b.status().Endpoint; got != w.a.outer {
			t.Errorf("the path leads to %v", got)
		}
		w.network.Hook(nil)
		w.wantUp()
	})
}

// A second agent takes over and the session stays.
func TestLinkPathChange(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.connect()
		before := w.a.status().LastHandshake
		made, _ := w.a.ciphers()
		w.sleep(2 * time.Second)
		w.edges(func() { w.b.attempt.WantAgent() })
		w.sleep(200 * time.Millisecond)
		w.wantUp()
		after, _ := w.a.ciphers()
		if got := w.a.status(); !got.LastHandshake.Equal(before) || after != made || got.Connection.Path.Generation != 2 {
			t.Errorf("another session, or the old path: %+v", got.Connection)
		}
		w.edges(func() {
			if w.a.using != 2 || w.b.using != 2 || len(w.a.agents) != 1 || len(w.b.agents) != 1 {
				t.Errorf("agents %v and %v", w.a.agents, w.b.agents)
			}
		})
		w.a.wantKinds(RequestAgent, RequestPath, RequestUp, RequestAgent, RequestCloseAgent, RequestPath)
	})
}

// A path that changes while the handshake runs gets an initiation at once.
func TestLinkPathChangeDuringHandshake(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		dead := true
		w.network.Hook(func(*udptest.Datagram) bool { return !dead })
		w.a.send(1)
		w.sleep(12 * time.Second) // after the last planned initiation
		w.wantPhase(PhaseHandshake)
		w.network.Hook(nil)
		w.edges(func() { w.a.attempt.Selected(w.a.using, Path{Dst: w.b.outer, Src: w.a.outer.Addr()}) })
		w.sleep(10 * time.Millisecond)
		w.wantPhase(PhaseUp)
		w.wantPackets(w.b.node, w.a.packet(1))
	})
}

// Idle: agents close, path and session stay by keepalives, rekeys included; the next packet starts agents on both sides.
func TestLinkIdle(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.connect()
		w.sleep(idleAfter + time.Second)
		w.wantPhase(PhaseIdle)
		w.edges(func() {
			if len(w.a.agents)+len(w.b.agents) != 0 {
				t.Errorf("agents %v and %v", w.a.agents, w.b.agents)
			}
		})
		w.sleep(10 * time.Minute)
		w.wantPhase(PhaseIdle)
		w.b.send(1)
		w.settle()
		w.wantPackets(w.a.node, w.b.packet(1))
		w.sleep(200 * time.Millisecond)
		w.wantUp()
		w.edges(func() {
			if !w.a.agents[2] || !w.b.agents[2] {
				t.Errorf("agents %v and %v", w.a.agents, w.b.agents)
			}
		})
		for _, s := range []*side{w.a, w.b} { // a NAT may keep a mapping for what leaves only (RFC 4787, section 4.3)
			if n := s.counter("keepalives"); n < 20 || n > 40 {
				t.Errorf("%d keepalives came to %s", n, s.name)
			}
		}
	})
}

// At Close the peer is told, and everything that is asked of the edge is asked before it returns.
func TestLinkShutdown(t *testing.T) {
	for _, down := range []bool{false, true} {
		runLinks(t, plain, func(w *linkWorld) {
			w.connect()
			w.edges(func() { w.a.seen = nil })
			if down {
				w.a.device.SetUp(false)
			} else if err := w.a.Close(); err != nil {
				t.Error(err)
			}
			w.sleep(100 * time.Millisecond)
			w.a.wantKinds(RequestPath, RequestCloseAgent, RequestBye, RequestClosed)
			if bye := w.a.requests(RequestBye); bye[0].Bye.Reason != CloseShutdown || bye[0].Bye.Generation != 1 {
				t.Errorf("%+v", bye)
			}
			w.b.wantNothingLeft()
			if c := w.b.status().Connection; c.Closed.Reason != ClosePeerClosed || c.Closed.PeerReports.Reason != CloseShutdown {
				t.Errorf("%+v", c.Closed)
			}
			if !down {
				return
			}
			w.a.wantNothingLeft()
			w.a.Want("b")
			if _, err := w.a.Begin("b", 9, true); !errors.Is(err, ErrDown) {
				t.Errorf("an attempt while the interface is down: %v", err)
			}
			w.sleep(20 * time.Second)
			w.a.wantKinds(RequestPath, RequestCloseAgent, RequestBye, RequestClosed)
			if n := len(w.a.requests(RequestAttempt)); n != 0 {
				t.Errorf("%d attempts while the interface is down", n)
			}
			w.a.device.SetUp(true) // what was wanted meanwhile comes now
			w.sleep(200 * time.Millisecond)
			w.wantUp()
		})
	}
}

// An attempt that was asked for when the interface went down is asked for again when it is up.
func TestLinkDownWhileAsked(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.edges(func() { w.a.deaf = true })
		w.a.Want("b")
		w.settle()
		w.a.device.SetUp(false)
		w.settle()
		w.edges(func() { w.a.deaf = false })
		w.a.device.SetUp(true)
		w.sleep(200 * time.Millisecond)
		w.wantUp()
	})
}

// A packet that a lane has staged before control knew that the interface is up makes a connection.
func TestLinkStagedBeforeUp(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.a.controlled(func(c *controller, _ *peer) { c.setUp(w.a.Pipeline.control.now, false) })
		w.a.send(1)
		w.settle()
		w.a.controlled(func(c *controller, p *peer) {
			if !p.hasStaged() {
				t.Error("the packet does not wait")
			}
			c.setUp(w.a.Pipeline.control.now, true)
		})
		w.sleep(200 * time.Millisecond)
		w.wantPackets(w.b.node, w.a.packet(1))
	})
}

// A peer that is removed or loses its name is not reached any more. Without a name it is a plain peer, as configured.
func TestLinkRemoved(t *testing.T) {
	for _, removed := range []bool{true, false} {
		runLinks(t, plain, func(w *linkWorld) {
			w.connect()
			w.a.edit(func(e *Edit) {
				p := e.Peer(w.b.key.Public())
				if p.SetPersistentKeepalive(21); removed {
					e.RemovePeer(w.b.key.Public())
				} else {
					p.SetName("")
				}
			})
			w.sleep(100 * time.Millisecond)
			if got := w.a.requests(RequestClosed); len(got) != 1 || got[0].Closed.Reason != CloseRemoved || got[0].Generation != 1 {
				t.Fatalf("%+v", got)
			}
			if c := w.b.status().Connection; c.Closed == nil || c.Closed.PeerReports.Reason != CloseRemoved {
				t.Errorf("%+v", c)
			}
			w.b.wantNothingLeft()
			if _, err := w.a.Begin("b", 9, true); !errors.Is(err, ErrUnknownPeer) {
				t.Errorf("an attempt to reach nobody: %v", err)
			}
			w.edges(func() { w.a.attempt.Bye(Bye{Generation: 1}) })
			if removed {
				return
			}
			if s := w.a.status(); s.Name != "" || s.Connection != nil || s.PersistentKeepalive != 21 {
				t.Errorf("%+v", s)
			}
			w.a.controlled(func(_ *controller, p *peer) {
				if p.core.PersistentKeepalive() != 21*time.Second || reach(p.reach.Load()) != reachNone {
					t.Errorf("keepalive %v, %v", p.core.PersistentKeepalive(), p.reach.Load())
				}
				if p.path.Load() != nil || p.core.Sending() != nil {
					t.Errorf("path %v, session %v", p.path.Load(), p.core.Sending() != nil)
				}
			})
			w.a.edit(func(e *Edit) { e.Peer(w.b.key.Public()).SetEndpoint(w.b.outer) })
			w.sleep(100 * time.Second) // of a plain peer, so 90 s
			if since := w.a.log.lines("handshake did not complete", "after=1m30s"); len(since) != 1 {
				t.Errorf("%q", w.a.log.lines("handshake did not complete"))
			}
		})
	}
}

// A peer that gets a name keeps nothing of what it was without: its session was not made by a connection.
func TestLinkNameEndsPlainSession(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		for _, s := range []*side{w.a, w.b} {
			s.edit(func(e *Edit) {
				p := e.Peer(s.other.key.Public())
				p.SetName("")
				p.SetEndpoint(s.other.outer)
			})
		}
		w.a.send(1)
		w.settle()
		w.wantPackets(w.b.node, w.a.packet(1))
		for _, s := range []*side{w.a, w.b} {
			s.edit(func(e *Edit) { e.Peer(s.other.key.Public()).SetName(s.other.name) })
			s.wantNothingLeft()
		}
		w.connect()
	})
}

// A keepalive that is configured neither makes an attempt nor an initiation of its own. It counts while there is a session.
func TestLinkPersistentKeepalive(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		set := func(seconds uint16) {
			w.b.edit(func(e *Edit) { e.Peer(w.a.key.Public()).SetPersistentKeepalive(seconds) })
		}
		want := func(d time.Duration) {
			t.Helper()
			w.b.controlled(func(_ *controller, p *peer) {
				if got := p.core.PersistentKeepalive(); got != d {
					t.Errorf("keepalive %v, want %v", got, d)
				}
			})
		}
		set(5)
		w.sleep(time.Second)
		w.b.wantNothingLeft()
		w.b.device.SetUp(false)
		w.sleep(time.Second)
		w.b.device.SetUp(true)
		w.sleep(time.Second)
		w.b.wantNothingLeft()
		w.connect()
		want(5 * time.Second)
		w.sleep(idleAfter + time.Second)
		w.wantPhase(PhaseIdle)
		want(5 * time.Second)
		set(60)
		want(time.Minute)
		w.b.edit(func(e *Edit) { e.Peer(w.a.key.Public()).SetName("") })
		want(time.Minute)
	})
}

// A handshake that comes after the close, or for a peer that never had a connection, is forgotten and not answered.
func TestLinkLateHandshake(t *testing.T) {
	for _, never := range []bool{false, true} {
		runLinks(t, plain, func(w *linkWorld) {
			if never {
				w.b.edit(func(e *Edit) {
					p := e.Peer(w.a.key.Public())
					p.SetName("")
					p.SetEndpoint(w.a.outer)
				})
			} else {
				w.connect()
				w.edges(func() {
					w.signaling = false
					w.a.attempt.Close(CloseShutdown)
				})
				w.sleep(time.Second)
			}
			sent, before := 0, w.a.counter("handshake_accepted")
			w.network.Hook(func(d *udptest.Datagram) bool {
				if d.Src == w.a.outer {
					sent++
				}
				return true
			})
			for i := range 20 {
				w.b.send(i)
				w.sleep(time.Second)
				if !never {
					w.edges(func() { w.b.attempt.Heard() }) // else it ends before it asks for another session
				}
			}
			w.network.Hook(nil)
			if got := w.a.counter("handshake_accepted"); got == before || sent != 0 {
				t.Errorf("%d initiations were accepted, %d datagrams sent", got-before, sent)
			}
			w.a.wantNothingLeft()
			w.wantPackets(w.a.node)
		})
	}
}

// An attempt that replaces another keeps the packets that wait: both sides may have begun at the same moment.
func TestLinkReplaced(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.edges(func() { w.delay = time.Second })
		w.a.send(1)
		w.sleep(100 * time.Millisecond)
		var old *Attempt
		w.edges(func() {
			old = w.a.attempt
			w.generation++
			w.a.begin(w.generation)
		})
		w.sleep(1200 * time.Millisecond)
		w.wantPackets(w.b.node, w.a.packet(1))
		w.wantUp()
		if got := w.a.requests(RequestClosed); len(got) != 1 || got[0].Closed.Reason != CloseReplaced || got[0].Generation != 1 {
			t.Errorf("%+v", got)
		}
		w.edges(func() { old.Close(CloseRemoved); old.Bye(Bye{Generation: 2}); old.Heard() }) // of no effect
		w.wantUp()
	})
}

// SetPublicKey keeps what belongs to the peer and not to its key. Our own key in another form is no change.
func TestLinkKeys(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.connect()
		before := w.a.status()
		same := w.a.key
		same[0] |= 7
		w.a.edit(func(e *Edit) { e.SetPrivateKey(&same) })
		w.a.edit(func(e *Edit) { e.Peer(w.b.key.Public()).SetPresharedKey(&w.a.psk) })
		w.wantUp()
		var next crypto.PrivateKey
		next[0], next[31] = 8, 64
		w.a.edit(func(e *Edit) {
			p := e.Peer(w.b.key.Public())
			p.SetPersistentKeepalive(33)
			p.SetPublicKey(next.Public())
			p.SetPublicKey(w.a.key.Public()) // our own: no change
		})
		after := w.a.status()
		if after.PublicKey != next.Public() || after.Name != "b" || after.PersistentKeepalive != 33 || after.PresharedKey != w.a.psk ||
			!slices.Equal(after.AllowedIPs, before.AllowedIPs) || after.RxBytes < before.RxBytes || after.TxBytes < before.TxBytes {
			t.Errorf("%+v", after)
		}
		if c := after.Connection.Closed; c == nil || c.Reason != CloseKeysChanged {
			t.Errorf("%+v", c)
		}
		w.sleep(100 * time.Millisecond)
		w.a.wantNothingLeft()
		w.b.wantNothingLeft()
	})
}

// The portal names another key when the attempt is asked for: what waits goes over to the peer with the new key.
func TestLinkKeyChangeKeepsStaged(t *testing.T) {
	for _, v := range []variant{plain, queues} {
		runLinks(t, v, func(w *linkWorld) {
			w.b.newKey()
			w.edges(func() { w.a.knows = w.b.key.Public() })
			w.a.send(1)
			w.a.send(2)
			w.sleep(200 * time.Millisecond)
			w.wantPackets(w.b.node, w.a.packet(1), w.a.packet(2))
			w.wantUp()
			w.wantCounter(w.a.node, "drop_staged_expired", 0)
		})
	}
}

// Without an edge there is nobody to find a path for a name, so peers have none.
func TestLinkWithoutEdge(t *testing.T) {
	runWorld(t, plain, func(w *world) {
		_ = w.a.Edit(func(e *Edit) error { e.Peer(w.b.key.Public()).SetName("b"); return nil })
		w.exchange(t)
		if s, err := w.a.Status(); err != nil || s.Peers[0].Name != "" || s.Peers[0].Connection != nil {
			t.Errorf("%+v, %v", s.Peers, err)
		}
		if _, err := w.a.Begin("b", 1, true); !errors.Is(err, ErrUnknownPeer) {
			t.Errorf("Begin: %v", err)
		}
	})
}
