package ice

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netlinkRoutes asks the kernel by rtnetlink(7), which knows rules, marks and tables: it answers what it would do.
type netlinkRoutes struct {
	handle *netlink.Handle
	mark   uint32
}

func newRouteTable(mark uint32) (routeTable, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("ice: netlink handle: %w", err)
	}
	return &netlinkRoutes{handle, mark}, nil
}

func (n *netlinkRoutes) close() { n.handle.Close() }

func (n *netlinkRoutes) source(to netip.Addr) (source, bool) {
	list, err := n.handle.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{Mark: n.mark})
	if err != nil || len(list) == 0 {
		return source{}, false
	}
	addr, ok := netip.AddrFromSlice(list[0].Src)
	return source{addr.Unmap(), list[0].LinkIndex}, ok
}

func (n *netlinkRoutes) link(w way) (index int, ok bool) {
	list, err := n.handle.RouteGetWithOptions(w.to.AsSlice(), &netlink.RouteGetOptions{SrcAddr: w.from.AsSlice(), Mark: n.mark})
	switch {
	case err == nil && len(list) > 0:
		return list[0].LinkIndex, true
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		return 0, true // no route, one that refuses, or the address went away
	}
	return 0, false
}

// unfit are the flags of IPv6 addresses that nothing new begins from (RFC 4862, sections 5.4 and 5.5.4).
const unfit = unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED

func (n *netlinkRoutes) addresses() (list []localAddress) {
	links, err := n.handle.LinkList()
	if err != nil {
		return nil
	}
	usable := make(map[int]netlink.Link)
	for _, l := range links {
		// IFF_RUNNING: there is a carrier, or the driver does not tell (netdevice(7)).
		if a := l.Attrs(); a.Flags&net.FlagUp != 0 && a.RawFlags&unix.IFF_RUNNING != 0 {
			usable[a.Index] = l
		}
	}
	all, err := n.handle.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil
	}
	for _, a := range all {
		l := usable[a.LinkIndex]
		if l == nil || a.IPNet == nil || a.Flags&unfit != 0 {
			continue
		}
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			list = append(list, localAddress{
				source: source{addr.Unmap(), a.LinkIndex}, name: l.Attrs().Name,
				pointToPoint: l.Attrs().Flags&net.FlagPointToPoint != 0, bridge: l.Type() == "bridge",
				loopback: l.Attrs().Flags&net.FlagLoopback != 0,
			})
		}
	}
	return list
}
