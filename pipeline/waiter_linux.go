package pipeline

import (
	"encoding/binary"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun"
)

// newWaiter returns the waiter that fits the edges.
func newWaiter(q tun.Queue) (waiter, error) {
	if q.FD() < 0 {
		return newChannelWaiter(q), nil
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	w := &pollWaiter{event: event}
	w.fds = [4]unix.PollFd{
		{Fd: int32(q.FD()), Events: unix.POLLIN},
		{Fd: -1, Events: unix.POLLIN}, {Fd: -1, Events: unix.POLLIN},
		{Fd: int32(event), Events: unix.POLLIN},
	}
	return w, nil
}

// pollWaiter waits in ppoll for the TUN, both sockets and an eventfd, in this order. It bypasses the runtime's netpoller,
// whose hand-off from thread to thread costs more than a small batch.
type pollWaiter struct {
	fds   [4]unix.PollFd
	event int
}

func (w *pollWaiter) sockets(pair udp.Pair) {
	for i, s := range [2]udp.Socket{pair.V4, pair.V6} {
		w.fds[1+i].Fd = -1
		if s != nil {
			w.fds[1+i].Fd = int32(s.FD())
		}
	}
}

func (w *pollWaiter) wait(full families) {
	tunFD := w.fds[0].Fd
	if full.any() {
		w.fds[0].Fd = -1
	}
	// Room is asked of full sockets only: the other one always has some, and would never let us sleep.
	w.fds[1].Events, w.fds[2].Events = unix.POLLIN|room(full.v4), unix.POLLIN|room(full.v6)
	w.poll(-1)
	w.fds[0].Fd = tunFD
	if w.fds[3].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(w.event, count[:]) // resets the eventfd; EAGAIN would mean that it already is
	}
}

// room is the event to ask a socket for.
func room(full bool) int16 {
	if full {
		return unix.POLLOUT
	}
	return 0
}

// poll waits for at most limit, for ever if it is negative. A signal (the runtime sends some) does not end it: the system
// call leaves in ts what is left of the limit (ppoll(2), "C library/kernel differences").
func (w *pollWaiter) poll(limit time.Duration) {
	var ts *unix.Timespec
	if limit >= 0 {
		t := unix.NsecToTimespec(int64(limit))
		ts = &t
	}
	for {
		_, _, errno := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&w.fds[0])), uintptr(len(w.fds)),
			uintptr(unsafe.Pointer(ts)), 0, 0, 0)
		if errno != unix.EINTR {
			return
		}
	}
}

func (w *pollWaiter) writable(full families, limit time.Duration) {
	saved := w.fds
	w.fds[0].Fd, w.fds[3].Fd = -1, -1
	for i, wanted := range [2]bool{full.v4, full.v6} {
		if w.fds[1+i].Events = unix.POLLOUT; !wanted {
			w.fds[1+i].Fd = -1 // else a pending error of it ends the wait
		}
	}
	w.poll(limit)
	w.fds = saved
}

func (w *pollWaiter) wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(w.event, one[:]) // EAGAIN: the counter is far from 0 already
}

func (w *pollWaiter) close() { _ = unix.Close(w.event) }
