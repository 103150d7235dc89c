package pipeline

import (
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/count"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// What the wall clock makes of a wait is counted only where it can be one.
func TestArrived(t *testing.T) {
	const now = int64(1_700_000_000_000_000_000)
	for _, test := range []struct {
		name    string
		arrived int64
		want    uint64 // in microseconds
		counted bool
	}{
		{"not told", 0, 0, false},
		{"at once", now, 0, true},
		{"a wait", now - int64(1500*time.Microsecond), 1500, true},
		{"the longest wait", now - int64(maxWait), uint64(maxWait / time.Microsecond), true},
		{"the clock was set forward", now - int64(maxWait) - 1, 0, false},
		{"the clock was set from 1970", 1, 0, false},
		{"the clock was set back", now + 1, 0, false},
		{"the clock was set back by years", now + int64(20000*time.Hour), 0, false},
	} {
		s := &shard{stats: new(shardStats)}
		s.arrived(test.arrived, now)
		values := count.Values(s.stats.counters())
		if n, sum := values["receive_seconds_count"], values["receive_seconds_sum"]; (n == 1) != test.counted || sum != test.want {
			t.Errorf("%s: %d counted with %d µs, want %v with %d", test.name, n, sum, test.counted, test.want)
		}
	}
}

// One batch in 64 has its wait in the kernel counted, if delays are sampled and the kernel tells.
func TestReceiveSeconds(t *testing.T) {
	for _, test := range []struct {
		name     string
		sampled  bool
		told     int64
		want     uint64
		wantLane uint64
	}{
		{"sampled", true, time.Now().UnixNano(), 1, 1},
		{"sampled, not told", true, 0, 0, 1},
		{"not sampled", false, time.Now().UnixNano(), 0, 0},
	} {
		l := newLanes(t, 0, tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}, laneInner)
		s := l.b.shards[0]
		s.sampled, l.wire.from.Arrived = test.sampled, test.told
		for s.stats.InboundBatches.Load() < sampleEvery+sampleEvery/2 {
			l.carry(t, 1)
		}
		values := count.Values(s.stats.counters())
		if got, lane := values["receive_seconds_count"], values["inbound_seconds_count"]; got != test.want || lane != test.wantLane {
			t.Errorf("%s: %d counted, and %d of the lane, want %d and %d", test.name, got, lane, test.want, test.wantLane)
		}
	}
}
