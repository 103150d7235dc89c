package signal

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Faults says how badly an in-memory Network behaves. Rates are from 0 to 1 and are drawn for each message.
type Faults struct {
	// Loss: the message does not arrive, and Send says ErrUnanswered, at once.
	Loss float64
	// LostAck: the message arrives, but Send says ErrUnanswered.
	LostAck float64
	// Repeat: the message arrives twice.
	Repeat float64
	// Reorder: the message arrives after Delay, which lets later ones overtake it.
	Reorder float64
	// Delay is how much later a reordered message comes; 0 means 20 ms.
	Delay time.Duration
}

// Network is a broker in memory for tests. Messages pass through the same encoding, decoding and filters as with NATS.
// Which message suffers what depends on the seed and the order of sends alone. Time is only used to delay reordered
// messages, so a Network also works under testing/synctest.
type Network struct {
	mu      sync.Mutex
	random  *rand.Rand // under mu, and so the rest
	faults  Faults
	down    error              // not nil: sends fail with ErrDown and this
	nodes   map[string]*Memory // joined now
	nextRun uint64
}

// NewNetwork returns a network without nodes.
func NewNetwork(seed uint64, faults Faults) *Network {
	return &Network{random: rand.New(rand.NewPCG(seed, 0x736967)), faults: faults, nodes: map[string]*Memory{}}
}

// SetDown makes the portal unreachable for everybody, for the reason why, or reachable again if why is nil. Messages that are
// delayed still arrive.
func (n *Network) SetDown(why error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = why
}

// Join connects a node. A node of the same name that is still there is replaced and closed, as after a restart. The
// error wraps ErrName.
func (n *Network) Join(name string, filter Filter) (*Memory, error) {
	if !ValidName(name) {
		return nil, fmt.Errorf("signal: join %q: %w", name, ErrName)
	}
	n.mu.Lock()
	old := n.nodes[name]
	n.nextRun++
	m := &Memory{network: n, run: n.nextRun, in: newInbox(name, filter, 0), late: map[*delayed]struct{}{}}
	n.nodes[name] = m
	n.mu.Unlock()
	if old != nil {
		old.Close()
	}
	return m, nil
}

// Memory is one node's Signaler on a Network.
type Memory struct {
	// Frozen.
	network *Network
	run     uint64
	in      *inbox

	closed bool                  // under network.mu
	late   map[*delayed]struct{} // deliveries to come to this node; under network.mu
}

// delayed is a delivery to come.
type delayed struct {
	timer *time.Timer // under network.mu
	from  string
	data  []byte
}

// fate is what happens to one message.
type fate struct {
	lost, unanswered bool
	copies           int
	delay            time.Duration // of the first copy
}

func (n *Network) draw() fate {
	f := n.faults
	hit := func(rate float64) bool { return n.random.Float64() < rate }
	// All are drawn each time, so that one rate does not change what another hits.
	lost, ack, repeat, reorder := hit(f.Loss), hit(f.LostAck), hit(f.Repeat), hit(f.Reorder)
	out := fate{lost: lost, unanswered: lost || ack, copies: 1}
	if repeat {
		out.copies = 2
	}
	if reorder {
		out.delay = f.Delay
		if out.delay <= 0 {
			out.delay = 20 * time.Millisecond
		}
	}
	return out
}

// Send implements Signaler. It does not block.
func (m *Memory) Send(ctx context.Context, to string, msg Message) error {
	if err := m.send(ctx, to, msg); err != nil {
		return fmt.Errorf("signal: %s to %q: %w", msg.Kind, to, err)
	}
	return nil
}

func (m *Memory) send(ctx context.Context, to string, msg Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !ValidName(to) || to == m.in.self {
		return ErrName
	}
	msg.Run = m.run
	data, err := msg.Encode()
	if err != nil {
		return err
	}
	n := m.network
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case m.closed:
		return ErrClosed
	case n.down != nil:
		return fmt.Errorf("%w: %w", ErrDown, n.down)
	}
	peer, f := n.nodes[to], n.draw()
	switch {
	case peer == nil:
		return ErrAbsent
	case f.lost:
		return ErrUnanswered
	case !peer.deliver(m.in.self, data, f) || f.unanswered:
		return ErrUnanswered
	}
	return nil
}

// deliver is called under network.mu and reports whether the message was or will be queued.
func (m *Memory) deliver(from string, data []byte, f fate) bool {
	if f.delay > 0 {
		d := &delayed{from: from, data: data}
		d.timer = time.AfterFunc(f.delay, func() { m.deliverLate(d) })
		m.late[d] = struct{}{}
		f.copies--
	}
	queued := f.delay > 0
	for range f.copies {
		queued = m.in.handle(from, data) || queued
	}
	return queued
}

func (m *Memory) deliverLate(d *delayed) {
	m.network.mu.Lock()
	defer m.network.mu.Unlock()
	if _, due := m.late[d]; due {
		delete(m.late, d)
		m.in.handle(d.from, d.data)
	}
}

// Recv implements Signaler.
func (m *Memory) Recv() <-chan Msg { return m.in.queue }

// Counters returns what was received and dropped until now.
func (m *Memory) Counters() Counters { return m.in.counters() }

// Close leaves the network: others find the node absent. Delayed messages to it are dropped. It may be called twice.
func (m *Memory) Close() error {
	n := m.network
	n.mu.Lock()
	defer n.mu.Unlock()
	m.closed = true
	if n.nodes[m.in.self] == m {
		delete(n.nodes, m.in.self)
	}
	for d := range m.late {
		d.timer.Stop()
	}
	clear(m.late)
	m.in.close()
	return nil
}
