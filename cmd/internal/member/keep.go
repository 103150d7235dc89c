package member

import (
	"context"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/tun/host"
)

const (
	// mendInterval is how long something may stay as others have left it that host.Watcher does not see.
	mendInterval = 20 * time.Second
	// After a look at the machine there is a pause of pauseFactor times as long as it took, but of these at least and at most: somebody
	// who changes things all the time gets a small part of a processor, and what is changed is seen within a second.
	pauseFactor = 9
	leastPause  = 250 * time.Millisecond
	mostPause   = 750 * time.Millisecond
)

// keeper owns the machine while the node lives. Frozen.
type keeper struct {
	machine *machine
	answers chan hostAnswer
	look    chan struct{} // one slot: something may have changed
	reviews chan chan struct{}
	release chan chan error // ends that the machine fails closed; answers have one slot
	ended   chan struct{}
}

// hostAnswer is one of the portal's, to be applied.
type hostAnswer struct {
	sync protocol.Sync
	done chan error // one slot
}

func newKeeper(m *machine) *keeper {
	return &keeper{
		machine: m, answers: make(chan hostAnswer), look: make(chan struct{}, 1), reviews: make(chan chan struct{}),
		release: make(chan chan error), ended: make(chan struct{}),
	}
}

// run applies the portal's answers, and mends the machine when something was changed and from time to time, until ctx ends.
func (k *keeper) run(ctx context.Context) {
	defer close(k.ended)
	ticker := time.NewTicker(mendInterval)
	defer ticker.Stop()
	var watched, changed <-chan struct{} // changed is nil during a pause
	if k.machine.stack == nil {
		if watcher, err := host.NewWatcher(k.machine.options.Table); err == nil { // else there is the ticker
			defer watcher.Close()
			watched = watcher.Changes()
			changed = watched
		}
	}
	again := false // at the end of the pause, whatever happens
	pause := time.NewTimer(0)
	defer pause.Stop()
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
		case <-pause.C:
			changed = watched
			if !again {
				continue
			}
		case done := <-k.release:
			done <- k.machine.release()
			continue
		case <-ticker.C:
		case <-changed:
		case <-k.look:
		}
		begin := time.Now()
		again = k.machine.mend()
		changed = nil
		pause.Reset(min(max(pauseFactor*time.Since(begin), leastPause), mostPause))
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

// releaseNow ends that the machine fails closed.
func (k *keeper) releaseNow() error {
	done := make(chan error, 1)
	select {
	case k.release <- done:
		return <-done
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
