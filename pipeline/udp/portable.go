package udp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// portableQueue is how many messages each direction of a portable socket holds; each may be MaxDatagram long, so a
	// socket reserves twice 2 MiB of address space, of which only what datagrams touch becomes memory.
	portableQueue = 32
	// portableSendBuffer bounds what is asked for: some systems refuse more than they allow instead of granting that.
	portableSendBuffer = 1 << 20
	// readPause keeps a socket whose reads fail time after time from spinning.
	readPause = 10 * time.Millisecond
)

// portableSocket obeys the contract of Socket on package net, for systems without an own socket here and as the slow twin
// of the Linux one. Two goroutines of it block in package net, one to read and one to write, each behind a bounded ring
// of buffers; that costs a copy and a wake-up per message, and is correct wherever Go runs.
//
// Windows too goes this way. Registered I/O (RIO), which the conn package of wireguard-go uses there, would save system
// calls, but that package brings its own contract (blocking receive functions, an endpoint object per datagram) and
// its own dependencies, and what it gains was not measured here.
//
// It neither tells nor chooses local addresses, and neither sees nor sets the TOS byte.
type portableSocket struct {
	conn  *net.UDPConn // frozen
	port  uint16       // frozen
	stats Stats

	// Rings: a message is owned by whoever took it from a channel.
	received, receiveFree chan *message
	sending, sendFree     chan *message
	ready, writable       chan struct{}

	closeOnce sync.Once
	closed    chan struct{} // closed by Close
	pumps     sync.WaitGroup
}

// message is a datagram received (size is its length) or a run to send.
type message struct {
	addr netip.AddrPort
	data []byte // view into buf
	size int
	buf  []byte
}

var _ Socket = (*portableSocket)(nil)

// openPortable is the opener of portable sockets; a port cannot be shared.
func openPortable(cfg Config, f family, port uint16, _ bool) (Socket, error) {
	network, addr := "udp4", net.JoinHostPort("0.0.0.0", fmt.Sprint(port))
	if f == v6 {
		network, addr = "udp6", net.JoinHostPort("::", fmt.Sprint(port)) // package net sets IPV6_V6ONLY
	}
	pc, err := new(net.ListenConfig).ListenPacket(context.Background(), network, addr)
	if err != nil {
		return nil, portableError(err)
	}
	conn := pc.(*net.UDPConn)
	if cfg.Mark != 0 {
		if err := setConnMark(conn, cfg.Mark); err != nil {
			conn.Close()
			return nil, err
		}
	}
	_ = conn.SetReadBuffer(cfg.ReceiveBuffer) // a smaller one only costs speed
	_ = conn.SetWriteBuffer(min(cfg.SendBuffer, portableSendBuffer))
	s := newPortable(conn)
	s.pumps.Add(2)
	go s.readPump()
	go s.writePump()
	return s, nil
}

func newPortable(conn *net.UDPConn) *portableSocket {
	s := &portableSocket{
		conn: conn, port: uint16(conn.LocalAddr().(*net.UDPAddr).Port),
		received: make(chan *message, portableQueue), receiveFree: make(chan *message, portableQueue),
		sending: make(chan *message, portableQueue), sendFree: make(chan *message, portableQueue),
		ready: make(chan struct{}, 1), writable: make(chan struct{}, 1), closed: make(chan struct{}),
	}
	for range portableQueue {
		s.receiveFree <- &message{buf: make([]byte, BufferSize)}
		s.sendFree <- &message{buf: make([]byte, BufferSize)}
	}
	return s
}

// Receive copies out what the read pump has queued, see [Socket].
func (s *portableSocket) Receive(batch []Datagrams) (int, error) {
	if s.isClosed() {
		return 0, ErrClosed
	}
	s.stats.ReceiveCalls.Add(1)
	n := 0
	for n < len(batch) {
		var m *message
		select {
		case m = <-s.received:
		default:
			return n, nil
		}
		b := &batch[n]
		*b = Datagrams{Buf: b.Buf, Data: b.Buf[:0], Src: m.addr}
		if len(m.data) > len(b.Buf) {
			s.stats.ReceiveTruncated.Add(1)
		} else {
			b.Data = b.Buf[:copy(b.Buf, m.data)]
			b.SegmentSize = len(b.Data)
		}
		s.stats.ReceiveRuns.Add(1)
		s.stats.ReceiveDatagrams.Add(1)
		s.stats.ReceiveBytes.Add(uint64(len(b.Data)))
		s.receiveFree <- m
		n++
	}
	return n, nil
}

// Send copies runs to the write pump, see [Socket].
func (s *portableSocket) Send(runs []Run) (int, error) {
	if s.isClosed() {
		return 0, ErrClosed
	}
	s.stats.SendCalls.Add(1)
	for i := range runs {
		select {
		case m := <-s.sendFree:
			s.queueRun(m, &runs[i], runs[i].segmentSize())
		default:
			return i, nil
		}
	}
	return len(runs), nil
}

// SendOne queues one datagram, see [Socket].
func (s *portableSocket) SendOne(r Run) error {
	if s.isClosed() {
		return ErrClosed
	}
	timeout := time.NewTimer(sendOneWait)
	defer timeout.Stop()
	select {
	case <-s.closed:
		return ErrClosed
	case m := <-s.sendFree:
		s.queueRun(m, &r, max(1, len(r.Data)))
		return nil
	case <-timeout.C:
		s.stats.SendNoBuffer.Add(1)
		return errFull
	}
}

// queueRun gives m, filled from r, to the write pump. The ring has room for every message there is.
func (s *portableSocket) queueRun(m *message, r *Run, size int) {
	if len(r.Data) > MaxDatagram {
		s.stats.SendTooBig.Add(uint64(segmentCount(len(r.Data), size)))
		s.recycleSent(m)
		return
	}
	m.addr, m.size = r.Dst, size
	m.data = m.buf[:copy(m.buf, r.Data)]
	s.sending <- m
}

func (s *portableSocket) recycleSent(m *message) {
	s.sendFree <- m
	signal(s.writable)
}

// readPump moves datagrams from the connection to the ring until Close.
func (s *portableSocket) readPump() {
	defer s.pumps.Done()
	var zones zoneNames
	for {
		var m *message
		select {
		case <-s.closed:
			return
		case m = <-s.receiveFree:
		}
		if !s.read(m, &zones) {
			return
		}
		s.received <- m
		signal(s.ready)
	}
}

// read fills m with the next datagram; false after Close. Errors that a remote can cause (ICMP) come once each; the
// pause after several in a row bounds whatever else there is.
func (s *portableSocket) read(m *message, zones *zoneNames) bool {
	for failures := 1; ; failures++ {
		n, addr, err := s.conn.ReadFromUDPAddrPort(m.buf)
		if err == nil {
			m.data, m.addr = m.buf[:n], zones.numbered(unmapped(addr))
			return true
		}
		if s.isClosed() || errors.Is(err, net.ErrClosed) {
			return false
		}
		s.stats.ReceiveErrors.Add(1)
		if failures%8 == 0 {
			s.pause()
		}
	}
}

// writePump moves runs from the ring to the connection until Close.
func (s *portableSocket) writePump() {
	defer s.pumps.Done()
	for {
		var m *message
		select {
		case <-s.closed:
			return
		case m = <-s.sending:
		}
		s.writeRun(m)
		s.recycleSent(m)
	}
}

func (s *portableSocket) writeRun(m *message) {
	for off := 0; off == 0 || off < len(m.data); off += m.size {
		data := m.data[off:min(off+m.size, len(m.data))]
		_, err := s.conn.WriteToUDPAddrPort(data, m.addr)
		if refused(err) { // an earlier datagram's ICMP error, reported and cleared by this call
			_, err = s.conn.WriteToUDPAddrPort(data, m.addr)
		}
		switch {
		case err == nil:
			s.stats.SendDatagrams.Add(1)
			s.stats.SendBytes.Add(uint64(len(data)))
		case tooBig(err):
			s.stats.SendTooBig.Add(1)
		default:
			s.stats.SendErrors.Add(1)
		}
	}
	s.stats.SendRuns.Add(1)
}

func (s *portableSocket) pause() {
	t := time.NewTimer(readPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.closed:
	}
}

func (s *portableSocket) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// LocalPort is the bound port.
func (s *portableSocket) LocalPort() uint16 { return s.port }

// SetMark sets SO_MARK on Linux and fails elsewhere.
func (s *portableSocket) SetMark(mark uint32) error { return setConnMark(s.conn, mark) }

// FD is -1: use Ready and Writable.
func (s *portableSocket) FD() int { return -1 }

// Ready delivers after datagrams came.
func (s *portableSocket) Ready() <-chan struct{} { return s.ready }

// Writable delivers when the write pump has taken a run.
func (s *portableSocket) Writable() <-chan struct{} { return s.writable }

// Offloads are none; the sizes of the buffers are not known.
func (s *portableSocket) Offloads() Offloads { return Offloads{} }

// Stats counts, see [Stats].
func (s *portableSocket) Stats() *Stats { return &s.stats }

// Close stops both pumps and waits for them; runs not yet written are lost.
func (s *portableSocket) Close() error {
	var err error
	s.closeOnce.Do(func() {
		close(s.closed)
		err = s.conn.Close()
		signal(s.ready)
		signal(s.writable)
	})
	s.pumps.Wait()
	return err
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
