package portal

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
)

// counters are what the portal counts of requests.
type counters struct {
	requests, answers, refused, displaced, limited, malformed, misaddressed, failed atomic.Uint64
}

// Unready says why nodes cannot sign in, or have no relay; nil if all serves.
func (p *Portal) Unready() error {
	switch {
	case p.conn == nil || !p.conn.IsConnected():
		return errors.New("the broker does not serve")
	case p.relay != nil && !p.relay.Ready():
		return errors.New("the relay does not serve")
	}
	return p.Trouble()
}

// Ops serves what an operator asks over HTTP:
//
//	/healthz  200 as long as no part of the portal has failed, else 503
//	/readyz   200 if nodes can sign in, the relay serves and the state can be written, else 503 and the reason
//	/metrics  counters and gauges of portal and relay in the Prometheus text format
//
// Keep it from the public.
func (p *Portal) Ops() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { tell(w, !p.broken.Load(), "ok", "failed") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		why := p.Unready()
		tell(w, why == nil, "ready", fmt.Sprintf("not ready: %v", why))
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		p.writeMetrics(w)
		if p.relay != nil {
			io.WriteString(w, p.relay.Metrics())
		}
	})
	return mux
}

func tell(w http.ResponseWriter, good bool, yes, no string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if !good {
		w.WriteHeader(http.StatusServiceUnavailable)
		yes = no
	}
	fmt.Fprintln(w, yes)
}

// writeMetrics writes the portal's part of the page.
func (p *Portal) writeMetrics(w io.Writer) {
	held, connections := 0, 0
	nodes := p.state.list()
	for _, r := range nodes {
		connections += len(p.broker.Clients(r.Name))
	}
	online, failed := 0, uint64(0)
	if p.Trouble() != nil {
		failed = 1
	}
	p.mu.Lock()
	for _, v := range p.visitors {
		if v.held != nil {
			held++
		}
		if v.online {
			online++
		}
	}
	p.mu.Unlock()
	for _, m := range []struct {
		name, kind, help string
		value            uint64
	}{
		{"nodes", "gauge", "Nodes that have a token.", uint64(len(nodes))},
		{"nodes_online", "gauge", "Nodes that are connected.", uint64(online)},
		{"connections", "gauge", "Connections of nodes; more than nodes: a token is in use twice.", uint64(connections)},
		{"requests_held", "gauge", "Requests that wait for news.", uint64(held)},
		{"store_failed", "gauge", "1 if changes cannot be stored.", failed},
		{"requests_total", "counter", "Requests that came.", p.counters.requests.Load()},
		{"answers_total", "counter", "Answers that were sent.", p.counters.answers.Load()},
		{"requests_refused_total", "counter", "Requests of nodes that have to change something.", p.counters.refused.Load()},
		{"requests_displaced_total", "counter", "Requests refused because a newer program uses the same token.", p.counters.displaced.Load()},
		{"requests_limited_total", "counter", "Requests dropped because the node asks too often.", p.counters.limited.Load()},
		{"requests_malformed_total", "counter", "Requests that were not understood.", p.counters.malformed.Load()},
		{"requests_misaddressed_total", "counter", "Requests dropped because the answer was to go elsewhere.", p.counters.misaddressed.Load()},
		{"failures_total", "counter", "Requests that the portal could not serve.", p.counters.failed.Load()},
	} {
		name := "sluice_portal_" + m.name
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s %d\n", name, m.help, name, m.kind, name, m.value)
	}
}
