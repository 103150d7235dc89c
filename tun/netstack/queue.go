package netstack

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/sluice-vpn/sluice/tun"
	"github.com/sluice-vpn/sluice/tun/ip"
)

const (
	// backlog is how many packets wait between stack and reader. Their bytes are those of the connections' send buffers.
	backlog = 1024
	// mostTaken is how many are taken out under one lock.
	mostTaken = 64
)

// queue is the [tun.Queue] of a Stack, and the link on which the stack sends. The stack's goroutines call WritePackets and what is
// asked of a link; Read and Write belong to the queue's owner.
type queue struct {
	// Frozen.
	mtu     int
	offload bool
	bell    *bell
	stats   tun.QueueStats
	// foreign: echo requests to others than these addresses are dropped; nil: nothing is forwarded.
	foreign atomic.Pointer[atomic.Pointer[[]netip.Addr]]

	// Owned.
	taken [mostTaken]*stack.PacketBuffer

	mu         sync.Mutex
	waiting    [backlog]*stack.PacketBuffer // a ring; from here on guarded by mu
	first, n   int
	rung       bool // the bell was rung since the queue was dry
	closed     bool
	dispatcher stack.NetworkDispatcher // nil: the stack is not attached
}

func newQueue(mtu int, offload bool) (*queue, error) {
	b, err := newBell()
	if err != nil {
		return nil, err
	}
	return &queue{mtu: mtu, offload: offload, bell: b}, nil
}

// WritePackets is what the stack sends. When the reader is behind, packets are dropped, as by a full device queue.
func (q *queue) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0, &tcpip.ErrClosedForSend{}
	}
	taken := 0
	for _, p := range list.AsSlice() {
		if q.n == backlog {
			q.stats.ReadDropped.Add(1)
			continue
		}
		q.waiting[(q.first+q.n)%backlog] = p.IncRef()
		q.n++
		taken++
	}
	if q.n > 0 && !q.rung {
		q.rung = true
		q.bell.ring()
	}
	if taken == 0 {
		return 0, &tcpip.ErrNoBufferSpace{}
	}
	return taken, nil
}

// take moves packets from waiting to taken, at most so many. open is false once the queue is closed.
func (q *queue) take(most int) (n int, open bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n = min(most, q.n, mostTaken)
	for i := range n {
		at := (q.first + i) % backlog
		q.taken[i], q.waiting[at] = q.waiting[at], nil
	}
	q.first, q.n = (q.first+n)%backlog, q.n-n
	switch {
	case n == 0 && q.rung:
		q.rung = false
		q.bell.reset()
	case q.n > 0:
		q.bell.again()
	}
	return n, !q.closed
}

// Read obeys the contract of tun.Queue.
func (q *queue) Read(batch []tun.Superpacket) (int, error) {
	n, open := q.take(len(batch))
	if !open {
		return 0, tun.ErrClosed
	}
	read := 0
	var segments, bytes uint64
	for i := range n {
		p := q.taken[i]
		if fill(&batch[read], p) {
			bytes += uint64(len(batch[read].Data))
			segments += uint64(segmentsOf(&batch[read].Offload, len(batch[read].Data)))
			read++
		} else {
			q.stats.ReadMalformed.Add(1)
		}
		p.DecRef()
		q.taken[i] = nil
	}
	q.stats.ReadCalls.Add(1)
	q.stats.ReadPackets.Add(uint64(read))
	q.stats.ReadSegments.Add(segments)
	q.stats.ReadBytes.Add(bytes)
	return read, nil
}

// fill copies a packet of the stack's, with what is left to do with it.
func fill(to *tun.Superpacket, p *stack.PacketBuffer) bool {
	if p.Size() > tun.MaxSuperpacket {
		return false
	}
	n := tun.ReadHeadroom
	list, offset := p.AsViewList()
	for v := list.Front(); v != nil; v = v.Next() {
		piece := v.AsSlice()
		skip := min(offset, len(piece))
		offset -= skip
		n += copy(to.Buf[n:], piece[skip:])
	}
	to.Data = to.Buf[tun.ReadHeadroom:n]
	to.Offload = offloadOf(p)
	return true
}

// offloadOf is what the stack has left to do.
func offloadOf(p *stack.PacketBuffer) (o tun.Offload) {
	g := &p.GSOOptions
	if g.Type != stack.GSOTCPv4 && g.Type != stack.GSOTCPv6 {
		return o
	}
	network := len(p.NetworkHeader().Slice())
	o.NeedsChecksum = g.NeedsCsum
	o.ChecksumStart, o.ChecksumOffset = uint16(network), g.CsumOffset
	if p.Data().Size() <= int(g.MSS) {
		return o
	}
	o.HeaderLen = uint16(network + len(p.TransportHeader().Slice()))
	o.SegmentSize = g.MSS
	if o.Type = tun.GSOTCPv4; g.Type == stack.GSOTCPv6 {
		o.Type = tun.GSOTCPv6
	}
	return o
}

// segmentsOf is how many packets of the wire a packet of so many bytes stands for.
func segmentsOf(o *tun.Offload, length int) int {
	if o.Type == tun.GSONone || o.SegmentSize == 0 {
		return 1
	}
	return max(1, (length-int(o.HeaderLen)+int(o.SegmentSize)-1)/int(o.SegmentSize))
}

// Write obeys the contract of tun.Queue. The stack takes what it is given, or drops it; it never is full.
func (q *queue) Write(runs []tun.Run) (int, error) {
	q.mu.Lock()
	to, closed := q.dispatcher, q.closed
	q.mu.Unlock()
	if closed || to == nil {
		return 0, tun.ErrClosed
	}
	var packets, segments, bytes uint64
	for i := range runs {
		size := 0
		for _, piece := range runs[i].Pieces {
			size += len(piece)
		}
		view := buffer.NewView(size)
		for _, piece := range runs[i].Pieces {
			view.Write(piece) // never fails
		}
		if !q.deliver(to, view) {
			continue
		}
		packets, bytes = packets+1, bytes+uint64(size)
		segments += uint64(segmentsOf(&runs[i].Offload, size))
	}
	q.stats.WriteCalls.Add(1)
	q.stats.WritePackets.Add(packets)
	q.stats.WriteSegments.Add(segments)
	q.stats.WriteBytes.Add(bytes)
	return len(runs), nil
}

// deliver hands a packet to the stack. False: it is none.
func (q *queue) deliver(to stack.NetworkDispatcher, view *buffer.View) bool {
	packet := view.AsSlice()
	if _, whole := ip.Length(packet); !whole {
		q.stats.WriteRefused.Add(1)
		view.Release()
		return false
	}
	if own := q.foreign.Load(); own != nil {
		if list := own.Load(); list != nil && isForeignEcho(packet, *list) {
			view.Release()
			return true // as by a firewall
		}
	}
	protocol := ipv4.ProtocolNumber
	if packet[0]>>4 == 6 {
		protocol = ipv6.ProtocolNumber
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(view)})
	to.DeliverNetworkPacket(protocol, p)
	p.DecRef()
	return true
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed, q.dispatcher = true, nil
	for ; q.n > 0; q.n-- {
		q.waiting[q.first].DecRef()
		q.waiting[q.first] = nil
		q.first = (q.first + 1) % backlog
	}
	q.bell.ring() // whoever waits finds out
}

func (q *queue) FD() int                { return q.bell.fd() }
func (q *queue) Ready() <-chan struct{} { return q.bell.ready() }
func (q *queue) Stats() *tun.QueueStats { return &q.stats }

// What the stack asks of a link. It has no addresses and no header, and is always there.

func (q *queue) Attach(d stack.NetworkDispatcher) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dispatcher = d
}

func (q *queue) IsAttached() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.dispatcher != nil
}

// Capabilities: what comes out of the tunnel was authenticated, its checksums need no other look.
func (q *queue) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

func (q *queue) SupportedGSO() stack.SupportedGSO {
	if !q.offload {
		return stack.GSONotSupported
	}
	return stack.HostGSOSupported
}

// GSOMaxSize leaves room below it for headers, as the stack counts them.
func (q *queue) GSOMaxSize() uint32 { return tun.MaxSuperpacket }

func (q *queue) MTU() uint32                             { return uint32(q.mtu) }
func (q *queue) SetMTU(uint32)                           {}
func (q *queue) MaxHeaderLength() uint16                 { return 0 }
func (q *queue) LinkAddress() tcpip.LinkAddress          { return "" }
func (q *queue) SetLinkAddress(tcpip.LinkAddress)        {}
func (q *queue) Wait()                                   {}
func (q *queue) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (q *queue) AddHeader(*stack.PacketBuffer)           {}
func (q *queue) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (q *queue) Close()                                  {}
func (q *queue) SetOnCloseAction(func())                 {}
