package relay

import (
	"runtime"
	"strings"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/count"
)

// The families of a relay's series.
var (
	familyDrops     = count.Family{Series: "sluice_relay_drops_total", Help: "Datagrams and requests that were not served, by reason."}
	familyAnswers   = count.Family{Series: "sluice_relay_answers_total", Help: "Answers to requests, by kind or error code."}
	familyDatagrams = count.Family{Series: "sluice_relay_datagrams_total", Help: "Relayed datagrams."}
	familyBytes     = count.Family{Series: "sluice_relay_bytes_total", Help: "Relayed bytes, without the framing of TURN."}
	familyBuffers   = count.Family{Series: "sluice_relay_receive_buffer_bytes", Help: "What the kernel granted each listening socket.", Kind: count.Gauge}
)

// Counters returns what was counted. It may be called before Run and after Close. Every drop counter is there from the start, so that a
// rate can be taken of it.
func (s *Server) Counters() (list []count.Counter) {
	of := func(f count.Family, label, value string, n uint64) {
		name := strings.TrimSuffix(strings.TrimPrefix(f.Series, "sluice_"), "_total") + "_" + value
		list = append(list, count.Labeled(f, name, f.Help, n, label, value))
	}
	one := func(kind count.Kind, name, help string, n uint64) {
		list = append(list, count.Plain(kind, "relay_"+name, help, n))
	}
	for d := range drops {
		of(familyDrops, "reason", dropNames[d], s.stats.drops[d].Load())
	}
	for a := range answers {
		of(familyAnswers, "answer", answerNames[a], s.stats.answers[a].Load())
	}
	for d := range directions {
		of(familyDatagrams, "direction", directionNames[d], s.stats.datagrams[d].Load())
		of(familyBytes, "direction", directionNames[d], s.stats.bytes[d].Load())
	}
	one(count.Total, "allocations_created", "Allocations made.", s.stats.created.Load())
	allocations, users := s.quota.count()
	one(count.Gauge, "allocations", "Allocations there are.", uint64(allocations))
	one(count.Gauge, "users", "Users that have an allocation.", uint64(users))
	ready := uint64(0)
	if s.Ready() { // then the gates are frozen
		ready = 1
		for _, g := range s.gates {
			of(familyBuffers, "address", g.sock.local.String(), uint64(g.sock.granted))
		}
	}
	one(count.Gauge, "ready", "1 if every listening socket is open and served.", ready)
	one(count.Gauge, "goroutines", "Goroutines of the program.", uint64(runtime.NumGoroutine()))
	one(count.Gauge, "uptime_seconds", "Seconds since the server was made.", uint64(time.Since(s.start).Seconds()))
	return list
}
