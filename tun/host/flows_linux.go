package host

import (
	"errors"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// endFlows deletes the connections from conntrack that our table does not let begin, and those that it would masquerade and that are
// not: they have begun while the table was away, or before it changed. What comes of them next begins anew. It tells
// whether there were some. Packets that are just being forwarded may still make such a connection.
func (fw *Forwarding) endFlows() (found bool, err error) {
	list, err := retry(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return false, wrap(err, "list addresses")
	}
	f := flowFilter{Forwarding: fw, own: map[netip.Addr]bool{}}
	for _, a := range list {
		if p, ok := prefixOf(a.IPNet); ok {
			f.own[p.Addr()] = true
		}
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		n, e := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f)
		interrupted := errors.Is(e, netlink.ErrDumpInterrupted)
		if found = found || n > 0 || interrupted; !interrupted {
			err = errors.Join(err, e)
		}
	}
	return found, wrap(err, "end connections that began while our nftables table was away (modprobe nf_conntrack_netlink)")
}

// flowFilter knows connections by their addresses, since conntrack knows no interfaces.
type flowFilter struct {
	*Forwarding
	own map[netip.Addr]bool // addresses of this machine
}

// MatchConntrackFlow tells whether a connection is to be deleted.
func (f flowFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	source, as := addrOf(flow.Forward.SrcIP), addrOf(flow.Reverse.DstIP)
	return !f.admits(source, addrOf(flow.Reverse.SrcIP), source != as)
}

// admits tells whether the table lets a connection begin, from a source to what it is in the end led to.
func (f flowFilter) admits(source, target netip.Addr, masqueraded bool) bool {
	switch within := containsAddr; {
	case f.own[source]:
		return true
	case f.inTunnel(source) && f.own[target]:
		return within(f.forward.Addresses, target) || within(f.forward.Routes, target)
	case f.inTunnel(source):
		return within(f.forward.Routes, target) && !f.inTunnel(target) && (masqueraded || f.forward.NoMasquerade)
	case f.inTunnel(target):
		return within(f.forward.Reach, target)
	case f.own[target] || len(f.around.tunnels) > 0 || len(f.around.bridges) > 0: // others' own, which they care for or do not route
		return true
	}
	return !f.around.apart(source.Is6())
}

// inTunnel tells whether an address is reached through the tunnel.
func (f flowFilter) inTunnel(a netip.Addr) bool {
	return containsAddr(f.forward.Overlay, a) ||
		slices.ContainsFunc(f.forward.Reach, func(p netip.Prefix) bool { return !isDefault(p) && p.Contains(a) })
}

func containsAddr(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
