package pipeline

import (
	"sync/atomic"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/tun"
)

// staged holds copies of packets that wait for a session, oldest first (WireGuard paper, section 6.4; the kernel's
// staged_packet_queue): at most crypto.MaxStagedPackets segments, the oldest go first. Owned by the lane's shard; count
// may be read by control.
type staged struct {
	packets []tun.Superpacket // Data owned, Buf unused
	count   atomic.Int64      // segments of all packets
}

// push copies the packet in and drops what has to give way. It returns how many segments were dropped and by how many
// bytes the queue has grown.
func (q *staged) push(p *tun.Superpacket) (dropped, grown int) {
	copied := tun.Superpacket{Data: append([]byte(nil), p.Data...), Offload: p.Offload}
	q.packets = append(q.packets, copied)
	q.count.Add(int64(segmentCount(p)))
	dropped, bytes := q.trim()
	return dropped, len(copied.Data) - bytes
}

// trim drops the oldest packets until no more are left than may be, and returns their segments and bytes.
func (q *staged) trim() (dropped, shrunk int) {
	for q.count.Load() > crypto.MaxStagedPackets && len(q.packets) > 1 {
		segments, bytes := q.pop()
		dropped += segments
		shrunk += bytes
	}
	return dropped, shrunk
}

// inherit takes the packets of older, which come before those there are, and returns what had to be dropped.
func (q *staged) inherit(older *staged) (dropped, shrunk int) {
	q.packets = append(older.packets, q.packets...)
	q.count.Add(older.count.Swap(0))
	older.packets = nil
	return q.trim()
}

// pop removes the oldest packet and returns its segments and bytes.
func (q *staged) pop() (segments, bytes int) {
	segments, bytes = segmentCount(&q.packets[0]), len(q.packets[0].Data)
	q.count.Add(-int64(segments))
	q.packets[0].Data = nil
	q.packets = q.packets[1:]
	return segments, bytes
}

// clear empties the queue and returns how many segments and bytes were in it.
func (q *staged) clear() (segments, bytes int) {
	for i := range q.packets {
		bytes += len(q.packets[i].Data)
	}
	segments = int(q.count.Swap(0))
	q.packets = nil
	return segments, bytes
}
