package ice

import (
	"net"
	"net/netip"
	"slices"
)

// maxLocal bounds how many local addresses an agent offers, and with it how many pairs it checks.
const maxLocal = 8

// LocalAddresses lists the addresses of the interfaces that are up, in the system's order, without loopback and those of
// interfaces that skip names, the tunnel for one. A nil skip skips none. What the system does not tell is left out. The mux
// filters further: link-local IPv6, for one, means nothing without a zone.
func LocalAddresses(skip func(name string) bool) []netip.Addr {
	var list []netip.Addr
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || skip != nil && skip(i.Name) {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				list = append(list, p.Addr().Unmap())
			}
		}
	}
	return list
}

// rules says which addresses may be offered or checked. Frozen.
type rules struct {
	overlay  []netip.Prefix
	loopback bool
}

// allow is the test for an address of either side.
func (r *rules) allow(a netip.Addr) bool {
	switch {
	case !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() || a.Zone() != "":
		return false
	case a.IsLoopback():
		return r.loopback
	case a.Is6() && a.IsLinkLocalUnicast():
		return false
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return false
	}
	return !slices.ContainsFunc(r.overlay, func(p netip.Prefix) bool { return p.Contains(a) })
}

// local filters what is offered: no address twice, at most maxLocal.
func (r *rules) local(all []netip.Addr) []netip.Addr {
	var list []netip.Addr
	for _, a := range all {
		a = a.Unmap()
		if len(list) < maxLocal && r.allow(a) && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}
