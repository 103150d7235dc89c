package host

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// startForwarding starts in the gateway, and closes at the end.
func (l *gatewayLab) startForwarding(t *testing.T, f Forward) *Forwarding {
	t.Helper()
	var fw *Forwarding
	l.in(t, func() (err error) { fw, err = StartForwarding(f); return err })
	t.Cleanup(func() { l.in(t, fw.Close) })
	return fw
}

// socket is a UDP socket in a namespace.
func socket(t *testing.T, ns *lab.Namespace, address string, port int) net.PacketConn {
	t.Helper()
	var conn net.PacketConn
	must(t, ns.Run(func() (err error) {
		conn, err = net.ListenPacket("udp", net.JoinHostPort(address, strconv.Itoa(port)))
		return err
	}))
	t.Cleanup(func() { conn.Close() })
	return conn
}

// got waits for a datagram.
func got(t *testing.T, conn net.PacketConn) (text string, from *net.UDPAddr) {
	t.Helper()
	must(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	buffer := make([]byte, 100)
	n, a, err := conn.ReadFrom(buffer)
	must(t, err)
	return string(buffer[:n]), a.(*net.UDPAddr)
}

// wantNothing is called when what was sent later on the same way has arrived.
func wantNothing(t *testing.T, conn net.PacketConn, what string) {
	t.Helper()
	must(t, conn.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	if _, from, err := conn.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("%s: got a datagram from %v, want none", what, from)
	}
}

func sendTo(t *testing.T, conn net.PacketConn, text, address string, port int) {
	t.Helper()
	_, err := conn.WriteTo([]byte(text), &net.UDPAddr{IP: net.ParseIP(address), Port: port})
	must(t, err)
}

var everywhere = prefixes("0.0.0.0/0", "::/0")

// TestNoHairpin: a default route that is offered leads no client to another, and answers of the network behind come all the same.
func TestNoHairpin(t *testing.T) {
	l := newGatewayLab(t)
	l.startForwarding(t, Forward{Interface: "sluice0", Routes: everywhere})
	for i, other := range []string{"100.64.0.3", "fd00:2021:1111::3"} {
		f := families[i]
		conn := socket(t, l.behind, f.behind, 4000)
		l.fromTunnel(t, f.client, other, &layers.UDP{SrcPort: 1234, DstPort: 4000})
		l.fromTunnel(t, f.client, f.behind, &layers.UDP{SrcPort: 1234, DstPort: 4000})
		_, from := got(t, conn)
		sendTo(t, conn, "answer", from.IP.String(), from.Port)
		l.toTunnel(t, func(p gopacket.Packet) bool {
			udp, ok := p.TransportLayer().(*layers.UDP)
			if ok && p.NetworkLayer().NetworkFlow().Dst().String() == other {
				t.Errorf("%s was sent what %s sent", other, f.client)
			}
			return ok && udp.SrcPort == 4000 && udp.DstPort == 1234
		})
	}
}

// TestTowardsTunnel: hosts behind open nothing to clients, but connections to the networks of other gateways, which get answers.
func TestTowardsTunnel(t *testing.T) {
	l := newGatewayLab(t)
	for _, p := range prefixes("10.2.0.0/24", "fd02::/64") {
		l.in(t, func() error { return AddRoute(Route{Interface: "sluice0", Prefix: p}) })
	}
	l.startForwarding(t, Forward{Interface: "sluice0", Routes: behindRoutes.Routes, Reach: prefixes("10.2.0.0/24", "fd02::/64")})
	for i, site := range []string{"10.2.0.9", "fd02::9"} {
		f := families[i]
		must(t, l.behind.AddRoute(everywhere[i], "eth0", netip.MustParseAddr(f.gateway)))
		conn := socket(t, l.behind, f.behind, 4000)
		sendTo(t, conn, "question", f.client, 1234)
		sendTo(t, conn, "question", site, 1234)
		l.toTunnel(t, func(p gopacket.Packet) bool {
			udp, ok := p.TransportLayer().(*layers.UDP)
			if ok && p.NetworkLayer().NetworkFlow().Dst().String() == f.client {
				t.Errorf("%s opened a connection to %s", f.behind, f.client)
			}
			return ok && udp.DstPort == 1234 && p.NetworkLayer().NetworkFlow().Dst().String() == site
		})
		l.fromTunnel(t, site, f.behind, &layers.UDP{SrcPort: 1234, DstPort: 4000})
		if _, from := got(t, conn); from.IP.String() != site {
			t.Errorf("the answer is from %v, want %s", from, site)
		}
	}
}

// TestInput: who comes by the tunnel reaches the gateway at its tunnel addresses and at those that are offered, at no others.
func TestInput(t *testing.T) {
	l := newGatewayLab(t)
	must(t, l.gateway.AddAddr("lo", netip.MustParsePrefix("10.7.0.1/32")))
	must(t, l.gateway.AddAddr("lo", netip.MustParsePrefix("fd70::1/128")))
	f := behindRoutes
	f.Addresses = prefixes("100.64.0.1/32", "fd00:2021:1111::1/128")
	l.startForwarding(t, f)
	for _, c := range []struct{ client, other, offered, own string }{
		{"100.64.0.2", "10.7.0.1", "10.9.0.1", "100.64.0.1"}, {"fd00:2021:1111::2", "fd70::1", "fd09::1", "fd00:2021:1111::1"},
	} {
		other := socket(t, l.gateway, c.other, 4000)
		for _, address := range []string{c.offered, c.own} {
			conn := socket(t, l.gateway, address, 4000)
			l.fromTunnel(t, c.client, c.other, &layers.UDP{SrcPort: 1234, DstPort: 4000})
			l.fromTunnel(t, c.client, address, &layers.UDP{SrcPort: 1234, DstPort: 4000})
			got(t, conn)
		}
		wantNothing(t, other, c.other)
		peer := socket(t, l.gateway, c.other, 4001) // what the gateway itself begins is answered, whatever its address
		sendTo(t, peer, "question", c.client, 1234)
		l.toTunnel(t, func(p gopacket.Packet) bool {
			udp, ok := p.TransportLayer().(*layers.UDP)
			return ok && udp.DstPort == 1234 && udp.SrcPort == 4001
		})
		l.fromTunnel(t, c.client, c.other, &layers.UDP{SrcPort: 1234, DstPort: 4001})
		got(t, peer)
	}
}

// newStrangers is a gatewayLab with one more network at the gateway, whose host knows the way to the one behind.
func newStrangers(t *testing.T) (*gatewayLab, *lab.Namespace) {
	t.Helper()
	l := newGatewayLab(t)
	outside, err := lab.NewNamespace("outside")
	must(t, err)
	t.Cleanup(func() { outside.Close() })
	must(t, lab.Connect(lab.Cable{MTU: 1500},
		lab.Plug{Namespace: l.gateway, Device: "eth1", Addrs: prefixes("10.6.0.1/24", "fd06::1/64")},
		lab.Plug{Namespace: outside, Device: "eth0", Addrs: prefixes("10.6.0.2/24", "fd06::2/64")}))
	for i, via := range []string{"10.6.0.1", "fd06::1"} {
		must(t, outside.AddRoute(everywhere[i], "eth0", netip.MustParseAddr(via)))
	}
	return l, outside
}

func (l *gatewayLab) setForwarding(t *testing.T, v4, v6 string) {
	t.Helper()
	l.in(t, func() error {
		if err := os.WriteFile(settings+"ipv4/ip_forward", []byte(v4), 0); err != nil {
			return err
		}
		return os.WriteFile(settings+"ipv6/conf/all/forwarding", []byte(v6), 0)
	})
}

// TestStrangers: a machine that forwards for the tunnel only is no router for others, also after its program was killed, and tells of
// what it dropped; one that forwarded before, a family on its own, goes on, ports that it publishes too.
func TestStrangers(t *testing.T) {
	for name, was := range map[string][2]string{"both off": {"0", "0"}, "IPv4 on": {"1", "0"}, "IPv6 on": {"0", "1"}, "both on": {"1", "1"}} {
		t.Run(name, func(t *testing.T) {
			l, outside := newStrangers(t)
			l.setForwarding(t, was[0], was[1])
			publish(t, l)
			l.startForwarding(t, behindRoutes)
			servers := []net.PacketConn{socket(t, l.behind, families[0].behind, 4000), socket(t, l.behind, families[1].behind, 4000)}
			for _, when := range []string{"at first", "after a kill", "started again"} {
				var fw *Forwarding // tells what the table has counted
				if when == "started again" {
					fw = l.startForwarding(t, behindRoutes)
				} else {
					fw = newForwarding(behindRoutes)
				}
				for i, f := range families {
					conn := servers[i]
					asker := socket(t, outside, []string{"10.6.0.2", "fd06::2"}[i], 0)
					before := l.dropped(t, fw)
					sendTo(t, asker, "direct", f.behind, 4000)
					sendTo(t, asker, "published", []string{"10.6.0.1", "fd06::1"}[i], 8080)
					if was[i] == "1" {
						for _, want := range []string{"direct", "published"} {
							if text, _ := got(t, conn); text != want {
								t.Errorf("%s: %s got %q, want %q", when, f.behind, text, want)
							}
						}
						continue
					}
					l.eventually(t, when+": two packets dropped", func() bool { return l.dropped(t, fw) == before+2 })
					wantNothing(t, conn, when)
				}
				var told bool
				l.in(t, func() error { told = fw.Strangers(); return nil })
				if want := was != [2]string{"1", "1"}; told != want {
					t.Errorf("%s: told of strangers: %v, want %v", when, told, want)
				}
			}
		})
	}
}

// TestBridgeGoesOn: what a bridge of the machine passes from port to port is not forwarded, though br_netfilter asks the same hooks, also for
// a bridge that came later.
func TestBridgeGoesOn(t *testing.T) {
	l := newGatewayLab(t)
	l.setForwarding(t, "0", "0")
	fw := l.startForwarding(t, behindRoutes)
	l.in(t, func() error {
		for _, s := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
			if err := os.WriteFile(settings+"bridge/"+s, []byte("1"), 0); err != nil {
				t.Skipf("SKIPPED: there is no br_netfilter: %v", err)
			}
		}
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}})
	})
	var machines [2]*lab.Namespace
	for i, addresses := range [][]netip.Prefix{prefixes("10.5.0.1/24", "fd05::1/64"), prefixes("10.5.0.2/24", "fd05::2/64")} {
		ns, err := lab.NewNamespace("machine")
		must(t, err)
		t.Cleanup(func() { ns.Close() })
		machines[i] = ns
		port := "port" + strconv.Itoa(i)
		must(t, lab.Connect(lab.Cable{MTU: 1500}, lab.Plug{Namespace: l.gateway, Device: port}, lab.Plug{Namespace: ns, Device: "eth0", Addrs: addresses}))
		l.in(t, func() error {
			link, err := netlink.LinkByName(port)
			if err != nil {
				return err
			}
			return netlink.LinkSetMaster(link, &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}})
		})
	}
	l.in(t, func() error {
		mended, err := fw.Mend()
		if mended {
			t.Error("a bridge is told of as damage")
		}
		return errors.Join(err, SetUp("br0"))
	})
	for i, a := range []string{"10.5.0.1", "fd05::1"} {
		server := socket(t, machines[0], a, 4000)
		client := socket(t, machines[1], []string{"10.5.0.2", "fd05::2"}[i], 0)
		sendTo(t, client, "through the bridge", a, 4000)
		got(t, server)
	}
	if n := l.dropped(t, fw); n != 0 {
		t.Errorf("%d packets of the bridge's were dropped, want 0", n)
	}
}

// publish leads UDP port 8080 of the gateway to port 4000 of the host behind, as container runtimes do.
func publish(t *testing.T, l *gatewayLab) {
	t.Helper()
	l.in(t, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		table := conn.AddTable(&nftables.Table{Name: "published", Family: nftables.TableFamilyINet})
		c := conn.AddChain(&nftables.Chain{
			Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
		})
		for i, f := range families {
			address := net.ParseIP(f.behind)
			if i == 0 {
				address = address.To4()
			}
			conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: slices.Concat(matchFamily(i == 1), []expr.Any{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{8080 >> 8, 8080 & 255}},
				&expr.Immediate{Register: 1, Data: address},
				&expr.Immediate{Register: 2, Data: []byte{4000 >> 8, 4000 & 255}},
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: []uint32{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}[i], RegAddrMin: 1, RegProtoMin: 2},
			})})
		}
		return conn.Flush()
	})
}

func (l *gatewayLab) dropped(t *testing.T, fw *Forwarding) (n uint64) {
	t.Helper()
	l.in(t, func() (err error) { n, err = fw.packets(strangersChain); return err })
	return n
}

// eventually waits until ok, up to a deadline that only a hang exceeds.
func (l *gatewayLab) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// TestTunnelsApart: two gateways on one machine forward each for its own tunnel, though one of them has switched forwarding on, and nothing
// from one to the other.
func TestTunnelsApart(t *testing.T) {
	l := newGatewayLab(t)
	l.setForwarding(t, "0", "0")
	var second *os.File
	l.in(t, func() (err error) {
		if second, err = openTUN("sluice1"); err != nil {
			return err
		}
		if err := SetUp("sluice1"); err != nil {
			return err
		}
		for _, p := range prefixes("100.96.0.0/11", "fd00:2021:2222::/48") {
			if err := AddRoute(Route{Interface: "sluice1", Prefix: p}); err != nil {
				return err
			}
		}
		return nil
	})
	defer second.Close()
	a := l.startForwarding(t, Forward{Interface: "sluice0", Routes: everywhere})
	l.startForwarding(t, Forward{Interface: "sluice1", Routes: everywhere})
	l.in(t, func() error {
		mended, err := a.Mend()
		if mended {
			t.Error("another gateway is told of as damage")
		}
		return err
	})
	first := l.tun
	for i, other := range []string{"100.96.0.2", "fd00:2021:2222::2"} {
		f := families[i]
		conn := socket(t, l.behind, f.behind, 4000)
		for _, way := range []struct {
			from, to  *os.File
			src, away string
		}{{first, second, f.client, other}, {second, first, other, f.client}} {
			l.tun = way.from
			l.fromTunnel(t, way.src, way.away, &layers.UDP{SrcPort: 1234, DstPort: 4001})
			l.fromTunnel(t, way.src, f.behind, &layers.UDP{SrcPort: 1234, DstPort: 4000})
			_, from := got(t, conn)
			sendTo(t, conn, "answer", from.IP.String(), from.Port)
			l.toTunnel(t, func(p gopacket.Packet) bool {
				udp, ok := p.TransportLayer().(*layers.UDP)
				return ok && udp.SrcPort == 4000
			})
			must(t, way.to.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
			for p, err := readPacket(way.to); err == nil; p, err = readPacket(way.to) {
				if udp, ok := p.TransportLayer().(*layers.UDP); ok && udp.DstPort == 4001 {
					t.Errorf("%s reached %s in the other tunnel", way.src, way.away)
				}
			}
		}
	}
	l.tun = first
}

// TestManyNetworks: more networks than fit one message, as many gateways offer.
func TestManyNetworks(t *testing.T) {
	inNewNamespace(t)
	f := behindHost0
	for i := range 1200 {
		f.Reach = append(f.Reach, netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 7), byte(i << 1), 0}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 11, 4: byte(i >> 7), 5: byte(i << 1)}), 48))
	}
	fw, err := StartForwarding(f)
	must(t, err)
	for name, want := range map[string]int{"reach4": 2400, "reach6": 2400} {
		s, err := fw.conn.GetSetByName(fw.table, name)
		must(t, err)
		list, err := fw.conn.GetSetElements(s)
		must(t, err)
		if len(list) != want {
			t.Errorf("%s has %d elements, want %d", name, len(list), want)
		}
	}
	if mended, err := fw.Mend(); err != nil || mended {
		t.Errorf("mended %v, %v; want false, nil", mended, err)
	}
	must(t, fw.Close())
}
