package portal

import (
	"errors"
	"sync/atomic"

	"github.com/sluice-vpn/sluice/pipeline/count"
)

// counters are what the portal counts of requests.
type counters struct {
	Requests     atomic.Uint64 `help:"Requests that came."`
	Answers      atomic.Uint64 `help:"Answers that were sent."`
	Refused      atomic.Uint64 `name:"portal_requests_refused" help:"Requests of nodes that have to change something."`
	Displaced    atomic.Uint64 `name:"portal_requests_displaced" help:"Requests refused because a newer program uses the same token."`
	Limited      atomic.Uint64 `name:"portal_requests_limited" help:"Requests dropped because the node asks too often."`
	Malformed    atomic.Uint64 `name:"portal_requests_malformed" help:"Requests that were not understood."`
	Misaddressed atomic.Uint64 `name:"portal_requests_misaddressed" help:"Requests dropped because the answer was to go elsewhere."`
	Failed       atomic.Uint64 `name:"portal_failures" help:"Requests that the portal could not serve."`
}

// Errors that tell which part of the portal does not serve.
var (
	ErrBroker = errors.New("the broker does not serve")
	ErrRelay  = errors.New("the relay does not serve")
)

// Unready says why nodes cannot sign in, or have no relay; nil if all serves. It wraps ErrBroker or ErrRelay, or is Trouble.
func (p *Portal) Unready() error {
	switch {
	case p.conn == nil || !p.conn.IsConnected():
		return ErrBroker
	case p.relay != nil && !p.relay.Ready():
		return ErrRelay
	}
	return p.Trouble()
}

// Failed reports whether a part of the portal has failed for good.
func (p *Portal) Failed() bool { return p.broken.Load() }

// Counters returns what portal and relay have counted. Keep it from the public.
func (p *Portal) Counters() []count.Counter {
	var held, connections, online, failed uint64
	nodes := p.state.list()
	for _, r := range nodes {
		connections += uint64(len(p.broker.Clients(r.Name)))
	}
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
	list := append(count.Of("portal_", &p.counters),
		count.Plain(count.Gauge, "portal_nodes", "Nodes that have a token.", uint64(len(nodes))),
		count.Plain(count.Gauge, "portal_nodes_online", "Nodes that are connected.", online),
		count.Plain(count.Gauge, "portal_connections", "Connections of nodes; more than nodes: a token is in use twice.", connections),
		count.Plain(count.Gauge, "portal_requests_held", "Requests that wait for news.", held),
		count.Plain(count.Gauge, "portal_store_failed", "1 if changes cannot be stored.", failed))
	if p.relay != nil {
		list = append(list, p.relay.Counters()...)
	}
	return list
}
