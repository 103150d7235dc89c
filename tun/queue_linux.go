//go:build linux && !sluice_portable

package tun

import (
	"fmt"
	"math"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/sluice-vpn/sluice/tun/ip"
	"golang.org/x/sys/unix"
)

// linuxQueue is one descriptor of a device. Everything but state, released and stats belongs to the queue's goroutine.
//
// Reads and writes are raw system calls: on a non-blocking descriptor they end by themselves after at most 64 KiB, so the
// scheduler need not be told, which is worth more than 100 ns a packet.
type linuxQueue struct {
	// Frozen.
	device     *linuxDevice
	fd         int
	vnet       bool // a virtio-net header stands in front of each packet
	contiguous bool // writev with that header is not to be used

	// Owned.
	header    [virtioHeaderLen]byte
	iovecs    [MaxRunSegments + 2]unix.Iovec
	scratch   []byte // two superpackets; made when first needed
	segmenter Segmenter

	// Atomic.
	state    atomic.Int32 // calls under way; negative once closed
	released atomic.Bool
	stats    QueueStats
}

func newLinuxQueue(d *linuxDevice, fd int) *linuxQueue {
	return &linuxQueue{device: d, fd: fd, contiguous: oldKernel()}
}

// oldKernel is true before Linux 5: 4.19 crashes on writev with a virtio-net header, which no probe can find out.
func oldKernel() bool {
	var name unix.Utsname
	return unix.Uname(&name) == nil && name.Release[1] == '.' && name.Release[0] < '5'
}

// FD is the descriptor to poll for reading. It is valid until Read or Write return ErrClosed.
func (q *linuxQueue) FD() int                { return q.fd }
func (q *linuxQueue) Ready() <-chan struct{} { return nil }
func (q *linuxQueue) Stats() *QueueStats     { return &q.stats }

// enter and leave stand around every use of the descriptor, so that Close does not give its number away meanwhile.
func (q *linuxQueue) enter() bool {
	if q.state.Add(1) > 0 {
		return true
	}
	q.leave()
	return false
}

func (q *linuxQueue) leave() {
	if q.state.Add(-1) == math.MinInt32 {
		q.releaseOnce()
	}
}

func (q *linuxQueue) close() {
	if q.state.Add(math.MinInt32) == math.MinInt32 {
		q.releaseOnce()
	}
}

func (q *linuxQueue) releaseOnce() {
	if !q.released.Swap(true) {
		unix.Close(q.fd)
	}
}

// Read obeys the contract of Queue. Each packet is one read straight into the caller's buffer.
func (q *linuxQueue) Read(batch []Superpacket) (int, error) {
	if !q.enter() {
		return 0, ErrClosed
	}
	defer q.leave()
	n, calls, faults := 0, 0, 0
	var segments, bytes uint64
	var errno syscall.Errno
	// Packets that are dropped do not keep the caller here for ever.
	for n < len(batch) && faults <= len(batch) {
		p := &batch[n]
		var f fault
		f, errno = q.readOne(p)
		calls++
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			break
		}
		if f != faultNone {
			faults++
			q.count(f)
			continue
		}
		n++
		segments += countSegments(p)
		bytes += uint64(len(p.Data))
	}
	q.stats.ReadCalls.Add(uint64(calls))
	if n > 0 {
		q.stats.ReadPackets.Add(uint64(n))
		q.stats.ReadSegments.Add(segments)
		q.stats.ReadBytes.Add(bytes)
		return n, nil
	}
	return 0, readError(errno)
}

func readError(errno syscall.Errno) error {
	switch errno {
	case 0, unix.EAGAIN, unix.EINTR, unix.ENOBUFS, unix.ENOMEM:
		return nil
	case unix.EBADFD, unix.EBADF, unix.EIO:
		// EBADFD: the device was deleted. EIO: the same, while it is under way, on older kernels (tun_ring_recv).
		return ErrClosed
	}
	return fmt.Errorf("tun: read: %w", errno)
}

func (q *linuxQueue) count(f fault) {
	if f == faultUnserved {
		q.stats.ReadUnserved.Add(1)
		return
	}
	q.stats.ReadMalformed.Add(1)
}

func (q *linuxQueue) readOne(p *Superpacket) (f fault, errno syscall.Errno) {
	buf := p.Buf[:ReadBufferSize]
	if !q.vnet {
		buf = buf[ReadHeadroom:]
	} else {
		buf = buf[ReadHeadroom-virtioHeaderLen:]
	}
	r, _, errno := syscall.RawSyscall(unix.SYS_READ,
		uintptr(q.fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)))
	switch {
	case errno == unix.EINVAL:
		// The kernel took a superpacket off the queue that no virtio-net header can describe (tun_put_user).
		return faultUnserved, 0
	case errno != 0:
		return faultNone, errno
	}
	n := int(r)
	if n > len(buf) || q.vnet && n < virtioHeaderLen {
		return faultMalformed, 0
	}
	if q.vnet {
		p.Data, p.Offload, f = decodeVirtio(buf[:virtioHeaderLen], buf[virtioHeaderLen:n])
		return f, 0
	}
	p.Offload = Offload{}
	length, ok := ip.Length(buf[:n])
	if !ok {
		return faultMalformed, 0
	}
	p.Data = buf[:length]
	return faultNone, 0
}

func countSegments(p *Superpacket) uint64 {
	if p.Type == GSONone {
		return 1
	}
	size := int(p.SegmentSize)
	return uint64(max(1, (len(p.Data)-int(p.HeaderLen)+size-1)/size))
}

// Write obeys the contract of Queue. Each run is one writev of header and pieces.
func (q *linuxQueue) Write(runs []Run) (int, error) {
	if !q.enter() {
		return 0, ErrClosed
	}
	defer q.leave()
	for i := range runs {
		errno := q.writeRun(&runs[i])
		switch errno {
		case 0:
		case unix.EAGAIN:
			return i, nil
		case unix.EIO:
			q.stats.WriteDown.Add(uint64(len(runs) - i))
			return len(runs), ErrDown
		case unix.EINVAL, unix.ENOMEM, unix.ENOBUFS, unix.EMSGSIZE:
			q.stats.WriteRefused.Add(1)
		case unix.EBADFD, unix.EBADF:
			return i, ErrClosed
		default:
			return i, fmt.Errorf("tun: write: %w", errno)
		}
	}
	return len(runs), nil
}

// writeRun writes a run whole, or in segments where the kernel does not take it whole.
func (q *linuxQueue) writeRun(r *Run) syscall.Errno {
	if r.Type != GSONone {
		if !q.allowed(r.Type) {
			return q.writeSegments(r)
		}
		errno := q.writePieces(&r.Offload, r.Pieces)
		if errno != unix.EINVAL {
			return errno
		}
		// Some stable kernels refuse what they granted (Linux e269d79c7d35, "net: missing check virtio", backported in
		// 6.6.44); the run is still good.
		q.device.refuse(r.Type)
		return q.writeSegments(r)
	}
	return q.writePieces(&r.Offload, r.Pieces)
}

func (q *linuxQueue) allowed(t GSOType) bool {
	bits := q.device.capabilities.Load()
	switch t {
	case GSOTCPv4:
		return bits&bitTSO4 != 0
	case GSOTCPv6:
		return bits&bitTSO6 != 0
	}
	return bits&bitUSO != 0
}

// writePieces makes one system call, and counts it if it went well.
func (q *linuxQueue) writePieces(o *Offload, pieces [][]byte) syscall.Errno {
	n, total := 0, 0
	if q.vnet {
		encodeVirtio(q.header[:], o)
		q.iovecs[0].Base = &q.header[0]
		q.iovecs[0].SetLen(virtioHeaderLen)
		n = 1
	}
	if len(pieces) > len(q.iovecs)-1 || q.contiguous && q.vnet {
		return q.writeJoined(o, pieces)
	}
	for _, p := range pieces {
		if len(p) == 0 {
			continue
		}
		q.iovecs[n].Base = unsafe.SliceData(p)
		q.iovecs[n].SetLen(len(p))
		n++
		total += len(p)
	}
	_, _, errno := syscall.RawSyscall(unix.SYS_WRITEV, uintptr(q.fd), uintptr(unsafe.Pointer(&q.iovecs[0])), uintptr(n))
	return q.wrote(errno, o, total)
}

// writeJoined copies header and pieces into one buffer and writes that.
func (q *linuxQueue) writeJoined(o *Offload, pieces [][]byte) syscall.Errno {
	whole := q.join(pieces)
	return q.writeWhole(o, q.scratch[:ReadHeadroom+len(whole)])
}

// writeWhole writes the packet behind the first ReadHeadroom bytes of buf, where the header goes.
func (q *linuxQueue) writeWhole(o *Offload, buf []byte) syscall.Errno {
	total := len(buf) - ReadHeadroom
	if q.vnet {
		buf = buf[ReadHeadroom-virtioHeaderLen:]
		encodeVirtio(buf, o)
	} else {
		buf = buf[ReadHeadroom:]
	}
	_, _, errno := syscall.RawSyscall(unix.SYS_WRITE,
		uintptr(q.fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)))
	return q.wrote(errno, o, total)
}

func (q *linuxQueue) wrote(errno syscall.Errno, o *Offload, total int) syscall.Errno {
	q.stats.WriteCalls.Add(1)
	if errno != 0 {
		return errno
	}
	segments := 1
	if o.Type != GSONone && o.SegmentSize > 0 {
		size := int(o.SegmentSize)
		segments = max(1, (total-int(o.HeaderLen)+size-1)/size)
	}
	q.stats.WritePackets.Add(1)
	q.stats.WriteSegments.Add(uint64(segments))
	q.stats.WriteBytes.Add(uint64(total))
	return 0
}

// join copies pieces into the scratch buffer, behind room for a header. What goes beyond MaxSuperpacket is cut off, and
// the packet then refused as malformed.
func (q *linuxQueue) join(pieces [][]byte) []byte {
	if q.scratch == nil {
		q.scratch = make([]byte, 2*ReadBufferSize)
	}
	whole := q.scratch[ReadHeadroom:ReadBufferSize]
	n := 0
	for _, p := range pieces {
		n += copy(whole[n:], p)
	}
	return whole[:n]
}

// writeSegments cuts a run and writes packet by packet.
func (q *linuxQueue) writeSegments(r *Run) syscall.Errno {
	q.stats.OffloadRefused.Add(1)
	p := Superpacket{Data: q.join(r.Pieces), Offload: r.Offload}
	if q.segmenter.Init(&p) != nil {
		return unix.EINVAL
	}
	complete := Offload{ChecksumValid: true}
	buf := q.scratch[ReadBufferSize:]
	for k := range q.segmenter.Count() {
		n := q.segmenter.Cut(k, buf[ReadHeadroom:])
		errno := q.writeWhole(&complete, buf[:ReadHeadroom+n])
		// The first packets are written, so the run cannot be tried again later; what is left of it is lost.
		if errno == unix.EAGAIN && k > 0 {
			errno = unix.ENOBUFS
		}
		if errno != 0 {
			return errno
		}
	}
	return 0
}
