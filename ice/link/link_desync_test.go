package link

import (
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

// newKey draws a private key for the node, behind the portal's back, and uses it.
func (s *side) newKey() {
	key, err := crypto.GeneratePrivateKey(s.rand)
	if err != nil {
		s.world.t.Fatal(err)
	}
	s.key = key
	s.edit(func(e *pipeline.Edit) { e.SetPrivateKey(&key) })
}

// agree has the portal know all keys and tell both nodes, as it does when a key changes.
func (w *linkWorld) agree() {
	w.edges(func() {
		for _, s := range []*side{w.a, w.b} {
			s.knows, s.psk = s.other.key.Public(), crypto.PresharedKey{1}
		}
	})
	for _, s := range []*side{w.a, w.b} {
		s.edit(func(e *pipeline.Edit) {
			p := s.peer(e)
			p.SetPublicKey(s.other.key.Public())
			p.SetPresharedKey(&crypto.PresharedKey{1})
			s.uses = s.other.key.Public()
		})
	}
}

// wantTimeout checks the one close so far: exactly 15 s after the pair was there, for the cause.
func (s *side) wantTimeout(cause CloseCause) {
	t := s.world.t
	t.Helper()
	paths, closed := s.requests(RequestPath), s.requests(RequestClosed)
	if len(paths) != 2 || paths[1].Path != nil || len(closed) != 1 {
		t.Fatalf("%s: paths %+v, closed %+v", s.name, paths, closed)
	}
	c := closed[0].Closed
	if c.Reason != CloseHandshakeTimeout || c.Cause != cause || c.Waited != handshakeLifetime || c.Up != 0 {
		t.Errorf("%s: %v, %q, want %q; %+v", s.name, c.Reason, c.Cause, cause, c)
	}
	if got := closed[0].at.Sub(paths[0].at); got != handshakeLifetime {
		t.Errorf("%s: closed after %v", s.name, got)
	}
	if got := s.status().Connection; !got.ClosedAt.Equal(closed[0].at) || got.Closed == nil || got.Closed.Reason != c.Reason {
		t.Errorf("%s: the status says %+v", s.name, got)
	}
	s.wantKinds(RequestAgent, RequestPath, RequestPath, RequestCloseAgent, RequestBye, RequestClosed)
	if lines := s.log.lines("level=WARN", `msg="connection closed"`, "peer="+s.other.name, "generation=1",
		"reason=handshake_timeout", `cause="`+cause.String()+`"`); len(lines) != 1 {
		t.Errorf("%s: the log has %d lines of the close", s.name, len(lines))
	}
	s.wantNothingLeft()
}

// What the lifetimes exist for: ICE connects and the handshake cannot complete. Both sides end after exactly 15 s with the
// cause, leave nothing, and try at once when the keys are right again.
func TestLinkDesync(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(w *linkWorld)
		a, b   CloseCause
	}{
		{"the gateway's key changed", func(w *linkWorld) { w.b.newKey() }, CauseWeHaveOldKey, CausePeerHasOldKey},
		{"the client's key changed", func(w *linkWorld) { w.a.newKey() }, CauseOurKeyUnknown, CausePeerKeyUnknown},
		{"the preshared key differs", func(w *linkWorld) {
			w.edges(func() { w.b.psk = crypto.PresharedKey{2} })
		}, CausePresharedKeys, CausePresharedKeys},
		{"nothing arrives", func(w *linkWorld) {
			w.network.Hook(func(*udptest.Datagram) bool { return false })
		}, CauseSilence, CauseSilence},
	} {
		t.Run(c.name, func(t *testing.T) {
			runLinks(t, plain, func(w *linkWorld) {
				c.change(w)
				for i := range 150 { // traffic moves nothing
					w.a.send(i)
					sleep(100 * time.Millisecond)
				}
				sleep(100 * time.Millisecond)
				w.a.wantTimeout(c.a)
				w.b.wantTimeout(c.b)
				w.b.wantPackets()
				told, before := w.a, 1
				if c.a == CauseOurKeyUnknown || c.a == CausePresharedKeys {
					told, before = w.b, 0 // it is b that learns something new of a
				}
				told.send(1) // in the back-off: unreachable, but wanted
				settle()
				if got := told.status().Connection; !got.Wanted || got.NextAttempt <= 0 || got.NextAttempt > 1250*time.Millisecond {
					t.Errorf("%+v", got)
				}
				w.network.Hook(nil)
				w.agree()
				if c.name == "nothing arrives" { // no key has changed, so the back-off stands
					sleep(1250 * time.Millisecond)
				}
				told.device.TakeSegments() // ICMP
				sleep(100 * time.Millisecond)
				w.wantUp()
				if n := len(told.requests(RequestAttempt)); n != before+1 {
					t.Errorf("%d attempts", n)
				}
			})
		})
	}
}

// The responder's bye comes late: the cause is named again, with what the peer reports.
func TestLinkLateBye(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.b.newKey()
		w.a.Want("b")
		sleep(10 * time.Second)
		w.edges(func() { w.latency = 3 * time.Second })
		sleep(6 * time.Second)
		for s, cause := range map[*side]CloseCause{w.a: CauseSilence, w.b: CausePeerHasOldKey} {
			if got := s.status().Connection.Closed; got == nil || got.Cause != cause || got.PeerReports != nil {
				t.Errorf("%s: %+v", s.name, got)
			}
		}
		sleep(3 * time.Second)
		got := w.a.status().Connection.Closed
		if got == nil || got.Cause != CauseWeHaveOldKey || got.PeerReports == nil || got.PeerReports.Counters.Mac1Mismatch == 0 {
			t.Errorf("%+v", got)
		}
		if lines := w.a.log.lines("level=WARN", "peer=b", "peer_reports.reason=handshake_timeout", "reports.mac1_mismatch="); len(lines) != 1 {
			t.Errorf("%d lines of what the peer reports", len(lines))
		}
		w.a.wantNothingLeft()
	})
}

// Traffic goes on and the keys never agree: attempts are paced by 1, 2, 4 .. 60 s and up to a quarter more.
func TestLinkBackoff(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.b.newKey()
		for i := range 3000 {
			w.a.send(i)
			sleep(100 * time.Millisecond)
		}
		attempts, closed := w.a.requests(RequestAttempt), w.a.requests(RequestClosed)
		// An attempt takes 15 s, so the pauses of 5 minutes are 1, 2, 4, 8, 16, 32, 60.
		if len(attempts) < 7 || len(attempts) > 8 || len(closed) < 7 {
			t.Fatalf("%d attempts in 5 minutes, %d closed", len(attempts), len(closed))
		}
		for i := range attempts[1:] {
			pause, planned := attempts[i+1].at.Sub(closed[i].at), min(time.Second<<i, time.Minute)
			if pause < planned || pause > planned+planned/4+100*time.Millisecond {
				t.Errorf("pause %d is %v", i, pause)
			}
		}
		if n := len(w.b.requests(RequestAttempt)); n != 0 {
			t.Errorf("%d attempts of the responder", n)
		}
	})
}

// The edge does not begin what it is asked for, as when the portal is away: after 10 s the wish has failed, and is paced as
// attempts are. What waited is dropped.
func TestLinkEdgeDoesNotBegin(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.edges(func() { w.a.deaf = true })
		for i := range 1200 {
			w.a.send(i)
			sleep(100 * time.Millisecond)
		}
		attempts := w.a.requests(RequestAttempt) // each takes 10 s; the pauses are 1, 2, 4, 8, 16, 32
		if len(attempts) < 5 || len(attempts) > 6 {
			t.Fatalf("%d attempts", len(attempts))
		}
		for i := range attempts[1:] {
			pause, planned := attempts[i+1].at.Sub(attempts[i].at)-askTimeout, time.Second<<i
			if pause < planned || pause > planned+planned/4+100*time.Millisecond {
				t.Errorf("pause %d is %v", i, pause)
			}
		}
		sleep(2 * time.Minute)
		w.a.wantNothingLeft()
	})
}

// A session whose peer is gone ends within its 15 s once STUN and WireGuard are silent, and leaves nothing.
func TestLinkLost(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.connect()
		w.edges(func() { w.stun, w.signaling = false, false })
		for i := range 600 { // WireGuard lives, so ICE may be quiet
			w.a.send(i)
			w.b.send(i)
			sleep(100 * time.Millisecond)
		}
		w.wantUp()
		w.network.Hook(func(*udptest.Datagram) bool { return false })
		sleep(16 * time.Second)
		for _, s := range []*side{w.a, w.b} {
			if c := s.status().Connection; c.Closed == nil || c.Closed.Reason != CloseICEDisconnected || c.Closed.Up == 0 {
				t.Errorf("%s: %+v", s.name, c.Closed)
			}
			s.wantNothingLeft()
		}
	})
}

// A client that sees its gateway come back with another key is up again with the first packet after the portal has told it.
func TestLinkKeyChangesUnderSession(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.connect()
		w.b.newKey()
		sleep(100 * time.Millisecond) // b has closed, and told a
		for _, s := range []*side{w.a, w.b} {
			s.wantNothingLeft()
		}
		if c := w.b.status().Connection.Closed; c.Reason != CloseKeysChanged {
			t.Errorf("%+v", c)
		}
		w.agree()
		w.a.send(1)
		sleep(200 * time.Millisecond)
		w.b.wantPackets(w.a.packet(1))
		w.wantUp()
	})
}

// An initiation of a connection that is over here does not cost the packets that wait for the next attempt.
func TestLinkLateHandshakeKeepsStaged(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.connect()
		w.edges(func() {
			w.signaling, w.a.deaf = false, true
			w.a.attempt.Close(CloseShutdown) // b does not hear of it
		})
		w.a.device.TakeSegments()
		before := w.a.counter("handshake_accepted")
		w.b.send(1)
		for i := range 16 { // b misses an answer for 15 s; STUN goes on, else it would end before it asks
			sleep(time.Second)
			w.edges(func() { w.b.attempt.Heard() })
			if i == 10 {
				w.a.send(2)
			}
		}
		if w.a.counter("handshake_accepted") == before {
			t.Fatal("no late initiation")
		}
		w.edges(func() {
			w.signaling = true
			w.generation++
			w.a.begin(w.generation)
		})
		sleep(200 * time.Millisecond)
		w.b.wantPackets(w.a.packet(2))
		w.wantUp()
	})
}
