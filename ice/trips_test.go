package ice

import (
	"testing"
	"time"
)

// Of many round trips the latest are told, in their order, and none of long ago.
func TestTrips(t *testing.T) {
	var all trips
	if got := all.list(time.Time{}); len(got) != 0 {
		t.Errorf("of none: %v", got)
	}
	base := time.Unix(1000, 0)
	for i := range 3 * maxTrips {
		all.note(base.Add(time.Duration(i)*time.Second), time.Duration(i)*time.Millisecond)
		want := min(i+1, maxTrips)
		got := all.list(time.Time{})
		if len(got) != want || got[want-1].Took != time.Duration(i)*time.Millisecond || got[0].Took != time.Duration(i+1-want)*time.Millisecond {
			t.Fatalf("after %d: %d from %v to %v, want %d up to %d ms", i+1, len(got), got[0], got[len(got)-1], want, i)
		}
	}
	last := base.Add((3*maxTrips - 1) * time.Second)
	if got := all.list(last.Add(-4 * time.Second)); len(got) != 5 || got[4].At != last {
		t.Errorf("of the last 4 s: %v, want 5 up to %v", got, last)
	}
}
