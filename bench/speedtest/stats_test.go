package speedtest

import (
	"math"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1}, 5}, {[]float64{5, 1, 9}, 5}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(c.in); got != c.want {
			t.Errorf("median of %v: %v, want %v", c.in, got, c.want)
		}
	}
	in := []float64{3, 1, 2}
	median(in)
	if in[0] != 3 {
		t.Error("median sorted its argument")
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for _, c := range []struct {
		in   []time.Duration
		p    float64
		want time.Duration
	}{
		{nil, 99, 0}, {hundred[:1], 1, 1}, {hundred[:1], 99, 1}, {hundred, 50, 50}, {hundred, 99, 99}, {hundred, 99.1, 100},
		{hundred, 100, 100}, {hundred[:10], 99, 10}, {hundred[:10], 50, 5}, {hundred[:3], 50, 2},
	} {
		if got := percentile(c.in, c.p); got != c.want {
			t.Errorf("p%g of %d values: %d, want %d", c.p, len(c.in), got, c.want)
		}
	}
	if got := mean(hundred); got != 50 { // 50.5, whole nanoseconds
		t.Errorf("mean %d", got)
	}
	if mean(nil) != 0 || over(1, 0) != 0 || over(math.NaN(), 1) != 0 || over(6, 3) != 2 {
		t.Error("mean or over without values")
	}
}

func TestSummarize(t *testing.T) {
	results := []Result{
		{Case: "udp-100", Impl: "b", Round: 1, KPPS: 10, PeakMiB: []float64{1, 5}},
		{Case: "tcp-1", Impl: "a", Round: 1, GbitPerS: 3, Retransmits: 7},
		{Case: "tcp-1", Impl: "b", Round: 1, GbitPerS: 1},
		{Case: "tcp-1", Impl: "a", Round: 2, GbitPerS: 1, Retransmits: 9},
		{Case: "tcp-1", Impl: "a", Round: 3, GbitPerS: 2, Retransmits: 8},
		{Case: "udp-100", Impl: "b", Round: 2, KPPS: 30, PeakMiB: []float64{3, 7}},
	}
	list := summarize(results)
	if len(list) != 3 || list[0].Case != "tcp-1" || list[0].Impl != "a" || list[1].Impl != "b" || list[2].Case != "udp-100" {
		t.Fatalf("groups %+v", list)
	}
	if m := list[0].Median; list[0].Rounds != 3 || m.GbitPerS != 2 || m.Retransmits != 8 || m.PeakMiB != nil {
		t.Errorf("tcp-1 of a: %+v", m)
	}
	if m := list[2].Median; m.KPPS != 20 || len(m.PeakMiB) != 2 || m.PeakMiB[0] != 2 || m.PeakMiB[1] != 6 {
		t.Errorf("udp-100 of b: %+v", m)
	}
}

func TestHeadline(t *testing.T) {
	r := Result{GbitPerS: 1, KPPS: 2, RTTMeanS: 0.003}
	for name, want := range map[string]float64{"tcp-1": 1, "tcp-bidir": 1, "udp-100": 2, "rtt-idle": 3, "rtt-loaded": 3, "other": 0} {
		r.Case = name
		if got, _, _ := headline(r); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}
