package edge

import (
	"slices"
	"strings"
	"time"

	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/turn"
	"github.com/sluice-vpn/sluice/pipeline"
)

// This file finds out why ICE may find nothing: a network that lets no UDP through says nothing, and neither does one at the other end.

// blockedAfter is how long no relay must have answered for UDP to count as blocked: their clients have asked each of them four times by
// then, and the prober has given up.
const blockedAfter = 5 * time.Second

// passage is whether UDP gets through to anybody.
type passage struct {
	since    time.Time // when we began to listen; zero: nobody was asked
	received uint64    // by the relays until then
	found    bool      // a pair of addresses has worked since
	told     link.CloseCause
	silent   bool // no relay has answered for blockedAfter
}

// obstacle is what links were told of it.
type obstacle struct {
	cause    link.CloseCause
	relaysUp int
}

// facts has links go by other facts from now on.
func (e *Edge) facts(f func(*link.Facts)) {
	_ = e.pipeline.Load().Edit(func(*pipeline.Edit) error { f(&e.links.Facts); return nil }) // fails when it has ended
}

// listen begins to watch whether UDP gets through: relays were named, the network has changed, or the last relay is gone.
func (e *Edge) listen() {
	e.passage.since, e.passage.received, e.passage.found, e.passage.silent = e.now, e.relays.Received(), false, false
	if len(e.relays.Servers()) == 0 {
		e.passage.since = time.Time{}
	}
}

// followPassage draws the conclusions and returns when to look again; zero: when something happens.
func (e *Edge) followPassage(now time.Time) (again time.Time) {
	p := &e.passage
	switch due := p.since.Add(blockedAfter); {
	case p.since.IsZero() || e.relays.Received() != p.received || len(e.prober.Mappings()) > 0:
		p.silent = false
	case now.Before(due):
		again = due
	default: // a node without any network is not worth a word about UDP
		p.silent = e.signaling()
	}
	cause := e.ownObstacle()
	if cause != p.told {
		p.told = cause
		e.tellPassage(cause)
		e.warnOfRelays(now, e.relays.Status())
	}
	up := len(e.relays.URLs())
	if now := (obstacle{cause, up}); now != e.told {
		e.told = now
		e.facts(func(f *link.Facts) { f.Obstacle, f.RelaysUp = cause, up })
	}
	return again
}

// ownObstacle is what keeps us from being reached, CauseNone if nothing does. Where a pair of addresses works, silent relays mean that
// they are down.
func (e *Edge) ownObstacle() link.CloseCause {
	switch {
	case e.passage.silent && !e.passage.found:
		return link.CauseUDPBlocked
	case len(e.relays.URLs()) == 0 && slices.ContainsFunc(e.relays.Status(), refusesUs):
		return link.CauseRelayCredentials
	}
	return link.CauseNone
}

// refusesUs tells whether a relay does not take our credentials.
func refusesUs(r turn.RelayStatus) bool {
	return r.Reason == turn.ReasonCredentials.String() || r.Reason == turn.ReasonForbidden.String() || r.Reason == turn.ReasonRefused.String()
}

// tellPassage logs a change of it, once.
func (e *Edge) tellPassage(cause link.CloseCause) {
	if cause == link.CauseNone {
		e.log.Info("nothing keeps relays from answering any more")
		return
	}
	var servers []string
	for _, r := range e.relays.Status() {
		text := r.Server.String()
		if r.Reason != "" {
			text += " " + r.Reason
		}
		servers = append(servers, text)
	}
	e.log.Warn(cause.String(), "relays", strings.Join(servers, ", "))
}
