package edge

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/turn"
)

// This file is what the edge does when the network or the relays are not what they were.

// relayPatience is how long attempts wait for a first relay after the portal has named servers: an ICE agent gets the relays
// whose allocation is up when it is made, and none later.
const relayPatience = time.Second

const (
	// sleepLeast is how much more the clock that runs in suspend must have counted than the other for the host to have slept.
	sleepLeast = 5 * time.Second
	// probeGap is the least time between two questions to the relays whether they know us yet.
	probeGap = 500 * time.Millisecond
)

// noticeSleep looks for other paths when the host has slept: NATs and relays have forgotten us meanwhile.
func (e *Edge) noticeSleep() {
	clock, awake := e.pipeline.Load().Now(), e.now
	slept := clock - e.clock - awake.Sub(e.awake)
	e.clock, e.awake = clock, awake
	if slept > sleepLeast {
		e.networkChanged("the host has slept for " + slept.Round(time.Second).String())
	}
}

// probeRelays asks the relays whether our allocations are there still. One that has restarted would be noticed when they are
// refreshed, minutes later.
func (e *Edge) probeRelays() {
	if now := e.now; now.Sub(e.relaysAsked) >= probeGap {
		e.relaysAsked = now
		e.relays.Probe()
	}
}

// networkChanged has every connection look for another path beside the one in use.
func (e *Edge) networkChanged(why string) {
	connections := 0
	e.tellAll(func(now time.Duration, l *link.Link) {
		if l.Status(now).Phase < link.PhaseClosing {
			connections++
		}
	})
	e.log.Info("the network has changed: looking for other paths", "why", why, "connections", connections)
	if e.config.CheckPortal != nil {
		e.config.CheckPortal()
	}
	e.reconsider()
	e.prober.Reset()
	e.relays.Probe()
	e.listen()
	e.tellAll(func(now time.Duration, l *link.Link) { l.HandleNetwork(now) })
}

// noteLostRelay is called by the relays' goroutine.
func (e *Edge) noteLostRelay(server netip.AddrPort) {
	e.mu.Lock()
	if !slices.Contains(e.lostRelays, server) {
		e.lostRelays = append(e.lostRelays, server)
	}
	e.mu.Unlock()
	e.rouse()
}

// noteMovedRelay is called by the relays' goroutine.
func (e *Edge) noteMovedRelay(server netip.AddrPort) {
	e.mu.Lock()
	if !slices.Contains(e.movedRelays, server) {
		e.movedRelays = append(e.movedRelays, server)
	}
	e.mu.Unlock()
	e.rouse()
}

// noteRelays is called by the relays' goroutine.
func (e *Edge) noteRelays() {
	e.mu.Lock()
	e.relaysChange = true
	e.mu.Unlock()
	e.rouse()
}

// followRelays acts on allocations that came up, are gone, or are others now. In the last case what is sent to a peer shows it where we
// are; and since a NAT in front of the peer may let nothing through from there, another agent tells it through the portal as well.
func (e *Edge) followRelays() {
	e.mu.Lock()
	lost, moved, changed := e.lostRelays, e.movedRelays, e.relaysChange
	e.lostRelays, e.movedRelays, e.relaysChange = nil, nil, false
	e.mu.Unlock()
	if !changed && len(lost)+len(moved) == 0 {
		return
	}
	up := len(e.relays.URLs())
	if changed {
		e.logRelays()
		if up == 0 && len(lost) > 0 {
			e.listen()
		}
	}
	e.facts(func(f *link.Facts) {
		if f.RelaysUp = up; up > 0 {
			f.RelaysUntil = 0
		}
	})
	e.tellAll(func(now time.Duration, l *link.Link) {
		l.HandleRelays(now, link.RelayNews{Lost: lost, Moved: moved, Changed: changed && up > 0})
	})
}

// logRelays tells which allocations came up or are gone.
func (e *Edge) logRelays() {
	list := e.relays.Status()
	maps.DeleteFunc(e.relaysUp, func(server netip.AddrPort, _ bool) bool {
		return !slices.ContainsFunc(list, func(r turn.RelayStatus) bool { return r.Server == server })
	})
	e.warnOfRelays(e.now, list)
	for _, r := range list {
		up := r.Relayed.IsValid()
		switch {
		case up == e.relaysUp[r.Server]:
			continue
		case up:
			e.log.Info("the relay is up", "relay", r.Name, "server", r.Server, "relayed", r.Relayed)
		default:
			e.log.Warn("the relay is lost", "relay", r.Name, "server", r.Server, "reason", r.Reason)
		}
		e.relaysUp[r.Server] = up
	}
}

// relayWarnEvery is how far apart it is logged that a relay is of no use.
const relayWarnEvery = 6 * time.Hour

// relayTrouble says why a relay is of no use and what to look at; "": it is of use, or it is not known yet, or the same keeps us from
// every relay, which is told as that.
func (e *Edge) relayTrouble(r *turn.RelayStatus) string {
	switch {
	case r.Relayed.IsValid() || r.Reason == "" || e.passage.told != link.CauseNone || !e.signaling():
		return ""
	case r.Reason == turn.ReasonSilent.String():
		return "does not answer: is it running, and do firewalls let UDP pass to its address and back?"
	case refusesUs(*r):
		return "refuses us (" + r.Reason + "): has it the secret that the portal has for it?"
	}
	return "has no allocation for us (" + r.Reason + ")"
}

// warnOfRelays tells of relays that have never served us, of each once in relayWarnEvery: nobody may notice while other paths work.
// That one which has served us is lost is told as that.
func (e *Edge) warnOfRelays(now time.Time, list []turn.RelayStatus) {
	for i := range list {
		r := &list[i]
		trouble := e.relayTrouble(r)
		told, again := e.relaysTold[r.Server]
		if _, served := e.relaysUp[r.Server]; trouble == "" || served || again && now.Sub(told) < relayWarnEvery {
			continue
		}
		e.relaysTold[r.Server] = now
		e.log.Warn("the relay is of no use", "relay", r.Name, "server", r.Server, "trouble", trouble)
	}
	maps.DeleteFunc(e.relaysTold, func(_ netip.AddrPort, told time.Time) bool { return now.Sub(told) >= relayWarnEvery })
}
