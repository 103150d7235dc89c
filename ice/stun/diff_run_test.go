package stun

import (
	"flag"
	"math/rand/v2"
	"testing"
	"time"
)

var (
	inputs = flag.Int("inputs", 200_000, "datagrams that TestDifferential makes")
	seed   = flag.Uint64("seed", 0, "what it makes them of")
)

// TestDifferential compares so many made datagrams.
func TestDifferential(t *testing.T) {
	k, began := maker{Rand: rand.New(rand.NewPCG(*seed, 0))}, time.Now()
	passed, explained := [3]int{}, 0
	var m Message
	for i := range *inputs {
		b := k.next()
		explained += compare(t, b)
		if i%16 == 0 {
			for p := range Policy(3) {
				if m.Parse(b, p) == DropNone {
					passed[p]++
				}
			}
		}
	}
	for why, n := range reasons {
		t.Logf("%9d %s", n, why)
	}
	t.Logf("seed %d: %d inputs, %d explained differences, of each sixteenth passed %v, %v", *seed, *inputs, explained, passed, time.Since(began))
}
