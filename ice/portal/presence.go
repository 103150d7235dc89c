package portal

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// This file is what the portals of a cluster tell one another beside the state: who is signed in where, and where each one's relay is.
// It goes from memory to memory, with no majority, so nodes at portals that reach one another are told of one another whatever has
// become of the others.

const (
	presenceSubject = "$PORTAL.presence" // no node may read or write there
	// presenceEvery is how often a portal tells, at least; what was not heard for presenceLife does not hold any more.
	presenceEvery, presenceLife = 2 * time.Second, 7 * time.Second
)

// presence is what a portal tells of itself.
type presence struct {
	Member string            `json:"member"`
	Public string            `json:"public"` // host:port for nodes
	Relay  []netip.AddrPort  `json:"relay,omitempty"`
	Nodes  map[string]uint64 `json:"nodes,omitempty"` // those that are connected there, and the ranks of their sessions
	heard  time.Time
}

// announce tells the other portals who is here.
func (p *Portal) announce() {
	if p.config.Cluster == nil {
		return
	}
	own := presence{Member: p.config.Cluster.Self, Public: p.public(), Nodes: map[string]uint64{}}
	if p.relay != nil {
		own.Relay = p.relayAddrs(netip.Addr{})
	}
	p.mu.Lock()
	for name, v := range p.visitors {
		if v.online {
			own.Nodes[name] = v.rank
		}
	}
	p.mu.Unlock()
	text, err := json.Marshal(own)
	if err == nil {
		err = p.conn.Publish(presenceSubject, text)
	}
	if err != nil {
		p.log.Debug("other portals were not told who is here", "error", err)
	}
}

// hear takes what another portal tells, and answers requests of nodes that have signed in there since.
func (p *Portal) hear(m *nats.Msg) {
	var other presence
	if err := json.Unmarshal(m.Data, &other); err != nil || other.Member == p.config.Cluster.Self || !p.config.Cluster.has(other.Member) {
		return // a version that says it differently
	}
	if !protocol.ValidAddress(other.Public) || len(other.Relay) > 0 && protocol.ValidateRelayAddrs(other.Relay) != nil {
		return
	}
	other.heard = time.Now()
	var left []*hold
	p.mu.Lock()
	was := p.siblings[other.Member]
	p.siblings[other.Member] = &other
	for name, rank := range other.Nodes {
		p.topRank = max(p.topRank, rank)
		if v := p.visitors[name]; v != nil && v.held != nil && p.elsewhere(name, v.rank) {
			left, v.held = append(left, v.held), nil
		}
	}
	p.mu.Unlock()
	for _, h := range left {
		name, _, _ := origin(h.reply)
		p.respond(h.reply, displace(name))
	}
	if was == nil || !slices.Equal(was.Relay, other.Relay) || was.Public != other.Public || !maps.Equal(was.Nodes, other.Nodes) {
		p.changed()
	}
}

// has reports whether the cluster has such a member.
func (c *Cluster) has(name string) bool {
	return slices.ContainsFunc(c.Members, func(m Member) bool { return m.Name == name })
}

// elsewhere reports whether a later session of a node is at another portal. Ranks count sessions of all portals; of two that are equal,
// begun while neither portal heard of the other, the greater name's counts. mu is held.
func (p *Portal) elsewhere(name string, rank uint64) bool {
	for member, s := range p.siblings {
		if other, there := s.Nodes[name]; there && (other > rank || other == rank && member > p.config.Cluster.Self) {
			return true
		}
	}
	return false
}

// at names the other portals where a node is connected. mu is held.
func (p *Portal) at(name string) (members []string) {
	for member, s := range p.siblings {
		if _, there := s.Nodes[name]; there {
			members = append(members, member)
		}
	}
	slices.Sort(members)
	return members
}

// forgetSilent drops portals that were not heard. It reports whether there were any.
func (p *Portal) forgetSilent(now time.Time) (some bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for member, s := range p.siblings {
		if now.Sub(s.heard) > presenceLife {
			delete(p.siblings, member)
			some = true
		}
	}
	return some
}

// others are the portals that were heard of late, by name. What they point to is frozen.
func (p *Portal) others() []*presence {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.SortedFunc(maps.Values(p.siblings), func(a, b *presence) int { return cmp.Compare(a.Member, b.Member) })
}

// tellOthers announces until ctx ends: now and then, and soon after a node has come or gone.
func (p *Portal) tellOthers(ctx context.Context) {
	ticker := time.NewTicker(presenceEvery)
	defer ticker.Stop()
	for {
		p.announce()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if p.forgetSilent(time.Now()) {
				p.changed()
			}
		case <-p.arrivals:
			_ = pause(ctx) // more may come
		}
	}
}

// arrived has the others told soon.
func (p *Portal) arrived() {
	select {
	case p.arrivals <- struct{}{}:
	default:
	}
}

// public is where nodes reach this portal.
func (p *Portal) public() string {
	return net.JoinHostPort(p.config.Public, strconv.Itoa(int(p.Addr().Port())))
}
