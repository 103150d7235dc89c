package pipeline

import (
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/count"
)

// This file counts what control does: handshake messages by what became of them, and the connections of named peers.

// controlStats is written by control, read by any goroutine.
type controlStats struct {
	ConnectSeconds count.Histogram `unit:"1e-3" help:"From the beginning of an attempt to its first session. In SLUICE_STATS in milliseconds."`

	handshakes [crypto.ReasonCount]atomic.Uint64
	closes     [len(closeReasonNames)]atomic.Uint64
}

var (
	familyHandshakes = count.Family{Series: "sluice_handshake_messages_total", Help: "Handshake messages received, by what became of them."}
	familyCloses     = count.Family{Series: "sluice_connections_closed_total", Help: "Connections and attempts that ended, by the reason."}
	familyStates     = count.Family{Series: "sluice_connections", Help: "Named peers by the state of their connection, and by its path.", Kind: count.Gauge}
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
func (l *link) state() string {
	switch {
	case l.alive():
		return l.connection.phase.String()
	case l.asked != 0 || l.backoff.wanted:
		return stateWaiting
	}
	return stateNone
}

// via is the way of the peer's path.
func (p *peer) via() string {
	switch path := p.path.Load(); {
	case path == nil:
		return viaNone
	case path.Relayed:
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

// counters are the controller's. It looks at every peer, which is a few nanoseconds each. Called by control.
func (c *controller) counters() []count.Counter {
	list := count.Of("", &c.stats)
	for r := range crypto.ReasonCount {
		list = append(list, count.Labeled(familyHandshakes, "handshake_"+r.String(), "Handshake messages that ended so.", c.stats.handshakes[r].Load(), "result", r.String()))
	}
	for r, name := range closeReasonNames {
		list = append(list, count.Labeled(familyCloses, "closed_"+name, "Connections and attempts that ended for this reason.", c.stats.closes[r].Load(), "reason", name))
	}
	now := make(map[connectionKind]uint64, len(connectionKinds))
	for _, p := range c.peers {
		if p.link != nil {
			now[connectionKind{p.link.state(), p.via()}]++
		}
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
func (c *controller) countUp(after time.Duration) {
	c.stats.ConnectSeconds.Observe(uint64(max(after, 0) / time.Millisecond))
}
