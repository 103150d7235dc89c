package pipeline

import (
	"sync/atomic"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/aead"
)

// chunkBytes is the least work that is handed to another goroutine: waking it costs as much as sealing a few packets.
const chunkBytes = 16 << 10

// task is a run of packets of one keypair.
type task struct {
	keypair *crypto.Keypair
	run     []aead.Packet
	open    bool
}

func (t task) perform() {
	if t.open {
		t.keypair.OpenRun(t.run)
	} else {
		t.keypair.SealRun(t.run)
	}
}

// crew performs tasks of a shard's batch, with the help of worker goroutines if it has any. Packets stay where they are
// in the batch, so order is restored by doing nothing: the shard goes on only when every task is done. The zero value works
// inline.
//
// Owned by the shard: tasks, bytes. The workers take tasks by state, which holds the number of tasks above and the next
// one to take below, in one word so that a worker that wakes late cannot mix two batches.
type crew struct {
	tasks   []task
	bytes   int
	state   atomic.Uint64
	pending atomic.Int64
	work    chan struct{} // one token for each worker that is to look
	done    chan struct{} // the batch's last task is done
	workers int
}

func newCrew(workers int) *crew {
	c := &crew{workers: workers}
	if workers > 0 {
		c.tasks = make([]task, 0, batchPackets)
		c.work = make(chan struct{}, workers)
		c.done = make(chan struct{}, 1)
	}
	return c
}

// start starts the worker goroutines; stop ends them.
func (c *crew) start(spawn func(func())) {
	for range c.workers {
		spawn(func() {
			for range c.work {
				c.take()
			}
		})
	}
}

func (c *crew) stop() {
	if c.work != nil {
		close(c.work)
	}
}

// add gives the crew a run to perform; bytes is its length. Inline it is done at once, while its bytes are in the cache.
func (c *crew) add(t task, bytes int) {
	if c.workers == 0 {
		t.perform()
		return
	}
	c.bytes += bytes
	for parts := max(1, min(bytes/chunkBytes, len(t.run))); parts > 1; parts-- {
		n := len(t.run) / parts
		c.tasks = append(c.tasks, task{t.keypair, t.run[:n], t.open})
		t.run = t.run[n:]
	}
	c.tasks = append(c.tasks, t)
}

// join returns when everything added is done.
func (c *crew) join() {
	n := len(c.tasks)
	if n == 0 {
		return
	}
	if c.bytes < 2*chunkBytes || n < 2 {
		for _, t := range c.tasks {
			t.perform()
		}
	} else {
		c.share(n)
	}
	c.tasks, c.bytes = c.tasks[:0], 0
}

func (c *crew) share(n int) {
	c.pending.Store(int64(n))
	c.state.Store(uint64(n) << 32)
wake:
	for range min(c.workers, n-1) {
		select {
		case c.work <- struct{}{}:
		default:
			break wake // the others have not yet taken their last token
		}
	}
	c.take()
	<-c.done
}

// take performs tasks until none is left.
func (c *crew) take() {
	for {
		s := c.state.Add(1) - 1
		n, i := s>>32, s&(1<<32-1)
		if i >= n {
			return
		}
		c.tasks[i].perform()
		if c.pending.Add(-1) == 0 {
			c.done <- struct{}{}
		}
	}
}
