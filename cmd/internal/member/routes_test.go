package member

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/tun/host"
)

// TestRefuses: what a node takes of the routes that a portal gives, for routes that overlap in every way with what is around it.
func TestRefuses(t *testing.T) {
	here := surroundings{
		networks: []host.Network{
			{Prefix: netip.MustParsePrefix("192.168.7.0/24"), Interface: "eth0"}, {Prefix: netip.MustParsePrefix("fd07::/64"), Interface: "eth0"},
			{Prefix: netip.MustParsePrefix("fe80::/64"), Interface: "eth0"}, {Prefix: netip.MustParsePrefix("100.64.0.0/10"), Interface: "wwan0"},
			{Prefix: netip.MustParsePrefix("8.0.0.0/5"), Interface: "wlan0"}, {Prefix: netip.MustParsePrefix("169.254.0.0/16"), Interface: "eth1"},
		},
		routers: []netip.Addr{netip.MustParseAddr("192.168.7.1"), netip.MustParseAddr("100.64.0.9"), netip.MustParseAddr("203.0.113.1")},
	}
	const router, link, single, local = "default router", "the network that this machine is", "single address", "link-local"
	for _, tt := range []struct {
		routes string // each alone
		policy string // flags as a person gives them
		want   string // part of why it is refused; "": it is used
	}{
		// tunnel addresses, also where a link has them
		{"100.64.0.2/32 fd00:2021:1111::2/128", "", ""},
		{"100.64.0.9/32", "", ""}, // a carrier's router has it, too
		{"100.64.0.9/32", "accept 100.64.0.9/32", ""},
		// around the machine's networks, and elsewhere
		{"192.168.0.0/16 192.168.6.0/23 fd00::/8 172.16.0.0/24 198.51.100.0/24 2001:db8::/48 203.0.113.0/24 203.0.113.0/31", "", ""},
		{"0.0.0.0/0 ::/0 0.0.0.0/1 128.0.0.0/1 8000::/1 2000::/3 0.0.0.0/4", "", ""},
		// equal to them and inside
		{"192.168.7.0/24", "", link + " in on eth0"}, {"192.168.7.0/25 192.168.7.128/31 192.168.7.9/32 fd07::/64 fd07::/80 fd07::9/128", "", link},
		{"8.0.0.0/5 8.8.8.0/24 8.8.8.8/32 10.0.0.0/8", "", link + " in on wlan0"},
		{"100.64.0.0/10 100.127.0.0/16", "", link + " in on wwan0"},
		// the router's address, on a link and beyond
		{"192.168.7.1/32 203.0.113.1/32", "", router},
		// link-local, multicast, single
		{"169.254.0.0/16 169.254.169.254/32 169.254.169.0/24 fe80::/10 fe80::/64 fe80::1/128", "", local},
		{"169.0.0.0/8 fe00::/7", "", ""},
		{"224.0.0.0/4 239.1.2.3/32 ff02::/16", "", "multicast"},
		{"1.1.1.1/32 172.16.0.5/32 2001:db8::1/128", "", single},
		// what the person on the machine has asked for
		{"8.8.8.8/32 8.8.8.0/24 10.0.0.0/8", "accept 8.0.0.0/5", ""}, {"8.8.8.0/24", "accept 8.8.8.0/25", link},
		{"192.168.7.1/32 192.168.7.0/25", "accept 192.168.7.0/24", ""}, {"192.168.7.0/24", "accept 192.168.7.0/25", link},
		{"169.254.169.254/32", "accept 169.254.169.254/32", ""}, {"169.254.169.253/32", "accept 169.254.169.254/32", local},
		{"1.1.1.1/32", "accept 0.0.0.0/0", ""}, {"2001:db8::1/128", "accept 0.0.0.0/0", single},
		{"0.0.0.0/0 ::/0 0.0.0.0/1 128.0.0.0/1 2000::/3 8000::/1 0.0.0.0/7", "no default", "-no-default-route"},
		{"11.0.0.0/8 fd00::/16 10.99.0.0/16", "no default accept 11.0.0.0/8 10.0.0.0/7", ""},
		{"0.0.0.0/1", "no default accept 0.0.0.0/1", "-no-default-route"},
		{"::/0", "keep ::/0", "-keep ::/0"}, {"0.0.0.0/0 172.16.0.0/24 2001:db8::/32", "keep ::/0 10.0.0.0/8", ""},
		// what this node offers itself
		{"10.0.0.0/24 10.0.0.64/26 10.0.0.0/8", "offer 10.0.0.0/24", "overlaps with 10.0.0.0/24, which this node offers"},
		{"10.0.0.0/24", "offer 10.0.0.0/24 accept 10.0.0.0/24", "this node offers"},
		{"0.0.0.0/0 10.1.0.0/24 100.64.0.2/32 ::/0", "offer 10.0.0.0/24 100.64.0.0/10", ""},
		{"0.0.0.0/0", "offer 0.0.0.0/0", "this node offers"}, {"::/0 198.51.100.0/24", "offer 0.0.0.0/0", ""},
	} {
		c := chooser{overlay: protocol.DefaultOverlay(), here: here}
		list := &c.offered
		for _, word := range strings.Fields(tt.policy) {
			switch word {
			case "offer":
				list = &c.offered
			case "keep":
				list = &c.policy.Keep
			case "accept":
				list = &c.policy.Accepted
			case "no", "default":
				c.policy.NoDefault = true
			default:
				*list = append(*list, netip.MustParsePrefix(word))
			}
		}
		if strings.Contains(tt.policy, "10.0.0.0/7") || strings.HasPrefix(tt.routes, "0.0.0.0/0 10.1") || strings.HasPrefix(tt.policy, "offer 10") {
			c.here.networks = c.here.networks[:3] // without the /5
		}
		for _, p := range prefixes(strings.Fields(tt.routes)...) {
			got := c.refuses(p)
			if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("%v with %q: refused because %q, want %q", p, tt.policy, got, tt.want)
			}
			if ask := "-accept-routes " + p.String(); strings.Contains(got, ask) {
				c.policy.Accepted = append(c.policy.Accepted, p)
				if got := c.refuses(p); got != "" {
					t.Errorf("%v with %s: refused because %q", p, ask, got)
				}
				c.policy.Accepted = c.policy.Accepted[:len(c.policy.Accepted)-1]
			}
		}
	}
}

// TestLacking: which family would go past the tunnel.
func TestLacking(t *testing.T) {
	for routes, want := range map[string]string{
		"": "", "10.0.0.0/8 fd00::/8": "", "0.0.0.0/0": "v6", "::/0": "v4", "0.0.0.0/0 ::/0": "", "0.0.0.0/1": "", "0.0.0.0/1 128.0.0.0/1": "v6",
		"::/1 8000::/1": "v4", "::/1 128.0.0.0/1": "", "0.0.0.0/0 ::/1 8000::/1": "",
	} {
		got := ""
		if v6, lacks := lacking(prefixes(strings.Fields(routes)...)); lacks {
			got = map[bool]string{false: "v4", true: "v6"}[v6]
		}
		if got != want {
			t.Errorf("%s: %q lacks a route, want %q", routes, got, want)
		}
	}
}

// TestUnkept: where no mark keeps the tunnel's own datagrams out of it, nothing is taken that they would go into for certain.
func TestUnkept(t *testing.T) {
	c := chooser{overlay: protocol.DefaultOverlay(), unkept: true, policy: RoutePolicy{Accepted: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}}
	for text, want := range map[string]bool{"0.0.0.0/0": true, "::/0": true, "0.0.0.0/1": true, "10.0.0.0/8": false, "100.64.0.1/32": false, "198.51.100.0/24": false} {
		if got := c.refuses(netip.MustParsePrefix(text)); (got != "") != want {
			t.Errorf("%s: refused %q, want %v", text, got, want)
		}
	}
}
