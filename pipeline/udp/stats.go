package udp

import "sync/atomic"

// Stats counts what a socket saw. Written by the socket's goroutines, read by any.
type Stats struct {
	ReceiveCalls, ReceiveRuns, ReceiveDatagrams, ReceiveBytes atomic.Uint64
	SendCalls, SendRuns, SendDatagrams, SendBytes             atomic.Uint64
	// Drops and fall-backs by reason.
	ReceiveDropped   atomic.Uint64 // by the kernel, before Receive: no room, or a wrong checksum; a whole UDP_GRO run counts once
	ReceiveTruncated atomic.Uint64 // datagram longer than the buffer or control messages cut
	ReceiveErrors    atomic.Uint64 // errors a remote can cause (ICMP), swallowed
	SendErrors       atomic.Uint64 // datagrams refused by the kernel (unreachable, EPERM by a firewall ...)
	SendTooBig       atomic.Uint64 // EMSGSIZE: datagram longer than the path MTU or the limit
	SendNoBuffer     atomic.Uint64 // ENOBUFS: datagrams dropped after one retry
	SegmentRefused   atomic.Uint64 // runs that had to be sent datagram by datagram
	SourceRejected   atomic.Uint64 // sticky sources that no longer were ours
}
