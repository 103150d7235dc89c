package ice

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// A change of the network comes as a burst of notices; it counts as one when they have been quiet for settleTime, and after
// settleLimit at the latest.
const (
	settleTime  = 300 * time.Millisecond
	settleLimit = 2 * time.Second
)

// Watcher tells when the network has changed in a way that matters to ICE: local addresses or default routes are others
// than before. On systems without netlink it tells nothing.
type Watcher struct {
	changes chan struct{}
	cancel  context.CancelFunc
	ended   chan struct{}
}

// bell is the system's side of a Watcher.
type bell interface {
	// ring waits for a notice that something may have changed; false once the bell is closed.
	ring() bool
	// routes describes the default routes.
	routes() string
	close()
}

// NewWatcher starts to watch the network namespace of the calling thread. addresses lists the local addresses that matter, see
// Uplinks.All; a goroutine of the Watcher calls it. Nil: those of all interfaces do.
func NewWatcher(addresses func() []netip.Addr) (*Watcher, error) {
	b, err := newBell()
	if err != nil {
		return nil, err
	}
	if addresses != nil {
		return watch(b, addresses), nil
	}
	all, err := NewUplinks(nil, 0)
	if err != nil {
		b.close()
		return nil, err
	}
	return watch(withUplinks{b, all}, all.All), nil
}

// withUplinks closes what was made for the Watcher alone.
type withUplinks struct {
	bell
	uplinks *Uplinks
}

func (w withUplinks) close() {
	w.bell.close()
	_ = w.uplinks.Close()
}

// Changes delivers a value after the network has changed; changes before it was taken count as one.
func (w *Watcher) Changes() <-chan struct{} { return w.changes }

// Close ends the Watcher and waits for its goroutines.
func (w *Watcher) Close() error {
	w.cancel()
	<-w.ended
	return nil
}

func watch(b bell, addresses func() []netip.Addr) *Watcher {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watcher{changes: make(chan struct{}, 1), cancel: cancel, ended: make(chan struct{})}
	// What is known before the first notice is read, so that no change falls between.
	look := func() string { return fmt.Sprintln(addresses()) + b.routes() }
	before := look()
	notices := make(chan struct{}, 1)
	rung := make(chan struct{})
	go func() {
		defer close(rung)
		for b.ring() {
			select {
			case notices <- struct{}{}:
			default:
			}
		}
	}()
	go func() {
		defer close(w.ended)
		w.run(ctx, notices, before, look)
		b.close()
		<-rung
	}()
	return w
}

// run compares what look sees, after each burst of notices, with what it saw before.
func (w *Watcher) run(ctx context.Context, notices <-chan struct{}, before string, look func() string) {
	for {
		select {
		case <-notices:
		case <-ctx.Done():
			return
		}
		if !settle(ctx, notices) {
			return
		}
		now := look()
		if now == before {
			continue
		}
		before = now
		select {
		case w.changes <- struct{}{}:
		default:
		}
	}
}

// settle returns when notices have been quiet, or for too long not quiet; false if ctx has ended.
func settle(ctx context.Context, notices <-chan struct{}) bool {
	limit := time.NewTimer(settleLimit)
	defer limit.Stop()
	for {
		quiet := time.NewTimer(settleTime)
		select {
		case <-notices:
			quiet.Stop()
		case <-quiet.C:
			return true
		case <-limit.C:
			quiet.Stop()
			return true
		case <-ctx.Done():
			quiet.Stop()
			return false
		}
	}
}
