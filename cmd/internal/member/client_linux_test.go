package member

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/tun/host"
)

// addLink gives the test's machine a link with addresses, until the test ends.
func addLink(t *testing.T, name string, addresses ...string) {
	t.Helper()
	lab.NeedTUN(t)
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}
	must(t, netlink.LinkAdd(link))
	t.Cleanup(func() { netlink.LinkDel(link) })
	must(t, host.SetUp(name))
	must(t, host.SetUp(name+"p"))
	for _, a := range addresses {
		must(t, host.AddAddress(name, netip.MustParsePrefix(a)))
	}
}

// theClient is what a portal tells a client whose one gateway leads to what is given.
func theClient(routes ...string) protocol.Sync {
	return protocol.Sync{
		Name: "laptop", Role: protocol.Client, Addresses: prefixes("100.64.0.2/32", "fd00:2021:1111::2/128"),
		Peers: []protocol.Peer{{Name: "office", Role: protocol.Gateway, PublicKey: key(1), AllowedIPs: prefixes(append([]string{"100.64.0.1/32"}, routes...)...)}},
	}
}

// TestRefusedRoutes: a gateway that offers the client's own router, and single addresses, gets none of that, and the status says so of
// each route; the network that the machine comes into counts as well.
func TestRefusedRoutes(t *testing.T) {
	addLink(t, "lan2", "192.168.7.2/24")
	must(t, host.AddRoute(host.Route{Interface: "lan2", Prefix: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("192.168.7.1")}))
	n := startNode(t, Options{Role: protocol.Client, Interface: "cl5", Table: 781},
		theClient("0.0.0.0/0", "128.0.0.0/1", "::/0", "192.168.7.1/32", "8.8.8.8/32", "169.254.169.254/32", "10.1.0.0/24"), nil)
	routes := func(wanted ...string) func() bool {
		return func() bool {
			s, err := n.node.Get(context.Background())
			must(t, err)
			used, refused := []string{}, 0
			for _, r := range s.Routes {
				switch {
				case r.State == edge.RouteUsed:
					used = append(used, r.Prefix.String())
				case r.Why != "":
					refused++
				}
			}
			slices.Sort(used)
			table := tableOf(781)
			slices.Sort(table)
			return slices.Equal(used, wanted) && slices.Equal(table, wanted) && refused+len(used) == 8
		}
	}
	n.eventually(t, "five routes are used", routes("0.0.0.0/0", "10.1.0.0/24", "100.64.0.1/32", "128.0.0.0/1", "::/0"))
	must(t, host.AddAddress("lan2", netip.MustParsePrefix("10.1.0.7/16")))
	n.eventually(t, "the machine is in another network, whose part is offered", routes("0.0.0.0/0", "100.64.0.1/32", "128.0.0.0/1", "::/0"))
	must(t, host.DeleteAddress("lan2", netip.MustParsePrefix("10.1.0.7/16")))
	n.eventually(t, "the machine has left that network", routes("0.0.0.0/0", "10.1.0.0/24", "100.64.0.1/32", "128.0.0.0/1", "::/0"))
	must(t, n.stop(t))
}

// TestOtherFamily: a default route of one family makes the other unreachable, but for the links' own networks, unless it is to go past the
// tunnel; the status says which.
func TestOtherFamily(t *testing.T) {
	addLink(t, "lan3", "192.168.7.2/24", "fd07::2/64", "2001:db8:7::2/64")
	must(t, host.AddRoute(host.Route{Interface: "lan3", Prefix: everywhere(true), Gateway: netip.MustParseAddr("fd07::1")}))
	by := func(dst string) string {
		routes, err := netlink.RouteGet(net.ParseIP(dst))
		must(t, err)
		link, err := netlink.LinkByIndex(routes[0].LinkIndex)
		must(t, err)
		return link.Attrs().Name
	}
	for _, tt := range []struct{ name, keep, public, told string }{
		{"cl6", "", "cl6", "IPv6 is unreachable while all IPv4 goes through the tunnel"},
		{"cl7", "::/0", "lan3", "all IPv4 goes through the tunnel and IPv6 past it, as -keep ::/0 says"},
	} {
		n := startNode(t, Options{Role: protocol.Client, Interface: tt.name, Table: 782, RoutePolicy: RoutePolicy{Keep: prefixes(strings.Fields(tt.keep)...)}},
			theClient("0.0.0.0/0"), nil)
		n.eventually(t, "up", func() bool { return strings.Contains(n.log.String(), "client laptop is up") })
		for dst, want := range map[string]string{"2001:db8::1": tt.public, "2001:db8:7::9": tt.public, "fd07::9": "lan3", "192.168.7.9": "lan3", "8.8.8.8": tt.name} {
			if got := by(dst); got != want {
				t.Errorf("-keep %s: %s goes by %s, want %s", tt.keep, dst, got, want)
			}
		}
		s, err := n.node.Get(context.Background())
		must(t, err)
		if notes := strings.Join(s.Notes, "\n"); !strings.Contains(notes, tt.told) {
			t.Errorf("-keep %s: notes %q, want %q", tt.keep, notes, tt.told)
		}
		if tt.keep == "" {
			if _, err := net.DialTimeout("tcp6", "[2001:db8::1]:9", 30*time.Second); !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("a program that connects hears %v, want that it is unreachable", err)
			}
		}
		must(t, n.stop(t))
		if got := by("2001:db8::1"); got != "lan3" {
			t.Errorf("after the end, 2001:db8::1 goes by %s", got)
		}
	}
}
