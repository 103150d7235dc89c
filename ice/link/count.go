package link

import (
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/count"
)

// This file counts connections.

// stats is written on control's goroutine, read by any.
type stats struct {
	ConnectSeconds count.Histogram `unit:"1e-3" help:"From the beginning of an attempt to its first session. In SLUICE_STATS in milliseconds."`

	closes [len(closeReasonNames)]atomic.Uint64
}

var (
	familyCloses = count.Family{Series: "sluice_connections_closed_total", Help: "Connections and attempts that ended, by the reason."}
	familyStates = count.Family{Series: "sluice_connections", Help: "Named peers by the state of their connection, and by its path.", Kind: count.Gauge}
)

// States of a connection beside its phases: an attempt is wanted and has not begun, and none is.
const (
	stateWaiting = "waiting"
	stateNone    = "none"
)

// Ways of a connection's path.
const (
	viaNone   = "none"
	viaDirect = "direct"
	viaRelay  = "relay"
)

// state is the link's as status and counters name it.
func (l *Link) state() string {
	switch {
	case l.alive():
		return l.connection.phase.String()
	case l.asking.since != 0 || l.backoff.wanted:
		return stateWaiting
	}
	return stateNone
}

// via is the way of the peer's path.
func (l *Link) via() string {
	switch {
	case l.view.Path == nil:
		return viaNone
	case l.view.Path.Relayed:
		return viaRelay
	}
	return viaDirect
}

// connectionKind is a state of connections and the way of their path.
type connectionKind struct{ state, via string }

// connectionKinds are all there can be, in the order of a connection's life.
var connectionKinds = []connectionKind{
	{stateNone, viaNone}, {stateWaiting, viaNone}, {PhaseCandidates.String(), viaNone}, {PhaseChecking.String(), viaNone},
	{PhaseHandshake.String(), viaDirect}, {PhaseHandshake.String(), viaRelay}, {PhaseUp.String(), viaDirect}, {PhaseUp.String(), viaRelay},
	{PhaseIdle.String(), viaDirect}, {PhaseIdle.String(), viaRelay},
}

// Counters obeys pipeline.Connector. It looks at every peer, which is a few nanoseconds each.
func (c *Links) Counters() []count.Counter {
	list := count.Of("", &c.stats)
	for r, name := range closeReasonNames {
		list = append(list, count.Labeled(familyCloses, "closed_"+name, "Connections and attempts that ended for this reason.", c.stats.closes[r].Load(), "reason", name))
	}
	now := make(map[connectionKind]uint64, len(connectionKinds))
	for _, l := range c.named { // they are only counted
		now[connectionKind{l.state(), l.via()}]++
	}
	for _, k := range connectionKinds {
		name := "connections_" + k.state
		if k.via != viaNone {
			name += "_" + k.via
		}
		n := now[k]
		if k.via == viaNone { // also what is not in the table, such as a path that is about to go
			for other, more := range now {
				if other.state == k.state && other.via != viaNone {
					n += more
				}
			}
		}
		list = append(list, count.Labeled(familyStates, name, "Named peers in this state.", n, "state", k.state, "path", k.via))
	}
	return list
}

// countUp notes a connection's first session.
func (c *Links) countUp(after time.Duration) {
	c.stats.ConnectSeconds.Observe(uint64(max(after, 0) / time.Millisecond))
}
