package member

import (
	"runtime"

	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
)

// Counters are those of all parts, for SLUICE_STATS, and how many goroutines there are now.
func (n *node) Counters() []pipeline.Counter {
	list := append(n.pipeline.Counters(), n.edge.Counters()...)
	list = append(list, signalCounters(n.portal.counters())...)
	return append(list, pipeline.Counter{Name: "goroutines", Value: uint64(runtime.NumGoroutine())})
}

func signalCounters(c signal.Counters) []pipeline.Counter {
	return []pipeline.Counter{
		{Name: "signal_received", Value: c.Received},
		{Name: "drop_signal_sender", Value: c.Sender},
		{Name: "drop_signal_oversize", Value: c.Oversize},
		{Name: "drop_signal_malformed", Value: c.Malformed},
		{Name: "drop_signal_full", Value: c.Full},
		{Name: "drop_signal_closed", Value: c.Closed},
		{Name: "drop_signal_reply", Value: c.Reply},
		{Name: "drop_signal_candidates", Value: c.Candidates},
	}
}
