package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

// These tests drive two pipelines whose edges are played (link_world_test.go) through the life of connections.

// Traffic makes a connection. What was sent before it is there waits for it, also while the portal and ICE take their time.
func TestLinkComesUp(t *testing.T) {
	for _, v := range []variant{plain, queues} {
		t.Run(fmt.Sprint(v), func(t *testing.T) {
			runLinks(t, v, func(w *linkWorld) {
				w.edges(func() { w.delay = 4 * time.Second })
				w.a.send(1)
				sleep(time.Second)
				w.a.send(2)
				w.wantPhase(PhaseChecking)
				sleep(3 * time.Second)
				w.b.wantPackets()
				sleep(200 * time.Millisecond)
				w.b.wantPackets(w.a.packet(1), w.a.packet(2))
				w.wantUp()
				w.a.wantNone("drop_no_endpoint")
				for _, s := range []*side{w.a, w.b} {
					s.wantKinds(RequestAgent, RequestPath, RequestUp)
					c := s.status().Connection
					if c.Generation != 1 || c.Controlling != (s == w.a) || s.status().Path == nil || s.status().Path.Dst != s.other.outer || c.Up == 0 ||
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
		sleep(20 * time.Millisecond)
		w.wantPhase(PhaseChecking)
		w.edges(func() {
			w.a.using = 1
			w.a.attempt.Selected(1, pipeline.Path{Dst: w.b.outer})
			w.b.agents = map[uint32]bool{} // selects nothing for now
		})
		sleep(10 * time.Millisecond)
		w.b.wantPackets(w.a.packet(1))
		w.b.send(2)
		settle()
		w.a.wantPackets(w.b.packet(2))
		if c := w.b.status(); c.Connection.Phase != PhaseChecking || c.Path == nil || c.Path.Fixed {
			t.Errorf("%+v", c)
		}
		w.edges(func() {
			w.b.agents[1], w.b.using = true, 1
			w.b.attempt.Selected(1, pipeline.Path{Dst: w.a.outer})
		})
		w.wantUp()
		if c := w.b.status(); !c.Path.Fixed {
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
		settle()
		w.b.wantPackets(w.a.packet(7))
		_ = w.b.Edit(func(e *pipeline.Edit) error { e.Peer(w.a.key.Public()).SetEndpoint(elsewhere); return nil })
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
		sleep(2 * time.Second)
		w.edges(func() { w.b.attempt.WantAgent() })
		sleep(200 * time.Millisecond)
		w.wantUp()
		after, _ := w.a.ciphers()
		if got := w.a.status(); !got.LastHandshake.Equal(before) || after != made || got.Path.Generation != 2 {
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
		sleep(12 * time.Second) // after the last planned initiation
		w.wantPhase(PhaseHandshake)
		w.network.Hook(nil)
		w.edges(func() { w.a.attempt.Selected(w.a.using, pipeline.Path{Dst: w.b.outer, Src: w.a.outer.Addr()}) })
		sleep(10 * time.Millisecond)
		w.wantPhase(PhaseUp)
		w.b.wantPackets(w.a.packet(1))
	})
}

// Idle: agents close, path and session stay by keepalives, rekeys included; the next packet starts agents on both sides.
func TestLinkIdle(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.connect()
		sleep(idleAfter + time.Second)
		w.wantPhase(PhaseIdle)
		w.edges(func() {
			if len(w.a.agents)+len(w.b.agents) != 0 {
				t.Errorf("agents %v and %v", w.a.agents, w.b.agents)
			}
		})
		sleep(10 * time.Minute)
		w.wantPhase(PhaseIdle)
		w.b.send(1)
		settle()
		w.a.wantPackets(w.b.packet(1))
		sleep(200 * time.Millisecond)
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
			sleep(100 * time.Millisecond)
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
			if _, err := Begin(w.a.Pipeline, "b", 9, true); !errors.Is(err, ErrDown) {
				t.Errorf("an attempt while the interface is down: %v", err)
			}
			sleep(20 * time.Second)
			w.a.wantKinds(RequestPath, RequestCloseAgent, RequestBye, RequestClosed)
			if n := len(w.a.requests(RequestAttempt)); n != 0 {
				t.Errorf("%d attempts while the interface is down", n)
			}
			w.a.device.SetUp(true) // what was wanted meanwhile comes now
			sleep(200 * time.Millisecond)
			w.wantUp()
		})
	}
}

// An attempt that was asked for when the interface went down is asked for again when it is up.
func TestLinkDownWhileAsked(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.edges(func() { w.a.deaf = true })
		w.a.Want("b")
		settle()
		w.a.device.SetUp(false)
		settle()
		w.edges(func() { w.a.deaf = false })
		w.a.device.SetUp(true)
		sleep(200 * time.Millisecond)
		w.wantUp()
	})
}

// A peer that is removed or loses its name is not reached any more. Without a name it is a plain peer, as configured.
func TestLinkRemoved(t *testing.T) {
	for _, removed := range []bool{true, false} {
		runLinks(t, plain, func(w *linkWorld) {
			w.connect()
			w.a.edit(func(e *pipeline.Edit) {
				p := e.Peer(w.b.key.Public())
				if p.SetPersistentKeepalive(21); removed {
					e.RemovePeer(w.b.key.Public())
				} else {
					p.SetName("")
				}
			})
			sleep(100 * time.Millisecond)
			if got := w.a.requests(RequestClosed); len(got) != 1 || got[0].Closed.Reason != CloseRemoved || got[0].Generation != 1 {
				t.Fatalf("%+v", got)
			}
			if c := w.b.status().Connection; c.Closed == nil || c.Closed.PeerReports.Reason != CloseRemoved {
				t.Errorf("%+v", c)
			}
			w.b.wantNothingLeft()
			if _, err := Begin(w.a.Pipeline, "b", 9, true); !errors.Is(err, pipeline.ErrUnknownPeer) {
				t.Errorf("an attempt to reach nobody: %v", err)
			}
			w.edges(func() { w.a.attempt.Bye(Bye{Generation: 1}) })
			if removed {
				return
			}
			if s := w.a.status(); s.Name != "" || s.Connection != nil || s.PersistentKeepalive != 21 {
				t.Errorf("%+v", s)
			}
			if s := w.a.status(); s.Path != nil {
				t.Errorf("path %v", s.Path)
			}
			w.a.edit(func(e *pipeline.Edit) { e.Peer(w.b.key.Public()).SetEndpoint(w.b.outer) })
			sleep(100 * time.Second) // of a plain peer, so 90 s
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
			s.edit(func(e *pipeline.Edit) {
				p := e.Peer(s.other.key.Public())
				p.SetName("")
				p.SetEndpoint(s.other.outer)
			})
		}
		w.a.send(1)
		settle()
		w.b.wantPackets(w.a.packet(1))
		for _, s := range []*side{w.a, w.b} {
			s.edit(func(e *pipeline.Edit) { e.Peer(s.other.key.Public()).SetName(s.other.name) })
			s.wantNothingLeft()
		}
		w.connect()
	})
}

// A handshake that comes after the close, or for a peer that never had a connection, is forgotten and not answered.
func TestLinkLateHandshake(t *testing.T) {
	for _, never := range []bool{false, true} {
		runLinks(t, plain, func(w *linkWorld) {
			if never {
				w.b.edit(func(e *pipeline.Edit) {
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
				sleep(time.Second)
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
				sleep(time.Second)
				if !never {
					w.edges(func() { w.b.attempt.Heard() }) // else it ends before it asks for another session
				}
			}
			w.network.Hook(nil)
			if got := w.a.counter("handshake_accepted"); got == before || sent != 0 {
				t.Errorf("%d initiations were accepted, %d datagrams sent", got-before, sent)
			}
			w.a.wantNothingLeft()
			w.a.wantPackets()
		})
	}
}

// An attempt that replaces another keeps the packets that wait: both sides may have begun at the same moment.
func TestLinkReplaced(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.edges(func() { w.delay = time.Second })
		w.a.send(1)
		sleep(100 * time.Millisecond)
		var old *Attempt
		w.edges(func() {
			old = w.a.attempt
			w.generation++
			w.a.begin(w.generation)
		})
		sleep(1200 * time.Millisecond)
		w.b.wantPackets(w.a.packet(1))
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
		w.a.edit(func(e *pipeline.Edit) { e.SetPrivateKey(&same) })
		w.a.edit(func(e *pipeline.Edit) { e.Peer(w.b.key.Public()).SetPresharedKey(&w.a.psk) })
		w.wantUp()
		var next crypto.PrivateKey
		next[0], next[31] = 8, 64
		w.a.edit(func(e *pipeline.Edit) {
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
		sleep(100 * time.Millisecond)
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
			sleep(200 * time.Millisecond)
			w.b.wantPackets(w.a.packet(1), w.a.packet(2))
			w.wantUp()
			w.a.wantNone("drop_staged_expired")
		})
	}
}
