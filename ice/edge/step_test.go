package edge

import (
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// These tests have the two sides count attempts and agents differently, as messages get lost and nodes go away and come back.

// A peer that has crashed and come back does not know the connection: its bye ends ours at once, though it is of another run.
func TestCrash(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		w.portal.set(func() { // the news of the other key is late
			old := w.portal.nodes["gate"].key
			w.portal.nodes["gate"].lie = &old
		})
		g.crash()
		g.start()
		w.await(time.Second, "known again", func() bool { return g.connection("laptop").Peer != "" })
		c.edge.NetworkChanged()
		w.await(time.Second, "closed", func() bool { return c.connection("gate").LastClose != nil })
		if s := c.connection("gate").LastClose; s.Reason != "peer_closed" || s.PeerReports == nil || s.PeerReports.Reason != "unknown_connection" {
			t.Errorf("%+v", s)
		}
		w.portal.change(func() { w.portal.nodes["gate"].lie = nil })
		w.await(5*time.Second, "connected again", func() bool { return up(c, g) })
		w.carries(c, g)
	})
}

// A gateway that has tried to reach a client in vain has counted further than the client, which finds it all the same when it
// is back.
func TestBehind(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		c.close()
		c.state = func() signal.State { return signal.State{Up: !w.isOff("laptop")} }
		c.start()
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		w.cutOff("laptop", true)
		w.cut(c, true)
		for range 600 {
			g.device.InjectData(ipPacket(inner(g.number), inner(c.number), "anybody there?"))
			time.Sleep(time.Second)
		}
		time.Sleep(2 * time.Minute) // nobody wants the client any more
		ahead := g.generation("laptop")
		if ahead < 10 {
			t.Fatal("the gateway has counted to", ahead)
		}
		w.cutOff("laptop", false)
		w.cut(c, false)
		w.await(2*time.Minute, "connected again", func() bool { return up(c, g) })
		if n := c.connection("gate").Generation; uint64(n) > ahead+2 {
			t.Errorf("generation %d after %d", n, ahead)
		}
		w.carries(c, g)
	})
}

// An agent of ours that is closed already has had the number that the peer uses: both take the next one.
func TestAgentGone(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		w.cutOff("laptop", true)
		g.edge.NetworkChanged()
		for range 12 {
			time.Sleep(time.Second)
			w.carries(c, g)
		}
		w.cutOff("laptop", false)
		c.edge.NetworkChanged()
		w.await(3*time.Second, "a new path on both sides", func() bool { return c.agent("gate") > 1 && g.agent("laptop") == c.agent("gate") })
		w.carries(c, g)
	})
}

// An offer of an attempt that is over is answered with its end, so that the peer need not wait for its deadline.
func TestOfferOfTheDead(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		m := w.mute("laptop", protocol.Client)
		w.await(time.Second, "known", func() bool { return g.connection("laptop").Peer != "" })
		m.say("gate", signal.Message{Kind: signal.Offer, Generation: 1})
		w.await(time.Second, "begun", func() bool { return len(m.heard(signal.Answer)) > 0 })
		g.end("laptop", link.CloseKeysChanged)
		w.await(time.Second, "a bye", func() bool { return len(m.heard(signal.Bye)) == 1 })
		m.say("gate", signal.Message{Kind: signal.Offer, Generation: 1})
		if byes := m.heard(signal.Bye); len(byes) != 2 || byes[1].Reason != "keys_changed" {
			t.Errorf("%+v", byes)
		}
		if s := g.connection("laptop"); s.State != "none" {
			t.Errorf("begun again: %+v", s)
		}
	})
}

// Relays that come up late are given to the attempt that needs them.
func TestLateRelay(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		one, _ := w.relayNamed("north", 1)
		w.direct(false)
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		time.Sleep(3 * time.Second)
		w.portal.change(func() { w.portal.relays = []protocol.Relay{one} })
		took := w.await(30*time.Second, "connected", func() bool { return up(c, g) })
		if n := c.connection("gate").Generation; took > 3*time.Second || n != 1 {
			t.Errorf("after %v, attempt %d", took, n)
		}
		w.carries(c, g)
	})
}

// A gateway that was away and is back is tried at once, not when the back-off of the attempts in vain is over.
func TestPeerBack(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		w.cutOff("gate", true)
		w.cut(g, true)
		w.portal.change(func() { w.portal.nodes["gate"].away = true })
		waits := func() bool { return c.connection("gate").NextAttemptS > 20 }
		for i := 0; i < 300 || !waits(); i++ {
			if i == 600 {
				t.Fatalf("the back-off does not grow: %+v", c.connection("gate"))
			}
			c.device.InjectData(ipPacket(inner(c.number), inner(g.number), "anybody there?"))
			time.Sleep(time.Second)
		}
		w.cutOff("gate", false)
		w.cut(g, false)
		w.portal.change(func() { w.portal.nodes["gate"].away = false })
		took := w.await(2*time.Minute, "connected again", func() bool { return up(c, g) })
		if took > 2*time.Second {
			t.Error("after", took)
		}
		w.carries(c, g)
	})
}

// A node that has slept for an hour finds its peers and relays again within seconds, though they have forgotten it.
func TestSleep(t *testing.T) {
	for relayed, limit := range map[bool]time.Duration{
		false: 3 * time.Second,
		true:  12 * time.Second, // 8 s of which this server is silent about an allocation that it does not know
	} {
		run(t, signal.Faults{}, func(w *world) {
			one, server := w.relayNamed("north", 1)
			w.portal.relays = []protocol.Relay{one}
			g := w.node("gate", protocol.Gateway)
			w.relayless = g
			w.direct(!relayed)
			c := w.node("laptop", protocol.Client)
			w.await(10*time.Second, "connected", func() bool { return up(c, g) })
			w.carries(c, g)
			time.Sleep(3 * time.Second)
			c.slept.Add(int64(time.Hour))
			g.end("laptop", link.CloseReplaced) // c was not there for the bye
			_ = server.server.Close()           // nor to refresh its allocation
			w.relayNamed("north", 1)
			c.device.InjectData(ipPacket(inner(c.number), inner(g.number), "awake"))
			took := w.await(time.Minute, "connected again", func() bool { return up(c, g) && g.generation("laptop") > 1 })
			t.Logf("relayed %v: connected again after %v", relayed, took)
			if took > limit {
				w.t.Errorf("relayed %v: after %v", relayed, took)
			}
			w.carries(c, g)
		})
	}
}

// A client that starts while the gateway tries to reach it offers an attempt of its own, and counts from 1: whatever crosses
// whatever, the two agree on one.
func TestStartsCross(t *testing.T) {
	for wait := time.Duration(0); wait < 200*time.Millisecond; wait += 7 * time.Millisecond {
		run(t, crossing, func(w *world) {
			g := w.node("gate", protocol.Gateway)
			c := w.node("laptop", protocol.Client)
			w.await(5*time.Second, "connected", func() bool { return up(c, g) })
			c.crash()
			g.skip("laptop", 5)
			g.end("laptop", link.CloseReplaced)
			go func() {
				time.Sleep(wait)
				g.pipeline.Want("laptop")
			}()
			c.start()
			took := w.await(time.Minute, "connected", func() bool { return up(c, g) })
			if took > 3*time.Second {
				w.t.Errorf("wait %v: after %v", wait, took)
			}
			w.carries(c, g)
		})
	}
}
