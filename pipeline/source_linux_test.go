package pipeline

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// uplinks are two nodes, one of which has two uplinks to a router that drops what comes from the other one's addresses (RFC 2827).
type uplinks struct {
	t      *testing.T
	family int
	nodes  [2]labNode // the first has the uplinks
	router *lab.Namespace
	conns  [2]*net.UDPConn // in the tunnel: who asks, and who answers
	last   uint64
}

// addr is an outer address: of the first uplink (1), the second one (2), or the other node (3); gateway is the router's there.
func (u *uplinks) addr(network int) netip.Addr    { return u.host(network, 1) }
func (u *uplinks) gateway(network int) netip.Addr { return u.host(network, 254) }

func (u *uplinks) host(network int, host byte) netip.Addr {
	if u.family == 6 {
		return netip.AddrFrom16([16]byte{0xfd, 0xaa, 7: byte(network), 15: host})
	}
	return netip.AddrFrom4([4]byte{10, 1, byte(network), host})
}

// network is the prefix of an uplink.
func (u *uplinks) network(network int) netip.Prefix {
	prefix, _ := u.addr(network).Prefix(map[int]int{4: 24, 6: 64}[u.family])
	return prefix
}

// ip runs the ip tool in a namespace.
func (u *uplinks) ip(ns *lab.Namespace, command string, args ...any) {
	u.t.Helper()
	words := append([]string{fmt.Sprintf("-%d", u.family)}, strings.Fields(fmt.Sprintf(command, args...))...)
	err := ns.Run(func() error {
		if out, err := exec.Command("ip", words...).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		u.t.Fatalf("ip %s: %v", strings.Join(words, " "), err)
	}
}

// newUplinks starts them; node first sends the first packet, and node 1-first knows no endpoint.
func newUplinks(t *testing.T, family, first, queues, workers int) *uplinks {
	t.Helper()
	lab.Need(t)
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("SKIPPED: the ip tool is missing")
	}
	u := &uplinks{t: t, family: family}
	var names [3]*lab.Namespace
	for i, name := range []string{"uplinks", "other", "router"} {
		ns, err := lab.NewNamespace(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		names[i] = ns
		for path, value := range map[string]string{
			"ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0", "ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
		} {
			err := ns.Run(func() error { return os.WriteFile("/proc/sys/net/"+path, []byte(value), 0) })
			if err != nil && (family == 6 || strings.HasPrefix(path, "ipv4")) {
				t.Skipf("SKIPPED: %v", err)
			}
		}
	}
	u.router = names[2]
	for i, ns := range []*lab.Namespace{names[0], names[0], names[1]} {
		plug := func(ns *lab.Namespace, device string, addr netip.Addr) lab.Plug {
			return lab.Plug{Namespace: ns, Device: device, Addrs: []netip.Prefix{netip.PrefixFrom(addr, u.network(1).Bits())}}
		}
		device := fmt.Sprintf("e%d", 1+i)
		if err := lab.Connect(lab.Cable{}, plug(ns, device, u.addr(1+i)), plug(u.router, device, u.gateway(1+i))); err != nil {
			t.Fatal(err)
		}
	}
	u.ip(names[0], "route add default via %v", u.gateway(1))
	u.ip(names[1], "route add default via %v", u.gateway(3))
	u.ip(names[0], "route add default via %v table 102", u.gateway(2))
	u.ip(u.router, "rule add from %v iif e2 blackhole", u.network(1))
	u.ip(u.router, "rule add from %v iif e1 blackhole", u.network(2))
	for i := range u.nodes {
		endpoint := netip.AddrPort{}
		if i == first {
			endpoint = netip.AddrPortFrom(u.addr(3-2*i), 9000)
		}
		u.nodes[i] = startLabNode(t, names[i], i, queues, Config{UDP: udp.Config{Port: 9000}, Workers: workers}, endpoint)
	}
	for _, node := range u.nodes {
		node.waitUp(t)
	}
	u.talk(first)
	return u
}

// talk opens the connections through the tunnel; node first asks, the other one answers.
func (u *uplinks) talk(first int) {
	for i, node := range []int{first, 1 - first} {
		err := u.nodes[node].ns.Run(func() (err error) {
			local := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(node + 1)}), 0))
			u.conns[i], err = net.ListenUDP("udp4", local)
			return err
		})
		if err != nil {
			u.t.Fatal(err)
		}
	}
	asks, answers := u.conns[0], u.conns[1]
	u.t.Cleanup(func() { asks.Close(); answers.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := answers.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = answers.WriteToUDPAddrPort(b[:n], from)
		}
	}()
}

// gap is the longest that traffic may rest when a route changes: a second is what is wanted, and 15 s what a session needs to find
// out that nobody answers.
const gap = 5 * time.Second

// mustTalk asks until a question that is asked from now on is answered, and then some more.
func (u *uplinks) mustTalk(when string) {
	u.t.Helper()
	asked := u.last + 1
	began := time.Now()
	b := make([]byte, 100)
	to := u.conns[1].LocalAddr().(*net.UDPAddr).AddrPort()
	for answered := 0; answered < 10; {
		if time.Since(began) > gap {
			u.t.Fatalf("%s: no answer in %v", when, gap)
		}
		u.last++
		binary.BigEndian.PutUint64(b, u.last)
		_, _ = u.conns[0].WriteToUDPAddrPort(b[:8], to)
		_ = u.conns[0].SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		for {
			n, err := u.conns[0].Read(b)
			if err != nil {
				break
			}
			if n == 8 && binary.BigEndian.Uint64(b) >= asked {
				if answered++; answered == 1 {
					u.t.Logf("%s: answered after %v", when, time.Since(began))
				}
				began = time.Now()
				break
			}
		}
	}
}

// mustLeaveFrom waits until the other node hears the first one at the address of that uplink.
func (u *uplinks) mustLeaveFrom(when string, uplink int) {
	u.t.Helper()
	var got netip.Addr
	for range 1000 {
		_ = u.nodes[1].Edit(func(e *Edit) error {
			if path := e.c.controller.peers[0].path.Load(); path != nil {
				got = path.Dst.Addr()
			}
			return nil
		})
		if got == u.addr(uplink) {
			return
		}
		u.mustTalk(when)
	}
	u.t.Errorf("%s: packets leave from %v, want %v", when, got, u.addr(uplink))
}

// Traffic goes on when the route to the peer moves to another interface: the source that the peer wrote to is forgotten where its
// route leads elsewhere now, and taken again when it leads back.
func TestRouteMoves(t *testing.T) {
	for _, c := range []struct{ family, first, queues, workers int }{{4, 0, 1, 0}, {4, 1, 3, 2}, {6, 0, 3, 2}, {6, 1, 1, 0}} {
		t.Run(fmt.Sprintf("IPv%d, node %d first, %d queues, %d workers", c.family, c.first, c.queues, c.workers), func(t *testing.T) {
			u := newUplinks(t, c.family, c.first, c.queues, c.workers)
			ns := u.nodes[0].ns
			u.mustTalk("at first")
			for range 2 {
				u.ip(ns, "route replace default via %v", u.gateway(2))
				u.mustTalk("the default route has moved")
				u.mustLeaveFrom("the default route has moved", 2)
				u.ip(ns, "route replace default via %v", u.gateway(1))
				u.mustTalk("it has moved back")
				u.mustLeaveFrom("it has moved back", 1)
			}
			u.ip(ns, "rule add to %v lookup 102", u.addr(3))
			u.mustTalk("a rule leads to another table")
			u.mustLeaveFrom("a rule leads to another table", 2)
			u.ip(ns, "rule del to %v lookup 102", u.addr(3))
			u.mustTalk("the rule is gone")
			u.ip(ns, "rule add from %v lookup 102", u.addr(1))
			u.mustTalk("a rule of the source leads to another table")
			u.ip(ns, "rule del from %v lookup 102", u.addr(1))
			u.mustTalk("that is gone, too")
			u.talk(0) // who has no address any more must speak first
			u.mustTalk("the other way around")
			u.ip(ns, "route replace default via %v", u.gateway(2))
			u.ip(ns, "addr del %v/%d dev e1", u.addr(1), u.network(1).Bits())
			u.mustTalk("the address is gone")
			u.mustLeaveFrom("the address is gone", 2)
		})
	}
}

// What was asked at an address is answered from there, whatever the default route is, where rules lead what comes from the address
// to the uplink that it belongs to.
func TestAnswersFromTheAddressAsked(t *testing.T) {
	for _, family := range []int{4, 6} {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			u := newUplinks(t, family, 1, 1, 0)
			ns := u.nodes[0].ns
			u.ip(ns, "rule add from %v lookup 102", u.addr(2))
			_ = u.nodes[1].Edit(func(e *Edit) error {
				e.AddPeer(labKey(0).Public()).SetEndpoint(netip.AddrPortFrom(u.addr(2), 9000))
				return nil
			})
			u.mustTalk("asked at the second uplink")
			u.mustLeaveFrom("asked at the second uplink", 2)
			u.ip(ns, "route replace unreachable %v", u.network(9))
			u.mustTalk("another route has changed")
			u.mustLeaveFrom("another route has changed", 2)
		})
	}
}
