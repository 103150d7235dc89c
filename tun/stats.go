package tun

import "sync/atomic"

// QueueStats counts what a queue saw. Written by the queue's goroutine, read by any. Tags: see pipeline/count.
type QueueStats struct {
	ReadCalls     atomic.Uint64 `help:"Read calls at the TUN device."`
	ReadPackets   atomic.Uint64 `help:"Packets read from the TUN device; a superpacket is one."`
	ReadSegments  atomic.Uint64 `help:"Packets that those read from the TUN device stand for."`
	ReadBytes     atomic.Uint64 `help:"Bytes of IP packets read from the TUN device."`
	WriteCalls    atomic.Uint64 `help:"Write calls at the TUN device."`
	WritePackets  atomic.Uint64 `help:"Packets written to the TUN device; a superpacket is one."`
	WriteSegments atomic.Uint64 `help:"Packets that those written to the TUN device stand for."`
	WriteBytes    atomic.Uint64 `help:"Bytes of IP packets written to the TUN device."`

	ReadMalformed  atomic.Uint64 `drop:"tun_read malformed" help:"Offload fields outside of the packet, or not IP."`
	ReadUnserved   atomic.Uint64 `drop:"tun_read unserved" help:"Superpackets of a kind that is not cut: a fragment, or AH, ESP or too long a chain before TCP or UDP."`
	WriteRefused   atomic.Uint64 `drop:"tun_write refused" help:"The kernel refused a packet (EINVAL) even without offload."`
	WriteDown      atomic.Uint64 `drop:"tun_write down" help:"The interface was down (EIO)."`
	OffloadRefused atomic.Uint64 `help:"Runs that had to be written to the TUN device packet by packet after EINVAL."`
	// What the kernel dropped between the device and us. It tells that of the whole device, so the first queue has it, as of a
	// second ago, since the device was opened.
	ReadDropped  atomic.Uint64 `drop:"tun_read queue_full" help:"By the kernel, before the read: the queue was full (Linux tx_dropped)."`
	WriteDropped atomic.Uint64 `drop:"tun_write kernel" help:"By the kernel, behind the write (Linux rx_dropped)."`
}
