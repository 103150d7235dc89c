package member

import (
	"runtime"
	"slices"

	"github.com/sluice-vpn/sluice/pipeline/count"
)

// Counters are those of all parts, for SLUICE_STATS and /metrics, and how many goroutines there are now.
func (n *node) Counters() []count.Counter {
	signaling := n.portal.counters()
	return append(slices.Concat(n.pipeline.Counters(), n.edge.Counters(), count.Of("signal_", &signaling)), goroutines())
}

func goroutines() count.Counter {
	return count.Plain(count.Gauge, "goroutines", "Goroutines of the program.", uint64(runtime.NumGoroutine()))
}
