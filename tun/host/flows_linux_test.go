package host

import (
	"net/netip"
	"testing"
)

// TestAdmits: which connections may go on after the table was away.
func TestAdmits(t *testing.T) {
	forward := Forward{
		Interface: "host0", Routes: prefixes("10.9.0.0/24", "0.0.0.0/0", "fd09::/64"), Reach: prefixes("10.2.0.0/24", "::/0"),
		Overlay: prefixes("100.64.0.0/11", "fd00:2021:1111::/107"), Addresses: prefixes("100.64.0.1/32", "fd00:2021:1111::1/128"),
	}
	own := map[netip.Addr]bool{}
	for _, a := range []string{"100.64.0.1", "fd00:2021:1111::1", "10.9.0.1", "fd70::1"} {
		own[netip.MustParseAddr(a)] = true
	}
	for _, c := range []struct {
		what, source, target string
		masqueraded          bool
		change               func(*Forwarding)
		want                 bool
	}{
		{"masqueraded", "100.64.0.2", "10.9.0.2", true, nil, true},
		{"not masqueraded", "100.64.0.2", "10.9.0.2", false, nil, false},
		{"masquerade is off", "100.64.0.2", "10.9.0.2", false, func(fw *Forwarding) { fw.forward.NoMasquerade = true }, true},
		{"to another client", "100.64.0.2", "100.64.0.3", true, nil, false},
		{"to another gateway's network", "100.64.0.2", "10.2.0.9", true, nil, false},
		{"from another gateway's network", "10.2.0.9", "10.9.0.2", true, nil, true},
		{"not offered", "fd00:2021:1111::2", "fd08::2", true, nil, false},
		{"to the tunnel address", "100.64.0.2", "100.64.0.1", false, nil, true},
		{"to an offered address", "100.64.0.2", "10.9.0.1", false, nil, true},
		{"to another address of the machine", "fd00:2021:1111::2", "fd70::1", false, nil, false},
		{"from the machine to a client", "100.64.0.1", "100.64.0.2", false, nil, true},
		{"from behind to a client", "10.9.0.2", "100.64.0.2", false, nil, false},
		{"from behind to another gateway's network", "10.9.0.2", "10.2.0.9", false, nil, true},
		{"strangers to the machine", "198.51.100.7", "10.9.0.1", false, nil, true},
		{"strangers", "198.51.100.7", "10.9.0.2", false, nil, false},
		{"strangers of a family that was forwarded before", "2001:db8::7", "fd09::2", false, nil, true},
		{"of another gateway of ours", "100.96.0.2", "10.9.0.2", true, func(fw *Forwarding) { fw.around.tunnels = []string{"host1"} }, true},
		{"between ports of a bridge, for all we know", "198.51.100.7", "10.9.0.2", false, func(fw *Forwarding) { fw.around.bridges = []string{"br0"} }, true},
	} {
		fw := newForwarding(forward)
		fw.around.strangers4 = true
		if c.change != nil {
			c.change(fw)
		}
		f := flowFilter{Forwarding: fw, own: own}
		if got := f.admits(netip.MustParseAddr(c.source), netip.MustParseAddr(c.target), c.masqueraded); got != c.want {
			t.Errorf("%s: %s to %s is admitted: %v, want %v", c.what, c.source, c.target, got, c.want)
		}
	}
}
