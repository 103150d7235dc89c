package pipeline

import (
	"time"

	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun"
)

// waiter blocks a shard until one of its edges has something to do. Edges are either all descriptors (poll) or all channels.
// All methods but wake are the shard's.
type waiter interface {
	// sockets changes what is waited for.
	sockets(udp.Pair)
	// wait returns when the TUN or a socket can be read, wake was called or, if blocked, a socket can be written.
	// While blocked the TUN is not waited for.
	wait(blocked bool)
	// writable waits for a socket to take more, at most for limit.
	writable(limit time.Duration)
	// wake makes wait return, now or when it is next called. Any goroutine.
	wake()
	close()
}

// channelWaiter waits for edges that give channels: those in memory and the portable ones.
type channelWaiter struct {
	queue tun.Queue
	pair  udp.Pair
	woken chan struct{} // one slot
}

func newChannelWaiter(q tun.Queue) *channelWaiter {
	return &channelWaiter{queue: q, woken: make(chan struct{}, 1)}
}

func (w *channelWaiter) sockets(pair udp.Pair) { w.pair = pair }

func (w *channelWaiter) wait(blocked bool) {
	var writable4, writable6, read4, read6 <-chan struct{}
	read := w.queue.Ready()
	if w.pair.V4 != nil {
		read4, writable4 = w.pair.V4.Ready(), w.pair.V4.Writable()
	}
	if w.pair.V6 != nil {
		read6, writable6 = w.pair.V6.Ready(), w.pair.V6.Writable()
	}
	if blocked {
		read = nil
	} else {
		writable4, writable6 = nil, nil
	}
	select {
	case <-read:
	case <-read4:
	case <-read6:
	case <-writable4:
	case <-writable6:
	case <-w.woken:
	}
}

func (w *channelWaiter) writable(limit time.Duration) {
	t := time.NewTimer(limit)
	defer t.Stop()
	var writable4, writable6 <-chan struct{}
	if w.pair.V4 != nil {
		writable4 = w.pair.V4.Writable()
	}
	if w.pair.V6 != nil {
		writable6 = w.pair.V6.Writable()
	}
	select {
	case <-writable4:
	case <-writable6:
	case <-t.C:
	}
}

func (w *channelWaiter) wake() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

func (w *channelWaiter) close() {}
