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
	// wait returns when the TUN or a socket can be read, wake was called, or a socket that was full can be written. While
	// one is full the TUN is not waited for.
	wait(full families)
	// writable waits for one of the full sockets to take more, at most for limit.
	writable(full families, limit time.Duration)
	// wake makes wait return, now or when it is next called. Any goroutine.
	wake()
	close()
}

// families says which of a shard's sockets something is true of.
type families struct{ v4, v6 bool }

func (f families) any() bool { return f.v4 || f.v6 }

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

func (w *channelWaiter) wait(full families) {
	var read, read4, read6 <-chan struct{}
	if !full.any() {
		read = w.queue.Ready()
	}
	if w.pair.V4 != nil {
		read4 = w.pair.V4.Ready()
	}
	if w.pair.V6 != nil {
		read6 = w.pair.V6.Ready()
	}
	writable4, writable6 := w.room(full)
	select {
	case <-read:
	case <-read4:
	case <-read6:
	case <-writable4:
	case <-writable6:
	case <-w.woken:
	}
}

// room returns the channels that say that a full socket has room.
func (w *channelWaiter) room(full families) (v4, v6 <-chan struct{}) {
	if full.v4 && w.pair.V4 != nil {
		v4 = w.pair.V4.Writable()
	}
	if full.v6 && w.pair.V6 != nil {
		v6 = w.pair.V6.Writable()
	}
	return v4, v6
}

func (w *channelWaiter) writable(full families, limit time.Duration) {
	t := time.NewTimer(limit)
	defer t.Stop()
	writable4, writable6 := w.room(full)
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
