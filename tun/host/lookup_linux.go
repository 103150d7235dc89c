package host

import (
	"errors"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Lookup asks the kernel for the route to an address.
func Lookup(to netip.Addr, mark uint32) (f Found, err error) {
	routes, err := netlink.RouteGetWithOptions(net.IP(to.AsSlice()), &netlink.RouteGetOptions{Mark: mark})
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		return Found{Unreachable: true}, nil // what ip-route(8) calls unreachable, prohibit and blackhole, and no route at all
	case err != nil:
		return f, wrap(err, "find the route to %v", to)
	case len(routes) == 0:
		return Found{Unreachable: true}, nil
	}
	r := routes[0]
	f.Table, f.MTU = r.Table, r.MTU
	if a, ok := netip.AddrFromSlice(r.Gw); ok {
		f.Router = a.Unmap()
	}
	if a, ok := netip.AddrFromSlice(r.Src); ok {
		f.Source = a.Unmap()
	}
	link, err := net.InterfaceByIndex(r.LinkIndex)
	if err != nil {
		return f, wrap(err, "find the interface to %v", to)
	}
	f.Interface = link.Name
	if f.MTU == 0 {
		f.MTU = link.MTU
	}
	return f, nil
}
