package ice

import (
	"net/netip"
	"slices"
)

// maxLocal bounds how many local addresses an agent offers, and with it how many pairs it checks.
const maxLocal = 8

// rules says which addresses may be offered or checked. Frozen.
type rules struct {
	tunnel   func(netip.Addr) bool // an address in the tunnel, which checks may not go to; nil: none is
	loopback bool
}

// allow is the test for an address of the peer's, or for how others see us.
func (r *rules) allow(a netip.Addr) bool {
	return r.plain(a) && (r.tunnel == nil || !r.tunnel(a))
}

// plain is the test for an address of either side. One of ours may also be one in the tunnel, if our network and the portal have given
// out the same: who lists the addresses has left out the tunnel's interface.
func (r *rules) plain(a netip.Addr) bool {
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
	return true
}

// local filters what is offered: no address twice, at most maxLocal.
func (r *rules) local(all []netip.Addr) []netip.Addr {
	var list []netip.Addr
	for _, a := range all {
		a = a.Unmap()
		if len(list) < maxLocal && r.plain(a) && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}
