package member

import (
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
