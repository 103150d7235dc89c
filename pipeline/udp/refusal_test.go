package udp

import (
	"net/netip"
	"testing"
)

func TestRefusalTable(t *testing.T) {
	var table refusalTable
	other := netip.MustParseAddr("198.51.100.1")
	if slotOf(other) == slotOf(addr4) {
		t.Fatal("the two addresses of this test must not share a slot")
	}
	if table.refuses(addr4, 1400) {
		t.Fatal("an empty table refuses")
	}
	table.add(addr4, 1400)
	if table.refuses(addr4, 1399) || table.refuses(other, 1400) {
		t.Fatal("shorter segments or another destination are refused")
	}
	for round, want := range []int{refusalFirst, 2 * refusalFirst} {
		for i := range want {
			if !table.refuses(addr4, 1400) {
				t.Fatalf("round %d: a run is tried after %d, want %d", round, i, want)
			}
		}
		if table.refuses(addr4, 1400) {
			t.Fatalf("round %d: no run is tried after %d", round, want)
		}
		table.add(addr4, 1400)
	}
	table.passed(addr4, 1000) // tells nothing about 1400
	if !table.refuses(addr4, 1400) {
		t.Fatal("a run of shorter segments lifted the refusal")
	}
	table.passed(addr4, 1400)
	if table.refuses(addr4, 1400) {
		t.Fatal("refused after a run passed")
	}
	for range 40 {
		table.add(addr4, 9)
	}
	if left := table.slots[slotOf(addr4)].left; left != refusalMost {
		t.Fatalf("the pause grew to %d runs, limit %d", left, refusalMost)
	}
}
