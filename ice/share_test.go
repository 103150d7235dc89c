package ice

import (
	"net/netip"
	"testing"
	"time"
)

// A peer gets 16 permissions in 5 minutes and 16 channels in 10, those that it has had again, and one channel where they are scarce.
func TestShare(t *testing.T) {
	var s Share
	now := time.Hour
	address := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }
	permits := func(from int) (n int) {
		for i := range 100 {
			if s.Permit(now, address(from+i)) {
				n++
			}
		}
		return n
	}
	binds := func(from int, scarce bool) (n int) {
		for i := range 100 {
			if s.Bind(now, netip.AddrPortFrom(address(1), uint16(from+i)), scarce) {
				n++
			}
		}
		return n
	}
	for _, step := range []struct {
		wait              time.Duration
		from              int
		scarce            bool
		permits, channels int
	}{
		{0, 0, true, 16, 1},
		{0, 0, false, 16, 16},                // those that it has
		{0, 100, false, 0, 0},                // others
		{5*time.Minute - 1, 0, true, 16, 16}, // again, which counts from now on
		{time.Minute, 100, false, 0, 0},
		{4 * time.Minute, 100, false, 16, 0},
		{5 * time.Minute, 200, true, 16, 1},
	} {
		now += step.wait
		if n := permits(step.from); n != step.permits {
			t.Errorf("%v: %d permissions, want %d", now, n, step.permits)
		}
		if n := binds(step.from, step.scarce); n != step.channels {
			t.Errorf("%v: %d channels, want %d", now, n, step.channels)
		}
	}
}
