package pipeline

import (
	"log/slog"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/count"
)

// lossNames are the counters of packets that were lost although nothing is wrong with them, most of them in queues: nobody hears
// of those but from us. What is hostile, or has no way to go, is only counted.
var lossNames = [...]string{
	"tun_read_dropped", "tun_read_unserved", "tun_read_malformed", "drop_too_big", "drop_staged_full", "drop_send_stalled",
	"udp_send_no_buffer", "udp_send_too_big", "udp_receive_dropped", "udp_receive_truncated",
	"tun_write_refused", "drop_tun_full", "tun_write_dropped",
}

// LossNames are the names that Status.Lost can have, in their order.
func LossNames() []string { return slices.Clone(lossNames[:]) }

// floodNames are the counters of what nobody of ours has sent: messages that are forged, repeated, damaged or of no session, and
// the handshakes that found the mailbox full because of them. One is not worth a line, whoever sends it; many at once are: they cost
// what the tunnel then lacks.
var floodNames = [...]string{
	"drop_stray", "drop_malformed", "drop_channel_data", "drop_mailbox_full", "drop_unknown_index", "drop_expired_keypair",
	"drop_unauthentic", "drop_replayed", "handshake_mac1_mismatch", "handshake_cookie_sent", "handshake_rate_limited",
	"handshake_unknown_index", "handshake_bad_cookie",
}

// floodLeast is how many datagrams of floodNames, since the last line, are a flood.
const floodLeast = 100_000

// countWatch tells of counters that grow: the first time within watchLook of least, then once in watchLine, with what was added
// since; nothing while they stand still. Owned by control.
type countWatch struct {
	names      []string
	least      uint64        // in sum
	next, line time.Duration // when to look again, and when another line may be written; on the pipeline's clock
	told       map[string]uint64
}

const (
	watchLook = 5 * time.Second // while control has something to do anyway
	watchLine = time.Minute
)

// due says whether it is time to look.
func (w *countWatch) due(now time.Duration) bool { return now >= w.next }

// deadline is when control is to look though nothing else wakes it.
func (w *countWatch) deadline() time.Duration { return w.next + watchLine }

// look returns what there is to tell: each counter of names that has grown, and by how much, in their order.
func (w *countWatch) look(now time.Duration, counts map[string]uint64) (grown []any) {
	w.next = now + watchLook
	if now < w.line {
		return nil
	}
	sum := uint64(0)
	for _, name := range w.names {
		if n := counts[name] - w.told[name]; n > 0 {
			grown = append(grown, slog.Uint64(name, n))
			sum += n
		}
	}
	if sum == 0 || sum < w.least {
		return nil
	}
	w.told, w.line = counts, now+watchLine
	return grown
}

// losses are the counters of lossNames that are not 0, in their order.
func losses(all []count.Counter) (list []count.Counter) {
	for _, name := range lossNames {
		if i := slices.IndexFunc(all, func(c count.Counter) bool { return c.Name == name }); i >= 0 && all[i].Value > 0 {
			list = append(list, all[i])
		}
	}
	return list
}
