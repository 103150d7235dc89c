package pipeline

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun"
)

// This file is how somebody looks at the packets that pass. While nobody does, it costs the lanes one atomic load a batch, and a comparison a packet. A lane
// copies what is to be seen into a batch of its own, corrects it there as long as the batch is under way (a datagram is taken before it
// is opened in place, and may turn out to be forged), and then hands the batch over; where the reader is slow it is dropped and counted.

// CaptureConfig says what to take.
type CaptureConfig struct {
	// Peer takes only what is known to be of the peer of that name; "": all, and what is nobody's.
	Peer string
	// Match chooses among the packets of the tunnel, not among datagrams; nil takes all. Lanes call it, several at once: it must not
	// block or keep what it is given, which may be no IP packet.
	Match func(packet []byte) bool
	// Outer takes datagrams, too: those of the lanes, handshakes, and those of the connectivity edge.
	Outer bool
	// SnapLength is how many bytes are kept of each; 0: all.
	SnapLength int
}

// Captured is one packet of the tunnel, or one datagram. Outbound superpackets are taken as the kernel gives them, before they are
// segmented; inbound ones as they came, before they are coalesced.
type Captured struct {
	At      time.Time // of the lane's batch
	Outer   bool
	Inbound bool
	Peer    string // its name, a plain peer's shortened key; "": not known
	Drop    string // why it went no further, as its counter drop_REASON; "": it went on
	Refused bool   // the kernel has not sent it
	// Segments is how many packets a superpacket stands for, each with SegmentSize bytes behind its headers; 0: it is none.
	Segments, SegmentSize int
	Src, Dst              netip.AddrPort // of a datagram; without an address where the system chooses or does not tell it
	Channel               uint16         // its TURN channel, 0: none
	Length                int            // bytes that there were
	Data                  []byte         // what is kept of them
	at                    int            // of Data in the batch
}

// Bounds on a capture, in bytes with what is noted of packets: of one batch of a lane, and of all that waits for the reader.
const (
	captureBatchBytes = 4 << 20
	captureQueueBytes = 32 << 20
	captureQueue      = 1024 // batches
	// notDropped stands for no drop reason.
	notDropped = dropReasons
)

// ErrCapturing: there is a capture already.
var ErrCapturing = errors.New("pipeline: packets are being captured already")

// Capture is somebody who looks. Next and Close are for one goroutine.
type Capture struct {
	config   CaptureConfig
	pipeline *Pipeline
	base     time.Time // when the pipeline's clock was 0
	batches  chan *captureBatch
	queued   atomic.Int64 // bytes of batches
	dropped  atomic.Uint64
	last     *captureBatch // what Next has returned
}

// captureBatch is what one lane has taken, or one datagram of somebody else.
type captureBatch struct {
	records []Captured
	slab    []byte
}

func (b *captureBatch) bytes() int64 {
	return int64(len(b.slab)) + int64(len(b.records))*int64(unsafe.Sizeof(Captured{}))
}

var captureBatches = sync.Pool{New: func() any { return new(captureBatch) }}

func (b *captureBatch) recycle() {
	clear(b.slab) // what somebody has sent
	clear(b.records)
	b.records, b.slab = b.records[:0], b.slab[:0]
	captureBatches.Put(b)
}

// Capture begins a capture. Errors: ErrCapturing, ErrClosed. The caller reads it with Next and ends it with Close.
func (p *Pipeline) Capture(cfg CaptureConfig) (*Capture, error) {
	select {
	case <-p.ended:
		return nil, ErrClosed
	default:
	}
	c := &Capture{config: cfg, pipeline: p, batches: make(chan *captureBatch, captureQueue)}
	c.base = p.config.Wall().Add(-p.clock())
	if !p.tap.CompareAndSwap(nil, c) {
		return nil, ErrCapturing
	}
	return c, nil
}

// Close ends the capture. Lanes may be about to put in a last batch, which is forgotten.
func (c *Capture) Close() { c.pipeline.tap.CompareAndSwap(c, nil) }

// Dropped is how many packets were not taken since the reader was too slow.
func (c *Capture) Dropped() uint64 { return c.dropped.Load() }

// Waiting tells whether Next would return at once.
func (c *Capture) Waiting() bool { return len(c.batches) > 0 }

// Next waits for packets, in the order of each lane, which are borrowed until the next call. Errors: ErrClosed when the pipeline has
// ended, and ctx's.
func (c *Capture) Next(ctx context.Context) ([]Captured, error) {
	if c.last != nil {
		c.last.recycle()
		c.last = nil
	}
	select {
	case b := <-c.batches:
		c.queued.Add(-b.bytes())
		c.last = b
		return b.records, nil
	case <-c.pipeline.ended:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// take copies data into b, unless b is full, and returns the index of its record, -1 if there is none.
func (c *Capture) take(b *captureBatch, now time.Duration, r Captured, data []byte) int {
	if b.bytes() > captureBatchBytes {
		c.dropped.Add(1)
		return -1
	}
	r.At, r.Length, r.at = c.base.Add(now), len(data), len(b.slab)
	if n := c.config.SnapLength; n > 0 {
		data = data[:min(n, len(data))]
	}
	b.slab = append(b.slab, data...)
	b.records = append(b.records, r)
	return len(b.records) - 1
}

// publish hands b over and never waits.
func (c *Capture) publish(b *captureBatch) {
	kept := b.records[:0]
	for i := range b.records {
		r := b.records[i]
		if c.config.Peer != "" && r.Peer != c.config.Peer {
			continue
		}
		n := r.Length
		if c.config.SnapLength > 0 {
			n = min(n, c.config.SnapLength)
		}
		r.Data = b.slab[r.at : r.at+n : r.at+n]
		kept = append(kept, r)
	}
	b.records = kept
	if len(kept) == 0 {
		b.recycle()
		return
	}
	if size := b.bytes(); c.queued.Add(size) <= captureQueueBytes {
		select {
		case c.batches <- b:
			return
		default:
		}
	}
	c.queued.Add(-b.bytes())
	c.dropped.Add(uint64(len(b.records)))
	b.recycle()
}

// captureSent takes a datagram that was sent beside the lanes. Any goroutine.
func (p *Pipeline) captureSent(r *udp.Run, port uint16, channel uint16, err error) {
	c := p.tap.Load()
	if c == nil || !c.config.Outer {
		return
	}
	b := captureBatches.Get().(*captureBatch)
	c.take(b, p.clock(), Captured{Outer: true, Src: netip.AddrPortFrom(r.Src, port), Dst: r.Dst, Channel: channel, Refused: err != nil}, r.Data)
	c.publish(b)
}

// taking is what a shard takes in one batch. Owned by the shard.
type taking struct {
	tap   *Capture // nil: nobody captures
	batch *captureBatch
	// datagram is the record of the datagram that is being looked at, datagrams those of inbound.opening; -1 and missing: none.
	datagram  int
	datagrams []int
	delivered []deliveredPacket
}

// deliveredPacket is a packet on its way to the TUN: it is known again by where it ends.
type deliveredPacket struct {
	end    *byte
	record int
}

// begin begins a batch.
func (t *taking) begin(tap *Capture) {
	if t.tap = tap; tap != nil {
		t.batch, t.datagram = captureBatches.Get().(*captureBatch), -1
	}
}

// end hands over what was taken.
func (t *taking) end() {
	if t.tap != nil {
		t.tap.publish(t.batch)
		t.tap, t.batch = nil, nil
	}
}

// capture takes a packet of the tunnel and returns its record, -1 if there is none. Call it only while there is a tap.
func (s *shard) capture(inbound bool, p *peer, packet []byte, o tun.Offload, why dropReason) int {
	if match := s.taking.tap.config.Match; match != nil && !match(packet) {
		return -1
	}
	r := Captured{Inbound: inbound, Peer: p.label()}
	if why != notDropped {
		r.Drop = dropTable[why].reason
	}
	if o.SegmentSize > 0 {
		r.Segments, r.SegmentSize = segmentCount(&tun.Superpacket{Data: packet, Offload: o}), int(o.SegmentSize)
	}
	return s.taking.tap.take(s.taking.batch, s.now, r, packet)
}

// captureDatagram takes a datagram before it is opened in place.
func (s *shard) captureDatagram(m *udp.Datagrams, b []byte) {
	t := &s.taking
	if t.datagram = -1; t.tap.config.Outer {
		r := Captured{Outer: true, Inbound: true, Src: m.Src, Dst: netip.AddrPortFrom(m.Dst, s.pair.LocalPort())}
		t.datagram = t.tap.take(t.batch, s.now, r, b)
	}
}

// captureRuns takes the datagrams of runs of q, from the first that was not sent on.
func (s *shard) captureRuns(q *sendQueue, n int, why dropReason) {
	t := &s.taking
	if !t.tap.config.Outer {
		return
	}
	for i := q.sent; i < q.sent+n; i++ {
		run, path := &q.runs[i], q.owners[i].path
		r := Captured{Outer: true, Peer: q.owners[i].peer.label(), Src: netip.AddrPortFrom(run.Src, s.pair.LocalPort()), Dst: run.Dst,
			Channel: path.Channel, Refused: run.Refused > 0}
		if why != notDropped {
			r.Drop = dropTable[why].reason
		}
		for rest := run.Data; len(rest) > 0; {
			size := min(run.SegmentSize, len(rest))
			t.tap.take(t.batch, s.now, r, rest[:size])
			rest = rest[size:]
		}
	}
}

// discard counts a datagram that goes no further, and says so of its record.
func (s *shard) discard(why dropReason) {
	s.stats.drop(why, 1)
	if t := &s.taking; t.tap != nil && t.datagram >= 0 {
		t.batch.records[t.datagram].Drop = dropTable[why].reason
	}
}

// note says of the datagram with that place in inbound.opening whose it is and, unless notDropped, why it goes no further.
func (t *taking) note(i int, p *peer, why dropReason) {
	if t.datagrams[i] < 0 {
		return
	}
	r := &t.batch.records[t.datagrams[i]]
	if r.Peer = p.label(); why != notDropped {
		r.Drop = dropTable[why].reason
	}
}

// lose says of packets that the TUN did not take what became of them.
func (t *taking) lose(runs []tun.Run, why dropReason) {
	lost := map[*byte]struct{}{}
	for i := range runs {
		for _, piece := range runs[i].Pieces {
			if len(piece) > 0 {
				lost[&piece[len(piece)-1]] = struct{}{}
			}
		}
	}
	for _, d := range t.delivered {
		if _, ok := lost[d.end]; ok {
			t.batch.records[d.record].Drop = dropTable[why].reason
		}
	}
}

// label is how a person calls the peer; "" for no peer. Any goroutine.
func (p *peer) label() string {
	if p == nil {
		return ""
	}
	if name := p.title.Load(); name != nil {
		return *name
	}
	return shortKey(p.key)
}
