package udp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"testing"
)

func TestZoneTable(t *testing.T) {
	var table zoneTable
	local := netip.MustParseAddr("fe80::1")
	for range 2 { // made, then remembered
		if got, want := table.withZone(local, 7), local.WithZone("7"); got != want {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	for zone, want := range map[string]uint32{
		"7": 7, "007": 7, "2147483647": 1<<31 - 1, "2147483648": 0, "18446744073709551617": 0, "": 0, "eth0": 0, "7x": 0, "-1": 0, "+1": 0,
	} {
		if got := scopeOf(zone); got != want {
			t.Errorf("scope of %q is %d, want %d", zone, got, want)
		}
	}
}

// TestZoneTableIsBounded: strangers on the link choose their addresses.
func TestZoneTableIsBounded(t *testing.T) {
	var table zoneTable
	for i := range uint32(3 * zoneLimit) {
		a := [16]byte{0xfe, 0x80}
		binary.BigEndian.PutUint32(a[12:], i)
		table.withZone(netip.AddrFrom16(a), 1)
	}
	if len(table) > zoneLimit {
		t.Fatalf("%d addresses kept, limit %d", len(table), zoneLimit)
	}
}

func TestResolveZone(t *testing.T) {
	all, err := net.Interfaces()
	if err != nil || len(all) == 0 {
		t.Skipf("SKIPPED: no interfaces to name: %v", err)
	}
	name, index := all[0].Name, strconv.Itoa(all[0].Index)
	for from, want := range map[string]string{
		"fe80::1%" + name: "fe80::1%" + index, "fe80::1%" + index: "fe80::1%" + index, "fe80::1%1073741824": "fe80::1%1073741824",
		"fe80::1": "fe80::1", "192.0.2.1": "192.0.2.1", "2001:db8::1%nobody": "2001:db8::1", "fe80::1%nobody": "", "fe80::1%0": "",
	} {
		got, err := ResolveZone(netip.MustParseAddr(from))
		if want == "" {
			if err == nil {
				t.Errorf("%s became %v, want an error", from, got)
			}
		} else if err != nil || got.String() != want {
			t.Errorf("%s became %v (error %v), want %s", from, got, err, want)
		}
	}
}

// TestZoneNames: the zones of package net become numbers, and a name is asked for again after a while.
func TestZoneNames(t *testing.T) {
	all, err := net.Interfaces()
	if err != nil || len(all) == 0 {
		t.Skipf("SKIPPED: no interfaces to name: %v", err)
	}
	var names zoneNames
	at := func(zone string) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("fe80::1").WithZone(zone), 9)
	}
	for range 2 * zoneNamesKept {
		if got, want := names.numbered(at(all[0].Name)), at(strconv.Itoa(all[0].Index)); got != want {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	if got := names.numbered(at("nobody")); got != at("nobody") || len(names.resolved) != 2 && len(names.resolved) != 1 {
		t.Errorf("got %v, %d names kept", got, len(names.resolved))
	}
}
