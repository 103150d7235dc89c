package udp

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/windows"
)

// portableOnly tells that this platform has no socket of its own here.
const portableOnly = true

// portableError adds errFamily or EADDRINUSE, whose value in package syscall is not the one that Windows returns.
func portableError(err error) error {
	switch {
	case errors.Is(err, windows.WSAEAFNOSUPPORT), errors.Is(err, windows.WSAEPFNOSUPPORT):
		return fmt.Errorf("%w: %w", errFamily, err)
	case errors.Is(err, windows.WSAEADDRINUSE), errors.Is(err, windows.WSAEACCES):
		// WSAEACCES: the port is held exclusively by another socket.
		return fmt.Errorf("%w: %w", syscall.EADDRINUSE, err)
	}
	return err
}

func refused(err error) bool { return errors.Is(err, windows.WSAECONNRESET) }

func tooBig(err error) bool { return errors.Is(err, windows.WSAEMSGSIZE) }

// setConnMark fails: Windows has no marks.
func setConnMark(*net.UDPConn, uint32) error {
	return fmt.Errorf("udp: fwmark: %w", errors.ErrUnsupported)
}
