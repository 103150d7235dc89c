package member

import (
	"net"
	"net/netip"
	"testing"
)

// A gateway that dials for its peers leads them to the networks that are approved, and never to itself, its link, or on its own networks to what
// are tunnel addresses: also where the default route is approved.
func TestDialOutAllows(t *testing.T) {
	prefixes := func(list ...string) (p []netip.Prefix) {
		for _, text := range list {
			p = append(p, netip.MustParsePrefix(text))
		}
		return p
	}
	var d dialOut
	if d.allows(netip.MustParseAddrPort("10.0.0.7:80")) {
		t.Error("something is reached before the portal was heard")
	}
	all := dialOutReach{prefixes("0.0.0.0/0", "::/0"), prefixes("100.64.0.0/11", "fd00:2021:1111::/107")}
	some := dialOutReach{prefixes("10.0.0.0/24", "fd09::/64"), all.overlay}
	for to, want := range map[string][2]bool{
		"10.0.0.7:80": {true, true}, "[fd09::7]:80": {true, true}, "[::ffff:10.0.0.7]:80": {true, true},
		"10.0.1.7:80": {true, false}, "[2001:db8::7]:80": {true, false},
		"100.64.0.1:80": {}, "[fd00:2021:1111::1]:80": {}, "[::ffff:100.64.0.1]:80": {},
		"127.0.0.1:80": {}, "127.9.9.9:80": {}, "[::1]:80": {}, "[::ffff:127.0.0.1]:80": {}, "0.0.0.0:80": {}, "[::]:80": {},
		"169.254.169.254:80": {}, "[fe80::1]:80": {}, "224.0.0.1:80": {}, "[ff02::1]:80": {}, "255.255.255.255:80": {},
	} {
		for i, r := range []dialOutReach{all, some} {
			d.set(r)
			if got := d.allows(netip.MustParseAddrPort(to)); got != want[i] {
				t.Errorf("%s of %v: reached %v, want %v", to, r.approved, got, want[i])
			}
		}
	}
}

// One peer that sends datagrams to everybody takes no place that another needs, and places are given back.
func TestDialOutShares(t *testing.T) {
	d := dialOut{flows: map[netip.Addr]int{}}
	d.set(dialOutReach{approved: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	greedy, modest, to := netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("100.64.0.3"), netip.MustParseAddrPort("10.0.0.7:53")
	var ends []func(net.Conn)
	for carry := d.udp(greedy, to); carry != nil && len(ends) < 2*mostFlows; carry = d.udp(greedy, to) {
		ends = append(ends, carry)
	}
	other := d.udp(modest, to)
	if other == nil {
		t.Fatalf("after %d flows of one peer there is none for another", len(ends))
	}
	for _, end := range append(ends, other) {
		end(nil)
	}
	if d.udp(greedy, to) == nil || d.all != 1 || len(d.flows) != 1 {
		t.Errorf("of flows that have ended %d are counted, %v", d.all-1, d.flows)
	}
}
