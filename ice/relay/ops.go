package relay

import (
	"fmt"
	"runtime"
	"strings"
	"time"
)

// page is a metrics page under way.
type page struct{ strings.Builder }

// family begins a metric family.
func (p *page) family(name, kind, help string) {
	fmt.Fprintf(p, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (p *page) one(name, kind, help string, value any) {
	p.family(name, kind, help)
	fmt.Fprintf(p, "%s %v\n", name, value)
}

// Metrics returns counters and gauges in the Prometheus text format, version 0.0.4. It may be called before Run and after
// Close. Every drop counter is there from the start, so that a rate can be taken of it. Label values are constants of ours and
// need no escaping.
func (s *Server) Metrics() string {
	var p page
	p.family("sluice_relay_drops_total", "counter", "Datagrams and requests that were not served, by reason.")
	for d := range drops {
		fmt.Fprintf(&p, "sluice_relay_drops_total{reason=%q} %d\n", dropNames[d], s.stats.drops[d].Load())
	}
	p.family("sluice_relay_answers_total", "counter", "Answers to requests, by kind or error code.")
	for a := range answers {
		fmt.Fprintf(&p, "sluice_relay_answers_total{answer=%q} %d\n", answerNames[a], s.stats.answers[a].Load())
	}
	p.family("sluice_relay_datagrams_total", "counter", "Relayed datagrams.")
	for d := range directions {
		fmt.Fprintf(&p, "sluice_relay_datagrams_total{direction=%q} %d\n", directionNames[d], s.stats.datagrams[d].Load())
	}
	p.family("sluice_relay_bytes_total", "counter", "Relayed bytes, without the framing of TURN.")
	for d := range directions {
		fmt.Fprintf(&p, "sluice_relay_bytes_total{direction=%q} %d\n", directionNames[d], s.stats.bytes[d].Load())
	}
	p.one("sluice_relay_allocations_created_total", "counter", "Allocations made.", s.stats.created.Load())
	allocations, users := s.quota.count()
	p.one("sluice_relay_allocations", "gauge", "Allocations there are.", allocations)
	p.one("sluice_relay_users", "gauge", "Users that have an allocation.", users)
	ready := 0
	if s.Ready() { // then the gates are frozen
		ready = 1
		p.family("sluice_relay_receive_buffer_bytes", "gauge", "What the kernel granted each listening socket.")
		for _, g := range s.gates {
			fmt.Fprintf(&p, "sluice_relay_receive_buffer_bytes{address=%q} %d\n", g.sock.local, g.sock.granted)
		}
	}
	p.one("sluice_relay_ready", "gauge", "1 if every listening socket is open and served.", ready)
	p.one("sluice_relay_goroutines", "gauge", "Goroutines of the program.", runtime.NumGoroutine())
	p.one("sluice_relay_uptime_seconds", "gauge", "Seconds since the server was made.", time.Since(s.start).Seconds())
	return p.String()
}
