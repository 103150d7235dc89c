// Package udp is the outer edge: it sends and receives datagrams in batches.
//
// On Linux a [Socket] is one non-blocking descriptor with message arrays of its own for recvmmsg and sendmmsg; equal
// datagrams to one destination leave as one UDP_SEGMENT run and arrive as one UDP_GRO run (Linux net/ipv4/udp_offload.c).
// Offloads are probed when the socket opens and given up at run time where a path refuses them. Elsewhere, and where a
// build tag or Config asks for it, the portable socket on package net obeys the same contract.
//
// A Socket belongs to one goroutine for Receive and to one for Send (a shard of the pipeline owns both); SendOne may be
// called by any goroutine, so that control can send handshake messages beside the lanes.
package udp

import (
	"errors"
	"net/netip"
)

const (
	// MaxDatagram is the largest UDP payload (IPv4) in bytes, and the largest UDP_SEGMENT run.
	MaxDatagram = 65507
	// BufferSize is the least length of a buffer given to Receive: a whole UDP_GRO run.
	BufferSize = 65536
	// MaxSegments is how many datagrams one UDP_SEGMENT run may have (UDP_MAX_SEGMENTS before Linux 6.9).
	MaxSegments = 64
)

// ECN is the two-bit congestion mark of the outer IP header (RFC 3168).
type ECN uint8

// Datagrams is one received message: a single datagram, or several of one flow that the kernel joined (UDP_GRO).
type Datagrams struct {
	// Buf is given by the caller, at least BufferSize long, and stays the caller's.
	Buf []byte
	// Data is set by Receive: a view into Buf, valid until the caller reuses Buf.
	Data []byte
	// SegmentSize is the length of each datagram in Data but the last, which may be shorter. At least 1 unless Data is empty.
	SegmentSize int
	// Src is where the datagrams came from, unmapped, with the interface's index as zone for link-local IPv6.
	Src netip.AddrPort
	// Dst is the local address they came to; IfIndex the interface. Dst is invalid if the platform does not tell.
	Dst     netip.Addr
	IfIndex int
	ECN     ECN
	// Arrived is when the kernel took in the first of them, by the system's wall clock, in nanoseconds since 1970; 0: it does not tell,
	// see Config.Timestamps.
	Arrived int64
}

// Run is one or more datagrams to one destination, back to back in Data.
type Run struct {
	// Data is borrowed until Send has counted the run.
	Data []byte
	// SegmentSize is the length of each datagram but the last, which may be shorter, never longer. At most MaxSegments
	// datagrams and MaxDatagram bytes.
	SegmentSize int
	Dst         netip.AddrPort
	// Src chooses the local address where it is ours (sticky source); invalid leaves the choice to the kernel. IfIndex is looked
	// at for link-local IPv6 addresses only, which it belongs to; anything else goes where the route with that source leads.
	Src     netip.Addr
	IfIndex int
	// Refused is set by Send: how many bytes of Data the kernel has refused, whole datagrams. The portable socket, which sends
	// later, leaves it 0.
	Refused int
	// TOS is the outer header's whole byte: DSCP and ECN.
	TOS uint8
	// TTL is the outer header's TTL or hop limit; 0: the host's default. The portable socket leaves it to the host.
	TTL uint8
}

// Errors that callers branch on.
var (
	// ErrClosed: the socket was closed.
	ErrClosed = errors.New("udp: socket closed")
	// ErrNoFamily: the machine has neither IPv4 nor IPv6. One alone is no error: see Pair.
	ErrNoFamily = errors.New("udp: address family not available")
)

// Socket is a UDP socket of one address family. Receive and Send never block.
type Socket interface {
	// Receive fills up to len(batch) messages and returns how many; 0 and nil when nothing waits. Messages that were
	// truncated are dropped and counted; each keeps its place in batch with empty Data, as an empty datagram has. Errors
	// that a remote can cause (ICMP) are swallowed and counted.
	Receive(batch []Datagrams) (int, error)
	// Send sends runs in order. n counts runs that were handed to the kernel or given up on (counted by reason in Stats);
	// n < len(runs) with a nil error means that the socket buffer is full: poll for writing and call again with the rest,
	// unchanged; of the first of them a part may be on its way.
	// A run that was refused as a run is sent datagram by datagram, in place, before n counts it. A source that is no
	// longer ours (EINVAL, EADDRNOTAVAIL) is left out and the run sent again; SourceRejected counts that.
	Send(runs []Run) (n int, err error)
	// SendOne sends one datagram, from any goroutine; it may block for as long as a full socket buffer takes to drain,
	// at most 10 ms, then the datagram is dropped and counted. The error tells why it was not sent; none of them but
	// ErrClosed says anything about the next datagram. SegmentSize is not looked at.
	SendOne(r Run) error
	// LocalPort is the bound port.
	LocalPort() uint16
	// SetMark sets the fwmark of all that is sent (SO_MARK); 0 clears it. An error on systems without marks.
	SetMark(mark uint32) error
	// FD is the descriptor to poll, or -1 where Ready is used.
	FD() int
	// Ready delivers a value when Receive may have something after it had nothing. Nil where FD is used.
	Ready() <-chan struct{}
	// Writable delivers a value when Send may go on after it was full. Nil where FD is used.
	Writable() <-chan struct{}
	// Offloads tells what is in use now.
	Offloads() Offloads
	Stats() *Stats
	Close() error
}

// Offloads are the kernel features in use, found by probing, and the socket buffers that the kernel granted, in bytes as
// Config counts them (Linux keeps twice that, for its own bookkeeping).
type Offloads struct {
	SegmentSend   bool // UDP_SEGMENT
	GROReceive    bool // UDP_GRO
	BatchCalls    bool // sendmmsg, recvmmsg
	LocalAddress  bool // PKTINFO: Dst is known, Src obeyed
	ReceiveBuffer int
	SendBuffer    int
}

// Config says how to open the sockets of a pipeline. The zero value is one shard on a random port with the defaults.
type Config struct {
	// Port is the local port, the same for both families; 0 chooses one that is free in both.
	Port uint16
	// Shards is how many sockets per family share the port (SO_REUSEPORT); 0 is 1. The portable socket is always one.
	Shards int
	// Mark is the fwmark; 0 is none.
	Mark uint32
	// ReceiveBuffer and SendBuffer are socket buffer sizes in bytes asked for; 0 takes the default of this package. What
	// the kernel grants may be less (net.core.rmem_max, wmem_max, unless we may pass them) and is told by Offloads. On Linux
	// what is refused of SendBuffer is made up for by further sockets on the port, up to 32 MiB or 160 sockets for each.
	ReceiveBuffer, SendBuffer int
	// NoSegment, NoGRO and Portable switch off UDP_SEGMENT, UDP_GRO, or the platform's own socket altogether.
	NoSegment, NoGRO, Portable bool
	// ForceSegment uses UDP_SEGMENT also on a kernel that is known to corrupt runs (see trustSegment), if it has it at all.
	ForceSegment bool
	// Timestamps asks for Datagrams.Arrived, which Linux tells, from 5.1 on; other systems and the portable socket do not. The whole
	// machine's kernel then reads the clock for every packet that comes in.
	Timestamps bool
	// Routes asks for Pair.Routes.
	Routes bool
}

// Pair is one shard's sockets. One of them is nil where the machine lacks the family.
type Pair struct {
	V4, V6 Socket
	// Routes comes with the first pair, if Config asks for it and the system has it; whoever closes the sockets closes it, too.
	// NoRoutes is why the system refuses it, if it does.
	Routes   Routes
	NoRoutes error
}

// LocalPort is the port of both.
func (p Pair) LocalPort() uint16 {
	if p.V4 != nil {
		return p.V4.LocalPort()
	}
	if p.V6 != nil {
		return p.V6.LocalPort()
	}
	return 0
}

// Listener opens the sockets of a pipeline: Listen in production, udptest's network in tests.
type Listener func(Config) ([]Pair, error)
