//go:build !linux

package relay

import (
	"net/netip"
	"syscall"
)

// setOptions leaves the socket as package net made it: an IPv6 socket of network "udp6" takes no IPv4 already.
func (s *socket) setOptions(syscall.RawConn, bool, socketConfig) error { return nil }

// wait returns at once: receive blocks.
func (s *socket) wait() error { return nil }

// wasTruncated takes a full buffer for a truncated datagram: not every system tells.
func wasTruncated(_, n, size int) bool { return n == size }

func (s *socket) givesUpRuns(error) bool { return false }

func parseControl([]byte, *received) {}

func appendControl(oob []byte, _ netip.Addr, _ int, _ bool) []byte { return oob }
