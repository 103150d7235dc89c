//go:build !linux || sluice_portable

package netstack

// bell tells the queue's owner that there is something to read.
type bell struct{ rings chan struct{} }

func newBell() (*bell, error) { return &bell{make(chan struct{}, 1)}, nil }

func (b *bell) ring() {
	select {
	case b.rings <- struct{}{}:
	default:
	}
}

// again is after a read that has left something.
func (b *bell) again() { b.ring() }

func (b *bell) reset() {
	select {
	case <-b.rings:
	default:
	}
}

func (b *bell) fd() int                { return -1 }
func (b *bell) ready() <-chan struct{} { return b.rings }
