package speedtest

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// udpDrain is how long finish waits for packets on their way.
const udpDrain = 100 * time.Millisecond

// udpBatch is how many packets one recvmmsg takes.
const udpBatch = 64

// udpLoad is one sender with one system call a packet, as an ordinary program sends, and one receiver in batches.
type udpLoad struct {
	from, to         endpoint
	size             int // payload, bytes
	sender, receiver int // descriptors; -1: that end is on another machine
	opened           bool
	threads          threads
	stop, abandon    atomic.Bool
	sent, received   count
}

func (l *udpLoad) start() error {
	if !l.opened {
		var err error
		if l.sender, l.receiver, err = openUDP(l.from, l.to); err != nil {
			return err
		}
		l.opened = true
	}
	if l.receiver >= 0 {
		batch := newReceiveBatch(l.size)
		l.threads.start(func() { l.receive(batch) })
	}
	if l.sender >= 0 {
		packet := make([]byte, l.size)
		l.threads.start(func() { l.send(packet) })
	}
	return nil
}

// send uses the raw call: a sendto on a device without back-pressure does not block, and the scheduler's book-keeping around
// each call would cost more than the call.
func (l *udpLoad) send(packet []byte) {
	size := uint64(len(packet))
	wait := [1]unix.PollFd{{Fd: int32(l.sender), Events: unix.POLLOUT}}
	for !l.stop.Load() {
		_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(l.sender),
			uintptr(unsafe.Pointer(&packet[0])), uintptr(size), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			l.sent.packets.Add(1)
			l.sent.bytes.Add(size)
		case unix.EAGAIN:
			_, _ = unix.Poll(wait[:], int(stopTimeout/time.Millisecond))
		case unix.EBADF:
			return
		}
	}
}

// multiMessage is struct mmsghdr.
type multiMessage struct {
	header unix.Msghdr
	length uint32
}

// receiveBatch is what recvmmsg fills.
type receiveBatch struct {
	messages [udpBatch]multiMessage
	vectors  [udpBatch]unix.Iovec
	buffers  []byte
}

func newReceiveBatch(size int) *receiveBatch {
	b := &receiveBatch{buffers: make([]byte, udpBatch*size)}
	for i := range b.messages {
		b.vectors[i].Base = &b.buffers[i*size]
		b.vectors[i].SetLen(size)
		b.messages[i].header.Iov = &b.vectors[i]
		b.messages[i].header.SetIovlen(1)
	}
	return b
}

func (l *udpLoad) receive(b *receiveBatch) {
	for !l.abandon.Load() {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(l.receiver), uintptr(unsafe.Pointer(&b.messages)),
			udpBatch, unix.MSG_WAITFORONE, 0, 0)
		if errno == unix.EBADF {
			return
		}
		if errno != 0 {
			continue // timeout, signal, or an ICMP error of the path
		}
		var bytes uint64
		for i := range b.messages[:n] {
			bytes += uint64(b.messages[i].length)
		}
		l.received.packets.Add(uint64(n))
		l.received.bytes.Add(bytes)
	}
}

func (l *udpLoad) read() totals {
	return totals{
		sentBytes: l.sent.bytes.Load(), receivedBytes: l.received.bytes.Load(),
		sentPackets: l.sent.packets.Load(), receivedPackets: l.received.packets.Load(),
	}
}

func (l *udpLoad) finish() {
	if l.stop.Swap(true) {
		return
	}
	time.Sleep(udpDrain)
	l.abandon.Store(true)
	l.threads.wait()
}

// dropped is how many packets the kernel dropped at the receiver's socket, until close.
func (l *udpLoad) dropped() uint64 {
	var memory [9]uint32 // SK_MEMINFO_VARS of include/uapi/linux/sock_diag.h, of which SK_MEMINFO_DROPS is the last
	size := uint32(unsafe.Sizeof(memory))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(l.receiver), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&memory)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0
	}
	return uint64(memory[8])
}

func (l *udpLoad) close() {
	if l.opened {
		closeAll(l.sender, l.receiver)
		l.opened = false
	}
}
