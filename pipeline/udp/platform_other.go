//go:build !linux && !windows

package udp

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// portableOnly tells that this platform has no socket of its own here.
const portableOnly = true

// portableError adds errFamily to the error of a family that the machine lacks.
func portableError(err error) error {
	if errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EPROTONOSUPPORT) {
		return fmt.Errorf("%w: %w", errFamily, err)
	}
	return err
}

// setConnMark fails: this system has no marks.
func setConnMark(*net.UDPConn, uint32) error {
	return fmt.Errorf("udp: fwmark: %w", errors.ErrUnsupported)
}
