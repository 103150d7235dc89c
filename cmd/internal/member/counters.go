package member

import (
	"net/http"
	"runtime"
	"slices"

	"github.com/sluice-vpn/sluice/pipeline/count"
)

// Counters are those of all parts, for SLUICE_STATS and /metrics, and how many goroutines there are now.
func (n *node) Counters() []count.Counter {
	signaling := n.portal.counters()
	return append(slices.Concat(n.pipeline.Counters(), n.edge.Counters(), count.Of("signal_", &signaling)), goroutines())
}

// tellCounters tells them on the status socket.
func (n *node) tellCounters(w http.ResponseWriter, _ *http.Request) {
	object := map[string]uint64{}
	for _, c := range n.Counters() {
		object[c.Name] = c.Value
	}
	reply(w, object)
}

func goroutines() count.Counter {
	return count.Plain(count.Gauge, "goroutines", "Goroutines of the program.", uint64(runtime.NumGoroutine()))
}
