package udp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"testing"
)

func TestZoneTable(t *testing.T) {
	all, err := net.Interfaces()
	if err != nil || len(all) == 0 {
		t.Skipf("SKIPPED: no interfaces to name: %v", err)
	}
	ifc := all[0]
	var table zoneTable
	local := netip.MustParseAddr("fe80::1")
	for range 2 { // found, then remembered
		if got := table.withZone(local, uint32(ifc.Index)); got != local.WithZone(ifc.Name) {
			t.Fatalf("got %v", got)
		}
		if got := table.scope(ifc.Name); got != uint32(ifc.Index) {
			t.Fatalf("scope of %s is %d, want %d", ifc.Name, got, ifc.Index)
		}
	}
	const nobody = 1 << 30
	if got := table.withZone(local, nobody); got.Zone() != strconv.Itoa(nobody) {
		t.Errorf("an interface without a name gave %v", got)
	}
	if table.scope(strconv.Itoa(nobody)) != nobody || table.scope("no such interface") != 0 {
		t.Error("a number is its own index, an unknown name is none")
	}
	table.forget(ifc.Name)
	if _, ok := table.scopes[ifc.Name]; ok {
		t.Error("not forgotten")
	}
}

// TestZoneTableIsBounded: strangers on the link choose their addresses.
func TestZoneTableIsBounded(t *testing.T) {
	var table zoneTable
	for i := range uint32(3 * zoneLimit) {
		a := [16]byte{0xfe, 0x80}
		binary.BigEndian.PutUint32(a[12:], i)
		table.withZone(netip.AddrFrom16(a), 1)
		table.scope(strconv.Itoa(int(i) + 1))
	}
	if len(table.named) > zoneLimit || len(table.scopes) > zoneLimit {
		t.Fatalf("%d addresses and %d zones kept, limit %d", len(table.named), len(table.scopes), zoneLimit)
	}
}
