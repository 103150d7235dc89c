package edge

import (
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// What belongs to no attempt is answered with a bye, so that the peer need not wait, but not as often as the peer likes.
func TestUnknownAttempt(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		m := w.mute("laptop", protocol.Client)
		w.await(time.Second, "known", func() bool { return g.connection("laptop").Peer != "" })
		m.say("gate", signal.Message{Kind: signal.Offer, Generation: 3, Agent: 2})
		byes := m.heard(signal.Bye)
		if len(byes) != 1 || byes[0].Reason != "unknown_connection" || byes[0].Generation != 3 {
			t.Fatalf("%+v", byes)
		}
		for range 100 {
			m.say("gate", signal.Message{Kind: signal.Answer, Generation: 3})
		}
		if n := len(m.heard(signal.Bye)); n != 5 {
			t.Errorf("%d byes", n)
		}
		if s := g.connection("laptop"); s.Generation != 0 {
			t.Errorf("an attempt began: %+v", s)
		}
	})
}

// A node whose peer knows nothing of the attempt any more learns why it ended, again if need be.
func TestByeAgain(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		m := w.mute("laptop", protocol.Client)
		w.await(time.Second, "known", func() bool { return g.connection("laptop").Peer != "" })
		m.say("gate", signal.Message{Kind: signal.Offer, Generation: 1})
		w.await(15*time.Second, "given up", func() bool { return g.connection("laptop").LastClose != nil })
		if n := len(m.heard(signal.Answer)); n == 0 {
			t.Error("no answer")
		}
		for i, kind := range []signal.Kind{signal.Answer, signal.Offer} {
			m.say("gate", signal.Message{Kind: kind, Generation: 1, Agent: uint32(i + 1)})
			byes := m.heard(signal.Bye)
			if len(byes) != 2+i || byes[1+i].Reason != "no_candidates" {
				t.Fatalf("%+v", byes)
			}
		}
		m.say("gate", signal.Message{Kind: signal.Offer, Generation: 1}) // a late copy
		time.Sleep(time.Second)
		if s := g.connection("laptop"); s.State != "none" {
			t.Errorf("a late offer began an attempt anew: %+v", s)
		}
	})
}

// However many attempts a peer begins, few are followed, and the portal is asked no oftener.
func TestOfferFlood(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		m := w.mute("laptop", protocol.Client)
		w.await(time.Second, "known", func() bool { return g.connection("laptop").Peer != "" })
		before := w.portal.questions()
		for generation := range uint64(1000) {
			m.say("gate", signal.Message{Kind: signal.Offer, Generation: generation + 1})
			time.Sleep(10 * time.Millisecond)
		}
		if n := w.portal.questions() - before; n < 10 || n > 5+11 {
			t.Errorf("%d questions to the portal", n)
		}
		if n := len(m.heard(signal.Answer)); n > 2*(5+11) {
			t.Errorf("%d answers", n)
		}
		if g.log.count("announces another key") != 1 {
			t.Error("the key is to be mentioned once")
		}
		time.Sleep(2 * time.Second)
		m.say("gate", signal.Message{Kind: signal.Offer, Generation: 1000})
		w.await(time.Second, "begun", func() bool { return g.generation("laptop") == 1000 })
		m.say("gate", signal.Message{Kind: signal.Bye, Generation: g.generation("laptop"), Reason: "shutdown"})
		w.await(time.Second, "closed by the bye", func() bool {
			s := g.connection("laptop")
			return s.LastClose != nil && s.LastClose.Reason == "peer_closed" && s.State != "candidates"
		})
		if s := g.connection("laptop"); s.LastClose.PeerReports == nil {
			t.Errorf("%+v", s.LastClose)
		}
	})
}

// Nobody whom the portal does not name is answered, and the portal is not asked about him oftener than a known peer may ask.
func TestStranger(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		m := w.mute("laptop", protocol.Client)
		w.portal.change(func() { w.portal.nodes["laptop"].hidden = true })
		w.await(time.Second, "unknown", func() bool { return g.connection("laptop").Peer == "" })
		before := w.portal.questions()
		for generation := range uint64(1000) {
			m.say("gate", signal.Message{Kind: signal.Offer, Generation: generation + 1})
			time.Sleep(10 * time.Millisecond)
		}
		if n := w.portal.questions() - before; n < 5 || n > 5+11 {
			t.Errorf("%d questions to the portal", n)
		}
		if m.heard(signal.Answer); len(m.got) != 0 {
			t.Errorf("%d messages to a stranger", len(m.got))
		}
	})
}

// The key to use is the portal's, whatever the peer's offer says.
func TestAnnouncedKey(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		m := w.mute("laptop", protocol.Client)
		w.await(time.Second, "known", func() bool { return g.connection("laptop").Peer != "" })
		was := g.connection("laptop").PublicKey
		m.say("gate", signal.Message{Kind: signal.Offer, Generation: 1})
		w.await(time.Second, "answered", func() bool { return len(m.heard(signal.Answer)) > 0 })
		if now := g.connection("laptop").PublicKey; now != was || now == (crypto.PrivateKey{200}).Public().Encode() {
			t.Errorf("the key became %s", now)
		}
		if g.log.count("announces another key") != 1 {
			t.Error("no word about it")
		}
	})
}

// What cannot begin an attempt does not keep ours from beginning, though it comes while the portal is asked.
func TestOfferInBetween(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		m := w.mute("laptop", protocol.Client)
		w.await(time.Second, "known", func() bool { return g.connection("laptop").Peer != "" })
		w.portal.set(func() { w.portal.slow = time.Second })
		g.pipeline.Want("laptop")
		time.Sleep(100 * time.Millisecond)
		m.say("gate", signal.Message{Kind: signal.Offer, Generation: 3, Agent: 2})
		time.Sleep(2 * time.Second)
		if byes := m.heard(signal.Bye); len(byes) != 1 || byes[0].Reason != "unknown_connection" {
			t.Errorf("%+v", byes)
		}
		if offers := m.heard(signal.Offer); len(offers) == 0 || offers[0].Generation != 4 {
			t.Errorf("%+v", offers)
		}
	})
}
