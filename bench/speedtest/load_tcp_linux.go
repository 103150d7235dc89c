package speedtest

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tcpChunk is the size of one write or read, bytes: few system calls, and the buffers stay in the L2 cache.
const tcpChunk = 128 << 10

// drainTime is how long finish waits for the rest of a flow. Behind a tunnel that loses much, TCP's retransmission timeout doubles
// a few times.
const drainTime = 15 * time.Second

// tcpFlow is one connection. Each count is written by one thread.
type tcpFlow struct {
	sender, receiver int // descriptors; -1: that end is on another machine
	backward         bool
	sent, received   count
}

// tcpLoad is TCP flows between a and b, or of those that are given the end that is here.
type tcpLoad struct {
	a, b              endpoint
	forward, backward int
	flows             []*tcpFlow
	threads           threads
	stop, abandon     atomic.Bool
}

func (l *tcpLoad) start() error {
	if err := l.open(); err != nil {
		return err
	}
	for _, f := range l.flows {
		if f.receiver >= 0 {
			in := make([]byte, tcpChunk)
			l.threads.start(func() { l.receive(f, in) })
		}
		if f.sender >= 0 {
			out := make([]byte, tcpChunk)
			l.threads.start(func() { l.send(f, out) })
		}
	}
	return nil
}

// open makes the flows between a and b.
func (l *tcpLoad) open() error {
	for i := range l.forward + l.backward {
		from, to := l.a, l.b
		if i >= l.forward {
			from, to = to, from
		}
		snd, rcv, err := openTCP(from, to)
		if err != nil {
			return err
		}
		l.flows = append(l.flows, &tcpFlow{sender: snd, receiver: rcv, backward: i >= l.forward})
	}
	return nil
}

func (l *tcpLoad) send(f *tcpFlow, chunk []byte) {
	for !l.stop.Load() {
		n, _, errno := unix.Syscall(unix.SYS_WRITE, uintptr(f.sender), uintptr(unsafe.Pointer(&chunk[0])), uintptr(len(chunk)))
		switch errno {
		case 0:
			f.sent.bytes.Add(uint64(n))
		case unix.EINTR, unix.EAGAIN:
		default:
			return
		}
	}
	_ = unix.Shutdown(f.sender, unix.SHUT_WR)
}

// receive reads until the sender's end of stream.
func (l *tcpLoad) receive(f *tcpFlow, chunk []byte) {
	for !l.abandon.Load() {
		n, _, errno := unix.Syscall(unix.SYS_READ, uintptr(f.receiver), uintptr(unsafe.Pointer(&chunk[0])), uintptr(len(chunk)))
		switch {
		case errno == unix.EINTR || errno == unix.EAGAIN:
		case errno != 0 || n == 0:
			return
		default:
			f.received.bytes.Add(uint64(n))
		}
	}
}

func (l *tcpLoad) read() totals {
	var t totals
	for _, f := range l.flows {
		got := f.received.bytes.Load()
		t.sentBytes += f.sent.bytes.Load()
		t.receivedBytes += got
		if f.backward {
			t.backward += got
		} else {
			t.forward += got
		}
		if tcp, err := unix.GetsockoptTCPInfo(f.sender, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			t.retransmits += uint64(tcp.Total_retrans)
		}
	}
	return t
}

func (l *tcpLoad) finish() {
	if l.stop.Swap(true) {
		return
	}
	timer := time.AfterFunc(drainTime, func() { l.abandon.Store(true) })
	l.threads.wait()
	timer.Stop()
}

func (l *tcpLoad) close() {
	for _, f := range l.flows {
		closeAll(f.sender, f.receiver)
	}
	l.flows = nil
}
