package ice

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// hand is a bell rung by a test.
type hand struct {
	rings chan struct{}
	route atomic.Value
}

func (h *hand) ring() bool {
	_, ok := <-h.rings
	return ok
}

func (h *hand) routes() string { return h.route.Load().(string) }
func (h *hand) close()         { close(h.rings) }

// TestWatcher: a burst is one change, and a notice without a change is none.
func TestWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hand{rings: make(chan struct{})}
		h.route.Store("a")
		var addr atomic.Value
		addr.Store(aliceAddr)
		w := watch(h, func() []netip.Addr { return []netip.Addr{addr.Load().(netip.Addr)} })
		changed := func() bool {
			select {
			case <-w.Changes():
				return true
			default:
				return false
			}
		}
		burst := func(length time.Duration) {
			for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(settleTime / 3) {
				h.rings <- struct{}{}
			}
		}
		burst(time.Second)
		time.Sleep(settleTime)
		if changed() {
			t.Error("a change where nothing has changed")
		}
		h.route.Store("b")
		burst(time.Second)
		if changed() {
			t.Error("told before it was quiet")
		}
		time.Sleep(settleTime)
		if !changed() || changed() {
			t.Error("a burst must be one change")
		}
		addr.Store(bobAddr)
		burst(settleLimit + settleTime)
		if !changed() {
			t.Error("endless notices hide a change")
		}
		burst(settleTime / 3)
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
}
