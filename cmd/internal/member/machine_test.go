package member

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

func prefixes(list ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func TestRoutesOf(t *testing.T) {
	for _, tt := range []struct{ peers, own, routes, shadowed string }{
		{"", "", "", ""},
		{"100.64.0.2/32 10.1.0.7/24 100.64.0.2/32", "", "10.1.0.0/24 100.64.0.2/32", ""},
		{"100.64.0.2/32 10.0.0.0/24 10.0.0.64/26 10.0.0.0/8 10.1.0.0/24", "10.0.0.0/24", "10.1.0.0/24 100.64.0.2/32", "10.0.0.0/8 10.0.0.0/24 10.0.0.64/26"},
		{"100.64.0.2/32 fd00:2021:1111::2/128 10.0.0.0/24", "0.0.0.0/0 ::/0", "10.0.0.0/24 100.64.0.2/32 fd00:2021:1111::2/128", ""},
		{"0.0.0.0/0 ::/0", "0.0.0.0/0", "::/0", "0.0.0.0/0"},
		{"0.0.0.0/0 100.64.0.2/32", "10.0.0.0/24 100.64.0.0/10", "0.0.0.0/0 100.64.0.2/32", ""},
	} {
		var s protocol.Sync
		for _, p := range strings.Fields(tt.peers) { // a peer for each
			s.Peers = append(s.Peers, protocol.Peer{AllowedIPs: prefixes(p)})
		}
		routes, shadowed := routesOf(s, prefixes(strings.Fields(tt.own)...))
		if !slices.Equal(routes, prefixes(strings.Fields(tt.routes)...)) || !slices.Equal(shadowed, prefixes(strings.Fields(tt.shadowed)...)) {
			t.Errorf("%+v: %v, left out %v", tt, routes, shadowed)
		}
	}
}
