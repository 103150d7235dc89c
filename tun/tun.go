// Package tun is the IP edge: it reads superpackets from a TUN device and writes superpackets to it.
//
// A superpacket is an IP packet as the kernel hands it to a device that can segment: up to 64 KiB of one TCP or UDP flow
// behind a single header, with the segment size beside it (Linux: IFF_VNET_HDR with TSO and USO,
// include/uapi/linux/virtio_net.h). Outbound superpackets are cut by [Segmenter] straight into the buffers where they
// are sealed; inbound packets are joined by [Coalescer] into runs, which are written with one system call and without
// copying their payload. Both are pure: bytes to bytes, no kernel needed.
//
// A [Device] has one or more [Queue]s. Each queue belongs to one goroutine (a shard of the pipeline), which alone calls
// its Read and Write. Linux devices are non-blocking descriptors; Windows (Wintun, through wireguard-go's tun package)
// and the in-memory device of tuntest give a Ready channel instead.
package tun

import "errors"

// Sizes of buffers.
const (
	// MaxSuperpacket is the largest IP packet that Read returns, headers included.
	MaxSuperpacket = 65535
	// ReadHeadroom is what Read needs in front of a packet, for the virtio-net header.
	ReadHeadroom = 16
	// ReadBufferSize is the least length of a buffer given to Read.
	ReadBufferSize = ReadHeadroom + MaxSuperpacket + 1
)

// GSOType says how a superpacket is to be cut.
type GSOType uint8

// The kinds of superpacket. GSONone with NeedsChecksum is a single packet whose transport checksum is not complete.
const (
	GSONone GSOType = iota
	GSOTCPv4
	GSOTCPv6
	GSOUDPv4 // UDP segmentation offload, called UDP_L4 in the kernel
	GSOUDPv6
)

// Offload is what the device says about a packet beside its bytes. The zero value is a complete single packet.
type Offload struct {
	Type GSOType
	// NeedsChecksum: the transport checksum field holds the pseudo-header sum only; the sum over the bytes from
	// ChecksumStart on is to be completed and stored at ChecksumStart+ChecksumOffset.
	NeedsChecksum bool
	// ChecksumValid: on Write only; the packet came authenticated out of the tunnel, the receiver need not check its
	// transport checksum (VIRTIO_NET_HDR_F_DATA_VALID).
	ChecksumValid  bool
	ChecksumStart  uint16 // bytes from the start of the IP header
	ChecksumOffset uint16 // bytes from ChecksumStart
	HeaderLen      uint16 // IP and transport header together, bytes
	SegmentSize    uint16 // payload bytes of each segment but the last; 0 for GSONone
}

// Superpacket is one packet read from the device.
type Superpacket struct {
	// Buf is given by the caller, at least ReadBufferSize long, and stays the caller's. Read writes into it only.
	Buf []byte
	// Data is set by Read: the IP packet, a view into Buf, valid until the caller reuses Buf.
	Data []byte
	// Offload is set by Read. It has been validated against Data: header lengths and checksum position lie inside.
	Offload
}

// Run is one packet to be written, in pieces that the device joins (writev).
type Run struct {
	Offload
	// Pieces are borrowed until Write returns. Together they are one IP packet of at most MaxSuperpacket bytes.
	Pieces [][]byte
}

// Errors that callers branch on. Everything else from a Queue ends the device.
var (
	// ErrClosed: the device was closed or deleted.
	ErrClosed = errors.New("tun: device closed")
	// ErrDown: the interface is down; the packets were dropped.
	ErrDown = errors.New("tun: interface is down")
)

// Capabilities are the offloads that the kernel granted, found by probing, not by version.
type Capabilities struct {
	VNETHeader bool // superpackets at all
	TSO4, TSO6 bool
	USO        bool // USO4 and USO6, Linux 6.2
}

// Device is a TUN interface.
type Device interface {
	// Name is the interface's name at the time of creation. It may have been renamed or moved to another network
	// namespace since, so nothing may be looked up by it later.
	Name() string
	// MTU is the newest known MTU in bytes.
	MTU() int
	Capabilities() Capabilities
	Queues() []Queue
	// Events delivers changes of state. It is closed by Close, and when the device is deleted from outside, after
	// EventGone. The channel is buffered; an event is dropped only if an equal one waits.
	Events() <-chan Event
	Close() error
}

// ErrorSender is a Device whose host can send ICMP errors itself, as a router does: from an address of its own (RFC 1812, section
// 4.3.2.4; RFC 4443, section 2.2), to whom a NAT of the host has hidden, too. What is written to the device cannot bear such an
// address, since a host takes nothing that comes in from itself.
type ErrorSender interface {
	// SendError has the host send an ICMP error that package ip has made of a packet read from the device; its source is
	// replaced. It does not block and copies what it takes. False: the host cannot, and the caller writes the error to the
	// device. Errors beyond a few that wait are dropped. Any goroutine.
	SendError(icmpError []byte) bool
}

// Event is a change of the interface's state.
type Event uint8

// The events of a Device.
const (
	EventUp Event = iota
	EventDown
	EventMTU        // Device.MTU has changed
	EventMTUClamped // a larger MTU than Options.MaxMTU was set, and set back
	EventGone       // the interface was deleted from outside
)

// Queue is one queue of a device. It belongs to one goroutine. No method blocks.
type Queue interface {
	// Read fills up to len(batch) packets and returns how many; 0 and nil when the queue is dry. A packet that is
	// malformed (offload fields outside of its bytes) is skipped and counted in Stats.
	Read(batch []Superpacket) (int, error)
	// Write writes each run as one packet. n counts the runs that were written or given up on (dropped and counted in
	// Stats); n < len(runs) with a nil error means that the device is full: call again with the rest later.
	Write(runs []Run) (n int, err error)
	// FD is the descriptor to poll for reading, or -1 where Ready is used.
	FD() int
	// Ready delivers a value when Read may have something after it was dry. Nil where FD is used.
	Ready() <-chan struct{}
	// Stats is the queue's own count; it may be read by any goroutine.
	Stats() *QueueStats
}
