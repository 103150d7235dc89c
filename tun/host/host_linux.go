package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// wrap names the operation, and says what to do about missing rights.
func wrap(err error, format string, a ...any) error {
	if err == nil {
		return nil
	}
	operation := fmt.Sprintf(format, a...)
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("host: %s: %w: %w", operation, ErrPermission, err)
	}
	return fmt.Errorf("host: %s: %w", operation, err)
}

// unless drops an error that says that the wanted state was there before.
func unless(err error, allowed ...error) error {
	for _, a := range allowed {
		if errors.Is(err, a) {
			return nil
		}
	}
	return err
}

// onLink finds the interface and applies change to it.
func onLink(name, operation string, change func(netlink.Link) error) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = change(link)
	}
	return wrap(err, "%s on %q", operation, name)
}

// SetMTU sets the interface's MTU in bytes.
func SetMTU(name string, mtu int) error {
	return onLink(name, fmt.Sprintf("set MTU %d", mtu), func(l netlink.Link) error { return netlink.LinkSetMTU(l, mtu) })
}

// SetUp sets the interface up.
func SetUp(name string) error { return onLink(name, "set up", netlink.LinkSetUp) }

// SetDown sets the interface down.
func SetDown(name string) error { return onLink(name, "set down", netlink.LinkSetDown) }

// AddAddress adds an address with its prefix length. IPv6 addresses are usable at once, without duplicate address detection.
func AddAddress(name string, p netip.Prefix) error {
	return onLink(name, "add address "+p.String(), func(l netlink.Link) error {
		return unless(netlink.AddrAdd(l, address(p)), unix.EEXIST)
	})
}

// DeleteAddress deletes an address.
func DeleteAddress(name string, p netip.Prefix) error {
	return onLink(name, "delete address "+p.String(), func(l netlink.Link) error {
		return unless(netlink.AddrDel(l, address(p)), unix.EADDRNOTAVAIL)
	})
}

func address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// AddRoute adds a route, or replaces the one with the same prefix, metric and table.
func AddRoute(r Route) error {
	route, err := r.netlink()
	if err == nil {
		err = netlink.RouteReplace(route)
	}
	return wrap(err, "add route %s", r.Prefix)
}

// DeleteRoute deletes a route.
func DeleteRoute(r Route) error {
	route, err := r.netlink()
	if err == nil {
		err = unless(netlink.RouteDel(route), unix.ESRCH)
	}
	return wrap(err, "delete route %s", r.Prefix)
}

func (r Route) netlink() (*netlink.Route, error) {
	if !r.Prefix.IsValid() {
		return nil, errors.New("invalid prefix")
	}
	route := &netlink.Route{Dst: ipNet(r.Prefix.Masked()), Table: r.Table, Priority: r.Metric, MTU: r.MTU}
	if r.Interface != "" {
		link, err := netlink.LinkByName(r.Interface)
		if err != nil {
			return nil, err
		}
		route.LinkIndex = link.Attrs().Index
	}
	if r.Gateway.IsValid() {
		route.Gw = r.Gateway.AsSlice()
	} else {
		route.Scope = netlink.SCOPE_LINK
	}
	if r.Source.IsValid() {
		route.Src = r.Source.AsSlice()
	}
	return route, nil
}
