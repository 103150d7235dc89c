package ice

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestLeadsToOurselves: where both hosts have containers in the same networks, the peer's addresses there are our own. No check leaves
// for them, but for those between two programs on one machine, which have the same address.
func TestLeadsToOurselves(t *testing.T) {
	ownNamespace(t)
	own := map[string]string{"eth": "192.168.1.2/24", "br1": "172.17.0.1/16", "br2": "fd17::1/64"}
	for name, text := range own {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = name
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags = 2 // IFA_F_NODAD
		link := &netlink.Veth{LinkAttrs: attributes, PeerName: name + "-far"}
		far := func() error {
			l, err := netlink.LinkByName(link.PeerName)
			if err != nil {
				return err
			}
			return netlink.LinkSetUp(l)
		}
		for _, err := range []error{netlink.LinkAdd(link), netlink.AddrAdd(link, addr), netlink.LinkSetUp(link), far()} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	u, err := NewUplinks(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for from := range own {
		for to := range own {
			a, b := netip.MustParsePrefix(own[from]).Addr(), netip.MustParsePrefix(own[to]).Addr()
			if got := u.Leads(a, b); a.Is4() == b.Is4() && got != (a == b) {
				t.Errorf("from %v to %v: leads %v, want %v", a, b, got, a == b)
			}
		}
	}
}

// TestUnnumberedUplink: a host whose uplink has addresses of the link only has its own on the loopback interface, and routers lead to them.
// They are offered, first, and checks may leave from them; another address of that interface, which a service has in common with other
// hosts, is not.
func TestUnnumberedUplink(t *testing.T) {
	ownNamespace(t)
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "eth"
	eth := &netlink.Veth{LinkAttrs: attributes, PeerName: "far"}
	if err := netlink.LinkAdd(eth); err != nil {
		t.Fatal(err)
	}
	links := map[string]netlink.Link{}
	for _, name := range []string{"lo", "eth", "far"} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			links[name], err = l, netlink.LinkSetUp(l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, of := range []struct{ name, addr string }{
		{"lo", "198.51.100.9/32"}, {"lo", "2001:db8:9::9/128"}, {"lo", "198.51.100.53/32"}, {"lo", "2001:db8:9::53/128"},
		{"eth", "fe80::9/64"},
	} {
		addr, err := netlink.ParseAddr(of.addr)
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags = 2 // IFA_F_NODAD
		if err := netlink.AddrAdd(links[of.name], addr); err != nil {
			t.Fatal(err)
		}
	}
	want := []netip.Addr{netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("2001:db8:9::9")}
	everywhere := []*net.IPNet{{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}}
	for i, r := range []*netlink.Route{{Scope: netlink.SCOPE_LINK}, {Gw: net.ParseIP("fe80::1")}} {
		r.LinkIndex, r.Dst, r.Src = links["eth"].Attrs().Index, everywhere[i], want[i].AsSlice()
		if err := netlink.RouteAdd(r); err != nil {
			t.Fatal(err)
		}
	}
	u, err := NewUplinks(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if got := u.Addresses(nil); !slices.Equal(got, want) {
		t.Errorf("offered %v, want %v", got, want)
	}
	for i, service := range []string{"198.51.100.53", "2001:db8:9::53"} {
		other := netip.MustParseAddr(service)
		if to := anywhere[i]; !u.Leads(want[i], to) || u.Leads(other, to) || u.Leads(want[i], other) {
			t.Errorf("to %v: from %v %v, want true; from %v %v, want false; to the latter %v, want false", to, want[i], u.Leads(want[i], to),
				other, u.Leads(other, to), u.Leads(want[i], other))
		}
	}
}
