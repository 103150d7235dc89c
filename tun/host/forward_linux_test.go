package host

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// gatewayLab is a gateway with a TUN device, whose far end the test holds, and a host behind it that knows no way to the
// tunnel's addresses.
type gatewayLab struct {
	gateway, behind *lab.Namespace
	tun             *os.File
}

const tunMTU = 1416

func newGatewayLab(t *testing.T) *gatewayLab {
	t.Helper()
	lab.NeedTUN(t)
	l := &gatewayLab{}
	for name, ns := range map[string]**lab.Namespace{"gateway": &l.gateway, "behind": &l.behind} {
		made, err := lab.NewNamespace(name)
		must(t, err)
		t.Cleanup(func() { made.Close() })
		*ns = made
	}
	must(t, lab.Connect(lab.Cable{MTU: 1500},
		lab.Plug{Namespace: l.gateway, Device: "eth0", Addrs: prefixes("10.9.0.1/24", "fd09::1/64")},
		lab.Plug{Namespace: l.behind, Device: "eth0", Addrs: prefixes("10.9.0.2/24", "fd09::2/64")}))
	l.in(t, func() error {
		var err error
		if l.tun, err = openTUN("sluice0"); err != nil {
			return err
		}
		r, err := NewRouting(RoutingConfig{Interface: "sluice0"})
		return errors.Join(err, SetMTU("sluice0", tunMTU), SetUp("sluice0"),
			r.SetAddresses(prefixes("100.64.0.1/32", "fd00:2021:1111::1/128")),
			r.Set(prefixes("100.64.0.0/11", "fd00:2021:1111::/107")))
	})
	t.Cleanup(func() { l.tun.Close() })
	return l
}

// in runs f in the gateway.
func (l *gatewayLab) in(t *testing.T, f func() error) {
	t.Helper()
	must(t, l.gateway.Run(f))
}

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, s := range texts {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

// openTUN makes a plain TUN device; reads and writes are IP packets.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// fromTunnel writes a packet as if a client had sent it.
func (l *gatewayLab) fromTunnel(t *testing.T, src, dst string, transport gopacket.SerializableLayer) {
	t.Helper()
	a, b := net.ParseIP(src), net.ParseIP(dst)
	protocol := layers.IPProtocolUDP
	if _, tcp := transport.(*layers.TCP); tcp {
		protocol = layers.IPProtocolTCP
	}
	var network gopacket.SerializableLayer
	if a.To4() != nil {
		network = &layers.IPv4{Version: 4, TTL: 64, Protocol: protocol, SrcIP: a, DstIP: b}
	} else {
		network = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: protocol, SrcIP: a, DstIP: b}
	}
	switch x := transport.(type) {
	case *layers.UDP:
		must(t, x.SetNetworkLayerForChecksum(network.(gopacket.NetworkLayer)))
	case *layers.TCP:
		must(t, x.SetNetworkLayerForChecksum(network.(gopacket.NetworkLayer)))
	}
	buffer := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, network, transport))
	_, err := l.tun.Write(buffer.Bytes())
	must(t, err)
}

// toTunnel reads packets until one fits.
func (l *gatewayLab) toTunnel(t *testing.T, fits func(gopacket.Packet) bool) gopacket.Packet {
	t.Helper()
	must(t, l.tun.SetReadDeadline(time.Now().Add(20*time.Second)))
	for {
		p, err := readPacket(l.tun)
		if err != nil {
			t.Fatalf("nothing fitting came out of the tunnel: %v", err)
		}
		if fits(p) {
			return p
		}
	}
}

func readPacket(tun *os.File) (gopacket.Packet, error) {
	buffer := make([]byte, 2048)
	n, err := tun.Read(buffer)
	first := gopacket.LayerType(layers.LayerTypeIPv4)
	if buffer[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	return gopacket.NewPacket(buffer[:n], first, gopacket.Default), err
}

// behindRoutes offers the network behind, and no other.
var behindRoutes = Forward{Interface: "sluice0", Routes: prefixes("10.9.0.0/24", "fd09::/64")}

var families = []struct{ client, behind, gateway string }{
	{"100.64.0.2", "10.9.0.2", "10.9.0.1"},
	{"fd00:2021:1111::2", "fd09::2", "fd09::1"},
}

// TestMasquerade: a host behind sees the gateway's address, and what it answers finds the client.
func TestMasquerade(t *testing.T) {
	l := newGatewayLab(t)
	var fw *Forwarding
	l.in(t, func() (err error) { fw, err = StartForwarding(behindRoutes); return err })
	for _, f := range families {
		var conn net.PacketConn
		must(t, l.behind.Run(func() (err error) {
			conn, err = net.ListenPacket("udp", net.JoinHostPort(f.behind, "4000"))
			return err
		}))
		defer conn.Close()
		l.fromTunnel(t, f.client, f.behind, &layers.UDP{SrcPort: 1234, DstPort: 4000})
		must(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
		_, from, err := conn.ReadFrom(make([]byte, 100))
		must(t, err)
		if got := from.(*net.UDPAddr).IP.String(); got != f.gateway {
			t.Errorf("the host behind saw %s, want %s", got, f.gateway)
		}
		_, err = conn.WriteTo([]byte("answer"), from)
		must(t, err)
		l.toTunnel(t, func(p gopacket.Packet) bool {
			udp, ok := p.TransportLayer().(*layers.UDP)
			return ok && udp.DstPort == 1234 && udp.SrcPort == 4000 && p.NetworkLayer().NetworkFlow().Dst().String() == f.client
		})
	}
	l.in(t, fw.Close)
}

// TestOffered: who comes through the tunnel reaches the networks that are offered, and no others that the machine knows.
func TestOffered(t *testing.T) {
	var many []netip.Prefix // as many as a gateway may offer, of each family
	for i := range 64 {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, byte(2 * i), 0}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 9, 7: byte(2 * i)}), 64))
	}
	everything := prefixes("0.0.0.0/0", "::/0")
	for name, tt := range map[string]struct {
		routes  []netip.Prefix
		reaches bool // the others too
	}{
		"networks":   {behindRoutes.Routes, false},
		"many":       {many, false},
		"neighbours": {prefixes("10.9.0.0/25", "10.9.0.0/30", "10.8.255.0/24", "10.9.0.128/25", "10.9.0.0/28", "fd09::/65", "fd09::/64", "fd09:0:0:1::/64"), false},
		"last":       {append(prefixes("255.255.255.0/24", "ff00::/8"), behindRoutes.Routes...), false},
		"everything": {everything, true},
		"doubled":    {append(everything, behindRoutes.Routes...), true},
	} {
		t.Run(name, func(t *testing.T) { testOffered(t, tt.routes, tt.reaches) })
	}
}

func testOffered(t *testing.T, routes []netip.Prefix, reaches bool) {
	l := newGatewayLab(t)
	must(t, l.behind.AddAddr("eth0", netip.MustParsePrefix("10.8.0.2/24")))
	must(t, l.behind.AddAddr("eth0", netip.MustParsePrefix("fd08::2/64")))
	must(t, l.gateway.AddRoute(netip.MustParsePrefix("10.8.0.0/24"), "eth0", netip.MustParseAddr("10.9.0.2")))
	must(t, l.gateway.AddRoute(netip.MustParsePrefix("fd08::/64"), "eth0", netip.MustParseAddr("fd09::2")))
	listen := func(address string) net.PacketConn {
		t.Helper()
		var conn net.PacketConn
		must(t, l.behind.Run(func() (err error) { conn, err = net.ListenPacket("udp", address); return err }))
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	var fw *Forwarding
	l.in(t, func() (err error) {
		fw, err = StartForwarding(Forward{Interface: "sluice0", Routes: routes})
		return err
	})
	for _, f := range []struct{ client, offered, other string }{
		{"100.64.0.2", "10.9.0.2", "10.8.0.2"}, {"fd00:2021:1111::2", "fd09::2", "fd08::2"},
	} {
		offered, other := listen(net.JoinHostPort(f.offered, "4000")), listen(net.JoinHostPort(f.other, "4000"))
		l.fromTunnel(t, f.client, f.other, &layers.UDP{SrcPort: 1234, DstPort: 4000})
		l.fromTunnel(t, f.client, f.offered, &layers.UDP{SrcPort: 1234, DstPort: 4000}) // it comes after the other
		must(t, offered.SetReadDeadline(time.Now().Add(20*time.Second)))
		_, _, err := offered.ReadFrom(make([]byte, 100))
		must(t, err)
		wait := 100 * time.Millisecond
		if reaches {
			wait = 20 * time.Second
		}
		must(t, other.SetReadDeadline(time.Now().Add(wait)))
		if _, from, err := other.ReadFrom(make([]byte, 100)); (err == nil) != reaches {
			t.Errorf("%s was reached by %v (%v), want reached: %v", f.other, from, err, reaches)
		}
	}
	l.in(t, fw.Close)
}

// TestClampMSS: neither side of a TCP connection through the tunnel may send segments longer than fit it.
func TestClampMSS(t *testing.T) {
	l := newGatewayLab(t)
	var fw *Forwarding
	l.in(t, func() (err error) { fw, err = StartForwarding(behindRoutes); return err })
	for _, f := range families {
		want := uint16(tunMTU - 40)
		if net.ParseIP(f.client).To4() == nil {
			want -= 20
		}
		var server net.Listener
		must(t, l.behind.Run(func() (err error) { server, err = net.Listen("tcp", net.JoinHostPort(f.behind, "80")); return err }))
		defer server.Close()
		l.fromTunnel(t, f.client, f.behind, &layers.TCP{SrcPort: 1234, DstPort: 80, Seq: 1, SYN: true, Window: 65535,
			Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{1460 >> 8, 1460 & 255}}}})
		answer := l.toTunnel(t, func(p gopacket.Packet) bool {
			tcp, ok := p.TransportLayer().(*layers.TCP)
			return ok && tcp.SYN && tcp.ACK
		}).TransportLayer().(*layers.TCP)
		if mss := answer.Options[0]; mss.OptionType != layers.TCPOptionKindMSS ||
			uint16(mss.OptionData[0])<<8|uint16(mss.OptionData[1]) != want {
			t.Errorf("the host behind offers %v, want %d", mss, want)
		}
		l.fromTunnel(t, f.client, f.behind, &layers.TCP{SrcPort: 1234, DstPort: 80, Seq: 2, Ack: answer.Seq + 1, ACK: true, Window: 65535})
		must(t, server.(*net.TCPListener).SetDeadline(time.Now().Add(20*time.Second)))
		conn, err := server.Accept()
		must(t, err)
		defer conn.Close()
		raw, err := conn.(*net.TCPConn).SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) {
			if got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG); err != nil || got > int(want) {
				t.Errorf("the host behind sends segments of %d (%v), want at most %d", got, err, want)
			}
		}))
	}
	l.in(t, fw.Close)
}

func TestNoMasquerade(t *testing.T) {
	l := newGatewayLab(t)
	must(t, l.behind.AddRoute(netip.MustParsePrefix("100.64.0.0/11"), "eth0", netip.MustParseAddr("10.9.0.1")))
	var fw *Forwarding
	l.in(t, func() (err error) {
		f := behindRoutes
		f.NoMasquerade = true
		fw, err = StartForwarding(f)
		return err
	})
	var conn net.PacketConn
	must(t, l.behind.Run(func() (err error) { conn, err = net.ListenPacket("udp", "10.9.0.2:4000"); return err }))
	defer conn.Close()
	l.fromTunnel(t, "100.64.0.2", "10.9.0.2", &layers.UDP{SrcPort: 1234, DstPort: 4000})
	must(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	if _, from, err := conn.ReadFrom(make([]byte, 100)); err != nil || from.String() != "100.64.0.2:1234" {
		t.Errorf("the host behind saw %v, %v", from, err)
	}
	l.in(t, fw.Close)
}

// state is what forwarding leaves in a namespace.
func state(t *testing.T) (v4, v6, acceptRA string, tables []string) {
	t.Helper()
	read := func(path string) string {
		value, err := readSetting(path)
		must(t, err)
		return value
	}
	conn, err := nftables.New()
	must(t, err)
	list, err := conn.ListTables()
	must(t, err)
	for _, table := range list {
		tables = append(tables, table.Name)
	}
	return read("ipv4/ip_forward"), read("ipv6/conf/all/forwarding"), read("ipv6/conf/host0/accept_ra"), tables
}

func wantState(t *testing.T, v4, v6, acceptRA string, tables ...string) {
	t.Helper()
	gotV4, gotV6, gotRA, gotTables := state(t)
	slices.Sort(gotTables)
	if gotV4 != v4 || gotV6 != v6 || gotRA != acceptRA || !slices.Equal(gotTables, tables) {
		t.Errorf("ip_forward %s, IPv6 %s, accept_ra %s, tables %q; want %s, %s, %s, %q",
			gotV4, gotV6, gotRA, gotTables, v4, v6, acceptRA, tables)
	}
}

var behindHost0 = Forward{Interface: "host0", Routes: behindRoutes.Routes}

func start(t *testing.T, name string) *Forwarding {
	t.Helper()
	f := behindHost0
	f.Interface = name
	fw, err := StartForwarding(f)
	must(t, err)
	return fw
}

func off(t *testing.T) {
	t.Helper()
	for _, path := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		must(t, os.WriteFile(settings+path, []byte("0"), 0))
	}
}

func TestForwardingRestored(t *testing.T) {
	inNewNamespace(t)
	off(t)
	fw := start(t, "host0")
	wantState(t, "1", "1", "2", "sluice-host0")
	must(t, fw.Close())
	wantState(t, "0", "0", "1")
	must(t, fw.Close())

	must(t, os.WriteFile(settings+"ipv4/ip_forward", []byte("1"), 0))
	fw = start(t, "host0")
	must(t, fw.Close())
	wantState(t, "1", "0", "1")
}

// TestForwardingKilled: what was switched on by a program that did not live to switch it off is switched off by the next.
func TestForwardingKilled(t *testing.T) {
	inNewNamespace(t)
	off(t)
	start(t, "host0")
	fw := start(t, "host0")
	wantState(t, "1", "1", "2", "sluice-host0")
	must(t, fw.Close())
	wantState(t, "0", "0", "1")
}

// TestClearForwarding: what a killed gateway has left goes with a node that forwards nothing too, and a living gateway stays.
func TestClearForwarding(t *testing.T) {
	inNewNamespace(t)
	off(t)
	addTUN(t, "host1")
	must(t, ClearForwarding("host1"))
	start(t, "host0")
	must(t, ClearForwarding("host1"))
	wantState(t, "1", "1", "2", "sluice-host0")
	start(t, "host1")
	must(t, ClearForwarding("host1"))
	wantState(t, "1", "1", "2", "sluice-host0")
	must(t, ClearForwarding("host0"))
	wantState(t, "0", "0", "1")
}

// TestAdvertised: accept_ra stays as it is on a machine that has forwarded before, and an interface that comes later is treated
// like the others.
func TestAdvertised(t *testing.T) {
	inNewNamespace(t)
	off(t)
	must(t, os.WriteFile(settings+"ipv6/conf/all/forwarding", []byte("1"), 0))
	fw := start(t, "host0")
	wantState(t, "1", "1", "1", "sluice-host0")
	must(t, fw.Close())
	wantState(t, "0", "1", "1")

	off(t)
	fw = start(t, "host0")
	addTUN(t, "host1")
	for range 2 { // the second time there is nothing to do
		if mended, err := fw.Mend(); err != nil || mended {
			t.Errorf("mended %v, %v; want false, nil", mended, err)
		}
		if got, err := readSetting("ipv6/conf/host1/accept_ra"); err != nil || got != "2" {
			t.Errorf("accept_ra of a later interface is %s, %v; want 2", got, err)
		}
	}
	must(t, start(t, "host0").Close()) // as if fw was killed
	if got, err := readSetting("ipv6/conf/host1/accept_ra"); err != nil || got != "1" {
		t.Errorf("accept_ra of a later interface is %s at the end, %v; want 1", got, err)
	}
}

// TestAdvertisedRenamed: accept_ra of an interface that is renamed meanwhile is put back at the end too, also by who comes after a program
// that was killed, and whether or not the change was looked at before.
func TestAdvertisedRenamed(t *testing.T) {
	inNewNamespace(t)
	for _, how := range []string{"at once", "mended", "killed"} {
		off(t)
		addTUN(t, "host1")
		fw := start(t, "host0")
		link, err := netlink.LinkByName("host1")
		must(t, err)
		must(t, netlink.LinkSetName(link, "host2"))
		switch how {
		case "mended":
			_, err := fw.Mend()
			must(t, err)
		case "killed":
			fw = start(t, "host0")
		}
		must(t, fw.Close())
		if got, err := readSetting("ipv6/conf/host2/accept_ra"); err != nil || got != "1" {
			t.Errorf("%s: accept_ra of the renamed interface is %s at the end, %v; want 1", how, got, err)
		}
		must(t, netlink.LinkDel(link))
	}
}

// TestForwardingMended: a firewall that was loaded anew and a sysctl.d that was applied once more are survived, and what was off
// before is switched off at the end all the same.
func TestForwardingMended(t *testing.T) {
	inNewNamespace(t)
	off(t)
	fw := start(t, "host0")
	if got := fw.SwitchedOn(); !slices.Equal(got, []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"}) {
		t.Errorf("switched on: %q", got)
	}
	for what, harm := range map[string]func(){
		"nothing":   func() {},
		"a flush":   func() { flushRuleset(t) },
		"a setting": func() { must(t, os.WriteFile(settings+"ipv4/ip_forward", []byte("0"), 0)) },
	} {
		harm()
		if mended, err := fw.Mend(); err != nil || mended != (what != "nothing") {
			t.Errorf("%s: mended %v, %v", what, mended, err)
		}
		wantState(t, "1", "1", "2", "sluice-host0")
	}
	flushRuleset(t) // and nobody mends it
	must(t, fw.Close())
	wantState(t, "0", "0", "1")
}

func flushRuleset(t *testing.T) {
	t.Helper()
	conn, err := nftables.New()
	must(t, err)
	conn.FlushRuleset()
	must(t, conn.Flush())
}

// TestTableTaken: a table of our name that somebody else has made, or has for itself, is left alone, and the error says so.
func TestTableTaken(t *testing.T) {
	inNewNamespace(t)
	off(t)
	conn, err := nftables.New()
	must(t, err)
	table := conn.AddTable(&nftables.Table{Name: "sluice-host0", Family: nftables.TableFamilyINet})
	conn.AddChain(&nftables.Chain{Name: "of-others", Table: table})
	must(t, conn.Flush())
	refused := func(what string) {
		t.Helper()
		const want = "the nftables table inet sluice-host0 belongs to somebody else"
		if _, err := StartForwarding(behindHost0); err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, ErrPermission) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
		must(t, ClearForwarding("host0"))
		wantState(t, "0", "0", "1", "sluice-host0")
	}
	refused("a table with other chains")
	conn.DelTable(table)
	must(t, conn.Flush())
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skipf("SKIPPED: an owned table needs the program nft: %v", err)
	}
	owner := exec.Command(nft, "-i")
	commands, err := owner.StdinPipe()
	must(t, err)
	must(t, owner.Start())
	defer owner.Wait()
	defer commands.Close()
	_, err = io.WriteString(commands, "add table inet sluice-host0 { flags owner; }\n")
	must(t, err)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if tables, err := conn.ListTables(); err != nil || len(tables) == 1 {
			must(t, err)
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nft made no table within 20 s")
		}
	}
	refused("a table with an owner")
}

// TestForwardingShared: the last gateway switches off what the first has switched on.
func TestForwardingShared(t *testing.T) {
	inNewNamespace(t)
	off(t)
	addTUN(t, "host1")
	a := start(t, "host0")
	b := start(t, "host1")
	must(t, a.Close())
	wantState(t, "1", "1", "2", "sluice-host1")
	_, err := b.Mend()
	must(t, err)
	chains, err := b.chains()
	must(t, err)
	for _, c := range chains {
		if rules, err := b.conn.GetRules(b.table, c); c.Name == strangersChain && (err != nil || len(rules) != 2) {
			t.Errorf("the heir has %d rules for strangers, %v; want 2", len(rules), err)
		}
	}
	must(t, b.Close())
	wantState(t, "0", "0", "1")
}

// TestForwardingInherited: what a killed gateway has left goes with the last one that lives, whatever its interface's name.
func TestForwardingInherited(t *testing.T) {
	for _, when := range []string{"start", "mend", "close"} {
		t.Run(when, func(t *testing.T) {
			inNewNamespace(t)
			off(t)
			addTUN(t, "host1")
			start(t, "host1")
			remove := func() {
				t.Helper()
				link, err := netlink.LinkByName("host1")
				must(t, err)
				must(t, netlink.LinkDel(link)) // as when its program is killed
			}
			if when == "start" {
				remove()
			}
			fw := start(t, "host0")
			if when != "start" {
				remove()
			}
			if when == "mend" {
				_, err := fw.Mend()
				must(t, err)
			}
			if when != "close" {
				if v4, v6, _, tables := state(t); v4 != "1" || v6 != "1" || !slices.Equal(tables, []string{"sluice-host0"}) {
					t.Errorf("ip_forward %s, IPv6 %s, tables %q; want 1, 1, that of host0", v4, v6, tables)
				}
			}
			must(t, fw.Close())
			wantState(t, "0", "0", "1")
		})
	}
}

// TestForwardingOffered: only the families of what is offered are switched on.
func TestForwardingOffered(t *testing.T) {
	for offer, want := range map[string][2]string{"10.9.0.0/24": {"1", "0"}, "fd09::/64": {"0", "1"}, "10.9.0.0/24 ::/0": {"1", "1"}} {
		t.Run(offer, func(t *testing.T) {
			inNewNamespace(t)
			off(t)
			fw, err := StartForwarding(Forward{Interface: "host0", Routes: prefixes(strings.Fields(offer)...)})
			must(t, err)
			if v4, v6, _, _ := state(t); v4 != want[0] || v6 != want[1] {
				t.Errorf("ip_forward %s, IPv6 %s; want %v", v4, v6, want)
			}
			must(t, fw.Close())
			if v4, v6, _, _ := state(t); v4 != "0" || v6 != "0" {
				t.Errorf("at the end: ip_forward %s, IPv6 %s", v4, v6)
			}
		})
	}
}

// TestReadOnlySettings: where /proc/sys is read-only, what is on already is enough, and what is missing is said.
func TestReadOnlySettings(t *testing.T) {
	inNewNamespace(t)
	off(t)
	must(t, os.WriteFile(settings+"ipv4/ip_forward", []byte("1"), 0))
	must(t, os.WriteFile(settings+"ipv4/conf/all/rp_filter", []byte("1"), 0))
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(home)
	type outcome struct {
		skip               error
		offered, refused   error
		routing, unmarked  error
		closed, closedMark error
	}
	result := make(chan outcome, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread has mounts of its own and ends with the goroutine
		var o outcome
		defer func() { result <- o }()
		if o.skip = errors.Join(unix.Setns(home, unix.CLONE_NEWNET), unix.Unshare(unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""), unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""),
			unix.Mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")); o.skip != nil {
			return
		}
		var fw *Forwarding
		if fw, o.offered = StartForwarding(Forward{Interface: "host0", Routes: prefixes("10.9.0.0/24")}); o.offered == nil {
			o.closed = fw.Close()
		}
		_, o.refused = StartForwarding(Forward{Interface: "host0", Routes: prefixes("10.9.0.0/24", "fd09::/64")})
		r, err := NewRouting(RoutingConfig{Interface: "host0"})
		if o.routing = errors.Join(err, SetUp("host0"), r.Set(prefixes("10.0.0.0/24"))); o.routing == nil {
			o.unmarked, o.closedMark = r.Unmarked(), r.Close()
		}
	}()
	o := <-result
	if o.skip != nil {
		t.Skipf("SKIPPED: cannot make /proc/sys read-only (run as root): %v", o.skip)
	}
	if err := errors.Join(o.offered, o.closed, o.routing, o.closedMark); err != nil {
		t.Errorf("what needs nothing written failed: %v", err)
	}
	if o.refused == nil || !strings.Contains(o.refused.Error(), "docker run --sysctl net.ipv6.conf.all.forwarding=1") {
		t.Errorf("IPv6 is offered: error %v, want one that names the setting", o.refused)
	}
	if o.unmarked == nil || !strings.Contains(o.unmarked.Error(), "src_valid_mark=1") || !strings.Contains(o.unmarked.Error(), "rp_filter") {
		t.Errorf("rp_filter is strict: unmarked %v, want an error that names both settings", o.unmarked)
	}
}

// TestNoNFTables: where the kernel has no nftables a gateway says what it lacks and changes nothing, and a client works, but for what needs
// it.
func TestNoNFTables(t *testing.T) {
	inNewNamespace(t)
	off(t)
	must(t, os.WriteFile(settings+"ipv4/conf/all/rp_filter", []byte("1"), 0))
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(home)
	type outcome struct{ skip, gateway, client, unmarked, watcher error }
	result := make(chan outcome, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread has lost a protocol and ends with the goroutine
		var o outcome
		defer func() { result <- o }()
		if o.skip = errors.Join(unix.Setns(home, unix.CLONE_NEWNET), withoutNetfilter()); o.skip != nil {
			return
		}
		_, o.gateway = StartForwarding(behindHost0)
		r, err := NewRouting(RoutingConfig{Interface: "host0"})
		o.client = errors.Join(err, SetUp("host0"), r.Set(prefixes("10.0.0.0/24")))
		o.unmarked = r.Unmarked()
		o.client = errors.Join(o.client, r.Close())
		w, err := NewWatcher(DefaultTable)
		if o.watcher = err; err != nil {
			return
		}
		o.watcher = AddRule(Rule{Table: 77, Priority: 100})
		select {
		case <-w.Changes():
		case <-time.After(20 * time.Second):
			o.watcher = errors.New("a rule was not told of")
		}
		o.watcher = errors.Join(o.watcher, w.Close())
	}()
	o := <-result
	if o.skip != nil {
		t.Skipf("SKIPPED: a thread cannot lose a protocol (seccomp): %v", o.skip)
	}
	for what, err := range map[string]error{"gateway": o.gateway, "marks": o.unmarked} {
		if err == nil || !strings.Contains(err.Error(), "modprobe") {
			t.Errorf("%s: %v, want an error that says what to load", what, err)
		}
	}
	if err := errors.Join(o.client, o.watcher); err != nil {
		t.Errorf("what needs no nftables failed: %v", err)
	}
	wantState(t, "0", "0", "1")
}

// withoutNetfilter has the thread's sockets of NETLINK_NETFILTER fail as those of a kernel that lacks it (seccomp(2)).
func withoutNetfilter() error {
	const (
		number, family, protocol = 0, 16, 16 + 2*8 // in struct seccomp_data
		allow, refuse            = 0x7fff0000, 0x00050000
	)
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	unless := func(value uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: skip, K: value}
	}
	give := func(value uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value} }
	filter := []unix.SockFilter{
		load(number), unless(unix.SYS_SOCKET, 5), load(family), unless(unix.AF_NETLINK, 3), load(protocol), unless(unix.NETLINK_NETFILTER, 1),
		give(refuse | uint32(unix.EPROTONOSUPPORT)), give(allow),
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

// TestForwardingOfOthers: a container runtime that came after us needs forwarding, and its chain that drops is told of.
func TestForwardingOfOthers(t *testing.T) {
	inNewNamespace(t)
	off(t)
	fw := start(t, "host0")
	if list, err := fw.Obstacles(); err != nil || len(list) > 0 {
		t.Errorf("obstacles %v, %v", list, err)
	}
	conn, err := nftables.New()
	must(t, err)
	drop := nftables.ChainPolicyDrop
	conn.AddChain(&nftables.Chain{
		Name: "FORWARD", Table: conn.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4}),
		Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	must(t, conn.Flush())
	if list, err := fw.Obstacles(); err != nil || len(list) != 1 || list[0].String() != "ip filter FORWARD" {
		t.Errorf("obstacles %v, %v", list, err)
	}
	forward := &nftables.Chain{Name: "FORWARD", Table: &nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4}}
	conn.AddRule(&nftables.Rule{
		Table: forward.Table, Chain: forward, Exprs: append(matchInterface(expr.MetaKeyIIFNAME, expr.CmpOpEq, "host0"), verdict(expr.VerdictAccept)...),
	})
	must(t, conn.Flush())
	if list, err := fw.Obstacles(); err != nil || len(list) > 0 {
		t.Errorf("a chain that was told is an obstacle still: %v, %v", list, err)
	}
	must(t, fw.Close())
	wantState(t, "1", "1", "2", "filter")
}

// TestNoRights: without CAP_NET_ADMIN each change says what is missing.
func TestNoRights(t *testing.T) {
	inNewNamespace(t)
	result := make(chan []error)
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(home)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread has lost its rights and ends with the goroutine
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			result <- []error{err}
			return
		}
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			result <- []error{err}
			return
		}
		_, forward := StartForwarding(Forward{Interface: "host0"})
		r := &Routing{cfg: RoutingConfig{Interface: "host0"}.withDefaults()}
		result <- []error{forward, SetUp("host0"), r.SetAddresses(prefixes("100.64.0.1/32")), r.Set(prefixes("100.64.0.0/11"))}
	}()
	for i, err := range <-result {
		if err == nil || strings.Count(err.Error(), ErrPermission.Error()) != 1 {
			t.Errorf("%d: %v, want an error that says once what to do", i, err)
		}
		if !errors.Is(err, ErrPermission) || !errors.Is(err, syscall.EPERM) {
			t.Errorf("%d: %v", i, err)
		}
	}
}
