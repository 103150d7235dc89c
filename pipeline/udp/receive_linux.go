package udp

import (
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// receiveRetries bounds how many pending errors one Receive swallows before it returns 0.
const receiveRetries = 8

// receiver holds the arrays of recvmmsg; message i uses entry i of each.
type receiver struct {
	msgs     []mmsghdr
	iovs     []unix.Iovec
	names    []sockaddr
	controls [][receiveControlSize]byte
	zones    zoneTable
}

func (r *receiver) init(n int) {
	r.msgs, r.iovs = make([]mmsghdr, n), make([]unix.Iovec, n)
	r.names, r.controls = make([]sockaddr, n), make([][receiveControlSize]byte, n)
	for i := range r.msgs {
		h := &r.msgs[i].hdr
		h.Name, h.Iov, h.Control = &r.names[i][0], &r.iovs[i], &r.controls[i][0]
		h.SetIovlen(1)
	}
}

// prepare points the messages at the buffers of batch and sets again what the last call changed.
func (r *receiver) prepare(batch []Datagrams) []mmsghdr {
	msgs := r.msgs[:min(len(r.msgs), len(batch))]
	for i := range msgs {
		buf := batch[i].Buf
		r.iovs[i].Base = unsafe.SliceData(buf)
		r.iovs[i].SetLen(len(buf))
		h := &msgs[i].hdr
		h.Namelen = sockaddrIn6Size
		h.SetControllen(receiveControlSize)
		h.Flags = 0
	}
	return msgs
}

func (s *linuxSocket) receive(batch []Datagrams) (int, error) {
	if len(batch) == 0 {
		return 0, nil
	}
	s.stats.ReceiveCalls.Add(1)
	for tries := 0; tries < receiveRetries; tries++ {
		n, errno := s.calls.recvmmsg(s.fd, s.receiver.prepare(batch))
		switch {
		case errno == 0:
			s.deliver(batch[:n])
			return n, nil
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			return 0, nil
		case errno == unix.EBADF:
			return 0, ErrClosed
		case remoteError(errno):
			s.stats.ReceiveErrors.Add(1)
		default:
			return 0, os.NewSyscallError("recvmmsg", errno)
		}
	}
	return 0, nil
}

// remoteError tells errors that ICMP messages or a moment's lack of memory leave pending on a socket: reading reports
// each once and goes on.
func remoteError(errno syscall.Errno) bool {
	return oneOf(errno, unix.ECONNREFUSED, unix.ECONNRESET, unix.EHOSTUNREACH, unix.EHOSTDOWN, unix.ENETUNREACH, unix.ENETDOWN,
		unix.ENONET, unix.ENOPROTOOPT, unix.EPROTO, unix.EMSGSIZE, unix.EACCES, unix.EPERM, unix.ETIMEDOUT, unix.ENOBUFS, unix.ENOMEM)
}

// deliver turns received messages into datagrams.
func (s *linuxSocket) deliver(batch []Datagrams) {
	var datagrams, bytes uint64
	for i := range batch {
		b := &batch[i]
		s.decode(b, i)
		if b.SegmentSize > 0 {
			datagrams += uint64(segmentCount(len(b.Data), b.SegmentSize))
			bytes += uint64(len(b.Data))
		} else {
			datagrams++
		}
	}
	s.stats.ReceiveRuns.Add(uint64(len(batch)))
	s.stats.ReceiveDatagrams.Add(datagrams)
	s.stats.ReceiveBytes.Add(bytes)
}

// decode fills b from message i.
func (s *linuxSocket) decode(b *Datagrams, i int) {
	r := &s.receiver
	m := &r.msgs[i]
	addr, scope := parseSockaddr(r.names[i][:min(int(m.hdr.Namelen), sockaddrIn6Size)])
	if scope != 0 {
		addr = netip.AddrPortFrom(r.zones.withZone(addr.Addr(), scope), addr.Port())
	}
	in := parseControl(r.controls[i][:min(int(m.hdr.Controllen), receiveControlSize)])
	b.Data, b.Src, b.Dst, b.IfIndex, b.ECN = b.Buf[:0], addr, in.dst, in.ifIndex, ECN(in.tos&3)
	b.Arrived = in.arrived
	b.SegmentSize = 0
	if m.hdr.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || int(m.len) > len(b.Buf) {
		s.stats.ReceiveTruncated.Add(1)
		return
	}
	b.Data = b.Buf[:m.len]
	b.SegmentSize = len(b.Data)
	if in.segmentSize > 0 {
		b.SegmentSize = min(in.segmentSize, len(b.Data))
	}
}
