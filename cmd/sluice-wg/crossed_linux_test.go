package main

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/crypto"
)

// TestCrossedRoutingLoops: two tunnels whose endpoints have routes into each other, of one interface or of two programs, wrap a
// packet a few times and end it. One tunnel in the other, which is no loop, works.
func TestCrossedRoutingLoops(t *testing.T) {
	t.Parallel()
	need(t, "wg", "ip", "ping")
	path := program(t)
	for _, programs := range []int{1, 2} {
		for _, size := range []string{"56", "1390"} {
			t.Run(fmt.Sprintf("%d programs, pings of %s bytes", programs, size), func(t *testing.T) {
				ends := newEnds(t, [2]string{path, path})
				a, b := ends[0], ends[1]
				second := &end{ns: b.ns, name: newName(), private: newKey(t), port: 3000}
				start(t, b.ns, nil, path, second.name)
				must(t, b.ns, "ip", "addr", "add", "192.0.2.3/24", "dev", "eth0")
				other := a // the interface of ours that leads to second
				if programs == 2 {
					other = &end{ns: a.ns, name: newName(), private: newKey(t), port: 3001}
					start(t, a.ns, nil, path, other.name)
				}
				configure := func(e *end, config string) {
					mustWith(t, e.ns, fmt.Sprintf("[Interface]\nPrivateKey = %s\nListenPort = %d\n", e.private.Encode(), e.port)+config, "wg", "setconf", e.name, "/dev/stdin")
				}
				peer := func(of *end, rest string) string {
					return "[Peer]\nPublicKey = " + of.private.Public().Encode() + "\n" + rest + "\n"
				}
				configure(b, peer(a, "AllowedIPs = 10.9.0.1/32, 192.0.2.1/32"))
				configure(second, peer(other, "AllowedIPs = 10.9.0.4/32, 192.0.2.1/32"))
				toB := peer(b, "Endpoint = 192.0.2.2:51821\nAllowedIPs = 10.9.0.2/32, 192.0.2.3/32")
				toSecond := peer(second, "Endpoint = 192.0.2.3:3000\nAllowedIPs = 10.9.0.3/32, 192.0.2.2/32")
				if programs == 1 {
					configure(a, toB+toSecond)
				} else {
					configure(a, toB)
					configure(other, toSecond)
				}
				for _, e := range []*end{a, b, second, other} {
					must(t, e.ns, "ip", "link", "set", e.name, "up")
					awaitPort(t, e.ns, e.port)
				}
				must(t, a.ns, "ip", "addr", "add", "10.9.0.1/32", "dev", a.name)
				must(t, a.ns, "ip", "addr", "add", "10.9.0.4/32", "dev", other.name)
				must(t, b.ns, "ip", "addr", "add", "10.9.0.2/32", "dev", b.name)
				must(t, b.ns, "ip", "addr", "add", "10.9.0.3/32", "dev", second.name)
				must(t, a.ns, "ip", "route", "add", "10.9.0.2", "dev", a.name)
				must(t, a.ns, "ip", "route", "add", "10.9.0.3", "dev", other.name, "src", "10.9.0.4")
				must(t, b.ns, "ip", "route", "add", "10.9.0.1", "dev", b.name)
				must(t, b.ns, "ip", "route", "add", "10.9.0.4", "dev", second.name)
				ping(t, a.ns, 1, netip.MustParseAddr("10.9.0.2"))
				ping(t, a.ns, 1, netip.MustParseAddr("10.9.0.3"))
				// One in the other: to second through b, whose host has both addresses.
				must(t, a.ns, "ip", "route", "add", "192.0.2.3", "dev", a.name)
				ping(t, a.ns, 1, netip.MustParseAddr("10.9.0.3"))
				must(t, a.ns, "ip", "route", "add", "192.0.2.2", "dev", other.name)
				// What is set leaves by the routes as they are now.
				must(t, a.ns, "wg", "set", a.name, "peer", b.private.Public().Encode(), "endpoint", "192.0.2.2:51821")
				must(t, a.ns, "wg", "set", other.name, "peer", second.private.Public().Encode(), "endpoint", "192.0.2.3:3000")
				before := traffic(t, a) + traffic(t, other)
				if out, err := try(a.ns, nil, "", "ping", "-n", "-q", "-c", "1", "-W", "1", "-s", size, "10.9.0.2"); err == nil || !strings.Contains(out, "100% packet loss") {
					t.Errorf("a ping was answered, so there is no loop: %v, %s", err, out)
				}
				if bytes := traffic(t, a) + traffic(t, other) - before; bytes >= 70000 {
					t.Errorf("one ping made %d bytes in the TUNs, want less than 70000", bytes)
				}
			})
		}
	}
}

// traffic is how many bytes the host has sent into the interface.
func traffic(t *testing.T, e *end) uint64 {
	t.Helper()
	link, err := e.ns.Netlink().LinkByName(e.name)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Statistics.TxBytes
}

func newKey(t *testing.T) crypto.PrivateKey {
	t.Helper()
	key, err := crypto.GeneratePrivateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
