package speedtest

import (
	"reflect"
	"strings"
	"testing"
)

// TestNamedDrops: each packet is counted once, where it was lost, and what the load has no part in is left out.
func TestNamedDrops(t *testing.T) {
	r := Result{Case: "udp-100", Impl: "sluice", PacketsSent: 1000, PacketsReceived: 800, Counters: []map[string]uint64{
		{"tun_read_dropped": 100, "drop_housekeeping": 3, "drop_ice_paced": 4, "drop_too_big": 0, "udp_send_datagrams": 900, "drop_send_stalled": 10},
		{"udp_receive_datagrams": 850, "udp_receive_dropped": 2, "drop_tun_full": 20},
	}}
	r.account(15)
	want := []Drop{{"a", "drop_send_stalled", 10}, {"a", "tun_read_dropped", 100}, {"b", "drop_tun_full", 20}, {"between", "not_received", 50}, {"receiver", "socket_full", 15}}
	if !reflect.DeepEqual(r.Drops, want) || *r.UnaccountedPackets != 5 {
		t.Errorf("got %v and %d packets more, want %v and 5", r.Drops, *r.UnaccountedPackets, want)
	}
	report := Report{Results: []Result{r, r}}
	note := "udp-100, sluice: 2000 packets sent, 1600 received; dropped: 20 a drop_send_stalled, 200 a tun_read_dropped, 40 b drop_tun_full," +
		" 100 between not_received, 30 receiver socket_full, not accounted for: 10"
	if got := report.dropNotes(); len(got) != 1 || got[0] != note {
		t.Errorf("got %q, want %q", got, note)
	}
	for _, line := range strings.Split(wrapped(note), "\n") {
		if len(line) > tableWidth {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
}

// TestBuild: a report says which Sluice it is of.
func TestBuild(t *testing.T) {
	b := Build{Version: "v1.2.3", Commit: "abc", Dirty: true}
	if got, want := b.String(), "Sluice v1.2.3, commit abc, with changes that are in no commit"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := readBuild(); got.Version == "" {
		t.Errorf("got %+v, want a version", got)
	}
}
