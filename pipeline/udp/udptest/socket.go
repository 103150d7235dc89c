package udptest

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// socket is one shard's socket of one family. Its queue, held datagram and closed flag are guarded by network.mu.
type socket struct {
	host     *Host
	port     uint16
	is4      bool
	noJoin   bool
	queue    []Datagram
	held     *Datagram
	closed   bool
	mark     atomic.Uint32
	ready    chan struct{}
	writable chan struct{}
	stats    udp.Stats
}

func newSocket(h *Host, cfg udp.Config, port uint16, is4 bool) *socket {
	s := &socket{
		host: h, port: port, is4: is4, noJoin: cfg.NoGRO,
		ready: make(chan struct{}, 1), writable: make(chan struct{}, 1),
	}
	s.mark.Store(cfg.Mark)
	return s
}

// Receive takes what waits, see [udp.Socket].
func (s *socket) Receive(batch []udp.Datagrams) (int, error) {
	n := s.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.closed {
		return 0, udp.ErrClosed
	}
	s.stats.ReceiveCalls.Add(1)
	count := 0
	for count < len(batch) && len(s.queue) > 0 {
		s.take(&batch[count], n.join && !s.noJoin)
		count++
	}
	return count, nil
}

// take moves the first datagram, and with join all that belong to its run, into b.
func (s *socket) take(b *udp.Datagrams, join bool) {
	first := s.queue[0]
	*b = udp.Datagrams{
		Buf: b.Buf, Data: b.Buf[:0], SegmentSize: len(first.Data), Src: first.Src, Dst: first.Dst.Addr(),
		IfIndex: s.ifIndex(first.Dst.Addr()), ECN: udp.ECN(first.TOS & 3),
	}
	segments := 1
	for join && segments < min(len(s.queue), udp.MaxSegments) && joins(s.queue[:segments+1]) {
		segments++
	}
	for _, d := range s.queue[:segments] {
		if len(b.Data)+len(d.Data) > len(b.Buf) {
			s.stats.ReceiveTruncated.Add(1)
			b.Data = b.Buf[:0]
			break
		}
		b.Data = append(b.Data, d.Data...)
	}
	s.queue = slices.Delete(s.queue, 0, segments)
	s.stats.ReceiveRuns.Add(1)
	s.stats.ReceiveDatagrams.Add(uint64(segments))
	s.stats.ReceiveBytes.Add(uint64(len(b.Data)))
}

// joins tells whether the last of run may follow the ones before it, which are one run already: same flow and ECN, no
// shorter one before it, not longer than the first (udp_gro_receive_segment in Linux net/ipv4/udp_offload.c).
func joins(run []Datagram) bool {
	first, prev, last := run[0], run[len(run)-2], run[len(run)-1]
	size := len(first.Data)
	total := size*(len(run)-1) + len(last.Data)
	return last.Src == first.Src && last.Dst == first.Dst && last.TOS == first.TOS && size > 0 && len(prev.Data) == size &&
		len(last.Data) > 0 && len(last.Data) <= size && total <= udp.MaxDatagram
}

// Send carries each datagram of each run, see [udp.Socket].
func (s *socket) Send(runs []udp.Run) (int, error) {
	n := s.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.closed {
		return 0, udp.ErrClosed
	}
	s.stats.SendCalls.Add(1)
	for i := range runs {
		if s.full() {
			return i, nil
		}
		s.sendRun(&runs[i], runs[i].SegmentSize)
	}
	return len(runs), nil
}

// SendOne carries one datagram. A stalled socket drops it.
func (s *socket) SendOne(r udp.Run) error {
	n := s.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.closed {
		return udp.ErrClosed
	}
	if s.full() {
		s.stats.SendNoBuffer.Add(1)
		return nil
	}
	s.sendRun(&r, len(r.Data))
	return nil
}

func (s *socket) full() bool {
	for _, a := range s.host.addrs {
		if s.host.network.stalled[netip.AddrPortFrom(a, s.port)] {
			return true
		}
	}
	return false
}

func (s *socket) sendRun(r *udp.Run, size int) {
	if size <= 0 {
		size = max(1, len(r.Data))
	}
	src := s.source(r)
	tooLong := len(r.Data) > udp.MaxDatagram || (len(r.Data)+size-1)/size > udp.MaxSegments
	if tooLong || r.Dst.Addr().Is4() != s.is4 || !src.IsValid() {
		s.stats.SendErrors.Add(1)
		return
	}
	s.stats.SendRuns.Add(1)
	for off := 0; off == 0 || off < len(r.Data); off += size {
		data := r.Data[off:min(off+size, len(r.Data))]
		s.stats.SendDatagrams.Add(1)
		s.stats.SendBytes.Add(uint64(len(data)))
		s.host.network.transmit(Datagram{
			Src: netip.AddrPortFrom(src, s.port), Dst: r.Dst, Data: append([]byte(nil), data...), TOS: r.TOS,
		})
	}
}

// source is the address that r leaves from: the one it asks for if it is the host's, else the host's first.
func (s *socket) source(r *udp.Run) netip.Addr {
	if r.Src.IsValid() {
		if s.ifIndex(r.Src) != 0 {
			return r.Src
		}
		s.stats.SourceRejected.Add(1)
	}
	for _, a := range s.host.addrs {
		if a.Is4() == s.is4 {
			return a
		}
	}
	return netip.Addr{}
}

func (s *socket) ifIndex(a netip.Addr) int { return slices.Index(s.host.addrs, a) + 1 }

// LocalPort is the bound port.
func (s *socket) LocalPort() uint16 { return s.port }

// SetMark remembers the mark; see Mark.
func (s *socket) SetMark(mark uint32) error {
	s.mark.Store(mark)
	return nil
}

// Mark tells the mark last set on a socket of this package, for tests; 0 for others.
func Mark(s udp.Socket) uint32 {
	if s, ok := s.(*socket); ok {
		return s.mark.Load()
	}
	return 0
}

// FD is -1: use Ready and Writable.
func (s *socket) FD() int { return -1 }

// Ready delivers after datagrams came.
func (s *socket) Ready() <-chan struct{} { return s.ready }

// Writable delivers when a stall has ended.
func (s *socket) Writable() <-chan struct{} { return s.writable }

// Offloads says that runs are taken and given, as far as the network joins them.
func (s *socket) Offloads() udp.Offloads {
	n := s.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	return udp.Offloads{SegmentSend: true, GROReceive: n.join && !s.noJoin, BatchCalls: true, LocalAddress: true}
}

// Stats counts, see [udp.Stats].
func (s *socket) Stats() *udp.Stats { return &s.stats }

// Close frees the port; what waits is lost. Ready and Writable deliver once more, so that a waiter sees ErrClosed.
func (s *socket) Close() error {
	n := s.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed, s.queue, s.held = true, nil, nil
	n.unbind(s)
	signal(s.ready)
	signal(s.writable)
	return nil
}
