package crypto

import (
	"bytes"
	"slices"
	"sync"
	"testing"
	"time"
)

// Section 5.4.6: no counter is given twice, also under parallel callers, and none at or above the limit.
func TestReserveParallel(t *testing.T) {
	const callers = 4
	var k Keypair
	start := uint64(RejectAfterMessages - 20000)
	k.counter.Store(start)
	taken := make([][][2]uint64, callers)
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for n := 1; ; n = n%7 + 1 {
				first, ok := k.Reserve(n)
				if !ok {
					return
				}
				taken[c] = append(taken[c], [2]uint64{first, first + uint64(n)})
			}
		})
	}
	wg.Wait()
	all := slices.Concat(taken...)
	slices.SortFunc(all, func(a, b [2]uint64) int { return bytes.Compare(be(a[0]), be(b[0])) })
	at := start
	for _, r := range all {
		if r[0] != at {
			t.Fatalf("counters %d to %d were given out of turn", at, r[0])
		}
		at = r[1]
	}
	if at > RejectAfterMessages || RejectAfterMessages-at >= 7 {
		t.Fatalf("the end is %d below the limit", RejectAfterMessages-at)
	}
}

func be(v uint64) []byte {
	return []byte{byte(v >> 56), byte(v >> 48), byte(v >> 40), byte(v >> 32), byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}
}

// Section 6.1, Reject-After-Messages: 2^64 - 2^13 - 1. A run that would cross it takes nothing.
func TestReserveLimit(t *testing.T) {
	if uint64(RejectAfterMessages) != 0xffffffffffffdfff-0 {
		t.Fatalf("limit %x", uint64(RejectAfterMessages))
	}
	var k Keypair
	for _, c := range []struct {
		counter uint64
		n       int
		ok      bool
	}{
		{0, 1, true}, {0, 0, false}, {0, -1, false}, {5, 64, true},
		{RejectAfterMessages - 1, 1, true}, {RejectAfterMessages - 1, 2, false}, {RejectAfterMessages, 1, false},
		{RejectAfterMessages - 64, 64, true}, {RejectAfterMessages - 64, 65, false}, {^uint64(0), 1, false},
	} {
		k.counter.Store(c.counter)
		first, ok := k.Reserve(c.n)
		left := k.counter.Load()
		if ok != c.ok || ok && (first != c.counter || left != c.counter+uint64(c.n)) || !ok && left != c.counter {
			t.Errorf("Reserve(%d) at %d: %d %v, then %d", c.n, c.counter, first, ok, left)
		}
	}
}

// Section 6.2: which session asks for a rekey, and when.
func TestRekeyTimes(t *testing.T) {
	const created = time.Hour
	for _, c := range []struct {
		age                 time.Duration
		initiator           bool
		counter             uint64
		usable, send, onRcv bool
	}{
		{0, true, 0, true, false, false},
		{120*time.Second - 1, true, 0, true, false, false},
		{120 * time.Second, true, 0, true, true, false},
		{165*time.Second - 1, true, 0, true, true, false},
		{165 * time.Second, true, 0, true, true, true},
		{179 * time.Second, false, 0, true, false, false},
		{0, false, RekeyAfterMessages, true, false, false},
		{0, false, RekeyAfterMessages + 1, true, true, false},
		{0, true, RekeyAfterMessages + 1, true, true, false},
		{0, true, RejectAfterMessages, false, true, false},
		{180 * time.Second, true, 0, false, true, true},
	} {
		k := Keypair{Created: created, Initiator: c.initiator, peer: &Peer{}}
		k.peer.current.store(&k)
		k.counter.Store(c.counter)
		now := created + c.age
		if k.Usable(now) != c.usable || k.RekeyOnSend(now) != c.send || k.RekeyOnReceive(now) != c.onRcv || k.RekeyOnReceive(now) {
			t.Errorf("%+v", c)
		}
	}
}

// Key confirmation is won once, whoever races for it.
func TestMarkConfirmed(t *testing.T) {
	var k Keypair
	k.unconfirmed.Store(true)
	wins := make([]bool, 8)
	var wg sync.WaitGroup
	for i := range wins {
		wg.Go(func() { wins[i] = k.NeedsConfirm() && k.MarkConfirmed() })
	}
	wg.Wait()
	n := 0
	for _, won := range wins {
		if won {
			n++
		}
	}
	if n != 1 || k.NeedsConfirm() {
		t.Fatalf("%d callers won", n)
	}
}

func TestLaneCallsAllocateNothing(t *testing.T) {
	table := newIndexTable()
	k := &Keypair{LocalIndex: 77}
	table.attach(k)
	header := make([]byte, SizeKeepalive)
	n := testing.AllocsPerRun(1000, func() {
		if table.Lookup(77) != k || !k.Usable(1) || !k.Acceptable(1) || k.RekeyOnSend(1) || k.RekeyOnReceive(1) || k.NeedsConfirm() {
			t.Fatal("wrong answer")
		}
		c, _ := k.Reserve(64)
		k.Window().Accept(c)
		PutTransportHeader(header, 1, c)
		ParseTransport(header)
	})
	if n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func BenchmarkReserve(b *testing.B) {
	var k Keypair
	for b.Loop() {
		k.Reserve(64)
	}
}
