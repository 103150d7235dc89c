package udp

import "sync/atomic"

// Stats counts what a socket saw. Written by the socket's goroutines, read by any. Tags: see pipeline/count.
type Stats struct {
	ReceiveCalls     atomic.Uint64 `help:"Receive calls at UDP sockets."`
	ReceiveRuns      atomic.Uint64 `help:"Messages received, each a run of datagrams (UDP_GRO)."`
	ReceiveDatagrams atomic.Uint64 `help:"UDP datagrams received."`
	ReceiveBytes     atomic.Uint64 `help:"Bytes of UDP payload received."`
	SendCalls        atomic.Uint64 `help:"Send calls at UDP sockets."`
	SendRuns         atomic.Uint64 `help:"Messages sent, each a run of datagrams (UDP_SEGMENT)."`
	SendDatagrams    atomic.Uint64 `help:"UDP datagrams sent."`
	SendBytes        atomic.Uint64 `help:"Bytes of UDP payload sent."`

	ReceiveDropped   atomic.Uint64 `drop:"udp_receive kernel" help:"By the kernel, before the receive call: no room, or a wrong checksum; a whole UDP_GRO run counts once."`
	ReceiveTruncated atomic.Uint64 `drop:"udp_receive truncated" help:"Datagram longer than the buffer, or control messages cut."`
	ReceiveErrors    atomic.Uint64 `help:"Errors of receive calls that a remote can cause (ICMP), swallowed."`
	SendErrors       atomic.Uint64 `drop:"udp_send refused" help:"Datagrams refused by the kernel (unreachable, EPERM by a firewall ...)."`
	SendTooBig       atomic.Uint64 `drop:"udp_send too_big" help:"EMSGSIZE: datagram longer than the path MTU or the limit."`
	SendNoBuffer     atomic.Uint64 `drop:"udp_send no_buffer" help:"ENOBUFS: datagrams dropped after one retry."`
	SegmentRefused   atomic.Uint64 `help:"Runs that had to be sent datagram by datagram."`
	SourceRejected   atomic.Uint64 `help:"Sticky source addresses that no longer were ours."`
}
