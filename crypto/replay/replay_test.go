package replay

import (
	"math/rand/v2"
	"testing"

	wgreplay "golang.zx2c4.com/wireguard/replay"
)

// try is one counter and whether it must be accepted.
type try struct {
	counter uint64
	want    bool
}

func check(t *testing.T, w *Window, tries ...try) {
	t.Helper()
	for i, c := range tries {
		if got := w.Accept(c.counter); got != c.want {
			t.Fatalf("step %d: Accept(%d) = %v, want %v", i+1, c.counter, got, c.want)
		}
	}
}

// The cases of the kernel's selftest/counter.c, single counters.
func TestCounterSteps(t *testing.T) {
	const lim = Size + 1
	check(t, new(Window),
		try{0, true}, try{1, true}, try{1, false}, try{9, true}, try{8, true}, try{7, true}, try{7, false},
		try{lim, true}, try{lim - 1, true}, try{lim - 1, false}, try{lim - 2, true}, try{2, true}, try{2, false},
		try{lim + 16, true}, try{3, false}, try{lim + 16, false},
		try{lim * 4, true}, try{lim*4 - (lim - 1), true}, try{10, false}, try{lim*4 - lim, false},
		try{lim*4 - (lim + 1), false}, try{lim*4 - (lim - 2), true}, try{lim*4 + 1 - lim, false}, try{0, false},
		try{Limit, false}, try{Limit - 1, true}, try{Limit, false}, try{Limit - 1, false}, try{Limit - 2, true},
		try{Limit + 1, false}, try{Limit + 2, false}, try{Limit - 2, false}, try{Limit - 3, true}, try{0, false},
	)
}

// up and down list the counters from first to last, all to be accepted.
func up(first, last uint64) (s []try) {
	for c := first; c <= last; c++ {
		s = append(s, try{c, true})
	}
	return s
}

func down(first, last uint64) (s []try) {
	for c := first; ; c-- {
		s = append(s, try{c, true})
		if c == last {
			return s
		}
	}
}

// The cases of the kernel's selftest/counter.c, whole windows.
func TestCounterLoops(t *testing.T) {
	for name, tries := range map[string][]try{
		"up, then the oldest that fits":     append(up(1, Size), try{0, true}, try{0, false}),
		"up by one more, the oldest is out": append(up(2, Size+1), try{1, true}, try{0, false}),
		"down to zero":                      down(Size, 0),
		"down to one, zero is out":          append(down(Size+1, 1), try{0, false}),
		"down, forward, zero is out":        append(down(Size, 1), try{Size + 1, true}, try{0, false}),
		"down, zero, forward":               append(down(Size, 1), try{0, true}, try{Size + 1, true}),
		"every other":                       append(append(up(0, 0), try{2, true}, try{4, true}), try{3, true}, try{1, true}, try{2, false}),
	} {
		t.Run(name, func(t *testing.T) { check(t, new(Window), tries...) })
	}
}

// RFC 6479, section 3: moving by more than the ring clears all of it, and by any less exactly the words between.
func TestForwardClears(t *testing.T) {
	for _, jump := range []uint64{1, 63, 64, 65, Size, Size + 1, bitsTotal - 1, bitsTotal, bitsTotal + 1, 3*bitsTotal + 7} {
		var w Window
		for c := range uint64(bitsTotal) {
			w.Accept(c)
		}
		top := bitsTotal - 1 + jump
		if !w.Accept(top) {
			t.Fatalf("jump %d: the greatest counter was refused", jump)
		}
		for c := top - Size; c < top; c++ {
			if got, want := w.Accept(c), c >= bitsTotal; got != want {
				t.Fatalf("jump %d: Accept(%d) = %v, want %v", jump, c, got, want)
			}
		}
	}
}

// The slow twin is a set; another is wireguard-go's filter.
func TestAgainstTwins(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		var w Window
		var filter wgreplay.Filter
		seen := make(map[uint64]bool)
		var greatest, at uint64
		for range 20000 {
			switch dice.IntN(40) {
			case 0:
				at += dice.Uint64N(3 * bitsTotal)
			case 1:
				at -= min(at, dice.Uint64N(2*bitsTotal))
			default:
				at += dice.Uint64N(3)
			}
			want := !seen[at] && (at > greatest || greatest-at <= Size)
			if got := w.Accept(at); got != want {
				t.Fatalf("Accept(%d) = %v after %d, want %v", at, got, greatest, want)
			}
			if filter.ValidateCounter(at, Limit) != want {
				t.Fatalf("wireguard-go differs at %d after %d", at, greatest)
			}
			seen[at] = true
			greatest = max(greatest, at)
		}
	}
}

func TestAcceptAllocatesNothing(t *testing.T) {
	var w Window
	var c uint64
	if n := testing.AllocsPerRun(1000, func() { c += 100; w.Accept(c) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func BenchmarkAccept(b *testing.B) {
	var w Window
	for i := range uint64(b.N) {
		w.Accept(i)
	}
}
