package host

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// ourRules are the priorities of the rules for each family.
func ourRules(t *testing.T) (v4, v6 []int) {
	t.Helper()
	for family, list := range map[int]*[]int{netlink.FAMILY_V4: &v4, netlink.FAMILY_V6: &v6} {
		rules, err := netlink.RuleList(family)
		must(t, err)
		for _, r := range rules {
			if r.Priority >= peersPriority && r.Priority <= restPriority {
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
		{[]string{"10.0.0.0/24", "10.0.1.7/24"}, []string{"10.0.0.0/24", "10.0.1.0/24"}, []int{5188}, nil},
		{[]string{"10.0.0.0/24", "10.0.1.0/24"}, []string{"10.0.0.0/24", "10.0.1.0/24"}, []int{5188}, nil},
		{[]string{"10.0.1.0/24", "fd09::/64"}, []string{"10.0.1.0/24", "fd09::/64"}, []int{5188}, []int{5188}},
		{[]string{"0.0.0.0/0", "fd09::/64"}, []string{"0.0.0.0/0", "fd09::/64"}, []int{5188, 5189, 5190}, []int{5188}},
		{[]string{"::/0"}, []string{"::/0"}, nil, []int{5188, 5189, 5190}},
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
	wantRules(t, []int{5188}, nil)
}

// TestRouteTaken: a route that leads to another interface of the table stays there, until that is gone.
func TestRouteTaken(t *testing.T) {
	inNewNamespace(t)
	link := &netlink.Tuntap{LinkAttrs: netlink.NewLinkAttrs(), Mode: netlink.TUNTAP_MODE_TUN}
	link.Name = "host1"
	must(t, netlink.LinkAdd(link))
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
	if n := set(); n != 5 {
		t.Errorf("%d changes, want an address, two routes and two rules", n)
	}
	for what, harm := range map[string]func() error{
		"a route":    func() error { return DeleteRoute(r.route(netip.MustParsePrefix("10.0.0.0/24"))) },
		"a rule":     func() error { return DeleteRule(Rule{Priority: peersPriority, Table: DefaultTable}) },
		"an address": func() error { return DeleteAddress("host0", netip.MustParsePrefix("100.64.0.1/32")) },
	} {
		must(t, harm())
		if n := set(); n == 0 { // with the last address, the system deletes the routes
			t.Errorf("%s was deleted: %d changes", what, n)
		}
		wantRules(t, []int{5188, 5189, 5190}, nil)
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
	link := &netlink.Tuntap{LinkAttrs: netlink.NewLinkAttrs(), Mode: netlink.TUNTAP_MODE_TUN}
	link.Name = "host1"
	must(t, netlink.LinkAdd(link))
	newCable(t, "192.168.7.2/24")
	a, b := newRouting(t, "host0"), newRouting(t, "host1")
	must(t, a.Set(prefixes("10.0.0.0/24", "0.0.0.0/0")))
	must(t, b.Set(prefixes("10.0.1.0/24")))
	wantRules(t, []int{5188, 5189, 5190}, nil)
	must(t, a.Close())
	wantRules(t, []int{5188}, nil)
	host1, err := netlink.LinkByName("host1")
	must(t, err)
	must(t, netlink.LinkDel(host1)) // as when its program is killed
	wantRules(t, []int{5188}, nil)
	newRouting(t, "host0")
	wantRules(t, nil, nil)
	must(t, b.Close())
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

// TestStrictReversePath: with a default route in the tunnel and rp_filter=1, answers to marked packets still arrive.
func TestStrictReversePath(t *testing.T) {
	lab.Need(t)
	client, err := lab.NewNamespace("client")
	must(t, err)
	defer client.Close()
	server, err := lab.NewNamespace("server")
	must(t, err)
	defer server.Close()
	must(t, lab.Connect(lab.Cable{}, lab.Plug{Namespace: client, Device: "eth0", Addrs: prefixes("192.168.7.2/24")},
		lab.Plug{Namespace: server, Device: "eth0", Addrs: prefixes("192.168.7.1/24")}))
	must(t, server.AddAddr("lo", netip.MustParsePrefix("203.0.113.1/32"))) // beyond the client's link
	must(t, client.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), "eth0", netip.MustParseAddr("192.168.7.1")))
	echo(t, server, "203.0.113.1:7")

	var r *Routing
	must(t, client.Run(func() error {
		device, err := openTUN("sluice0")
		if err != nil {
			return err
		}
		t.Cleanup(func() { device.Close() })
		r, err = NewRouting(RoutingConfig{Interface: "sluice0"})
		return errors.Join(err, SetUp("sluice0"), r.SetAddresses(prefixes("100.64.0.1/32")),
			os.WriteFile(settings+"ipv4/conf/all/rp_filter", []byte("1"), 0), r.Set(prefixes("0.0.0.0/0")))
	}))
	must(t, client.Run(func() error { return ask("203.0.113.1:7") }))

	must(t, client.Run(func() error {
		if value, err := readSetting("ipv4/conf/all/src_valid_mark"); err != nil || value != "1" {
			t.Errorf("src_valid_mark is %q, %v", value, err)
		}
		if err := r.Close(); err != nil {
			return err
		}
		if value, err := readSetting("ipv4/conf/all/src_valid_mark"); err != nil || value != "0" {
			t.Errorf("src_valid_mark is %q after Close, %v", value, err)
		}
		return nil
	}))
	must(t, client.Run(func() error { wantRules(t, nil, nil); return ask("203.0.113.1:7") }))
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
	dialer := net.Dialer{Control: MarkControl(DefaultMark)}
	conn, err := dialer.DialContext(context.Background(), "udp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	for range 10 {
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
