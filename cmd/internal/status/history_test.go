package status

import (
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/edge"
)

func TestSparkline(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   string
	}{
		{nil, ""}, {[]float64{0, 0}, "▁▁"}, {[]float64{5}, "█"}, {[]float64{1, 2, 3, 4, 5, 6, 7, 8}, bars},
		{[]float64{0.020, 0.021, 0.160}, "▁▁█"}, {[]float64{0.020, 0.021, 0.020}, "██" + "█"}, {[]float64{1, 2}, "▄█"},
	} {
		if got := sparkline(tt.values); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.values, got, tt.want)
		}
	}
	trips := []edge.RoundTrip{{At: noon, RTTS: 0.16}, {At: noon.Add(2 * time.Second), RTTS: 0.02}}
	if got, want := historyText(trips, noon.Add(3*time.Second)), "RTT █▁ 20 ms to 160 ms in 3 s"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := historyText(trips[:1], noon); got != "" {
		t.Errorf("one round trip: %q, want none", got)
	}
}
