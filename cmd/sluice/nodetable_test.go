package main

import (
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/portal"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares a screen with testdata/NAME.txt, and holds that it fits a terminal.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name + ".txt"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || got != string(want) {
		t.Errorf("%s (%v):\n%s\nwant (go test -update writes it):\n%s", name, err, got, want)
	}
	for line := range strings.Lines(got) {
		if n := len(strings.TrimSuffix(line, "\n")); n > status.Columns {
			t.Errorf("%s: %d columns, want at most %d: %s", name, n, status.Columns, line)
		}
	}
}

func TestNodeTable(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	name := strings.Repeat("a-long-name-", 5) + "abc"
	own := func(host string) []netip.Prefix {
		return []netip.Prefix{netip.MustParsePrefix("100.64.0." + host + "/32"), netip.MustParsePrefix("fd00:2021:1111::" + host + "/128")}
	}
	nodes := []portal.NodeStatus{
		{Name: name, Role: protocol.Gateway, Addresses: own("3"), Online: true, Since: now.Add(-26 * time.Hour),
			From: []string{"[2001:db8:1111:2222:3333:4444:5555:6666]:41234"}, Connections: 1, Program: "sluice v0.0.0-20261129174731-5af4dd6e494f+dirty",
			Offers: protocol.Offers{
				{Prefix: netip.MustParsePrefix("10.0.0.0/24"), State: protocol.Approved}, {Prefix: netip.MustParsePrefix("8.8.8.8/32"), State: protocol.Approved},
				{Prefix: netip.MustParsePrefix("0.0.0.0/0"), State: protocol.Pending, Why: "it is not among the networks that the operator of the portal has approved",
					Remedy: "sluice portal node routes " + name + " -approve 0.0.0.0/0"},
			}},
		{Name: "client", Role: protocol.Client, Addresses: own("2"), Seen: now.Add(-72 * time.Hour), Allow: []string{"west", "east"}, Refused: "its key is not signed"},
		{Name: "gateway", Role: protocol.Gateway, Addresses: own("1"), Online: true, Since: now.Add(-time.Second)}, // connects anew
		{Name: "new", Role: protocol.Client, Addresses: own("4"), Outdated: true},
		{Name: "twice", Role: protocol.Client, Addresses: own("5"), Online: true, Connections: 2, From: []string{"192.0.2.1:40001", "192.0.2.1:40002"}, Program: "sluice 1.2"},
	}
	golden(t, "node-list", nodeTable(nodes, now))
}
