package ice

import (
	"net/netip"
	"testing"
	"time"
)

// TestWatcherWake: a waking is told although nothing else has changed, and nothing after Close.
func TestWatcherWake(t *testing.T) {
	b, err := newBell()
	if err != nil {
		t.Fatal(err)
	}
	w := watch(b, func() []netip.Addr { return nil })
	b.(*notices).wake()
	select {
	case <-w.Changes():
	case <-time.After(20 * time.Second):
		t.Error("a waking was not told")
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if b.ring() {
		t.Error("it rings after Close")
	}
}
