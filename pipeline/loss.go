package pipeline

import (
	"log/slog"
	"slices"
	"time"
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

// lossWatch tells of packets that are being lost: the first time within lossLook, then once in lossInterval, with what was lost
// since; nothing while nothing is. Owned by control. The zero value is ready.
type lossWatch struct {
	next, line time.Duration // when to look again, and when another line may be written; on the pipeline's clock
	told       counterSet
}

const (
	lossLook     = 5 * time.Second // while control has something to do anyway
	lossInterval = time.Minute
)

// due says whether it is time to look.
func (w *lossWatch) due(now time.Duration) bool { return now >= w.next }

// deadline is when control is to look though nothing else wakes it.
func (w *lossWatch) deadline() time.Duration { return w.next + lossInterval }

// look returns what there is to tell: each counter of lossNames that has grown, and by how much, in their order.
func (w *lossWatch) look(now time.Duration, counts counterSet) (lost []any) {
	w.next = now + lossLook
	if now < w.line {
		return nil
	}
	for _, name := range lossNames {
		if grown := counts[name] - w.told[name]; grown > 0 {
			lost = append(lost, slog.Uint64(name, grown))
		}
	}
	if lost != nil {
		w.told, w.line = counts, now+lossInterval
	}
	return lost
}

// losses are the counters of lossNames that are not 0, in their order.
func losses(counts counterSet) (list []Counter) {
	for _, name := range lossNames {
		if counts[name] > 0 {
			list = append(list, Counter{name, counts[name]})
		}
	}
	return list
}
