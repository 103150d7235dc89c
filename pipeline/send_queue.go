package pipeline

import (
	"time"

	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// sendQueue is the runs of one address family that wait to be sent; runs[:sent] are done. owners[i] is whose runs[i] is.
type sendQueue struct {
	runs   []udp.Run
	owners []owner
	sent   int
	end    int  // of the last run's bytes in the arena
	full   bool // the last run may not be appended to
}

// owner is whose a run is.
type owner struct {
	peer *peer
	path *Path
	at   time.Duration // when the stamps were told that it was sent
}

func newSendQueue() sendQueue {
	return sendQueue{runs: make([]udp.Run, 0, batchPackets), owners: make([]owner, 0, batchPackets)}
}

// append adds arena[at:at+size] to the last run if it fits there, or as a new run.
func (q *sendQueue) append(owner owner, arena []byte, at, size int, outer outerMarks) {
	if n := len(q.runs); n > q.sent && !q.full && q.end == at && q.owners[n-1] == owner {
		r := &q.runs[n-1]
		if size <= r.SegmentSize && r.TOS == outer.tos && r.TTL == outer.ttl && len(r.Data)+size <= udp.MaxDatagram &&
			len(r.Data) < udp.MaxSegments*r.SegmentSize {
			r.Data = r.Data[:len(r.Data)+size]
			q.end += size
			q.full = size < r.SegmentSize
			return
		}
	}
	r := owner.path.run(arena[at:at+size], outer.tos)
	r.TTL = outer.ttl
	q.runs = append(q.runs, r)
	q.owners = append(q.owners, owner)
	q.end, q.full = at+size, false
}

// send sends what waits and returns true when nothing is left.
func (q *sendQueue) send(s *shard, socket udp.Socket) bool {
	if q.sent == len(q.runs) {
		q.reset()
		return true
	}
	if socket == nil {
		q.abandon(s, dropFamily)
		return true
	}
	n, err := socket.Send(q.runs[q.sent:])
	if s.taking.tap != nil {
		s.captureRuns(q, n, notDropped)
	}
	q.book(n)
	if q.sent += n; err == nil && q.sent < len(q.runs) {
		q.full = true // a part of the next run may be on its way, so it must stay as it is
		return false
	}
	q.abandon(s, dropSendStalled) // nothing is left, or the socket is closed and nothing will ever leave
	return true
}

// book counts the next n runs, which the socket is done with, for their peers: what it refused was not sent (kernel socket.c,
// wg_socket_send_skb_to_peer, and send.c, wg_packet_create_data_done).
func (q *sendQueue) book(n int) {
	for i := q.sent; i < q.sent+n; i++ {
		owner := &q.owners[i]
		bytes, datagrams := q.runs[i].Sent()
		if datagrams == 0 {
			owner.peer.stamps.refused(owner.at)
			continue
		}
		owner.peer.txBytes.Add(uint64(bytes - datagrams*owner.path.overhead()))
	}
}

// abandon drops what waits.
func (q *sendQueue) abandon(s *shard, why dropReason) {
	if s.taking.tap != nil {
		s.captureRuns(q, len(q.runs)-q.sent, why)
	}
	for i := q.sent; i < len(q.runs); i++ {
		r := &q.runs[i]
		n := (len(r.Data) + r.SegmentSize - 1) / r.SegmentSize
		s.stats.drop(why, n)
		p := q.owners[i].peer
		p.drops.note(s.now, why, n, nil)
		p.stamps.refused(q.owners[i].at)
	}
	q.reset()
}

func (q *sendQueue) reset() {
	clear(q.runs)
	clear(q.owners)
	q.runs, q.owners, q.sent = q.runs[:0], q.owners[:0], 0
}
