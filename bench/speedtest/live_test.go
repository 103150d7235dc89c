package speedtest

import (
	"strings"
	"testing"
)

// Rates of a live tunnel are taken by the clock of the end that counts, and marks that came late make no spikes.
func TestFillLive(t *testing.T) {
	near, far := &outcome{}, &outcome{}
	for i := range 11 {
		at := float64(i) / 10
		if i == 4 || i == 5 { // late, with the next at once
			at = 0.6 - float64(6-i)*1e-6
		}
		near.Marks = append(near.Marks, mark{AtS: 1 + at, PacketsSent: uint64(2000 * at)})
		far.Marks = append(far.Marks, mark{AtS: 3 + at, BytesReceived: uint64(100000 * at), PacketsReceived: uint64(1000 * at)})
	}
	near.Final, far.Final = mark{PacketsSent: 2500}, mark{BytesReceived: 120000, PacketsReceived: 1200}
	near.Counters, far.Counters = map[string]uint64{"tun_read_dropped": 1290, "udp_send_datagrams": 1210}, map[string]uint64{"udp_receive_datagrams": 1203}
	far.Overflow = 3
	c := Cases()[caseIndex("udp-100")]
	r := Result{Case: c.Name}
	r.fillLive(c, near, far)
	if r.KPPS < 0.999 || r.KPPS > 1.001 || r.OfferedKPPS < 1.999 || r.OfferedKPPS > 2.001 || r.PacketsSent != 2500 || r.PacketsReceived != 1200 || r.LossPercent != 52 {
		t.Errorf("%+v", r)
	}
	if r.UnaccountedPackets == nil || *r.UnaccountedPackets != 0 || len(r.Drops) != 3 {
		t.Errorf("drops %+v, unaccounted %v, want 1290 + 7 + 3", r.Drops, r.UnaccountedPackets)
	}
	if len(r.Samples) != 8 {
		t.Errorf("%d samples, want 8: marks that were taken at once make one", len(r.Samples))
	}
	for _, s := range r.Samples {
		if s.KPPS < 0.95 || s.KPPS > 1.05 {
			t.Errorf("at %g s: %g kpps, want about 1", s.AtS, s.KPPS)
		}
	}
	near.Counters = nil
	if r = (Result{Case: c.Name}); true {
		r.fillLive(c, near, far)
	}
	if r.UnaccountedPackets != nil || r.Counters != nil {
		t.Errorf("an account without the counters of one end: %+v", r)
	}
	var none Result
	none.fillLive(c, &outcome{}, &outcome{})
	if len(none.Samples) > 0 || none.GbitPerS != 0 {
		t.Errorf("of nothing: %+v", none)
	}
}

// An interval without a round trip is none of 0 ms.
func TestChartWithoutProbes(t *testing.T) {
	r := Report{Results: []Result{{Case: "rtt-idle", Impl: ImplSluice, Samples: []Sample{{AtS: 1, RTTS: 0.002}, {AtS: 2}, {AtS: 3, RTTS: 0.002}}}}}
	c := Cases()[caseIndex("rtt-idle")]
	chart, ok := r.chart(c, map[string]string{ImplSluice: "impl-0"})
	_, points, _ := strings.Cut(string(chart.SVG), `points="`)
	points, _, _ = strings.Cut(points, `"`)
	if got := len(strings.Fields(points)); !ok || got != 2 {
		t.Errorf("%d points of %q, want the 2 with a round trip", got, points)
	}
}
