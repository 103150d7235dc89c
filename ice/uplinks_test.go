package ice

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeRoutes is a machine: its addresses, the source of each destination ("" is the default), and where a source leads.
type fakeRoutes struct {
	own     []localAddress
	sources map[string]source
	links   map[netip.Addr]int // by the local address; 0: no way; missing: the system does not tell
	asked   int
}

func (f *fakeRoutes) source(to netip.Addr) (source, bool) {
	s, ok := f.sources[to.String()]
	if !ok {
		s, ok = f.sources[map[bool]string{true: "4", false: "6"}[to.Is4()]]
	}
	return s, ok
}

func (f *fakeRoutes) link(w way) (int, bool) {
	f.asked++
	index, ok := f.links[w.from]
	return index, ok
}

func (f *fakeRoutes) addresses() []localAddress { return slices.Clone(f.own) }
func (f *fakeRoutes) close()                    {}

func onLink(index int, name, addr string) localAddress {
	return localAddress{source: source{netip.MustParseAddr(addr), index}, name: name}
}

// docker is a host with bridges that are older than its uplink, which has the highest index.
func docker(bridges int) *fakeRoutes {
	f := &fakeRoutes{sources: map[string]source{}, links: map[netip.Addr]int{}}
	for i := range bridges {
		for _, addr := range []string{fmt.Sprintf("172.%d.0.1", 17+i), fmt.Sprintf("fd17:%d::1", i)} {
			a := onLink(2+i, fmt.Sprintf("br%d", i), addr)
			a.bridge = true
			f.own, f.links[a.addr] = append(f.own, a), 99
		}
	}
	for _, addr := range []string{"192.168.1.2", "2001:db8:1::2"} {
		a := onLink(99, "eth0", addr)
		f.own, f.links[a.addr] = append(f.own, a), 99
		f.sources[map[bool]string{true: "4", false: "6"}[a.addr.Is4()]] = a.source
	}
	return f
}

func (f *fakeRoutes) uplinks(skip func(string) bool) *Uplinks {
	return &Uplinks{skip: skip, table: f, leads: map[way]bool{}}
}

// TestUplinksFirst: the addresses from which the world is reached come first, in both families, whatever came before them.
func TestUplinksFirst(t *testing.T) {
	for _, bridges := range []int{0, 1, 5, 9, 30} {
		got := docker(bridges).uplinks(nil).Addresses(nil)
		if len(got) < 2 || got[0] != netip.MustParseAddr("192.168.1.2") || got[1] != netip.MustParseAddr("2001:db8:1::2") {
			t.Errorf("%d bridges: offered %v", bridges, got)
		}
	}
}

func TestRank(t *testing.T) {
	tunnel := onLink(7, "tun0", "10.8.0.2")
	tunnel.pointToPoint = true
	bridge := onLink(3, "br0", "172.17.0.1")
	bridge.bridge = true
	eth0, eth1 := onLink(5, "eth0", "192.0.2.2"), onLink(4, "eth1", "198.51.100.2")
	stable, temporary, third := onLink(5, "eth0", "2001:db8::2"), onLink(5, "eth0", "2001:db8::3"), onLink(5, "eth0", "2001:db8::4")
	all := []localAddress{bridge, tunnel, eth1, eth0, stable, temporary, third}
	for name, c := range map[string]struct {
		sources []source
		want    string
	}{
		"no route":                {nil, "198.51.100.2 192.0.2.2 2001:db8::2 2001:db8::3 172.17.0.1"},
		"one uplink":              {[]source{eth0.source}, "192.0.2.2 198.51.100.2 2001:db8::2 2001:db8::3 172.17.0.1"},
		"the temporary one":       {[]source{eth0.source, temporary.source}, "192.0.2.2 2001:db8::3 2001:db8::2 198.51.100.2 172.17.0.1"},
		"two uplinks":             {[]source{eth1.source, eth0.source}, "198.51.100.2 192.0.2.2 2001:db8::2 2001:db8::3 172.17.0.1"},
		"a tunnel is the uplink":  {[]source{tunnel.source}, "10.8.0.2 198.51.100.2 192.0.2.2 2001:db8::2 2001:db8::3 172.17.0.1"},
		"a bridge is the uplink":  {[]source{bridge.source}, "172.17.0.1 198.51.100.2 192.0.2.2 2001:db8::2 2001:db8::3"},
		"the source of elsewhere": {[]source{{netip.MustParseAddr("203.0.113.1"), 5}}, "192.0.2.2 198.51.100.2 2001:db8::2 2001:db8::3 172.17.0.1"},
	} {
		var got []string
		for _, a := range rank(slices.Clone(all), c.sources) {
			got = append(got, a.String())
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: got %s, want %s", name, s, c.want)
		}
	}
}

// TestUplinksSkip: neither the tunnel's own interface nor an address of the link is offered, or a change of the network.
func TestUplinksSkip(t *testing.T) {
	f := docker(1)
	f.own = append(f.own, onLink(50, "sluice0", "100.64.0.1"), onLink(99, "eth0", "fe80::1"))
	u := f.uplinks(func(name string) bool { return name == "sluice0" })
	for _, list := range [][]netip.Addr{u.Addresses(nil), u.All()} {
		if len(list) != 4 || slices.Contains(list, netip.MustParseAddr("fe80::1")) || slices.Contains(list, netip.MustParseAddr("100.64.0.1")) {
			t.Errorf("got %v", list)
		}
	}
}

// TestLeads: nothing leaves from an address through an interface that does not have it.
func TestLeads(t *testing.T) {
	f := docker(1)
	u := f.uplinks(nil)
	to := netip.MustParseAddr("203.0.113.1")
	bridge, eth := netip.MustParseAddr("172.17.0.1"), netip.MustParseAddr("192.168.1.2")
	if u.Leads(bridge, to) || !u.Leads(eth, to) {
		t.Errorf("through the uplink: from the bridge %v, from its own address %v", u.Leads(bridge, to), u.Leads(eth, to))
	}
	asked := f.asked
	if u.Leads(bridge, to); f.asked != asked {
		t.Error("the system was asked again at once")
	}
	f.links[bridge] = 2 // it has become the way
	u.until = time.Now().Add(-waysLife)
	if !u.Leads(bridge, to) {
		t.Error("an old answer counts")
	}
	routed := onLink(60, "dummy0", "198.51.100.9") // routers lead to it, and the route says that it is the source
	f.own, f.links[routed.addr] = append(f.own, routed), 99
	u.until = time.Time{}
	if u.Leads(routed.addr, to) {
		t.Error("dummy0 leads where eth0 is the source")
	}
	f.sources["203.0.113.1"] = source{routed.addr, 99}
	u.until = time.Time{}
	if !u.Leads(routed.addr, to) {
		t.Error("the source of the route does not lead")
	}
	f.links[eth] = 0
	u.until = time.Time{}
	if u.Leads(eth, to) {
		t.Error("there is no way, and it leads")
	}
	if unknown := netip.MustParseAddr("192.0.2.99"); !u.Leads(unknown, to) {
		t.Error("what the system does not tell is refused")
	}
}
