// Package tuntest is a TUN device in memory, for tests of what stands above a device.
//
// A test injects what the kernel would send out, superpackets included, and takes what was written. Nothing
// blocks and nothing depends on the clock, so it works under testing/synctest. All methods may be called by any goroutine
// at any time, those of [tun.Queue] included.
package tuntest

import (
	"slices"
	"sync"

	"github.com/sluice-vpn/sluice/tun"
	"github.com/sluice-vpn/sluice/tun/ip"
)

// Config describes a device. The zero value is a plain one with one queue.
type Config struct {
	Name         string // "test0" if empty
	MTU          int    // tun.DefaultMTU if 0
	Queues       int    // 1 if 0
	Capabilities tun.Capabilities
}

// AllCapabilities is every offload.
var AllCapabilities = tun.Capabilities{VNETHeader: true, TSO4: true, TSO6: true, USO: true}

// Packet is one packet that was written, its pieces joined. The bytes are the test's own.
type Packet struct {
	Data []byte
	tun.Offload
}

// Device is the device; it implements [tun.Device].
type Device struct {
	name   string
	queues []*Queue
	events chan tun.Event

	mu           sync.Mutex
	mtu          int
	capabilities tun.Capabilities
	closed       bool
	gone         bool
	down         bool
}

// Queue is one queue of a device; it implements [tun.Queue].
type Queue struct {
	device *Device
	ready  chan struct{}
	wrote  chan struct{}
	stats  tun.QueueStats

	mu      sync.Mutex
	waiting []Packet
	spare   [][]byte // buffers of packets that were read
	written []Packet
	limit   int // packets that Write still takes; -1 any number
	source  func(p *tun.Superpacket) bool
	sink    func(r *tun.Run) error
}

// New makes a device that is up. EventUp waits in Events.
func New(c Config) *Device {
	d := &Device{name: c.Name, mtu: c.MTU, capabilities: c.Capabilities, events: make(chan tun.Event, 64)}
	if d.name == "" {
		d.name = "test0"
	}
	if d.mtu == 0 {
		d.mtu = tun.DefaultMTU
	}
	for range max(1, c.Queues) {
		d.queues = append(d.queues, &Queue{
			device: d, ready: make(chan struct{}, 1), wrote: make(chan struct{}, 1), limit: -1,
		})
	}
	d.events <- tun.EventUp
	return d
}

// Name is Config.Name.
func (d *Device) Name() string { return d.name }

// MTU is Config.MTU or what SetMTU set.
func (d *Device) MTU() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mtu
}

// Capabilities are Config.Capabilities or what SetCapabilities set.
func (d *Device) Capabilities() tun.Capabilities {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.capabilities
}

// SetCapabilities changes the capabilities, as after a refused run.
func (d *Device) SetCapabilities(c tun.Capabilities) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.capabilities = c
}

// Queues are all queues, as tun.Queue.
func (d *Device) Queues() []tun.Queue {
	var queues []tun.Queue
	for _, q := range d.queues {
		queues = append(queues, q)
	}
	return queues
}

// Queue is queue i.
func (d *Device) Queue(i int) *Queue { return d.queues[i] }

// Events is the channel that SetUp, SetMTU and Delete write to.
func (d *Device) Events() <-chan tun.Event { return d.events }

// SetUp changes the state of the interface. While it is down, Write drops everything and returns ErrDown.
func (d *Device) SetUp(up bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || d.gone || d.down == !up {
		return
	}
	d.down = !up
	if up {
		d.post(tun.EventUp)
	} else {
		d.post(tun.EventDown)
	}
}

// SetMTU changes the MTU.
func (d *Device) SetMTU(mtu int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || d.gone || d.mtu == mtu {
		return
	}
	d.mtu = mtu
	d.post(tun.EventMTU)
}

// Delete deletes the interface from outside: Read and Write return ErrClosed, Events delivers EventGone and is closed.
func (d *Device) Delete() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || d.gone {
		return
	}
	d.gone = true
	d.post(tun.EventGone)
	close(d.events)
	d.ring()
}

// Close obeys tun.Device. It may be called more than once.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed && !d.gone {
		close(d.events)
	}
	d.closed = true
	d.ring()
	return nil
}

// post delivers an event; if nobody reads, the oldest gives way. The caller holds d.mu, so there is one sender.
func (d *Device) post(e tun.Event) {
	for {
		select {
		case d.events <- e:
			return
		default:
		}
		select {
		case <-d.events:
		default:
		}
	}
}

func (d *Device) ring() {
	for _, q := range d.queues {
		ring(q.ready)
	}
}

func ring(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (d *Device) state() (closed, down bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed || d.gone, d.down
}

// Inject puts packets into queue 0; see [Queue.Inject].
func (d *Device) Inject(packets ...Packet) { d.queues[0].Inject(packets...) }

// InjectData puts single, complete packets into queue 0.
func (d *Device) InjectData(packets ...[]byte) {
	for _, data := range packets {
		d.queues[0].Inject(Packet{Data: data})
	}
}

// Take returns what was written to all queues since the last Take, queue by queue.
func (d *Device) Take() []Packet {
	var all []Packet
	for _, q := range d.queues {
		all = append(all, q.Take()...)
	}
	return all
}

// TakeSegments is Take, with superpackets cut into the packets that they stand for and checksums complete. It
// panics on a superpacket whose Offload does not fit it, which is a bug of whoever wrote it.
func (d *Device) TakeSegments() [][]byte {
	var all [][]byte
	for _, p := range d.Take() {
		all = append(all, Cut(p)...)
	}
	return all
}

// Cut cuts one packet into segments. It panics if p.Offload does not fit it.
func Cut(p Packet) [][]byte {
	var s tun.Segmenter
	if err := s.Init(&tun.Superpacket{Data: p.Data, Offload: p.Offload}); err != nil {
		panic(err)
	}
	var all [][]byte
	for k := range s.Count() {
		b := make([]byte, s.Len(k))
		s.Cut(k, b)
		all = append(all, b)
	}
	return all
}

// Inject queues copies of packets for Read.
func (q *Queue) Inject(packets ...Packet) {
	q.mu.Lock()
	for _, p := range packets {
		var buf []byte
		if n := len(q.spare); n > 0 {
			buf, q.spare = q.spare[n-1], q.spare[:n-1]
		}
		q.waiting = append(q.waiting, Packet{Data: append(buf[:0], p.Data...), Offload: p.Offload})
	}
	q.mu.Unlock()
	ring(q.ready)
}

// Pending is how many injected packets have not been read.
func (q *Queue) Pending() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// Take returns what was written since the last Take.
func (q *Queue) Take() []Packet {
	q.mu.Lock()
	defer q.mu.Unlock()
	p := q.written
	q.written = nil
	return p
}

// Wrote delivers a value after writes; several may count as one.
func (q *Queue) Wrote() <-chan struct{} { return q.wrote }

// SetLimit lets Write take n more packets, after which the device is full; -1 any number.
func (q *Queue) SetLimit(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.limit = n
}

// SetSource replaces the injected packets by a function that fills p.Data (a view into p.Buf from tun.ReadHeadroom on)
// and p.Offload, or returns false when dry. It is called by the goroutine that reads.
func (q *Queue) SetSource(source func(p *tun.Superpacket) bool) {
	q.mu.Lock()
	q.source = source
	q.mu.Unlock()
	ring(q.ready)
}

// SetSink replaces the collecting of written packets by a function; its error ends Write. It is called by the
// goroutine that writes.
func (q *Queue) SetSink(sink func(r *tun.Run) error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sink = sink
}

// Read obeys tun.Queue.
func (q *Queue) Read(batch []tun.Superpacket) (int, error) {
	if closed, _ := q.device.state(); closed {
		return 0, tun.ErrClosed
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stats.ReadCalls.Add(1)
	n := 0
	for n < len(batch) {
		p := &batch[n]
		if !q.next(p) {
			break
		}
		n++
		q.stats.ReadPackets.Add(1)
		q.stats.ReadSegments.Add(segments(&p.Offload, len(p.Data)))
		q.stats.ReadBytes.Add(uint64(len(p.Data)))
	}
	return n, nil
}

func (q *Queue) next(p *tun.Superpacket) bool {
	if q.source != nil {
		return q.source(p)
	}
	for len(q.waiting) > 0 {
		w := q.waiting[0]
		q.waiting = slices.Delete(q.waiting, 0, 1)
		q.spare = append(q.spare, w.Data)
		if n, ok := ip.Length(w.Data); !ok || n != len(w.Data) {
			q.stats.ReadMalformed.Add(1)
			continue
		}
		p.Data = p.Buf[tun.ReadHeadroom : tun.ReadHeadroom+copy(p.Buf[tun.ReadHeadroom:], w.Data)]
		p.Offload = w.Offload
		return true
	}
	return false
}

func segments(o *tun.Offload, n int) uint64 {
	if o.Type == tun.GSONone || o.SegmentSize == 0 {
		return 1
	}
	size := int(o.SegmentSize)
	return uint64(max(1, (n-int(o.HeaderLen)+size-1)/size))
}

// Write obeys tun.Queue.
func (q *Queue) Write(runs []tun.Run) (int, error) {
	closed, down := q.device.state()
	if closed {
		return 0, tun.ErrClosed
	}
	if down {
		q.stats.WriteDown.Add(uint64(len(runs)))
		return len(runs), tun.ErrDown
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	defer ring(q.wrote)
	q.stats.WriteCalls.Add(1)
	for i := range runs {
		if q.limit == 0 {
			return i, nil
		}
		if q.limit > 0 {
			q.limit--
		}
		if err := q.take(&runs[i]); err != nil {
			return i, err
		}
	}
	return len(runs), nil
}

func (q *Queue) take(r *tun.Run) error {
	total := 0
	for _, p := range r.Pieces {
		total += len(p)
	}
	q.stats.WritePackets.Add(1)
	q.stats.WriteSegments.Add(segments(&r.Offload, total))
	q.stats.WriteBytes.Add(uint64(total))
	if q.sink != nil {
		return q.sink(r)
	}
	q.written = append(q.written, Packet{Data: slices.Concat(r.Pieces...), Offload: r.Offload})
	return nil
}

// FD is -1: use Ready.
func (q *Queue) FD() int { return -1 }

// Ready obeys tun.Queue.
func (q *Queue) Ready() <-chan struct{} { return q.ready }

// Stats obeys tun.Queue.
func (q *Queue) Stats() *tun.QueueStats { return &q.stats }
