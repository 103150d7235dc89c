package pipeline

import (
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// This file is when control looks at the sources of paths (path.go): at one that is new before it answers a handshake message
// from there, soon after a lane has moved to it, and at all of them when routes may have changed.

const (
	// walkSlice is how many peers are looked at before control turns to what else there is: half a millisecond.
	walkSlice = 64
	// walkRest is how many times as long as a walk lasted control rests before the next: a router whose routes change all the time
	// is to spend less than a twentieth of a core on it.
	walkRest = 20
	// leastRest is how long it rests at least: with few peers it is waking up that costs.
	leastRest = 50 * time.Millisecond
)

// sourceWalk goes through all peers, in slices. Owned by control. The zero value is at rest.
type sourceWalk struct {
	left  []*peer       // in the walk that is under way
	spent time.Duration // on it
	rest  time.Duration // no other walk before that, on the pipeline's clock; 0: none needed
}

// start begins a walk, also in the middle of another one.
func (w *sourceWalk) start(peers []*peer) { w.left = slices.Clone(peers) }

// ready says that another walk may begin.
func (w *sourceWalk) ready(now time.Duration) bool { return len(w.left) == 0 && now >= w.rest }

// slice returns the peers to look at now.
func (w *sourceWalk) slice() []*peer {
	slice := w.left[:min(walkSlice, len(w.left))]
	w.left = w.left[len(slice):]
	return slice
}

// took notes that a slice was looked at from began to now.
func (w *sourceWalk) took(began, now time.Duration) {
	w.spent += now - began
	if len(w.left) == 0 {
		w.left, w.rest, w.spent = nil, now+max(leastRest, walkRest*w.spent), 0
	}
}

// deadline is when there is something to do although nothing else wakes control, 0: never.
func (w *sourceWalk) deadline(now time.Duration) time.Duration {
	switch {
	case len(w.left) > 0:
		return now
	case now < w.rest:
		return w.rest
	}
	return 0
}

// routeChanges delivers when a walk is due, and nothing while it would be too soon: what has changed meanwhile waits.
func (c *control) routeChanges() <-chan struct{} {
	if len(c.pairs) == 0 || c.pairs[0].Routes == nil || !c.walk.ready(c.now) {
		return nil
	}
	return c.pairs[0].Routes.Changed()
}

// walkSources looks at the next few peers of the walk that is under way.
func (c *control) walkSources() {
	slice := c.walk.slice()
	if len(slice) == 0 {
		return
	}
	began := c.pipeline.clock()
	for _, p := range slice {
		c.controller.checkSources(p, true)
	}
	c.walk.took(began, c.pipeline.clock())
}

// sourceHolds asks the system, if there is somebody to ask.
func (c *control) sourceHolds(path *Path) bool {
	if len(c.pairs) == 0 || c.pairs[0].Routes == nil {
		return true
	}
	return c.pairs[0].Routes.SourceHolds(udp.Run{Dst: path.Dst, Src: path.Src, IfIndex: path.IfIndex}, c.udp.Mark)
}
