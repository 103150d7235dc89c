package host

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// ourRules are the priorities of the rules for each family.
func ourRules(t *testing.T) (v4, v6 []int) {
	t.Helper()
	for family, list := range map[int]*[]int{netlink.FAMILY_V4: &v4, netlink.FAMILY_V6: &v6} {
		rules, err := netlink.RuleList(family)
		must(t, err)
		for _, r := range rules {
			if r.Priority >= singlePriority && r.Priority <= failPriority {
				*list = append(*list, r.Priority)
			}
		}
		slices.Sort(*list)
		*list = slices.Compact(*list) // there is a rule for each network
	}
	return v4, v6
}

func wantRules(t *testing.T, v4, v6 []int) {
	t.Helper()
	if got4, got6 := ourRules(t); !slices.Equal(got4, v4) || !slices.Equal(got6, v6) {
		t.Errorf("rules %v and %v, want %v and %v", got4, got6, v4, v6)
	}
}

func newRouting(t *testing.T, name string) *Routing {
	t.Helper()
	r, err := NewRouting(RoutingConfig{Interface: name})
	must(t, err)
	must(t, SetUp(name))
	return r
}

// newCable makes eth0 with addresses, up, and its other end.
func newCable(t *testing.T, addresses ...string) {
	t.Helper()
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth1"}))
	for _, a := range addresses {
		must(t, AddAddress("eth0", netip.MustParsePrefix(a)))
	}
	must(t, SetUp("eth0"))
	must(t, SetUp("eth1"))
}

func TestRoutingSet(t *testing.T) {
	inNewNamespace(t)
	newCable(t, "192.168.7.2/24", "fd07::2/64", "192.168.9.1/32")
	r := newRouting(t, "host0")
	for _, step := range []struct {
		routes, want []string
		v4, v6       []int
	}{
		{[]string{"10.0.0.0/24", "10.0.1.7/24"}, []string{"10.0.0.0/24", "10.0.1.0/24"}, []int{5190}, nil},
		{[]string{"10.0.0.0/24", "10.0.1.0/24"}, []string{"10.0.0.0/24", "10.0.1.0/24"}, []int{5190}, nil},
		{[]string{"10.0.1.0/24", "fd09::/64"}, []string{"10.0.1.0/24", "fd09::/64"}, []int{5190}, []int{5190}},
		{[]string{"0.0.0.0/0", "fd09::/64"}, []string{"0.0.0.0/0", "fd09::/64"}, []int{5189, 5190}, []int{5190}},
		{[]string{"192.168.0.0/16", "fd07::/68"}, []string{"192.168.0.0/16", "fd07::/68"}, []int{5189, 5190}, []int{5190}},
		{[]string{"100.64.0.2/32", "fd09::2/128"}, []string{"100.64.0.2/32", "fd09::2/128"}, []int{5188}, []int{5188}},
		{[]string{"::/0"}, []string{"::/0"}, nil, []int{5189, 5190}},
		{nil, nil, nil, nil},
	} {
		must(t, r.Set(prefixes(step.routes...)))
		have, err := r.routes()
		must(t, err)
		slices.SortFunc(have, netip.Prefix.Compare)
		if !slices.Equal(have, prefixes(step.want...)) {
			t.Errorf("%q: %v", step.routes, have)
		}
		wantRules(t, step.v4, step.v6)
	}
}

func TestRoutingAddresses(t *testing.T) {
	inNewNamespace(t)
	r := newRouting(t, "host0")
	for _, want := range [][]netip.Prefix{
		prefixes("100.64.0.1/32", "fd00:2021:1111::1/128"), prefixes("100.64.0.1/32", "fd00:2021:1111::1/128"),
		prefixes("100.64.0.2/32"), nil,
	} {
		must(t, r.SetAddresses(want))
		link, err := netlink.LinkByName("host0")
		must(t, err)
		have, err := addresses(link)
		must(t, err)
		have = slices.DeleteFunc(have, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() })
		if !slices.Equal(have, want) {
			t.Errorf("%v, want %v", have, want)
		}
	}
	must(t, os.WriteFile(settings+"ipv6/conf/host0/disable_ipv6", []byte("1"), 0))
	must(t, r.SetAddresses(prefixes("100.64.0.1/32", "fd00:2021:1111::1/128")))
	must(t, r.Set(prefixes("fd09::/64", "10.0.0.0/8")))
	wantRules(t, []int{5190}, nil)
}

// TestRouteTaken: a route that leads to another interface of the table stays there, until that is gone.
func TestRouteTaken(t *testing.T) {
	inNewNamespace(t)
	addTUN(t, "host1")
	a, b := newRouting(t, "host0"), newRouting(t, "host1")
	routes := prefixes("10.0.0.0/24", "fd09::/64")
	must(t, a.Set(routes))
	err := b.Set(append(routes, prefixes("10.0.1.0/24")...))
	if err == nil || !strings.Contains(err.Error(), "another interface has routes to [10.0.0.0/24 fd09::/64]") {
		t.Errorf("error %v", err)
	}
	wantRoutes := func(r *Routing, want []netip.Prefix) {
		t.Helper()
		have, err := r.routes()
		must(t, err)
		if slices.SortFunc(have, netip.Prefix.Compare); !slices.Equal(have, want) {
			t.Errorf("%s has %v, want %v", r.cfg.Interface, have, want)
		}
	}
	wantRoutes(a, routes)
	wantRoutes(b, prefixes("10.0.1.0/24"))
	must(t, a.Close())
	must(t, b.Set(routes))
	wantRoutes(b, routes)
	must(t, b.Close())
}

// TestRoutingMended: what others took away is there again, and counted.
func TestRoutingMended(t *testing.T) {
	inNewNamespace(t)
	newCable(t, "192.168.7.2/24")
	r := newRouting(t, "host0")
	set := func() uint64 {
		t.Helper()
		before := r.Changes()
		must(t, r.SetAddresses(prefixes("100.64.0.1/32")))
		must(t, r.Set(prefixes("10.0.0.0/24", "0.0.0.0/0")))
		return r.Changes() - before
	}
	if n := set(); n != 4 {
		t.Errorf("%d changes, want an address, two routes and a rule", n)
	}
	for what, harm := range map[string]func() error{
		"a route":    func() error { return DeleteRoute(r.route(netip.MustParsePrefix("10.0.0.0/24"))) },
		"a rule":     func() error { return DeleteRule(Rule{Priority: restPriority, Table: DefaultTable}) },
		"an address": func() error { return DeleteAddress("host0", netip.MustParsePrefix("100.64.0.1/32")) },
	} {
		must(t, harm())
		if n := set(); n == 0 { // with the last address, the system deletes the routes
			t.Errorf("%s was deleted: %d changes", what, n)
		}
		wantRules(t, []int{5189, 5190}, nil)
	}
	must(t, AddAddress("eth0", netip.MustParsePrefix("192.168.8.2/24"))) // nobody's interference
	if n := set(); n != 0 {
		t.Errorf("%d changes without a reason", n)
	}
	rules, err := policyRules(netlink.FAMILY_V4)
	must(t, err)
	for _, network := range prefixes("192.168.7.0/24", "192.168.8.0/24") {
		if !slices.ContainsFunc(rules, func(r Rule) bool { return r.Priority == networksPriority && r.To == network }) {
			t.Errorf("no rule for %v in %+v", network, rules)
		}
	}
	must(t, r.Close())
	wantRules(t, nil, nil)
}

// TestRoutingShared: the rules stay while another interface has routes in the table, and what a killed program leaves, rules
// without routes, goes when the next one starts.
func TestRoutingShared(t *testing.T) {
	inNewNamespace(t)
	addTUN(t, "host1")
	newCable(t, "192.168.7.2/24")
	a, b := newRouting(t, "host0"), newRouting(t, "host1")
	must(t, a.Set(prefixes("10.0.0.0/24", "0.0.0.0/0")))
	must(t, b.Set(prefixes("10.0.1.0/24")))
	wantRules(t, []int{5189, 5190}, nil)
	must(t, a.Close())
	wantRules(t, []int{5190}, nil)
	host1, err := netlink.LinkByName("host1")
	must(t, err)
	must(t, netlink.LinkDel(host1)) // as when its program is killed
	wantRules(t, []int{5190}, nil)
	newRouting(t, "host0")
	wantRules(t, nil, nil)
	must(t, b.Close())
}

// TestRoutingKilled: rules that a killed program has left for a table of its own go as well, those of living programs stay.
func TestRoutingKilled(t *testing.T) {
	inNewNamespace(t)
	newCable(t, "192.168.7.2/24", "fd07::2/64")
	for table, name := range map[int]string{777: "host1", 778: "host2"} {
		addTUN(t, name)
		must(t, SetUp(name))
		r, err := NewRouting(RoutingConfig{Interface: name, Table: table, Mark: 777})
		must(t, err)
		must(t, r.Set(prefixes("0.0.0.0/0", "::/0", "100.64.0.9/32")))
	}
	host1, err := netlink.LinkByName("host1")
	must(t, err)
	must(t, netlink.LinkDel(host1))
	r := newRouting(t, "host0")
	tables := map[int]bool{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := policyRules(family)
		must(t, err)
		for _, rule := range rules {
			tables[rule.Table] = true
		}
	}
	if want := map[int]bool{unix.RT_TABLE_MAIN: true, 778: true}; !maps.Equal(tables, want) {
		t.Errorf("rules lead to the tables %v, want %v", tables, want)
	}
	host2, err := netlink.LinkByName("host2")
	must(t, err)
	must(t, netlink.LinkDel(host2))
	must(t, r.Close())
	wantRules(t, nil, nil)
}

// TestMarkBypasses: what the tunnel routes, and what it does not, for marked and unmarked packets. With a default route, what
// is on the machine's own links and what it is told to keep stays there, and nothing else, whatever routes the network pushes.
func TestMarkBypasses(t *testing.T) {
	inNewNamespace(t)
	newCable(t, "192.168.7.2/24")
	must(t, AddRoute(Route{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("192.168.7.1")}))
	must(t, AddRoute(Route{Prefix: netip.MustParsePrefix("128.0.0.0/1"), Gateway: netip.MustParseAddr("192.168.7.66")}))
	must(t, AddRoute(Route{Prefix: netip.MustParsePrefix("203.0.113.7/32"), Interface: "eth0"})) // a router of 0.0.0.0, RFC 3442
	must(t, AddRoute(Route{Prefix: netip.MustParsePrefix("10.1.2.3/32"), Gateway: netip.MustParseAddr("192.168.7.66")}))
	must(t, AddRoute(Route{Prefix: netip.MustParsePrefix("172.16.0.0/16"), Gateway: netip.MustParseAddr("192.168.7.9")}))
	r, err := NewRouting(RoutingConfig{Interface: "host0", Keep: prefixes("172.16.0.0/12", "0.0.0.0/0")})
	must(t, err)
	must(t, SetUp("host0"))
	must(t, r.SetAddresses(prefixes("100.64.0.1/32")))
	by := func(dst string, mark uint32) string {
		t.Helper()
		routes, err := netlink.RouteGetWithOptions(net.ParseIP(dst), &netlink.RouteGetOptions{Mark: mark})
		must(t, err)
		link, err := netlink.LinkByIndex(routes[0].LinkIndex)
		must(t, err)
		return link.Attrs().Name
	}
	for _, step := range []struct {
		routes []netip.Prefix
		want   map[string]string
	}{
		{prefixes("10.0.0.0/8"), map[string]string{"10.1.2.3": "host0", "192.168.7.9": "eth0", "203.0.113.1": "eth0"}},
		{prefixes("10.0.0.0/8", "0.0.0.0/0"), map[string]string{
			"10.1.2.3": "host0", "192.168.7.9": "eth0", "203.0.113.1": "host0", "203.0.113.7": "host0", "8.8.8.8": "host0",
			"172.16.0.1": "eth0",
		}},
		{nil, map[string]string{"10.1.2.3": "eth0", "203.0.113.1": "eth0"}},
	} {
		must(t, r.Set(step.routes))
		for dst, want := range step.want {
			if got := by(dst, 0); got != want {
				t.Errorf("%v: %s goes by %s, want %s", step.routes, dst, got, want)
			}
			if got := by(dst, DefaultMark); got != "eth0" {
				t.Errorf("%v: marked, %s goes by %s", step.routes, dst, got)
			}
		}
	}
}

// answersLab is a client with a tunnel, a host behind it, and a server beyond the client's link, which knows a way to the host.
type answersLab struct{ client, behind, server *lab.Namespace }

func newAnswersLab(t *testing.T) *answersLab {
	t.Helper()
	lab.NeedTUN(t)
	l := &answersLab{}
	for name, ns := range map[string]**lab.Namespace{"client": &l.client, "behind": &l.behind, "server": &l.server} {
		made, err := lab.NewNamespace(name)
		must(t, err)
		t.Cleanup(func() { made.Close() })
		*ns = made
	}
	plug := func(ns *lab.Namespace, device string, addresses ...string) lab.Plug {
		return lab.Plug{Namespace: ns, Device: device, Addrs: prefixes(addresses...)}
	}
	must(t, lab.Connect(lab.Cable{}, plug(l.client, "eth0", "192.168.7.2/24", "fd07::2/64"), plug(l.server, "eth0", "192.168.7.1/24", "fd07::1/64")))
	must(t, lab.Connect(lab.Cable{}, plug(l.client, "eth1", "192.168.9.1/24", "fd09::1/64"), plug(l.behind, "eth0", "192.168.9.2/24", "fd09::2/64")))
	// A router asks for the client's link address in its own name, and so must a server that stands for what is beyond it.
	must(t, l.server.Run(func() error { return os.WriteFile(settings+"ipv4/conf/all/arp_announce", []byte("2"), 0) }))
	for _, a := range prefixes("203.0.113.1/32", "2001:db8::1/128") { // beyond the client's link
		must(t, l.server.AddAddr("lo", a))
	}
	for _, f := range []struct{ all, server, behind, client, network string }{
		{"0.0.0.0/0", "192.168.7.1", "192.168.9.1", "192.168.7.2", "192.168.9.0/24"}, {"::/0", "fd07::1", "fd09::1", "fd07::2", "fd09::/64"},
	} {
		must(t, l.client.AddRoute(netip.MustParsePrefix(f.all), "eth0", netip.MustParseAddr(f.server)))
		must(t, l.behind.AddRoute(netip.MustParsePrefix(f.all), "eth0", netip.MustParseAddr(f.behind)))
		must(t, l.server.AddRoute(netip.MustParsePrefix(f.network), "eth0", netip.MustParseAddr(f.client)))
	}
	must(t, l.client.Run(func() error {
		device, err := openTUN("sluice0")
		t.Cleanup(func() { device.Close() })
		return errors.Join(err, os.WriteFile(settings+"ipv4/ip_forward", []byte("1"), 0),
			os.WriteFile(settings+"ipv6/conf/all/forwarding", []byte("1"), 0))
	}))
	return l
}

// routing gives the client a tunnel with routes.
func (l *answersLab) routing(t *testing.T, routes ...string) (r *Routing) {
	t.Helper()
	must(t, l.client.Run(func() (err error) {
		if r, err = NewRouting(RoutingConfig{Interface: "sluice0"}); err != nil {
			return err
		}
		return errors.Join(SetUp("sluice0"), r.SetAddresses(prefixes("100.64.0.1/32", "fd00:2021:1111::1/128")), r.Set(prefixes(routes...)))
	}))
	return r
}

// TestStrictReversePath: with rp_filter=1 answers to marked packets arrive, whatever route leads their sender into the tunnel.
func TestStrictReversePath(t *testing.T) {
	for _, route := range []string{"0.0.0.0/0", "203.0.113.0/24", "203.0.113.1/32"} {
		for _, where := range []string{"all", "eth0"} {
			t.Run(route+" "+where, func(t *testing.T) {
				l := newAnswersLab(t)
				echo(t, l.server, "203.0.113.1:7")
				must(t, l.client.Run(func() error {
					return errors.Join(os.WriteFile(settings+"ipv4/conf/all/rp_filter", []byte("0"), 0),
						os.WriteFile(settings+"ipv4/conf/"+where+"/rp_filter", []byte("1"), 0))
				}))
				r := l.routing(t, route)
				must(t, l.client.Run(func() error { return ask("203.0.113.1:7") }))
				must(t, l.client.Run(func() error {
					if value, err := readSetting(validMark); err != nil || value != "1" || r.Unmarked() != nil {
						t.Errorf("src_valid_mark is %q, %v, %v", value, err, r.Unmarked())
					}
					err := r.Close()
					if value, err := readSetting(validMark); err != nil || value != "0" {
						t.Errorf("src_valid_mark is %q after Close, %v", value, err)
					}
					return err
				}))
				must(t, l.client.Run(func() error { wantRules(t, nil, nil); return ask("203.0.113.1:7") }))
			})
		}
	}
}

// TestValidMarkKilled: what a killed program has left goes with the next one, of another interface too, and not before the last.
func TestValidMarkKilled(t *testing.T) {
	inNewNamespace(t)
	wantMark := func(want string, tables ...string) {
		t.Helper()
		conn, err := nftables.New()
		must(t, err)
		list, err := conn.ListTables()
		must(t, err)
		var names []string
		for _, table := range list {
			names = append(names, table.Name)
		}
		slices.Sort(names)
		if got, err := readSetting(validMark); err != nil || got != want || !slices.Equal(names, tables) {
			t.Errorf("src_valid_mark %s (%v), tables %q; want %s, %q", got, err, names, want, tables)
		}
	}
	addTUN(t, "host1")
	addTUN(t, "host2")
	killed, other := newRouting(t, "host1"), newRouting(t, "host2")
	must(t, killed.Set(prefixes("10.0.0.0/24")))
	must(t, other.Set(prefixes("10.0.1.0/24")))
	wantMark("1", "sluice-host1-mark", "sluice-host2-mark")
	host1, err := netlink.LinkByName("host1")
	must(t, err)
	must(t, netlink.LinkDel(host1))
	r := newRouting(t, "host0")
	must(t, r.Set(prefixes("10.0.0.0/24")))
	wantMark("1", "sluice-host0-mark", "sluice-host2-mark")
	must(t, r.Close())
	wantMark("1", "sluice-host2-mark")
	must(t, other.Close())
	wantMark("0")
}

// TestTunnelAddressesNeedNoMarks: while nothing but peers' addresses leads into the tunnel, there is no table that each packet of the machine
// would have to pass, and it comes and goes with what else leads there.
func TestTunnelAddressesNeedNoMarks(t *testing.T) {
	inNewNamespace(t)
	r := newRouting(t, "host0")
	wantMarks := func(when string, want bool) {
		t.Helper()
		conn, err := nftables.New()
		must(t, err)
		list, err := conn.ListTables()
		must(t, err)
		value, err := readSetting(validMark)
		must(t, err)
		if got := len(list) > 0; got != want || value == "1" != want {
			t.Errorf("%s: table %v and src_valid_mark %s, want %v", when, got, value, want)
		}
	}
	r.SetOverlay(prefixes("100.64.0.0/11", "fd00:2021:1111::/107"))
	peers := prefixes("100.64.0.9/32", "fd00:2021:1111::9/128")
	for _, more := range prefixes("10.0.0.0/24", "8.8.8.8/32", "0.0.0.0/0", "fd09::/64", "2001:db8::1/128", "::/0") {
		must(t, r.Set(peers))
		wantMarks("peers", false)
		must(t, r.Set(append(slices.Clone(peers), more)))
		wantMarks("peers and "+more.String(), true)
	}
	must(t, r.Set(peers))
	wantMarks("peers again", false)
	must(t, r.Close())
	closed, err := NewRouting(RoutingConfig{Interface: "host0", FailClosed: true})
	must(t, err)
	closed.SetOverlay(prefixes("100.64.0.0/11"))
	must(t, closed.Set(peers[:1]))
	wantMarks("peers, failing closed", true)
	must(t, closed.Release())
	wantMarks("released", false)
	must(t, closed.Close())
}

// TestAnswersGoBack: who asks from beyond the client's link, past the tunnel, gets the answer that way, from the client and from a
// host behind it, also where reverse path filtering is strict. What they begin goes into the tunnel.
func TestAnswersGoBack(t *testing.T) {
	l := newAnswersLab(t)
	must(t, l.client.Run(func() error { return os.WriteFile(settings+"ipv4/conf/all/rp_filter", []byte("1"), 0) }))
	r := l.routing(t, "0.0.0.0/0", "::/0")
	for _, f := range []struct{ from, client, behind, tunnel string }{
		{"203.0.113.1", "192.168.7.2", "192.168.9.2", "100.64.0.1"}, {"2001:db8::1", "fd07::2", "fd09::2", "fd00:2021:1111::1"},
	} {
		echo(t, l.client, net.JoinHostPort(f.client, "7"))
		echo(t, l.client, net.JoinHostPort(f.tunnel, "7"))
		echo(t, l.behind, net.JoinHostPort(f.behind, "7"))
		echo(t, l.server, net.JoinHostPort(f.from, "7"))
		from := &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(f.from)}}
		for _, to := range []string{f.client, f.behind} {
			if err := l.server.Run(func() error { return askFrom(from, net.JoinHostPort(to, "7"), 10) }); err != nil {
				t.Errorf("%s asks %s: %v", f.from, to, err)
			}
		}
		if err := l.behind.Run(func() error { return askFrom(&net.Dialer{}, net.JoinHostPort(f.from, "7"), 1) }); err == nil {
			t.Errorf("what %s began went past the tunnel", f.behind)
		}
		must(t, l.server.AddRoute(netip.PrefixFrom(netip.MustParseAddr(f.tunnel), len(netip.MustParseAddr(f.tunnel).AsSlice())*8), "eth0",
			netip.MustParseAddr(f.client)))
		if err := l.server.Run(func() error { return askFrom(from, net.JoinHostPort(f.tunnel, "7"), 1) }); err == nil {
			t.Errorf("%s was reached past the tunnel", f.tunnel)
		}
	}
	must(t, l.client.Run(r.Close))
}

// by is the interface that packets to an address leave by, "" if they go nowhere.
func by(t *testing.T, dst string) string {
	t.Helper()
	routes, err := netlink.RouteGet(net.ParseIP(dst))
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
		return ""
	}
	must(t, err)
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	must(t, err)
	return link.Attrs().Name
}

func wantBy(t *testing.T, when string, want map[string]string) {
	t.Helper()
	for dst, name := range want {
		if got := by(t, dst); got != name {
			t.Errorf("%s: %s goes by %q, want %q", when, dst, got, name)
		}
	}
}

// TestOwnLinkFirst: a network on the machine's own link is reached there, whatever is around it in the tunnel; peers' addresses, and
// what is asked for inside the link's network, are in the tunnel.
func TestOwnLinkFirst(t *testing.T) {
	inNewNamespace(t)
	newCable(t, "192.168.7.2/24", "100.64.0.9/16", "fd07::2/64")
	r := newRouting(t, "host0")
	for _, tt := range []struct{ route, v4, v6 string }{
		{"192.168.0.0/16", "eth0", "eth0"}, {"fd00::/8", "eth0", "eth0"}, {"0.0.0.0/0", "eth0", "eth0"}, {"::/0", "eth0", "eth0"},
		{"192.168.7.0/24", "host0", "eth0"}, {"192.168.7.128/25", "host0", "eth0"}, {"192.168.7.200/31", "host0", "eth0"},
		{"fd07::/64", "eth0", "host0"}, {"fd07::/80", "eth0", "host0"}, {"192.168.7.0/25", "eth0", "eth0"},
	} {
		for _, around := range []string{"10.9.0.0/24", "192.0.0.0/3"} {
			must(t, r.SetAddresses(prefixes("100.64.0.1/32", "fd00:2021:1111::1/128")))
			must(t, r.Set(prefixes("100.64.0.2/32", "192.168.8.0/24", "fd08::/64", tt.route, around)))
			wantBy(t, tt.route+" beside "+around, map[string]string{
				"192.168.7.200": tt.v4, "fd07::99": tt.v6, "192.168.8.1": "host0", "fd08::1": "host0", "100.64.0.2": "host0", "100.64.0.3": "eth0",
			})
		}
	}
	must(t, DeleteAddress("eth0", netip.MustParsePrefix("192.168.7.2/24"))) // the machine leaves its network
	must(t, r.Set(prefixes("192.168.7.0/24")))
	wantBy(t, "in another network", map[string]string{"192.168.7.200": "host0"})
}

// TestLargeLink: a link whose network is none that a link has by itself leads nothing past a default route, but for our own packets and
// what is asked for.
func TestLargeLink(t *testing.T) {
	inNewNamespace(t)
	newCable(t, "8.8.0.7/5", "10.7.0.2/15", "172.16.7.2/16", "2001:db8:7::2/64", "fd07::2/40", "fd08:7::2/48")
	r := newRouting(t, "host0")
	must(t, r.SetAddresses(prefixes("100.64.0.1/32", "fd00:2021:1111::1/128")))
	must(t, r.Set(prefixes("0.0.0.0/0", "::/0")))
	public := []string{"8.8.8.8", "9.9.9.9", "10.7.0.9", "2001:db8:7::9", "fd07::9"}
	want := map[string]string{"172.16.0.9": "eth0", "fd08:7::9": "eth0"}
	for _, dst := range public {
		want[dst] = "host0"
	}
	wantBy(t, "with a default route", want)
	for _, dst := range public {
		routes, err := netlink.RouteGetWithOptions(net.ParseIP(dst), &netlink.RouteGetOptions{Mark: DefaultMark})
		must(t, err)
		if link, err := netlink.LinkByIndex(routes[0].LinkIndex); err != nil || link.Attrs().Name != "eth0" {
			t.Errorf("our own packets to %s go by %v, %v, want eth0", dst, link, err)
		}
		want[dst] = "eth0"
	}
	r, err := NewRouting(RoutingConfig{Interface: "host0", Keep: prefixes("8.0.0.0/5", "10.6.0.0/15", "2001:db8:7::/64", "fd07::/40")})
	must(t, err)
	must(t, r.Set(prefixes("0.0.0.0/0", "::/0")))
	wantBy(t, "kept", want)
	must(t, r.Close())
}

func TestLocalNetwork(t *testing.T) {
	for text, want := range map[string]bool{
		"10.0.0.0/16": true, "10.0.0.0/15": false, "172.31.0.0/16": true, "172.32.0.0/16": false, "192.168.0.0/16": true, "100.127.0.0/16": true,
		"100.64.0.0/10": false, "169.254.0.0/16": true, "8.0.0.0/5": false, "8.8.8.0/24": false, "0.0.0.0/0": false, "10.0.0.0/7": false,
		"fd07::/48": true, "fd07::/47": false, "fc00::/7": false, "fe80::/64": true, "fe80::/10": false, "2001:db8::/64": false, "::/0": false,
	} {
		if got := LocalNetwork(netip.MustParsePrefix(text)); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

// TestFailClosed: with FailClosed nothing leads out but what is kept and what is marked, from the start on, without routes, after Close and
// for a machine whose rules of the table are gone; another process that is not told so leaves it. Release ends it.
func TestFailClosed(t *testing.T) {
	inNewNamespace(t)
	newCable(t, "192.168.7.2/24", "fd07::2/64", "2001:db8:7::2/64")
	for prefix, router := range map[string]string{"0.0.0.0/0": "192.168.7.1", "::/0": "fd07::1"} {
		must(t, AddRoute(Route{Interface: "eth0", Prefix: netip.MustParsePrefix(prefix), Gateway: netip.MustParseAddr(router)}))
	}
	must(t, SetUp("host0"))
	closed := func(when string) {
		t.Helper()
		wantBy(t, when, map[string]string{"8.8.8.8": "", "2001:db8::8": "", "2001:db8:7::9": "", "192.168.7.9": "eth0", "fd07::9": "eth0"})
		for _, dst := range []string{"8.8.8.8", "2001:db8::8"} {
			if _, err := netlink.RouteGetWithOptions(net.ParseIP(dst), &netlink.RouteGetOptions{Mark: DefaultMark}); err != nil {
				t.Errorf("%s: our own packets to %s: %v", when, dst, err)
			}
		}
	}
	cfg := RoutingConfig{Interface: "host0", FailClosed: true}
	r, err := NewRouting(cfg)
	must(t, err)
	closed("before there are routes")
	must(t, r.Set(prefixes("0.0.0.0/0", "::/0")))
	inTunnel := map[string]string{"8.8.8.8": "host0", "2001:db8::8": "host0", "2001:db8:7::9": "host0", "192.168.7.9": "eth0", "fd07::9": "eth0"}
	wantBy(t, "with routes", inTunnel)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := policyRules(family)
		must(t, err)
		for _, rule := range list {
			if rule.Priority == restPriority {
				must(t, DeleteRule(rule))
			}
		}
	}
	closed("while the rule is gone")
	must(t, r.Set(prefixes("0.0.0.0/0", "::/0")))
	wantBy(t, "mended", inTunnel)
	must(t, SetDown("host0"))
	closed("while the interface is down")
	must(t, SetUp("host0"))
	must(t, r.Close())
	closed("closed")
	other, err := NewRouting(RoutingConfig{Interface: "host0"})
	must(t, err)
	if !other.FailsClosed() {
		t.Error("another process is not told that the machine fails closed")
	}
	must(t, other.Set(prefixes("10.0.0.0/24")))
	closed("for another process")
	must(t, other.Close())
	closed("after another process")
	if _, err := NewRouting(RoutingConfig{Interface: "host0", Mark: 7}); err == nil || !strings.Contains(err.Error(), "sluice client -release") {
		t.Errorf("with another mark, whose packets would not get out: %v", err)
	}
	must(t, Release(RoutingConfig{Interface: "host0"}))
	wantBy(t, "released", map[string]string{"8.8.8.8": "eth0", "2001:db8::8": "eth0", "2001:db8:7::9": "eth0", "192.168.7.9": "eth0"})
	wantRules(t, nil, nil)
	conn, err := nftables.New()
	must(t, err)
	if tables, err := conn.ListTables(); err != nil || len(tables) > 0 {
		t.Errorf("tables are left: %v, %v", tables, err)
	}
}

// echo answers each datagram until the test ends.
func echo(t *testing.T, ns *lab.Namespace, address string) {
	t.Helper()
	var conn net.PacketConn
	must(t, ns.Run(func() (err error) { conn, err = net.ListenPacket("udp", address); return err }))
	t.Cleanup(func() { conn.Close() })
	go func() {
		buffer := make([]byte, 100)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			conn.WriteTo(buffer[:n], from)
		}
	}()
}

// ask sends a marked datagram, and again for each second without an answer.
func ask(address string) error {
	return askFrom(&net.Dialer{Control: MarkControl(DefaultMark)}, address, 10)
}

func askFrom(dialer *net.Dialer, address string, tries int) error {
	conn, err := dialer.DialContext(context.Background(), "udp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	for range tries {
		if _, err = conn.Write([]byte("?")); err != nil {
			return err
		}
		conn.SetReadDeadline(time.Now().Add(time.Second))
		if _, err = conn.Read(make([]byte, 10)); err == nil {
			return nil
		}
	}
	return err
}
