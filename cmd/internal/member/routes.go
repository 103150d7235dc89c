package member

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/tun/host"
)

// RoutePolicy is what a node takes of the routes that a portal gives, whatever the portal's own policy is. The zero value takes what is
// outside the machine's own networks, and default routes.
type RoutePolicy struct {
	Accepted  []netip.Prefix // what is inside these is taken, wherever it leads
	NoDefault bool           // no default route, and none that is as good as one
	Keep      []netip.Prefix // networks that stay outside of the tunnel; a default route has all of its family do so
}

// surroundings are what is around the machine: its networks, and the routers that it reaches all others by.
type surroundings struct {
	networks []host.Network
	routers  []netip.Addr
}

// chooser decides about routes. Frozen but for here, which each decision has anew.
type chooser struct {
	policy  RoutePolicy
	unkept  bool           // nothing keeps the program's own datagrams out of the tunnel
	offered []netip.Prefix // by this node
	overlay []netip.Prefix
	here    surroundings
}

// choose decides about all routes of an answer: see edge.Config.Choose.
func (o *Options) choose(answer protocol.Sync) []edge.RouteStatus {
	routes := edge.RoutesIn(answer)
	c := chooser{policy: o.RoutePolicy, unkept: o.Userspace == nil && !host.Marks, offered: o.Routes, overlay: answer.Overlay}
	var err error
	if o.Userspace == nil { // else no route takes a network away from this machine
		if c.here.networks, err = host.Networks(o.Interface); err == nil {
			c.here.routers, err = host.Routers()
		}
	}
	for i := range routes {
		r := &routes[i]
		why := c.refuses(r.Prefix)
		if err != nil && !protocol.Within(c.overlay, r.Prefix) { // it could be any of them
			why = "the networks of this machine are not known: " + oneLine(err)
		}
		if why != "" {
			r.State, r.Why = edge.RouteRefused, why
		}
	}
	return routes
}

// refuses says why a route is not used, "" if it is. A peer's tunnel address always is.
func (c *chooser) refuses(p netip.Prefix) string {
	for _, o := range c.offered {
		if shadows(o, p, c.overlay) {
			return fmt.Sprintf("it overlaps with %v, which this node offers itself", o)
		}
	}
	if c.policy.NoDefault && protocol.Broad(p) {
		return "-no-default-route"
	}
	if c.unkept && protocol.Broad(p) {
		return "on this system the tunnel's own datagrams would go into it"
	}
	if p.Bits() == 0 && slices.Contains(c.policy.Keep, p) {
		return fmt.Sprintf("-keep %v", p)
	}
	if protocol.Within(c.policy.Accepted, p) {
		return ""
	}
	if why := c.suspects(p); why != "" {
		return fmt.Sprintf("%s; -accept-routes %v takes it all the same", why, p)
	}
	return ""
}

// suspects says what speaks against a route that nobody on this machine has asked for.
func (c *chooser) suspects(p netip.Prefix) string {
	isRouter := func(a netip.Addr) bool { return p.IsSingleIP() && p.Addr() == a }
	switch {
	case protocol.Within(c.overlay, p): // also where a carrier's router has the address: it still leads on what is not for itself
		return ""
	case slices.ContainsFunc(c.here.routers, isRouter):
		return "it is the address of this machine's default router"
	case p.Addr().IsMulticast():
		return "it is of multicast addresses"
	case protocol.Within(linkLocal, p):
		return "it is of link-local addresses, which mean something on one link only"
	}
	for _, n := range c.here.networks {
		if protocol.Within([]netip.Prefix{n.Prefix}, p) {
			return fmt.Sprintf("it is of %v, the network that this machine is in on %s", n.Prefix, n.Interface)
		}
	}
	if p.IsSingleIP() {
		return "it is a single address, and none of the tunnels' own"
	}
	return ""
}

// linkLocal are RFC 3927 and RFC 4291, section 2.5.6. Clouds answer questions for a machine's credentials at 169.254.169.254.
var linkLocal = []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10")}

// shadows tells whether the offered prefix keeps a peer's out, since that would lead the network behind this node into the tunnel. A
// default route says nothing about the network behind this node, and tunnel addresses are never there.
func shadows(own, p netip.Prefix, overlay []netip.Prefix) bool {
	return own.Overlaps(p) && (own.Bits() == 0) == (p.Bits() == 0) && !protocol.Within(overlay, p)
}

// everywhere is the default route of a family.
func everywhere(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// leadsAll tells whether all addresses of a family are in the tunnel: by a default route or by two halves.
func leadsAll(routes []netip.Prefix, v6 bool) bool {
	all := everywhere(v6)
	if slices.Contains(routes, all) {
		return true
	}
	upper := all.Addr().AsSlice()
	upper[0] = 0x80
	a, _ := netip.AddrFromSlice(upper)
	return slices.Contains(routes, netip.PrefixFrom(all.Addr(), 1)) && slices.Contains(routes, netip.PrefixFrom(a, 1))
}

// lacking tells whether one family is all in the tunnel and the other is not, which then would go past it unnoticed.
func lacking(routes []netip.Prefix) (v6, lacks bool) {
	four, six := leadsAll(routes, false), leadsAll(routes, true)
	return four, four != six
}
