package main

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestRoutingLoop: where the route to the endpoint leads into the tunnel, ten pings make no more than kernel WireGuard's test
// allows (70,000 bytes), and no more than twice as many packets, also where the outer datagrams are fragments on their way into
// the TUN, and where a NAT is in between. When the route is right again the tunnel works.
func TestRoutingLoop(t *testing.T) {
	t.Parallel()
	need(t, "wg", "ping", "nft")
	for _, family := range []int{0, 1} {
		for _, c := range []struct {
			name, queues string
			size         int
			nat, fresh   bool
		}{
			{"small", "1", 56, false, false}, {"fragments", "1", 1390, false, false}, {"fragments, 2 queues", "2", 1390, false, false},
			{"behind a NAT", "1", 56, true, false}, {"without a session", "1", 56, false, true},
		} {
			t.Run(fmt.Sprintf("IPv%d, %s", 4+2*family, c.name), func(t *testing.T) {
				t.Parallel()
				path := program(t, "SLUICE_QUEUES="+c.queues)
				ends := tunnel(t, [2]string{path, path}, family)
				loopOnce(t, ends, family, c.size, c.nat, c.fresh)
			})
		}
	}
}

func loopOnce(t *testing.T, ends [2]*end, family, size int, nat, fresh bool) {
	a, b := ends[0], ends[1]
	endpoint := netip.AddrPortFrom(b.outer[family], b.port).String()
	peer := b.private.Public().Encode()
	if !fresh {
		ping(t, a.ns, 1, b.inner[0])
	}
	if nat {
		mustWith(t, a.ns, "table inet n { chain p { type nat hook postrouting priority 100; oif "+a.name+" masquerade random; }; }", "nft", "-f", "-")
	}
	must(t, a.ns, "wg", "set", a.name, "peer", peer, "endpoint", endpoint, "allowed-ips", "0.0.0.0/0,::/0")
	link := func() *netlink.LinkAttrs {
		l, err := a.ns.Netlink().LinkByName(a.name)
		if err != nil {
			t.Fatal(err)
		}
		return l.Attrs()
	}
	before := link()
	host := netip.PrefixFrom(b.outer[family], b.outer[family].BitLen())
	detour := &netlink.Route{LinkIndex: before.Index, Dst: &net.IPNet{IP: host.Addr().AsSlice(), Mask: net.CIDRMask(host.Bits(), host.Bits())}}
	if err := a.ns.Netlink().RouteAdd(detour); err != nil {
		t.Fatal(err)
	}
	// No ping is answered: it takes a second, in which a storm would be 200,000 packets and more.
	if out, err := try(a.ns, nil, "", "ping", "-n", "-q", "-i", "0.01", "-c", "10", "-W", "1", "-s", strconv.Itoa(size), b.inner[0].String()); err == nil {
		t.Errorf("a ping was answered, so there is no loop: %s", out)
	}
	after := link()
	bytes, packets := after.Statistics.TxBytes-before.Statistics.TxBytes, after.Statistics.TxPackets-before.Statistics.TxPackets
	pieces := uint64(1)
	if size > 1300 {
		pieces = 2
	}
	if most := 10*(1+pieces) + 10; bytes >= 70000 || packets > most {
		t.Errorf("ten pings made %d packets, %d bytes in the TUN, want at most %d and less than 70000", packets, bytes, most)
	}
	if err := a.ns.Netlink().RouteDel(detour); err != nil {
		t.Fatal(err)
	}
	ping(t, a.ns, 1, b.inner[0])
}
