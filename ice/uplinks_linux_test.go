package ice

import (
	"net/netip"
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
