package udp

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr (man 2 sendmmsg): a message and the bytes moved.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// kernelCalls are the system calls of a socket; tests put failures in their place. msgs is never empty.
type kernelCalls struct {
	sendmmsg func(fd int, msgs []mmsghdr) (int, syscall.Errno)
	recvmmsg func(fd int, msgs []mmsghdr) (int, syscall.Errno)
	// wait blocks until fd is ready for events or milliseconds have passed; errors only make it return early.
	wait func(fd int, events int16, milliseconds int)
}

var linuxCalls = kernelCalls{sendmmsg: sendmmsg, recvmmsg: recvmmsg, wait: waitFor}

// sendmmsg goes through the scheduler (Syscall6): over veth and loopback the receiver's whole stack runs inside the send,
// 20 to 60 us a run, for which other goroutines should have the processor.
func sendmmsg(fd int, msgs []mmsghdr) (int, syscall.Errno) {
	n, _, errno := syscall.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(msgs))),
		uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// recvmmsg does not go through the scheduler (RawSyscall6): it never sleeps and its work is bounded, one copy of what
// already waits, while sysmon would take the processor away from a shard that is in the middle of its batch.
func recvmmsg(fd int, msgs []mmsghdr) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(msgs))),
		uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func waitFor(fd int, events int16, milliseconds int) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	_, _ = unix.Poll(fds, milliseconds)
}
