package udp

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
)

// Zones of link-local IPv6 addresses are decimal interface indexes everywhere in the data plane, as sin6_scope_id is: an index
// stays when the interface is renamed, and means something to whoever does not know the name (another namespace's wg).

// zoneLimit bounds the map of a zoneTable; a full one is emptied. Link-local strangers choose their addresses.
const zoneLimit = 256

type scopedAddr struct {
	addr  netip.Addr
	scope uint32
}

// zoneTable keeps link-local addresses with their zones: to make one allocates. The zero value is ready; one goroutine at a time.
type zoneTable map[scopedAddr]netip.Addr

// withZone adds the interface scope to a link-local address.
func (t *zoneTable) withZone(addr netip.Addr, scope uint32) netip.Addr {
	key := scopedAddr{addr, scope}
	if zoned, ok := (*t)[key]; ok {
		return zoned
	}
	if *t == nil || len(*t) >= zoneLimit {
		*t = make(zoneTable)
	}
	zoned := addr.WithZone(strconv.FormatUint(uint64(scope), 10))
	(*t)[key] = zoned
	return zoned
}

// scopeOf is the interface index of a zone, 0 if it is not a number.
func scopeOf(zone string) uint32 {
	scope := uint64(0)
	for i := range len(zone) {
		digit := zone[i] - '0'
		if scope = 10*scope + uint64(digit); digit > 9 || scope > 1<<31-1 {
			return 0
		}
	}
	return uint32(scope)
}

// ResolveZone returns addr as the data plane wants it: a link-local address with the index of its interface as zone, which may
// have been its name; any other without zone. The interfaces are those of the calling thread's namespace. Errors: none has that
// name.
func ResolveZone(addr netip.Addr) (netip.Addr, error) {
	zone := addr.Zone()
	if zone == "" || !isLinkLocal6(addr) {
		return addr.WithZone(""), nil
	}
	if ifc, err := net.InterfaceByName(zone); err == nil { // before numbers, as if_nametoindex in getaddrinfo(3)
		return addr.WithZone(strconv.Itoa(ifc.Index)), nil
	}
	if scope := scopeOf(zone); scope != 0 {
		return addr.WithZone(strconv.FormatUint(uint64(scope), 10)), nil
	}
	return netip.Addr{}, fmt.Errorf("no interface is named %q", zone)
}

// isLinkLocal6 tells IPv6 addresses that mean nothing without an interface.
func isLinkLocal6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() && a.IsLinkLocalUnicast() }

// zoneNamesKept is for how many datagrams the name of an interface is believed to be the same one's, at most; package net believes
// it for a minute.
const zoneNamesKept = 256

// zoneNames translates the names that package net gives zones. The zero value is ready; one goroutine at a time.
type zoneNames struct {
	resolved map[string]string
	left     int // datagrams until resolved is emptied
}

// numbered returns a with the index of its interface as zone, if it has a zone.
func (z *zoneNames) numbered(a netip.AddrPort) netip.AddrPort {
	name := a.Addr().Zone()
	if name == "" {
		return a
	}
	if z.left == 0 {
		z.resolved, z.left = make(map[string]string), zoneNamesKept
	}
	z.left--
	zone, ok := z.resolved[name]
	if !ok {
		zone = name // that it has gone again is no reason to lose what came
		if addr, err := ResolveZone(a.Addr()); err == nil {
			zone = addr.Zone()
		}
		z.resolved[name] = zone
	}
	return netip.AddrPortFrom(a.Addr().WithZone(zone), a.Port())
}
