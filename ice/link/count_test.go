package link

import (
	"fmt"
	"testing"
	"time"
)

// TestCountersAreBounded: what is told of peers does not grow with their number, and 10,000 are looked at in no time.
func TestCountersAreBounded(t *testing.T) {
	few := len(New(Config{}).Counters())
	c := New(Config{})
	for i := range 10_000 {
		c.Link(fmt.Sprint(i)).(*Link).backoff.wanted = i%10 == 0
	}
	begin := time.Now()
	list := c.Counters()
	took := time.Since(begin)
	if len(list) != few {
		t.Errorf("%d counters with 10,000 peers, %d with none", len(list), few)
	}
	got := map[string]uint64{}
	for _, one := range list {
		got[one.Name] = one.Value
	}
	if got["connections_waiting"] != 1000 || got["connections_none"] != 9000 {
		t.Errorf("%d wait and %d have no connection, want 1000 and 9000", got["connections_waiting"], got["connections_none"])
	}
	if took > 250*time.Millisecond { // some microseconds each would be too much for the control goroutine
		t.Errorf("it took %v, want much less than 250 ms", took)
	}
}
