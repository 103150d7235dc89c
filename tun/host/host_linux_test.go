package host

import (
	"errors"
	"net/netip"
	"runtime"
	"testing"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNewNamespace moves the test's thread into a new network namespace with a dummy interface, until the test ends.
func inNewNamespace(t *testing.T) {
	t.Helper()
	lab.NeedTUN(t)
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	must(t, unix.Unshare(unix.CLONE_NEWNET)) // if it fails the thread stays locked and ends with the test
	t.Cleanup(func() {
		defer unix.Close(home)
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		runtime.UnlockOSThread()
	})
	addTUN(t, "host0")
}

func tunLink(name string) netlink.Link {
	link := &netlink.Tuntap{LinkAttrs: netlink.NewLinkAttrs(), Mode: netlink.TUNTAP_MODE_TUN}
	link.Name = name
	return link
}

func addTUN(t *testing.T, name string) {
	t.Helper()
	must(t, netlink.LinkAdd(tunLink(name)))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLink(t *testing.T) {
	inNewNamespace(t)
	must(t, SetMTU("host0", 1380))
	must(t, SetUp("host0"))
	must(t, SetUp("host0"))
	link, err := netlink.LinkByName("host0")
	must(t, err)
	if a := link.Attrs(); a.MTU != 1380 || a.RawFlags&unix.IFF_UP == 0 {
		t.Errorf("MTU %d, flags %#x", a.MTU, a.RawFlags)
	}
	must(t, SetDown("host0"))
	if link, err = netlink.LinkByName("host0"); err != nil || link.Attrs().RawFlags&unix.IFF_UP != 0 {
		t.Errorf("not down: %v", err)
	}
	var missing netlink.LinkNotFoundError
	if err := SetUp("absent0"); !errors.As(err, &missing) {
		t.Errorf("absent interface: %v", err)
	}
	if SetMTU("host0", -1) == nil {
		t.Error("an MTU of -1 was accepted")
	}
}

func TestAddress(t *testing.T) {
	inNewNamespace(t)
	link, err := netlink.LinkByName("host0")
	must(t, err)
	for family, s := range map[int]string{netlink.FAMILY_V4: "10.1.2.3/24", netlink.FAMILY_V6: "fd00::3/64"} {
		p := netip.MustParsePrefix(s)
		must(t, AddAddress("host0", p))
		must(t, AddAddress("host0", p))
		all, err := netlink.AddrList(link, family)
		must(t, err)
		if len(all) != 1 || all[0].IPNet.String() != s {
			t.Errorf("addresses %v, want %s", all, s)
		}
		must(t, DeleteAddress("host0", p))
		must(t, DeleteAddress("host0", p))
		if all, _ = netlink.AddrList(link, family); len(all) != 0 {
			t.Errorf("left: %v", all)
		}
	}
}

func TestRoute(t *testing.T) {
	inNewNamespace(t)
	must(t, SetUp("host0"))
	must(t, AddAddress("host0", netip.MustParsePrefix("10.1.2.3/24")))
	for _, r := range []Route{
		{Interface: "host0", Prefix: netip.MustParsePrefix("192.0.2.77/24")},
		{Interface: "host0", Prefix: netip.MustParsePrefix("0.0.0.0/0"), Table: 77, MTU: 1280},
		{Interface: "host0", Prefix: netip.MustParsePrefix("2001:db8::/32"), Metric: 50},
		{Interface: "host0", Prefix: netip.MustParsePrefix("::/0"), Table: 77},
		{Prefix: netip.MustParsePrefix("198.51.100.0/24"), Gateway: netip.MustParseAddr("10.1.2.1"), Source: netip.MustParseAddr("10.1.2.3")},
	} {
		must(t, AddRoute(r))
		must(t, AddRoute(r))
		if n := countRoutes(t, r); n != 1 {
			t.Errorf("%v: %d routes", r.Prefix, n)
		}
		must(t, DeleteRoute(r))
		must(t, DeleteRoute(r))
		if n := countRoutes(t, r); n != 0 {
			t.Errorf("%v: %d routes left", r.Prefix, n)
		}
	}
	if AddRoute(Route{Interface: "host0"}) == nil {
		t.Error("a route to nowhere was accepted")
	}
}

func countRoutes(t *testing.T, r Route) int {
	t.Helper()
	family, table := netlink.FAMILY_V4, r.Table
	if r.Prefix.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	if table == 0 {
		table = unix.RT_TABLE_MAIN
	}
	all, err := netlink.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	must(t, err)
	n := 0
	for _, have := range all {
		if have.Dst != nil && have.Dst.String() == r.Prefix.Masked().String() && (r.MTU == 0 || have.MTU == r.MTU) {
			n++
		}
	}
	return n
}

func TestRule(t *testing.T) {
	inNewNamespace(t)
	for _, r := range []Rule{
		{Table: 77, Mark: 0x55, Invert: true, Priority: 100},
		{Table: unix.RT_TABLE_MAIN, MinBits: 1, Priority: 99, IPv6: true},
		{Table: 51888, Mark: 0x55, Invert: true, MinBits: 1, Priority: 98},
		{Table: 51888, Priority: 97},
		{Table: 51888, Mark: 0x55, Invert: true, MinBits: 128, Priority: 96, IPv6: true},
	} {
		family := netlink.FAMILY_V4
		if r.IPv6 {
			family = netlink.FAMILY_V6
		}
		count := func() (n int) {
			all, err := netlink.RuleList(family)
			must(t, err)
			for _, have := range all {
				if have.Priority == r.Priority && have.Table == r.Table && have.Mark == r.Mark && have.Invert == r.Invert &&
					have.SuppressPrefixlen+1 == r.MinBits {
					n++
				}
			}
			return n
		}
		must(t, AddRule(r))
		must(t, AddRule(r))
		if count() != 1 {
			t.Errorf("%+v: %d rules", r, count())
		}
		must(t, DeleteRule(r))
		must(t, DeleteRule(r))
		if count() != 0 {
			t.Errorf("%+v: %d rules left", r, count())
		}
	}
}
