package tun

import "sync/atomic"

// QueueStats counts what a queue saw. Written by the queue's goroutine, read by any.
type QueueStats struct {
	ReadCalls, ReadPackets, ReadSegments, ReadBytes     atomic.Uint64
	WriteCalls, WritePackets, WriteSegments, WriteBytes atomic.Uint64
	// Drops by reason.
	ReadMalformed  atomic.Uint64 // offload fields outside of the packet, or not IP
	ReadUnserved   atomic.Uint64 // superpackets of a kind that is not cut: a fragment, or AH, ESP or too long a chain before TCP or UDP
	WriteRefused   atomic.Uint64 // the kernel refused a packet (EINVAL) even without offload
	WriteDown      atomic.Uint64 // interface down (EIO)
	OffloadRefused atomic.Uint64 // runs that had to be written packet by packet after EINVAL
	// What the kernel dropped between the device and us. It tells that of the whole device, so the first queue has it, as of a
	// second ago, since the device was opened.
	ReadDropped  atomic.Uint64 // before Read: the queue was full (Linux tx_dropped)
	WriteDropped atomic.Uint64 // behind Write (Linux rx_dropped)
}
