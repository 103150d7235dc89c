package signal

import (
	"sync"
	"sync/atomic"
)

// defaultQueue is the length of the queue behind Recv.
const defaultQueue = 256

// inbox is the receiving half that both Signalers share: from bytes and a vouched-for sender to the queue.
type inbox struct {
	// Frozen.
	self   string
	filter Filter

	mu     sync.Mutex
	closed bool
	queue  chan Msg // sent to and closed under mu

	received, sender, oversize, malformed, full, late, reply, candidates atomic.Uint64
}

func newInbox(self string, filter Filter, queue int) *inbox {
	if queue <= 0 {
		queue = defaultQueue
	}
	return &inbox{self: self, filter: filter, queue: make(chan Msg, queue)}
}

// handle queues a message of from and reports whether it did, or counts why not. data is borrowed.
func (b *inbox) handle(from string, data []byte) bool {
	if len(data) > MaxMessage {
		b.oversize.Add(1)
		return false
	}
	m, err := Decode(data)
	if err != nil {
		b.malformed.Add(1)
		return false
	}
	var dropped int
	m.Candidates, dropped = b.filter.Keep(m.Candidates)
	b.candidates.Add(uint64(dropped))
	return b.put(Msg{From: from, Message: m})
}

func (b *inbox) put(msg Msg) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		b.late.Add(1)
		return false
	}
	if len(b.queue) == cap(b.queue) {
		b.full.Add(1)
		return false
	}
	b.received.Add(1) // before who receives it can look
	b.queue <- msg    // does not block: only put fills the queue, under mu
	return true
}

func (b *inbox) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.closed = true
		close(b.queue)
	}
}

func (b *inbox) counters() Counters {
	return Counters{
		Received: b.received.Load(), Sender: b.sender.Load(), Oversize: b.oversize.Load(), Malformed: b.malformed.Load(),
		Full: b.full.Load(), Closed: b.late.Load(), Reply: b.reply.Load(), Candidates: b.candidates.Load(),
	}
}
