package status

import (
	"fmt"
	"strings"
	"time"

	"github.com/sluice-vpn/sluice/ice/edge"
)

// bars are eighths of a line's height, from one to eight.
const bars = "▁▂▃▄▅▆▇█"

// sparkline draws values as bars from zero up, the largest as high as the line is: what is twice as long is twice as high.
func sparkline(values []float64) string {
	var top float64
	for _, v := range values {
		top = max(top, v)
	}
	levels := []rune(bars)
	var b strings.Builder
	for _, v := range values {
		level := 0
		if top > 0 {
			level = int(v/top*float64(len(levels))+0.5) - 1
		}
		b.WriteRune(levels[min(max(level, 0), len(levels)-1)])
	}
	return b.String()
}

// historyText shows round trips over time: "RTT ▁▁▂▁█▁ 21 ms to 160 ms in 12 s". It is "" for fewer than two.
func historyText(list []edge.RoundTrip, now time.Time) string {
	if len(list) < 2 {
		return ""
	}
	values := make([]float64, len(list))
	least, most := list[0].RTTS, list[0].RTTS
	for i, t := range list {
		values[i] = t.RTTS
		least, most = min(least, t.RTTS), max(most, t.RTTS)
	}
	return fmt.Sprintf("RTT %s %s to %s in %s", sparkline(values), Span(seconds(least)), Span(seconds(most)), Span(now.Sub(list[0].At)))
}
