package portal

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// overlay are the prefixes that tunnel addresses come from, one of each family. Frozen once loaded.
func (s *settings) overlay() []netip.Prefix { return completeOverlay(s.Overlay) }

// completeOverlay adds the default of a family that is missing.
func completeOverlay(list []netip.Prefix) []netip.Prefix {
	var full []netip.Prefix
	for _, standard := range protocol.DefaultOverlay() {
		is4 := standard.Addr().Is4()
		if i := slices.IndexFunc(list, func(p netip.Prefix) bool { return p.Addr().Is4() == is4 }); i >= 0 {
			standard = list[i]
		}
		full = append(full, standard)
	}
	return full
}

// leastHostBits is how small a network may be: six nodes.
const leastHostBits = 3

// checkOverlay says which prefix cannot be one of tunnel addresses.
func checkOverlay(list []netip.Prefix) error {
	families := map[bool]bool{}
	for _, p := range list {
		a := p.Addr()
		switch {
		case !p.IsValid() || p != p.Masked() || a.Is4In6():
			return fmt.Errorf("%v is no network; use one like 10.99.0.0/16", p)
		case families[a.Is4()]:
			return errors.New("there are two networks of one family; give one of IPv4, one of IPv6, or both")
		case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast():
			return fmt.Errorf("%v is not for hosts; use a private network like 10.99.0.0/16", p)
		case a.BitLen()-p.Bits() < leastHostBits:
			return fmt.Errorf("%v has room for fewer than %d nodes; use a shorter prefix", p, 1<<leastHostBits-2)
		}
		families[a.Is4()] = true
	}
	return nil
}

// overlaySize is how many addresses for nodes the default overlay has, and any has at most: all but the first and the last.
const overlaySize = 1<<21 - 2

// sizeOf is how many nodes have addresses in an overlay.
func sizeOf(overlay []netip.Prefix) uint32 {
	size := uint32(overlaySize)
	for _, p := range overlay {
		if bits := p.Addr().BitLen() - p.Bits(); bits < 21 {
			size = min(size, 1<<bits-2)
		}
	}
	return size
}

// addresses are a node's in the overlay.
func addresses(overlay []netip.Prefix, index uint32) (list []netip.Prefix) {
	for _, p := range overlay {
		b := p.Addr().AsSlice()
		for i, rest := len(b)-1, index; rest > 0; i, rest = i-1, rest>>8 {
			b[i] += byte(rest)
		}
		addr, _ := netip.AddrFromSlice(b)
		list = append(list, netip.PrefixFrom(addr, addr.BitLen()))
	}
	return list
}
