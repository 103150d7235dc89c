package member

import (
	"net/netip"
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

// TestOwnLinks: a route around a network on the machine's own link is told, and which of the two its hosts are reached by. What is inside
// was refused or asked for, and a default route is known to leave local networks out.
func TestOwnLinks(t *testing.T) {
	networks := []host.Network{
		{Prefix: netip.MustParsePrefix("192.168.7.0/24"), Interface: "eth0"}, {Prefix: netip.MustParsePrefix("fd07::/64"), Interface: "eth0"},
		{Prefix: netip.MustParsePrefix("8.0.0.0/5"), Interface: "wlan0"}, {Prefix: netip.MustParsePrefix("2001:db8::/64"), Interface: "eth0"},
	}
	for _, tt := range []struct{ route, keep, told string }{
		{"192.168.0.0/16", "", "192.168.7.0/24 on eth0 overlaps with 192.168.0.0/16"}, {"fd07::/48", "", "fd07::/64 on eth0 overlaps with fd07::/48"},
		{"192.168.7.0/24", "", ""}, {"192.168.7.9/32", "", ""}, {"fd07::/80", "", ""}, {"192.168.8.0/24", "", ""}, {"100.64.0.2/32", "", ""},
		{"0.0.0.0/0", "", "8.0.0.0/5 on wlan0 goes into the tunnel"}, {"0.0.0.0/0", "8.0.0.0/5", ""}, {"0.0.0.0/1", "0.0.0.0/1", ""},
		{"::/0", "", "2001:db8::/64 on eth0 goes into the tunnel"}, {"2001:db8::/32", "", "-keep 2001:db8::/64 has it stay on eth0"},
		{"2001:db8::/32", "2001:db8::/64", "2001:db8::/64 on eth0 overlaps with 2001:db8::/32"},
	} {
		notes := covered(prefixes(tt.route), networks, protocol.DefaultOverlay(), prefixes(strings.Fields(tt.keep)...))
		if told := strings.Join(notes, ""); !strings.Contains(told, tt.told) || (told == "") != (tt.told == "") || len(notes) > 1 {
			t.Errorf("%+v: %q, want one of %q", tt, notes, tt.told)
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
		notes := covered(nil, networks, prefixes(strings.Fields(tt.overlay)...), nil)
		if told := strings.Join(notes, ""); !strings.Contains(told, tt.told) || (told == "") != (tt.told == "") {
			t.Errorf("%+v: %q", tt, notes)
		}
	}
}
