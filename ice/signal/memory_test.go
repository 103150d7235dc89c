package signal

import (
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"
	"testing/synctest"
	"time"
)

func join(t *testing.T, n *Network, name string) *Memory {
	t.Helper()
	m, err := n.Join(name, Filter{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func TestMemory(t *testing.T) {
	n := NewNetwork(1, Faults{})
	a, b := join(t, n, "a"), join(t, n, "b")
	ctx := context.Background()
	m := offer()
	m.Candidates = append(m.Candidates, "1 1 udp 1 127.0.0.1 1 typ host")
	if err := a.Send(ctx, "b", m); err != nil {
		t.Fatal(err)
	}
	want := offer()
	want.Run = a.run
	if got := <-b.Recv(); got.From != "a" || !reflect.DeepEqual(got.Message, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if c := b.Counters(); c.Received != 1 || c.Candidates != 1 {
		t.Errorf("%+v", c)
	}
	for to, want := range map[string]error{"c": ErrAbsent, "a": ErrName, "B": ErrName} {
		if err := a.Send(ctx, to, offer()); !errors.Is(err, want) {
			t.Errorf("to %s: %v, want %v", to, err, want)
		}
	}
	if err := a.Send(ctx, "b", Message{}); !errors.Is(err, ErrMessage) {
		t.Error(err)
	}
	why := errors.New("cable")
	n.SetDown(why)
	if err := a.Send(ctx, "b", offer()); !errors.Is(err, ErrDown) || !errors.Is(err, why) {
		t.Error(err)
	}
	n.SetDown(nil)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := a.Send(ended, "b", offer()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := n.Join("No", Filter{}); !errors.Is(err, ErrName) {
		t.Error(err)
	}
}

func TestMemoryRestart(t *testing.T) {
	n := NewNetwork(1, Faults{})
	a, b := join(t, n, "a"), join(t, n, "b")
	again := join(t, n, "b")
	if _, open := <-b.Recv(); open {
		t.Error("the replaced node still receives")
	}
	if err := b.Send(context.Background(), "a", offer()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := a.Send(context.Background(), "b", offer()); err != nil {
		t.Error(err)
	}
	if msg := <-again.Recv(); msg.From != "a" || again.run == b.run {
		t.Errorf("%+v", msg)
	}
	for range defaultQueue {
		if err := a.Send(context.Background(), "b", offer()); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Send(context.Background(), "b", offer()); !errors.Is(err, ErrUnanswered) || again.Counters().Full != 1 {
		t.Errorf("a full queue: %v, %+v", err, again.Counters())
	}
}

// outcome is what a run over a bad network gave.
type outcome struct {
	arrived    []uint64 // generations in order of arrival
	unanswered int
}

func badRun(t *testing.T, seed uint64) (o outcome) {
	synctest.Test(t, func(t *testing.T) {
		// The delay ends between two sends: what falls due at the same instant has no order.
		n := NewNetwork(seed, Faults{Loss: 0.2, LostAck: 0.1, Repeat: 0.2, Reorder: 0.3, Delay: 5500 * time.Microsecond})
		a, _ := n.Join("a", Filter{})
		b, _ := n.Join("b", Filter{})
		for i := range 200 {
			m := offer()
			m.Generation = uint64(i + 1)
			if err := a.Send(context.Background(), "b", m); errors.Is(err, ErrUnanswered) {
				o.unanswered++
			} else if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		a.Close()
		b.Close()
		for msg := range b.Recv() {
			o.arrived = append(o.arrived, msg.Generation)
		}
	})
	return o
}

func TestMemoryFaults(t *testing.T) {
	first, same, other := badRun(t, 1), badRun(t, 1), badRun(t, 2)
	if !reflect.DeepEqual(first, same) {
		t.Error("the same seed gives another outcome")
	}
	if reflect.DeepEqual(first, other) {
		t.Error("another seed gives the same outcome")
	}
	seen := map[uint64]int{}
	repeated, overtaken, last := 0, 0, uint64(0)
	for _, g := range first.arrived {
		if seen[g]++; seen[g] == 2 {
			repeated++
		}
		if g < last {
			overtaken++
		}
		last = max(last, g)
	}
	lost := 200 - len(seen)
	if lost < 20 || lost > 60 || repeated < 10 || overtaken < 20 || first.unanswered < lost+5 {
		t.Errorf("%d lost, %d repeated, %d overtaken, %d unanswered", lost, repeated, overtaken, first.unanswered)
	}
}

// TestMemoryClose: a delayed message to a closed node is dropped and leaves no timer.
func TestMemoryClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewNetwork(1, Faults{Reorder: 1, Delay: time.Hour})
		a, _ := n.Join("a", Filter{})
		b, _ := n.Join("b", Filter{})
		if err := a.Send(context.Background(), "b", offer()); err != nil {
			t.Fatal(err)
		}
		a.Close()
		b.Close()
		time.Sleep(2 * time.Hour)
		if msg, open := <-b.Recv(); open {
			t.Errorf("%+v", msg)
		}
		if c := b.Counters(); c != (Counters{}) {
			t.Errorf("%+v", c)
		}
	})
}

func message(kind Kind, run, generation uint64) *Msg {
	return &Msg{From: "b", Message: Message{Kind: kind, Run: run, Generation: generation}}
}

func TestGenerations(t *testing.T) {
	type step struct {
		kind            Kind // 0: Next, which must give generation
		run, generation uint64
		want            bool
	}
	for name, steps := range map[string][]step{
		"offers": {{Offer, 1, 1, true}, {Offer, 1, 1, true}, {Offer, 1, 3, true}, {Offer, 1, 2, false}, {Bye, 1, 2, false},
			{Bye, 1, 3, true}, {Answer, 1, 4, false}, {0, 0, 4, true}, {Answer, 1, 4, true}, {Offer, 1, 3, false}},
		"nothing before":     {{Answer, 1, 1, false}, {Bye, 1, 1, false}, {0, 0, 1, true}, {Bye, 1, 2, false}, {Answer, 1, 1, true}},
		"peer restarts":      {{Offer, 1, 57, true}, {Offer, 2, 1, true}, {Bye, 1, 57, false}, {Offer, 1, 57, false}, {Answer, 1, 1, false}, {Offer, 2, 2, true}},
		"restarted answerer": {{0, 0, 1, true}, {Answer, 1, 1, true}, {0, 0, 2, true}, {Answer, 2, 2, true}, {Bye, 1, 2, false}, {Bye, 2, 2, true}},
		"bye to our old run": {{0, 0, 1, true}, {Bye, 1, 57, false}, {Answer, 1, 1, true}},
		"old run was taken for new": {{Offer, 2, 1, true}, {Offer, 1, 57, true}, {Offer, 2, 1, false}, {Offer, 2, 2, true}, {Offer, 1, 57, false},
			{0, 0, 58, true}, {Answer, 2, 58, true}},
		"glare":   {{0, 0, 1, true}, {Offer, 1, 1, true}, {Answer, 1, 1, true}},
		"largest": {{Offer, 1, MaxGeneration, true}, {0, 0, 1, true}, {Answer, 1, 1, true}},
	} {
		g := NewGenerations()
		for i, s := range steps {
			if s.kind == 0 {
				if got := g.Next("b"); got != s.generation {
					t.Errorf("%s, step %d: Next is %d, want %d", name, i, got, s.generation)
				}
			} else if got := g.Judge(message(s.kind, s.run, s.generation)); (got == Current) != s.want {
				t.Errorf("%s, step %d: %v %d of run %d: %v", name, i, s.kind, s.generation, s.run, got)
			}
		}
	}
	g := NewGenerations()
	g.Next("b")
	g.Forget("b")
	if g.Newest("b") != 0 || g.Newest("c") != 0 || len(g.peers) != 0 {
		t.Error("Forget")
	}
}

// TestWorth: a peer that has counted less is told from its late messages, once for each of its attempts, and one that follows
// another attempt from both.
func TestWorth(t *testing.T) {
	g := NewGenerations()
	want := func(kind Kind, run, generation uint64, want Worth) {
		t.Helper()
		if got := g.Judge(message(kind, run, generation)); got != want {
			t.Errorf("%v %d of run %d: %v, not %v", kind, generation, run, got, want)
		}
	}
	want(Answer, 1, 1, Late)
	for range 30 {
		g.Next("b") // to 30, unheard
	}
	want(Offer, 1, 1, Behind) // the first word of the peer
	want(Offer, 1, 1, Late)
	if g.Next("b") != 31 {
		t.Fatal("not the next one")
	}
	want(Answer, 1, 30, Late) // of nobody we know
	want(Answer, 1, 31, Current)
	for range 10 {
		g.Next("b")
	}
	want(Answer, 1, 31, Astray)
	want(Offer, 1, 32, Behind)
	want(Offer, 1, 32, Late)
	want(Offer, 1, 1, Late)
	want(Bye, 1, 31, Late)
	second := message(Offer, 1, 33)
	second.Agent = 2
	if got := g.Judge(second); got != Astray {
		t.Errorf("a second agent of an old attempt: %v", got)
	}
	want(Offer, 1, 33, Behind)
	want(Offer, 2, 1, Current) // it has restarted
	want(Offer, 1, 40, Late)
	want(Answer, 1, 1, Late)
	want(Answer, 2, 41, Astray) // it has met an offer of ours
	g.Next("b")
	want(Offer, 2, 2, Behind)
}

// TestGenerationsLive: whatever came before, a peer that goes on counting is heard again.
func TestGenerationsLive(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		g := NewGenerations()
		for range 100 {
			g.Judge(message(Kind(1+random.IntN(3)), 1+random.Uint64N(6), 1+random.Uint64N(20)))
		}
		if g.Judge(message(Offer, 1, 21)) != Current || g.Judge(message(Bye, 1, 21)) != Current {
			t.Fatal("a newer offer was dropped")
		}
		next := g.Next("b")
		if run := 1 + random.Uint64N(6); g.Judge(message(Answer, run, next)) != Current {
			t.Fatalf("the answer of run %d to our newest offer was dropped", run)
		}
	}
}
