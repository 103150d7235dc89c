package udp

import (
	"errors"
	"time"
)

// sendOneWait is how long SendOne waits for a full socket buffer.
const sendOneWait = 10 * time.Millisecond

// errFull is SendOne's error after it waited for sendOneWait in vain.
var errFull = errors.New("udp: send: socket buffer full")

// segmentSize is the length of each datagram but the last, at least 1; 0 or more than Data means one datagram.
func (r *Run) segmentSize() int {
	if r.SegmentSize <= 0 || r.SegmentSize > len(r.Data) {
		return max(1, len(r.Data))
	}
	return r.SegmentSize
}

// scope is the interface that the run must leave by, 0: whichever the route with its source leads to. Only link-local IPv6
// addresses need theirs. To give the interface of any other source would force it (flowi4_oif), whatever the routing table
// says: with two uplinks nothing would ever leave by the one that leads to the peer.
func (r *Run) scope() int {
	if isLinkLocal6(r.Src) || isLinkLocal6(r.Dst.Addr()) {
		return r.IfIndex
	}
	return 0
}

// Sent is how many bytes of Data and how many datagrams were not refused, once Send has counted the run.
func (r *Run) Sent() (bytes, datagrams int) {
	bytes = len(r.Data) - r.Refused
	if bytes == 0 && r.Refused > 0 {
		return 0, 0
	}
	return bytes, segmentCount(bytes, r.segmentSize())
}

// segmentCount is how many datagrams bytes make; an empty run is one empty datagram.
func segmentCount(bytes, size int) int { return max(1, (bytes+size-1)/size) }
