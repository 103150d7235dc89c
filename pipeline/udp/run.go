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

// segmentCount is how many datagrams bytes make; an empty run is one empty datagram.
func segmentCount(bytes, size int) int { return max(1, (bytes+size-1)/size) }
