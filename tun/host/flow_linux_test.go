package host

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// onesSum is the sum that checksums are made of (RFC 1071); 0xffff over what bears a right one.
func onesSum(parts ...[]byte) uint32 {
	var sum uint32
	for _, part := range parts {
		if len(part)%2 == 1 {
			part = append(part[:len(part):len(part)], 0)
		}
		for ; len(part) > 0; part = part[2:] {
			sum += uint32(binary.BigEndian.Uint16(part))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return sum
}

// tooBig sends "fragmentation needed" or "packet too big" from a router's address, about a datagram from flow to port 4000 of to.
func tooBig(router, to string, flow *net.UDPAddr) error {
	inner, transport := gopacket.NewSerializeBuffer(), &layers.UDP{SrcPort: layers.UDPPort(flow.Port), DstPort: 4000, Length: 1400}
	network, body := "ip4:icmp", []byte{3, 4, 0, 0, 0, 0, 1300 >> 8, 1300 & 255}
	var header gopacket.SerializableLayer = &layers.IPv4{
		Version: 4, IHL: 5, Length: 1420, TTL: 60, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocolUDP, SrcIP: flow.IP, DstIP: net.ParseIP(to),
	}
	if flow.IP.To4() == nil {
		network, body = "ip6:ipv6-icmp", []byte{2, 0, 0, 0, 0, 0, 1300 >> 8, 1300 & 255}
		header = &layers.IPv6{Version: 6, Length: 1400, HopLimit: 60, NextHeader: layers.IPProtocolUDP, SrcIP: flow.IP, DstIP: net.ParseIP(to)}
	}
	if err := gopacket.SerializeLayers(inner, gopacket.SerializeOptions{}, header, transport); err != nil {
		return err
	}
	body = append(body, inner.Bytes()...)
	if flow.IP.To4() != nil { // the kernel does it for ICMPv6
		binary.BigEndian.PutUint16(body[2:], ^uint16(onesSum(body)))
	}
	conn, err := net.ListenPacket(network, router)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.WriteTo(body, &net.IPAddr{IP: flow.IP})
	return err
}

// TestErrors: an ICMP error about a client's flow comes from an address that the client takes packets from: its sender's if that is
// offered, else the gateway's tunnel address.
func TestErrors(t *testing.T) {
	for _, masquerade := range []bool{true, false} {
		t.Run(fmt.Sprint("masquerade ", masquerade), func(t *testing.T) {
			l := newGatewayLab(t)
			f := behindRoutes
			f.NoMasquerade, f.Addresses = !masquerade, prefixes("100.64.0.1/32", "fd00:2021:1111::1/128")
			var fw *Forwarding
			l.in(t, func() (err error) { fw, err = StartForwarding(f); return err })
			for overlay, via := range map[string]string{"100.64.0.0/11": "10.9.0.1", "fd00:2021:1111::/107": "fd09::1"} {
				must(t, l.behind.AddRoute(netip.MustParsePrefix(overlay), "eth0", netip.MustParseAddr(via)))
			}
			for _, a := range prefixes("10.7.0.2/32", "fd70::2/128") { // not offered
				must(t, l.behind.AddAddr("lo", a))
			}
			for _, c := range []struct{ client, behind, router, want string }{
				{"100.64.0.2", "10.9.0.2", "10.7.0.2", "100.64.0.1"}, {"100.64.0.2", "10.9.0.2", "10.9.0.2", "10.9.0.2"},
				{"fd00:2021:1111::2", "fd09::2", "fd70::2", "fd00:2021:1111::1"}, {"fd00:2021:1111::2", "fd09::2", "fd09::2", "fd09::2"},
			} {
				l.wantError(t, c.client, c.behind, c.router, c.want)
			}
			l.in(t, fw.Close)
		})
	}
}

func (l *gatewayLab) wantError(t *testing.T, client, behind, router, want string) {
	t.Helper()
	var conn net.PacketConn
	must(t, l.behind.Run(func() (err error) { conn, err = net.ListenPacket("udp", net.JoinHostPort(behind, "4000")); return err }))
	defer conn.Close()
	l.fromTunnel(t, client, behind, &layers.UDP{SrcPort: 1234, DstPort: 4000})
	must(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	_, from, err := conn.ReadFrom(make([]byte, 100))
	must(t, err)
	must(t, l.behind.Run(func() error { return tooBig(router, behind, from.(*net.UDPAddr)) }))
	p := l.toTunnel(t, func(p gopacket.Packet) bool {
		return p.Layer(layers.LayerTypeICMPv4) != nil || p.Layer(layers.LayerTypeICMPv6) != nil && p.Layer(layers.LayerTypeICMPv6).LayerContents()[0] == 2
	})
	n := p.NetworkLayer()
	if src, dst := n.NetworkFlow().Src().String(), n.NetworkFlow().Dst().String(); src != want || dst != client {
		t.Errorf("an error of %s goes from %s to %s, want %s to %s", router, src, dst, want, client)
	}
	whole := p.Data()
	sums := []uint32{onesSum(whole[:20]), onesSum(whole[20:])}
	innerSource := whole[20+8+12 : 20+8+16]
	if whole[0]>>4 == 6 {
		sums = []uint32{onesSum(whole[8:40], []byte{whole[4], whole[5], 0, unix.IPPROTO_ICMPV6}, whole[40:])}
		innerSource = whole[40+8+8 : 40+8+24]
	}
	for _, sum := range sums {
		if sum != 0xffff {
			t.Errorf("an error of %s has wrong checksums: %#x", router, sums)
		}
	}
	if got := net.IP(innerSource).String(); got != client {
		t.Errorf("an error of %s is about a packet from %s, want %s", router, got, client)
	}
}

// TestFirewalls: that packets get lost in a firewall is told, with the chain where it can be found, and that they do not is not.
func TestFirewalls(t *testing.T) {
	drop := nftables.ChainPolicyDrop
	port := []expr.Any{ // `th dport 4001`
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{4001 >> 8, 4001 & 255}},
	}
	reject := []expr.Any{&expr.Counter{}, &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
	accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	on := func(hook *nftables.ChainHook, priority int32, policy *nftables.ChainPolicy, rules ...[]expr.Any) func(*nftables.Conn) {
		return func(conn *nftables.Conn) {
			table := conn.AddTable(&nftables.Table{Name: "firewall", Family: nftables.TableFamilyINet})
			c := conn.AddChain(&nftables.Chain{
				Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Policy: policy,
				Priority: nftables.ChainPriorityRef(nftables.ChainPriority(priority)),
			})
			for _, r := range rules {
				conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: r})
			}
		}
	}
	chain := func(priority int32, policy *nftables.ChainPolicy, rules ...[]expr.Any) func(*nftables.Conn) {
		return on(nftables.ChainHookForward, priority, policy, rules...)
	}
	const named = "inet firewall FORWARD"
	for name, tt := range map[string]struct {
		firewall      func(*nftables.Conn)
		before, after string // what is told of before and after traffic, "?" is an obstacle that is not known
		arrives       bool
	}{
		"none":                       {firewall: func(*nftables.Conn) {}, arrives: true},
		"rejects by its last rule":   {firewall: chain(10, nil, slices.Concat(matchAnswers(), accept), reject), after: named},
		"rejects others before us":   {firewall: chain(-10, nil, slices.Concat(port, reject)), arrives: true},
		"rejects before us":          {firewall: chain(-10, nil, reject), after: named},
		"drops by policy":            {firewall: chain(0, &drop), before: named, after: named},
		"has a policy and lets all":  {firewall: chain(0, &drop, accept), before: named, arrives: true},
		"lets all before it rejects": {firewall: chain(10, nil, accept, reject), arrives: true},
		"rejects others only":        {firewall: chain(10, nil, slices.Concat(port, reject)), arrives: true},
		"drops by policy at the end": {firewall: on(nftables.ChainHookPostrouting, -150, &drop), before: named, after: named},
		"drops by rule at the end":   {firewall: on(nftables.ChainHookPostrouting, 300, nil, verdict(expr.VerdictDrop)), after: named},
		"drops by a rule in between": {firewall: chain(10, nil, verdict(expr.VerdictDrop), accept), after: "?"},
	} {
		for _, f := range families {
			t.Run(name+" "+f.client, func(t *testing.T) {
				l := newGatewayLab(t)
				var fw *Forwarding
				l.in(t, func() (err error) {
					conn, err := nftables.New()
					if err != nil {
						return err
					}
					tt.firewall(conn)
					if err := conn.Flush(); err != nil {
						return err
					}
					fw, err = StartForwarding(behindRoutes)
					return err
				})
				l.wantObstacle(t, fw, "before traffic", tt.before)
				var conn net.PacketConn
				must(t, l.behind.Run(func() (err error) {
					conn, err = net.ListenPacket("udp", net.JoinHostPort(f.behind, "4000"))
					return err
				}))
				defer conn.Close()
				l.fromTunnel(t, f.client, f.behind, &layers.UDP{SrcPort: 1234, DstPort: 4000})
				if tt.arrives {
					must(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
					_, _, err := conn.ReadFrom(make([]byte, 100))
					must(t, err)
				} else {
					l.untilEntered(t, fw)
				}
				l.wantObstacle(t, fw, "after traffic", tt.after)
				l.wantObstacle(t, fw, "without more", tt.after)
				l.in(t, fw.Close)
			})
		}
	}
}

// TestFirewallMixed: a loss is told of though other packets pass, until the chain lets all pass.
func TestFirewallMixed(t *testing.T) {
	l := newGatewayLab(t)
	var fw *Forwarding
	var conn *nftables.Conn
	table := &nftables.Table{Name: "firewall", Family: nftables.TableFamilyIPv4}
	l.in(t, func() (err error) {
		if conn, err = nftables.New(); err != nil {
			return err
		}
		conn.AddTable(table)
		c := conn.AddChain(&nftables.Chain{
			Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityMangle,
		})
		conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: verdict(expr.VerdictDrop)})
		if err = conn.Flush(); err != nil {
			return err
		}
		fw, err = StartForwarding(behindRoutes)
		return err
	})
	l.fromTunnel(t, families[0].client, families[0].behind, &layers.UDP{SrcPort: 1234, DstPort: 4000})
	l.untilEntered(t, fw)
	l.wantObstacle(t, fw, "after a loss", "ip firewall FORWARD")
	pass := func(f int) {
		t.Helper()
		var server net.PacketConn
		must(t, l.behind.Run(func() (err error) {
			server, err = net.ListenPacket("udp", net.JoinHostPort(families[f].behind, "4000"))
			return err
		}))
		defer server.Close()
		l.fromTunnel(t, families[f].client, families[f].behind, &layers.UDP{SrcPort: 1234, DstPort: 4000})
		must(t, server.SetReadDeadline(time.Now().Add(20*time.Second)))
		_, _, err := server.ReadFrom(make([]byte, 100))
		must(t, err)
	}
	pass(1)
	l.wantObstacle(t, fw, "after other packets", "ip firewall FORWARD")
	if got, want := (Obstacle{"ip", "mangle", "FORWARD"}).Remedy("gw0"), "iptables -t mangle -I FORWARD -i gw0 -j ACCEPT, and the same with -o"; got != want {
		t.Errorf("the remedy is %q, want %q", got, want)
	}
	l.in(t, func() error { conn.DelTable(table); return conn.Flush() })
	pass(0)
	l.wantObstacle(t, fw, "without the firewall", "")
	l.in(t, fw.Close)
}

// untilEntered waits until a packet was counted.
func (l *gatewayLab) untilEntered(t *testing.T, fw *Forwarding) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		var now traffic
		l.in(t, func() (err error) { now, err = fw.counted(); return err })
		if now.entered > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no packet came to be forwarded")
		}
	}
}

func (l *gatewayLab) wantObstacle(t *testing.T, fw *Forwarding, when, want string) {
	t.Helper()
	var list []Obstacle
	l.in(t, func() (err error) { list, err = fw.Obstacles(); return err })
	got := ""
	switch {
	case len(list) == 1 && list[0] == Obstacle{}:
		got = "?"
	case len(list) == 1:
		got = list[0].String()
	case len(list) > 1:
		got = fmt.Sprint(list)
	}
	if got != want {
		t.Errorf("%s: obstacle %q, want %q", when, got, want)
	}
}
