package edge

import (
	"net/netip"
	"slices"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// This file is what becomes of the routes that the portal gives: a node may refuse some (Config.Choose).

// RouteState is whether a route is used.
type RouteState string

// The states of a route. What is refused leads nowhere: neither the host nor the pipeline sends its packets to the peer, or takes
// packets that come from there.
const (
	RouteUsed    RouteState = "used"
	RouteRefused RouteState = "refused"
)

// RouteStatus is one prefix that the portal says is behind a peer. Why says in words why it is refused.
type RouteStatus struct {
	Prefix netip.Prefix `json:"prefix"`
	Peer   string       `json:"peer"`
	State  RouteState   `json:"state"`
	Why    string       `json:"why,omitempty"`
}

// RoutesIn lists what is behind the peers of an answer, all of it used.
func RoutesIn(s protocol.Sync) []RouteStatus {
	list := []RouteStatus{}
	for i := range s.Peers {
		for _, p := range s.Peers[i].AllowedIPs {
			list = append(list, RouteStatus{Prefix: p.Masked(), Peer: s.Peers[i].Name, State: RouteUsed})
		}
	}
	return list
}

// choose decides about the routes of an answer.
func (e *Edge) choose(s protocol.Sync) []RouteStatus {
	if e.config.Choose == nil {
		return RoutesIn(s)
	}
	return e.config.Choose(s)
}

// without is the answer without the routes that are refused.
func without(s protocol.Sync, routes []RouteStatus) protocol.Sync {
	type route struct {
		peer   string
		prefix netip.Prefix
	}
	refused := make(map[route]bool)
	for _, r := range routes {
		if r.State == RouteRefused {
			refused[route{r.Peer, r.Prefix}] = true
		}
	}
	if len(refused) == 0 {
		return s
	}
	s.Peers = slices.Clone(s.Peers)
	for i := range s.Peers {
		p := &s.Peers[i]
		p.AllowedIPs = slices.DeleteFunc(slices.Clone(p.AllowedIPs), func(a netip.Prefix) bool { return refused[route{p.Name, a.Masked()}] })
	}
	return s
}

// maxTold bounds how many refusals are logged, each once: a portal could think of others for ever.
const maxTold = 1000

// logRefused tells of the routes that are refused and were not told of before.
func (e *Edge) logRefused() {
	for _, r := range e.routes {
		if r.State != RouteRefused || len(e.refusalsTold) >= maxTold || e.refusalsTold[r] {
			continue
		}
		e.refusalsTold[r] = true
		e.log.Warn("a route is refused", "prefix", r.Prefix, "peer", r.Peer, "why", r.Why)
		if len(e.refusalsTold) == maxTold {
			e.log.Warn("routes that are refused from now on stand in the status only")
		}
	}
}

// reconsider decides anew about the routes, since it also depends on where the host is.
func (e *Edge) reconsider() {
	if e.config.Choose != nil && e.view.Name != "" && !slices.Equal(e.config.Choose(e.view), e.routes) {
		e.apply(e.view)
	}
}
