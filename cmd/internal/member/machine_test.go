package member

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/tun/host"
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
		s := protocol.Sync{Overlay: protocol.DefaultOverlay()}
		for _, p := range strings.Fields(tt.peers) { // a peer for each
			s.Peers = append(s.Peers, protocol.Peer{AllowedIPs: prefixes(p)})
		}
		routes, shadowed := routesOf(s, prefixes(strings.Fields(tt.own)...))
		if !slices.Equal(routes, prefixes(strings.Fields(tt.routes)...)) || !slices.Equal(shadowed, prefixes(strings.Fields(tt.shadowed)...)) {
			t.Errorf("%+v: %v, left out %v", tt, routes, shadowed)
		}
	}
}

// TestOwnLinks: a gateway's offer of what is on the machine's own link is told, and a single address there is not routed.
func TestOwnLinks(t *testing.T) {
	networks := []host.Network{
		{Prefix: netip.MustParsePrefix("192.168.7.0/24"), Interface: "eth0"}, {Prefix: netip.MustParsePrefix("100.64.0.0/10"), Interface: "wwan0"},
		{Prefix: netip.MustParsePrefix("fd07::/64"), Interface: "eth0"},
	}
	for offer, link := range map[string]string{
		"192.168.7.0/24": "eth0", "192.168.7.9/32": "eth0", "192.168.0.0/16": "eth0", "fd07::/80": "eth0", "fd07::9/128": "eth0",
		"192.168.8.0/24": "", "0.0.0.0/0": "", "::/0": "", "100.64.0.2/32": "",
	} {
		route := prefixes(offer)
		notes := slices.DeleteFunc(covered(route, networks, protocol.DefaultOverlay()), func(note string) bool {
			return strings.Contains(note, "tunnels' own addresses")
		})
		if told := len(notes) == 1 && strings.Contains(notes[0], offer) && strings.Contains(notes[0], " on "+link); told != (link != "") || len(notes) > 1 {
			t.Errorf("%s: %q, want one of %q", offer, notes, link)
		}
		if got, want := len(besideLinks(route, networks, protocol.DefaultOverlay())) == 1, link == "" || !route[0].IsSingleIP(); got != want {
			t.Errorf("%s: routed %v, want %v", offer, got, want)
		}
	}
}

// TestOverlayOnLink: a link whose network is of the tunnels' addresses is told of, whatever the portal has chosen; other tunnels' single
// addresses are not.
func TestOverlayOnLink(t *testing.T) {
	for _, tt := range []struct{ link, overlay, told string }{
		{"100.64.7.0/24", "100.64.0.0/11", "100.64.7.0/24 on wwan0 overlaps with the tunnels' own addresses 100.64.0.0/11"},
		{"100.64.0.0/10", "100.64.0.0/11 fd00:2021:1111::/107", "100.64.0.0/10 on wwan0"},
		{"fd99::/64", "10.99.0.0/16 fd99::/107", "fd99::/64 on wwan0"},
		{"100.64.7.0/24", "10.99.0.0/16 fd99::/107", ""},
		{"100.64.7.1/32", "100.64.0.0/11", ""},
		{"100.96.0.0/16", "100.64.0.0/11", ""},
	} {
		networks := []host.Network{{Prefix: netip.MustParsePrefix(tt.link), Interface: "wwan0"}}
		notes := covered(nil, networks, prefixes(strings.Fields(tt.overlay)...))
		if told := strings.Join(notes, ""); !strings.Contains(told, tt.told) || (told == "") != (tt.told == "") {
			t.Errorf("%+v: %q", tt, notes)
		}
	}
}
