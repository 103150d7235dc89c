package acceptance

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// soon is how long a connection that nothing stands in the way of may take to be direct. A busy machine may find the relay first; then
// the direct path must be found when a relayed connection is tried again, which is every 2 minutes.
const soon = 2*time.Minute + 45*time.Second

// Machines with many bridges for containers, which are older than the uplink, connect directly.
func TestBridges(t *testing.T) {
	for name, bridges := range map[string]struct{ gateway, client int }{
		"9 on the client": {0, 9}, "30 on the client": {0, 30}, "9 on the gateway": {9, 0}, "30 on both": {30, 30},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVPN(t)
			g := v.add("gate", "gateway", v.siteBehind("gate-site", bridges.gateway))
			c := v.add("laptop", "client", v.siteBehind("client-site", bridges.client))
			c.awaitConnection(patience, "gate", "connected", isUp(""))
			tcp := openStream(t, c.site.Node, g.site.Node, g.overlay()) // an idle connection stays on the path that it has
			c.awaitConnection(soon, "gate", "direct", isUp("direct"))
			tcp.awaitProgress(patience, "direct")
		})
	}
}

// siteBehind is a site behind a NAT that lets only those answer that were sent to; its node has bridges that are older than the uplink.
func (v *vpn) siteBehind(name string, bridges int) *lab.Site {
	v.t.Helper()
	site := v.site(name, lab.Restricted)
	if bridges == 0 {
		return site
	}
	if err := site.Leave(); err != nil {
		v.t.Fatal(err)
	}
	if err := site.Node.AddBridges(bridges); err != nil {
		v.t.Fatal(err)
	}
	uplink, err := v.internet.AddUplink(site, name+"-uplink", lab.Restricted)
	if err != nil {
		v.t.Fatal(err)
	}
	if err := uplink.Join(); err != nil {
		v.t.Fatal(err)
	}
	return uplink
}

// A carrier gives its customers addresses of the range that tunnel addresses come from (RFC 6598). Such an address is offered, and
// checked, as any other: only what the portal has given out is not.
func TestCarrierNAT(t *testing.T) {
	for name, addr := range map[string]string{"in the range": "100.72.3.77", "beyond it": "100.100.3.77", "a peer's": "100.64.0.1", "our own": "100.64.0.4"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVPN(t)
			gs, cs := v.site("gate-site", lab.Restricted), v.site("client-site", lab.Restricted)
			next := netip.PrefixFrom(netip.MustParseAddr(addr), 24)
			router := netip.PrefixFrom(next.Masked().Addr().Next().Next().Next(), 24)
			if err := cs.Router.AddAddr("lan", router); err != nil {
				t.Fatal(err)
			}
			if err := cs.Node.Readdress(cs.Device, netip.PrefixFrom(cs.Addr, 24), next); err != nil {
				t.Fatal(err)
			}
			if err := cs.Node.AddRoute(netip.PrefixFrom(netip.IPv4Unspecified(), 0), cs.Device, router.Addr()); err != nil {
				t.Fatal(err)
			}
			g, c := v.add("gate", "gateway", gs), v.add("laptop", "client", cs)
			c.awaitConnection(patience, "gate", "connected", isUp(""))
			tcp := openStream(t, c.site.Node, g.site.Node, g.overlay()) // an idle connection stays on the path that it has
			c.awaitConnection(soon, "gate", "direct", isUp("direct"))
			tcp.awaitProgress(patience, "direct")
		})
	}
}
