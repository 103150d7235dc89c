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

// TestOwnLinks: a gateway's offer of what is on the machine's own link is told.
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
