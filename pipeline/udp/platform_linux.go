package udp

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// portableOnly tells that this platform has no socket of its own here.
const portableOnly = false

// portableError adds errFamily to the error of a family that the machine lacks.
func portableError(err error) error { return familyError(err) }

// setConnMark sets SO_MARK on a connection of package net.
func setConnMark(conn *net.UDPConn, mark uint32) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
	}); err != nil {
		return err
	}
	return os.NewSyscallError("setsockopt SO_MARK", set)
}

// familyError adds errFamily to the error of a family that the machine lacks.
func familyError(err error) error {
	errno, ok := errors.AsType[syscall.Errno](err)
	if ok && oneOf(errno, unix.EAFNOSUPPORT, unix.EPFNOSUPPORT, unix.EPROTONOSUPPORT) {
		return fmt.Errorf("%w: %w", errFamily, err)
	}
	return err
}
