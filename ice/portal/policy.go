package portal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// This file decides which of the networks that gateways offer are given to others. A network is granted once, and stays
// so until its gateway offers it no more or the operator refuses it: who comes later cannot take it away.

// limits are what the operator has said about the networks of a gateway.
type limits struct {
	// Listed: nothing but what is in Approved is granted. Else the rule for private networks holds.
	Listed   bool           `json:"listed,omitempty"`
	Approved []netip.Prefix `json:"approved,omitempty"`
	Refused  []netip.Prefix `json:"refused,omitempty"`
}

// setAllow takes NewNode.Allow.
func (r *record) setAllow(allow []string) error {
	if len(allow) == 1 && (allow[0] == AllowAll || allow[0] == AllowNone) {
		if allow[0] == AllowAll && r.Role == protocol.Gateway {
			return errors.New("-allow all is for clients; a gateway reaches the gateways that are named")
		}
		r.Allow, r.Closed = nil, allow[0] == AllowNone
		return nil
	}
	for _, other := range allow {
		if !signal.ValidName(other) || other == AllowAll || other == AllowNone {
			return fmt.Errorf("-allow: %q cannot be a node's name", other)
		}
	}
	r.Allow, r.Closed = slices.Clone(allow), false
	return nil
}

// allowed is the reverse of setAllow; nil is the role's default.
func (r *record) allowed() []string {
	if r.Closed && r.Role == protocol.Client {
		return []string{AllowNone}
	}
	return r.Allow
}

// setRoutes takes NewNode.Routes.
func (r *record) setRoutes(routes []netip.Prefix) error {
	switch {
	case routes == nil:
		return nil
	case r.Role != protocol.Gateway:
		return errors.New("-routes is for gateways; a client offers nothing")
	}
	r.limits = limits{Listed: true, Approved: unique(slices.Clone(routes))}
	return protocol.ValidateRoutes(routes)
}

// allow changes whom a node may reach.
func (s *state) allow(ctx context.Context, name string, allow []string) error {
	return s.change(ctx, func() error {
		old := s.nodes[name]
		if old == nil {
			return fmt.Errorf("%w: %s", ErrUnknown, name)
		}
		next := *old
		if err := next.setAllow(allow); err != nil {
			return err
		}
		return s.save(ctx, &next, false)
	})
}

// allOffers tells what has become of all offers, by gateway.
func (s *state) allOffers() map[string]protocol.Offers {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.offers
}

// ownNetworks are those that a gateway may offer unless the operator has listed others: private (RFC 1918) and unique local ones
// (RFC 4193).
var ownNetworks = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("fc00::/7"),
}

// covers reports whether p is one of list or within one. A default route stands for itself only: who may be the way to the
// Internet may not therefore be the way to everything.
func covers(list []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(list, func(a netip.Prefix) bool {
		return a == p || a.Bits() > 0 && a.Bits() <= p.Bits() && a.Overlaps(p)
	})
}

// judge decides about a network that r offers, without regard to other gateways.
func (r *record) judge(p netip.Prefix, overlay []netip.Prefix) protocol.Offer {
	offer := protocol.Offer{Prefix: p, State: protocol.Pending}
	switch {
	case p.Bits() > 0 && slices.ContainsFunc(overlay, p.Overlaps):
		offer.State, offer.Why = protocol.Refused, fmt.Sprintf("it overlaps the tunnels' own addresses %v", overlay)
		return offer
	case covers(r.Refused, p):
		offer.State, offer.Why = protocol.Refused, "the operator of the portal has refused it"
	case r.Listed && covers(r.Approved, p), !r.Listed && covers(ownNetworks, p) && !p.IsSingleIP():
		offer.State = protocol.Approved
		return offer
	case r.Listed:
		offer.Why = "it is not among the networks that the operator of the portal has approved"
	case p.Bits() == 0:
		offer.Why = "a default route must be approved by the operator of the portal"
	case p.IsSingleIP():
		offer.Why = "a single address must be approved by the operator of the portal"
	default:
		offer.Why = "a network that is not private must be approved by the operator of the portal"
	}
	offer.Remedy = approval(r, p)
	return offer
}

// approval is the command that approves a network.
func approval(r *record, p netip.Prefix) string {
	return fmt.Sprintf("sluice portal node routes %s -approve %v", r.Name, p)
}

// grants are the granted networks of all gateways, and whose they are.
type grants struct{ bart.Table[string] }

// compete has what others were granted count against an offer: the same network is one gateway's only, and a part of it another's
// only if the operator says so.
func (g *grants) compete(r *record, offer protocol.Offer) protocol.Offer {
	p := offer.Prefix
	if offer.State == protocol.Refused {
		return offer
	}
	for network, name := range g.Supernets(p) {
		switch {
		case name == r.Name || network.Bits() == 0 && network != p:
		case network == p:
			return protocol.Offer{Prefix: p, State: protocol.Pending, Why: fmt.Sprintf("gateway %s has it", name)}
		case !r.Listed || !covers(r.Approved, p):
			return protocol.Offer{
				Prefix: p, State: protocol.Pending, Why: fmt.Sprintf("it is part of %v, which gateway %s has", network, name), Remedy: approval(r, p),
			}
		}
	}
	return offer
}

// settleGrants decides about all networks that the nodes offer. The records that are granted other networks than before are
// returned anew; those that lose some come first, so that no network is stored as two gateways'.
func settleGrants(nodes map[string]*record, overlay []netip.Prefix) (offers map[string]protocol.Offers, changed []*record) {
	gateways := slices.SortedFunc(maps.Values(nodes), func(a, b *record) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	gateways = slices.DeleteFunc(gateways, func(r *record) bool { return len(r.Routes)+len(r.Granted) == 0 })
	var g grants
	granted := make(map[string][]netip.Prefix)
	for _, r := range gateways { // what was granted comes before all that is new
		for _, p := range r.Granted {
			if slices.Contains(r.Routes, p) && r.judge(p, overlay).State == protocol.Approved {
				g.Insert(p, r.Name)
			}
		}
	}
	offers = make(map[string]protocol.Offers)
	for _, r := range gateways {
		for _, p := range r.Routes {
			offer := r.judge(p, overlay)
			if name, held := g.Get(p); !held || name != r.Name {
				offer = g.compete(r, offer)
			}
			if offer.State == protocol.Approved {
				g.Insert(p, r.Name)
				granted[r.Name] = append(granted[r.Name], p)
			}
			offers[r.Name] = append(offers[r.Name], offer)
		}
	}
	for _, r := range gateways {
		if !slices.Equal(r.Granted, granted[r.Name]) {
			next := *r
			next.Granted = granted[r.Name]
			changed = append(changed, &next)
		}
	}
	slices.SortStableFunc(changed, func(a, b *record) int {
		return cmp.Compare(len(a.Granted)-len(nodes[a.Name].Granted), len(b.Granted)-len(nodes[b.Name].Granted))
	})
	return offers, changed
}

// settleOffers stores next, if it is not nil, and what follows from it for the networks of all. The lock is held.
func (s *state) settleOffers(ctx context.Context, next *record) error {
	nodes := maps.Clone(s.nodes)
	if next != nil {
		nodes[next.Name] = next
	}
	offers, changed := settleGrants(nodes, s.settings.overlay())
	if next != nil && !slices.ContainsFunc(changed, func(r *record) bool { return r.Name == next.Name }) {
		changed = append(changed, next)
	}
	for _, r := range changed {
		if err := s.save(ctx, r, false); err != nil {
			return err
		}
	}
	s.offers = offers
	return nil
}

// decide changes what is approved and refused of a gateway's networks, and returns what has become of its offers.
func (s *state) decide(ctx context.Context, name string, approve, refuse []netip.Prefix) (offers protocol.Offers, err error) {
	err = s.change(ctx, func() error { offers, err = s.decideLocked(ctx, name, approve, refuse); return err })
	return offers, err
}

func (s *state) decideLocked(ctx context.Context, name string, approve, refuse []netip.Prefix) (protocol.Offers, error) {
	old := s.nodes[name]
	switch {
	case old == nil:
		return nil, fmt.Errorf("%w: %s", ErrUnknown, name)
	case old.Role != protocol.Gateway:
		return nil, fmt.Errorf("%s is a client, and offers nothing", name)
	case len(approve)+len(refuse) == 0:
		return s.offers[name], nil
	}
	for _, p := range approve {
		if covers(refuse, p) {
			return nil, fmt.Errorf("%v is to be approved and refused at once; leave it out of one", p)
		}
	}
	next := *old
	next.limits = old.limits.decide(old.Granted, approve, refuse)
	if len(next.Approved)+len(next.Refused) > maxDecisions {
		return nil, fmt.Errorf("more than %d networks of %s are approved or refused; join neighbours", maxDecisions, name)
	}
	err := s.settleOffers(ctx, &next)
	return s.offers[name], err
}

// maxDecisions is how many networks may be approved and refused of one gateway.
const maxDecisions = 4 * protocol.MaxRoutes

// decide returns the limits after a decision. With the first approval the operator takes over: what was granted by rule stays. An
// approval takes back what was refused before, and not what is refused with it, a part of it for example.
func (l limits) decide(granted, approve, refuse []netip.Prefix) limits {
	next := limits{Listed: l.Listed, Approved: slices.Clone(l.Approved), Refused: slices.Clone(l.Refused)}
	if len(approve) > 0 && !l.Listed {
		next.Listed = true
		next.Approved = append(next.Approved, granted...)
	}
	next.Refused = slices.DeleteFunc(next.Refused, func(p netip.Prefix) bool {
		return slices.ContainsFunc(approve, func(a netip.Prefix) bool { return a == p || a.Bits() > 0 && p.Bits() > 0 && a.Overlaps(p) })
	})
	next.Refused = append(next.Refused, refuse...)
	next.Approved = slices.DeleteFunc(append(next.Approved, approve...), func(p netip.Prefix) bool { return covers(refuse, p) })
	return limits{next.Listed, unique(next.Approved), unique(next.Refused)}
}

func unique(list []netip.Prefix) []netip.Prefix {
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list)
}
