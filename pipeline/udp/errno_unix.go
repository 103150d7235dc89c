//go:build !windows

package udp

import (
	"errors"
	"syscall"
)

// refused tells an ICMP port unreachable of an earlier datagram, which this call only reports.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

func tooBig(err error) bool { return errors.Is(err, syscall.EMSGSIZE) }
