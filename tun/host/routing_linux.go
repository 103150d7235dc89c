package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Routing keeps an interface's addresses, its routes, and the policy rules that lead to them. Its methods act in the namespace
// of the calling thread, always the same one, and belong to one goroutine.
type Routing struct {
	cfg     RoutingConfig
	changes uint64
	// addresses are the interface's own, markedFor those that the table of marks was written with.
	addresses, markedFor []netip.Prefix
	marks                ownTable
	unmarked             error
	failing              bool // the machine fails closed, for this process or one before
	overlay              []netip.Prefix
}

// NewRouting takes over what a killed process may have left: rules that lead to an empty table, and a table of marks. From then on the
// machine fails closed, if it is to.
func NewRouting(cfg RoutingConfig) (*Routing, error) {
	r := &Routing{cfg: cfg.withDefaults()}
	err := r.syncRules()
	r.syncMark(r.failing)
	return r, err
}

// Changes counts the addresses and routes that were added or deleted, and the rules for them. That it grows when nothing else is
// asked for than before means that somebody has interfered.
func (r *Routing) Changes() uint64 { return r.changes }

// change notes one change, if it was made.
func (r *Routing) change(err error) error {
	if err == nil {
		r.changes++
	}
	return err
}

// SetOverlay says which prefixes peers' tunnel addresses are of, from the next Set on: nobody else has an address in them.
func (r *Routing) SetOverlay(overlay []netip.Prefix) { r.overlay = overlay }

// SetAddresses makes these, and no others but link-local ones, the interface's addresses. IPv6 addresses are left out where
// the machine has no IPv6.
func (r *Routing) SetAddresses(want []netip.Prefix) error {
	r.addresses = want
	link, err := netlink.LinkByName(r.cfg.Interface)
	if err != nil {
		return wrap(err, "set addresses of %q", r.cfg.Interface)
	}
	have, err := addresses(link)
	if err != nil {
		return wrap(err, "list addresses of %q", r.cfg.Interface)
	}
	for _, p := range have {
		if !slices.Contains(want, p) && !p.Addr().IsLinkLocalUnicast() {
			err = errors.Join(err, r.change(DeleteAddress(r.cfg.Interface, p)))
		}
	}
	for _, p := range want {
		if !slices.Contains(have, p) && r.usable(p) {
			err = errors.Join(err, r.change(AddAddress(r.cfg.Interface, p)))
		}
	}
	return err
}

func addresses(link netlink.Link) ([]netip.Prefix, error) {
	list, err := retry(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	var have []netip.Prefix
	for _, a := range list {
		if p, ok := prefixOf(a.IPNet); ok {
			have = append(have, p)
		}
	}
	return have, err
}

// retry lists again while the list changes in the hands of the kernel.
func retry[T any](list func() ([]T, error)) (all []T, err error) {
	for range 5 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits), ok
}

// usable tells whether the interface has the prefix's family.
func (r *Routing) usable(p netip.Prefix) bool { return p.Addr().Is4() || HasIPv6(r.cfg.Interface) }

// HasIPv6 tells whether an interface has IPv6: the machine may have none, or it may be disabled.
func HasIPv6(name string) bool {
	off, err := readSetting("ipv6/conf/" + name + "/disable_ipv6")
	return err == nil && off == "0"
}

// Set makes these the routes through the interface: new ones are added, others deleted, those that are there are not
// touched, also where they lead to another interface, which is an error. The interface must be up. What can be set is set,
// also if there is an error. Host bits are cleared; routes of a family that the machine lacks are left out.
func (r *Routing) Set(routes []netip.Prefix) error {
	want := make([]netip.Prefix, 0, len(routes))
	for _, p := range routes {
		if p.IsValid() && r.usable(p) {
			want = append(want, p.Masked())
		}
	}
	have, err := r.routes()
	if err != nil {
		return err
	}
	slices.SortFunc(want, netip.Prefix.Compare)
	slices.SortFunc(have, netip.Prefix.Compare)
	var taken []netip.Prefix
	for _, p := range want {
		if _, there := slices.BinarySearchFunc(have, p, netip.Prefix.Compare); there {
			continue
		}
		if e := r.addRoute(p); errors.Is(e, unix.EEXIST) {
			taken = append(taken, p)
		} else {
			err = errors.Join(err, r.change(e))
		}
	}
	if len(taken) > 0 {
		err = errors.Join(err, fmt.Errorf("host: another interface has routes to %v in table %d already: stop the node that it belongs to",
			taken, r.cfg.Table))
	}
	for _, p := range have {
		if _, wanted := slices.BinarySearchFunc(want, p, netip.Prefix.Compare); !wanted {
			err = errors.Join(err, r.change(DeleteRoute(r.route(p))))
		}
	}
	r.syncMark(r.marking(want))
	return errors.Join(err, r.syncRules())
}

// addRoute adds a route that nobody else has, else the error is EEXIST.
func (r *Routing) addRoute(p netip.Prefix) error {
	route, err := r.route(p).netlink()
	if err == nil {
		err = netlink.RouteAdd(route)
	}
	return wrap(err, "add route %s", p)
}

// Close deletes the interface's routes, and the rules if nobody else has routes in the table, unless the machine is to fail closed. The
// interface may be gone.
func (r *Routing) Close() error {
	have, err := r.routes()
	for _, p := range have {
		err = errors.Join(err, DeleteRoute(r.route(p)))
	}
	r.syncMark(r.failing)
	return errors.Join(err, r.syncRules())
}

func isDefault(p netip.Prefix) bool { return p.Bits() == 0 }

func (r *Routing) route(p netip.Prefix) Route {
	return Route{Interface: r.cfg.Interface, Prefix: p, Table: r.cfg.Table}
}

// routes are those of our interface in our table.
func (r *Routing) routes() ([]netip.Prefix, error) {
	link, err := netlink.LinkByName(r.cfg.Interface)
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) {
		return nil, nil
	}
	if err != nil {
		return nil, wrap(err, "list routes of %q", r.cfg.Interface)
	}
	var have []netip.Prefix
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := tableRoutes(family, r.cfg.Table)
		if err != nil {
			return nil, wrap(err, "list routes of table %d", r.cfg.Table)
		}
		for _, route := range list {
			if route.index == link.Attrs().Index {
				have = append(have, route.prefix)
			}
		}
	}
	return have, nil
}

type tableRoute struct {
	prefix netip.Prefix
	index  int
}

func tableRoutes(family, table int) ([]tableRoute, error) {
	list, err := retry(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, nil
	}
	var routes []tableRoute
	for _, have := range list {
		p, ok := prefixOf(have.Dst)
		if !ok { // some versions give the default route no destination
			p = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if family == netlink.FAMILY_V6 {
				p = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
		}
		routes = append(routes, tableRoute{p, have.LinkIndex})
	}
	return routes, err
}

const marks = true

func setMark(c syscall.RawConn, mark uint32) error {
	var err error
	controlErr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)) })
	return wrap(errors.Join(controlErr, err), "mark a socket")
}

// Routers lists those that the default routes of the main table lead to, in order, each once.
func Routers() ([]netip.Addr, error) {
	list, err := retry(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	var routers []netip.Addr
	add := func(ip net.IP) {
		if a, ok := netip.AddrFromSlice(ip); ok {
			routers = append(routers, a.Unmap())
		}
	}
	for _, r := range list {
		if p, ok := prefixOf(r.Dst); ok && p.Bits() > 0 {
			continue
		}
		add(r.Gw)
		if via, ok := r.Via.(*netlink.Via); ok { // a router of the other family (RFC 8950)
			add(via.Addr)
		}
		for _, hop := range r.MultiPath {
			add(hop.Gw)
		}
	}
	slices.SortFunc(routers, netip.Addr.Compare)
	return slices.Compact(routers), wrap(err, "list default routes")
}
