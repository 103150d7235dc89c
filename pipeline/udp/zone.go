package udp

import (
	"net"
	"net/netip"
	"strconv"
)

// zoneLimit bounds the maps of a zoneTable; a full one is emptied. A host has few interfaces, but link-local
// strangers choose their addresses.
const zoneLimit = 256

type scopedAddr struct {
	addr  netip.Addr
	scope uint32
}

// zoneTable translates between interface indexes, which the kernel speaks, and the zone names of netip, and keeps what
// it found: a look-up asks the kernel, and WithZone interns a string. The zero value is ready; one goroutine at a time.
type zoneTable struct {
	names  map[uint32]string
	named  map[scopedAddr]netip.Addr
	scopes map[string]uint32
}

// withZone adds the name of the interface scope to a link-local address; its number if it has no name any more.
func (t *zoneTable) withZone(addr netip.Addr, scope uint32) netip.Addr {
	key := scopedAddr{addr, scope}
	if named, ok := t.named[key]; ok {
		return named
	}
	if t.named == nil || len(t.named) >= zoneLimit {
		t.named, t.names = make(map[scopedAddr]netip.Addr), make(map[uint32]string)
	}
	named := addr.WithZone(t.name(scope))
	t.named[key] = named
	return named
}

func (t *zoneTable) name(scope uint32) string {
	if name, ok := t.names[scope]; ok {
		return name
	}
	name := strconv.FormatUint(uint64(scope), 10)
	if ifc, err := net.InterfaceByIndex(int(scope)); err == nil {
		name = ifc.Name
	}
	t.names[scope] = name
	return name
}

// scope is the interface index of a zone, 0 if there is none of that name.
func (t *zoneTable) scope(zone string) uint32 {
	if scope, ok := t.scopes[zone]; ok {
		return scope
	}
	var scope uint32
	if ifc, err := net.InterfaceByName(zone); err == nil {
		scope = uint32(ifc.Index)
	} else if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		scope = uint32(n)
	} else {
		return 0 // not kept: the interface may come
	}
	if t.scopes == nil || len(t.scopes) >= zoneLimit {
		t.scopes = make(map[string]uint32)
	}
	t.scopes[zone] = scope
	return scope
}

// forget drops what is known about a zone after a send through it failed: the interface may be another one now.
func (t *zoneTable) forget(zone string) { delete(t.scopes, zone) }

func addrPortWithZone(t *zoneTable, a netip.AddrPort, scope uint32) netip.AddrPort {
	return netip.AddrPortFrom(t.withZone(a.Addr(), scope), a.Port())
}
