package member

import (
	"context"
	"time"

	"github.com/sluice-vpn/sluice/ice"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// mendInterval is how long something on the machine may stay as others have left it.
const mendInterval = 20 * time.Second

// keeper owns the machine while the node lives. Frozen.
type keeper struct {
	machine *machine
	answers chan hostAnswer
	look    chan struct{} // one slot: something may have changed
	reviews chan chan struct{}
	ended   chan struct{}
}

// hostAnswer is one of the portal's, to be applied.
type hostAnswer struct {
	sync protocol.Sync
	done chan error // one slot
}

func newKeeper(m *machine) *keeper {
	return &keeper{
		machine: m, answers: make(chan hostAnswer), look: make(chan struct{}, 1), reviews: make(chan chan struct{}), ended: make(chan struct{}),
	}
}

// run applies the portal's answers, and mends the machine from time to time and when the network has changed, until ctx ends.
func (k *keeper) run(ctx context.Context) {
	defer close(k.ended)
	ticker := time.NewTicker(mendInterval)
	defer ticker.Stop()
	var changed <-chan struct{}
	if watcher, err := ice.NewWatcher(nil); err == nil { // else there is the ticker
		defer watcher.Close()
		changed = watcher.Changes()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-k.answers:
			a.done <- k.machine.apply(a.sync)
			continue
		case done := <-k.reviews:
			k.machine.review()
			close(done)
			continue
		case <-ticker.C:
		case <-changed:
		case <-k.look:
		}
		k.machine.mend()
	}
}

// apply waits until the machine is as the portal says.
func (k *keeper) apply(s protocol.Sync) error {
	a := hostAnswer{s, make(chan error, 1)}
	select {
	case k.answers <- a:
		return <-a.done
	case <-k.ended:
		return context.Canceled
	}
}

// networkChanged has the machine looked after now.
func (k *keeper) networkChanged() {
	select {
	case k.look <- struct{}{}:
	default:
	}
}

// review brings the machine's remarks up to date, unless ctx ends before.
func (k *keeper) review(ctx context.Context) {
	done := make(chan struct{})
	select {
	case k.reviews <- done:
	case <-k.ended:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}
