package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
)

// events are what an administrator does to a tunnel between a and b, in order, and what must come of it; most of them are the
// occasions of kernel WireGuard's own test (tools/testing/selftests/wireguard/netns.sh). Each row begins with a new tunnel over the
// first family, up, without a packet so far. A line is a side and a shell command:
//
//	a: COMMAND            must succeed in the namespace of a
//	a: ! COMMAND          must fail there
//	a: COMMAND => WORDS   prints WORDS, at once or before long
//
// In commands: $wgA and $wgB are the interfaces, $keyA and $keyB the public keys, $keyC that of nobody, $privA and $privB the
// private keys, $wg is `wg set` of this side's interface and its peer, $ping is one echo request that has time to be answered,
// $try one that has one second. 532 bytes are an initiation and three echo requests.
// a is at 192.0.2.1, 2001:db8::1, port 51820, inside 10.9.0.1, fd09::1; b has 2 in these places, and 51821.
var events = []struct{ event, lines string }{
	{"traffic makes the session, in both families, also with frames of the full MTU and fragments of what is larger", `
		a: wg show $wgA latest-handshakes => $keyB 0
		a: $ping 10.9.0.2
		b: $ping fd09::1
		a: $ping -M do -s 1392 10.9.0.2
		a: $ping -M do -s 1372 fd09::2
		b: $ping -s 20000 10.9.0.1
		b: $ping -s 20000 fd09::1`},
	{"frames as large as a datagram can be", `
		a: ip link set eth0 mtu 65535
		b: ip link set eth0 mtu 65535
		a: ip link set $wgA mtu 65475
		b: ip link set $wgB mtu 65475
		a: $ping -M do -s 65447 10.9.0.2`},
	{"the endpoint is set to an address of the other family", `
		a: $ping 10.9.0.2
		a: $wg endpoint [2001:db8::2]:51821
		a: $ping 10.9.0.2
		a: wg show $wgA endpoints => $keyB [2001:db8::2]:51821
		b: wg show $wgB endpoints => $keyA [2001:db8::1]:51820
		b: $ping fd09::1`},
	{"the listen port changes: the peer follows with the next packet", `
		a: $ping 10.9.0.2
		a: wg set $wgA listen-port 7000
		a: $ping 10.9.0.2
		b: wg show $wgB endpoints => $keyA 192.0.2.1:7000
		b: wg set $wgB listen-port 7001
		b: $ping 10.9.0.1
		a: wg show $wgA endpoints => $keyB 192.0.2.2:7001`},
	{"the address in use goes, another takes its place", `
		a: $ping 10.9.0.2
		a: ip addr add 192.0.2.71/24 dev eth0
		a: ip addr del 192.0.2.1/24 dev eth0
		a: ip addr add 192.0.2.71/24 dev eth0 2>/dev/null || true
		a: $ping 10.9.0.2
		b: wg show $wgB endpoints => $keyA 192.0.2.71:51820
		b: $ping 10.9.0.1`},
	{"the peer is asked at an address of another interface than the one the answer leaves by", `
		b: ip addr add 10.50.0.2/32 dev lo
		a: ip route add 10.50.0.2 via 192.0.2.2
		a: $wg endpoint 10.50.0.2:51821
		a: $ping 10.9.0.2
		a: wg show $wgA endpoints => $keyB 10.50.0.2:51821
		b: $ping 10.9.0.1
		a: wg show $wgA endpoints => $keyB 10.50.0.2:51821`},
	{"allowed IPs that go to another peer: what comes from the first is dropped, what goes out is the other's", `
		a: $ping 10.9.0.2
		a: wg set $wgA peer $keyC allowed-ips 10.9.0.2/32
		a: wg show $wgA allowed-ips => $keyB fd09::2/128 $keyC 10.9.0.2/32
		a: ! $try 10.9.0.2
		b: ! $try 10.9.0.1
		b: $ping fd09::1
		a: wg set $wgA peer $keyC remove
		a: ! $try 10.9.0.2
		a: $wg allowed-ips 10.9.0.2/32,fd09::2/128
		b: $ping 10.9.0.1`},
	{"a more specific prefix of another peer", `
		a: $wg allowed-ips 10.9.0.0/24
		a: $ping 10.9.0.2
		a: wg set $wgA peer $keyC allowed-ips 10.9.0.2/32
		b: ! $try 10.9.0.1
		a: wg set $wgA peer $keyC remove
		b: $ping 10.9.0.1`},
	{"the private key is taken away and given back", `
		a: $ping 10.9.0.2
		a: wg set $wgA private-key /dev/null
		a: wg show $wgA private-key => (none)
		a: wg show $wgA public-key => (none)
		a: ! $try 10.9.0.2
		a: echo $privA | wg set $wgA private-key /dev/stdin
		a: $ping 10.9.0.2
		b: $ping 10.9.0.1`},
	{"our own key is no peer, and a peer's key that becomes ours ends the peer", `
		a: wg set $wgA peer $keyA allowed-ips 10.9.0.7/32
		a: wg show $wgA peers => $keyB
		a: $ping 10.9.0.2
		a: echo $privB | wg set $wgA private-key /dev/stdin
		a: wg show $wgA peers =>
		a: ! $try 10.9.0.2
		a: echo $privA | wg set $wgA private-key /dev/stdin
		a: $wg endpoint 192.0.2.2:51821 allowed-ips 10.9.0.2/32
		a: $ping 10.9.0.2`},
	{"a peer that is removed and comes back", `
		a: $ping 10.9.0.2
		a: $wg remove
		a: ! $try 10.9.0.2
		b: ! $try 10.9.0.1
		a: $wg endpoint 192.0.2.2:51821 allowed-ips 10.9.0.2/32
		a: $ping 10.9.0.2`},
	{"a persistent keepalive that is set while the interface is down speaks when it goes up, without traffic", `
		a: ip link set $wgA down
		a: ss -Huln | grep -c :51820 | cat => 0
		a: $wg persistent-keepalive 1
		a: wg show $wgA transfer => $keyB 0 0
		a: ip link set $wgA up
		b: wg show $wgB endpoints => $keyA 192.0.2.1:51820
		a: test $(wg show $wgA latest-handshakes | cut -f2) -gt 0 && echo yes => yes`},
	{"down and up: the old session is gone, the next packet makes another", `
		a: $ping 10.9.0.2
		a: ip link set $wgA down
		b: ! $try 10.9.0.1
		a: ip link set $wgA up
		a: $ping 10.9.0.2
		b: $ping 10.9.0.1`},
	{"packets that found no session are sent when the session is there", `
		b: ip link set $wgB down
		b: ss -Huln | grep -c :51821 | cat => 0
		a: ! ping -n -q -c 3 -i 0.2 -W 1 10.9.0.2
		a: wg show $wgA transfer | cut -f2 => 0
		b: ip link set $wgB up
		b: wg show $wgB transfer | cut -f2 => 532`},
	{"a mark keeps our own datagrams off a default route into the tunnel; without it nothing storms", `
		a: $wg allowed-ips 0.0.0.0/0
		a: wg set $wgA fwmark 0x5a
		a: wg show $wgA fwmark => 0x5a
		a: ip route add default dev $wgA table 90
		a: ip rule add not fwmark 0x5a table 90 priority 90
		a: ip rule add table main suppress_prefixlength 0 priority 89
		a: $ping 10.9.0.2
		a: ip rule del priority 89
		a: $wg endpoint 192.0.2.2:51821
		a: $ping 10.9.0.2
		a: wg set $wgA fwmark 0
		a: ! $try 10.9.0.2
		a: awk '/$wgA:/ {print $10 < 70000}' /proc/net/dev => 1
		a: wg set $wgA fwmark 0x5a
		a: $ping 10.9.0.2`},
	{"a host without IPv6", `
		a: sysctl -qw net.ipv6.conf.all.disable_ipv6=1
		a: ip link set $wgA down
		a: ip link set $wgA up
		a: $ping 10.9.0.2
		a: wg set $wgA listen-port 7002
		a: $ping 10.9.0.2
		a: $wg endpoint [2001:db8::2]:51821
		a: ! $try 10.9.0.2
		a: $wg endpoint 192.0.2.2:51821
		a: $ping 10.9.0.2`},
	{"padding never makes a packet longer than the MTU", `
		b: nft 'table ip edge { chain in { type filter hook input priority 0; udp dport 51821 meta length >= 1360 counter drop; }; }'
		a: ip link set $wgA mtu 1299
		a: for i in 1 2 3 4 5 6 7 8; do $try -M do -s 1271 10.9.0.2 && break; done >/dev/null
		a: $ping -M do -s 1269 10.9.0.2
		a: $ping -M do -s 1268 10.9.0.2`},
}

func TestEvents(t *testing.T) {
	t.Parallel()
	need(t, "wg", "ip", "ping", "nft", "sysctl", "ss", "awk")
	path := program(t)
	stranger := newKey(t).Public().Encode()
	for _, row := range events {
		t.Run(row.event, func(t *testing.T) {
			ends := newEnds(t, [2]string{path, path})
			a, b := ends[0], ends[1]
			a.configure(t, b, crypto.PresharedKey{}, 0)
			b.configure(t, a, crypto.PresharedKey{}, -1)
			a.up(t, a.ns)
			b.up(t, b.ns)
			words := strings.NewReplacer("$wgA", a.name, "$wgB", b.name, "$keyC", stranger,
				"$keyA", a.private.Public().Encode(), "$keyB", b.private.Public().Encode(),
				"$privA", a.private.Encode(), "$privB", b.private.Encode(),
				"$ping", "ping -n -q -c 1 -W 8", "$try", "ping -n -q -c 1 -W 1")
			for _, line := range strings.Split(strings.TrimSpace(row.lines), "\n") {
				line = strings.TrimSpace(line)
				side, command, ok := strings.Cut(line, ": ")
				we, peer := a, b
				if side == "b" {
					we, peer = b, a
				}
				if !ok || we == a && side != "a" {
					t.Fatalf("no such line: %q", line)
				}
				command = strings.ReplaceAll(command, "$wg ", fmt.Sprintf("wg set %s peer %s ", we.name, peer.private.Public().Encode()))
				if !happens(t, we, words.Replace(command)) {
					t.Errorf("at: %s", line)
					return
				}
			}
		})
	}
}

// happens runs one line of an event and reports whether what should come of it does.
func happens(t *testing.T, we *end, command string) bool {
	t.Helper()
	command, fails := strings.CutPrefix(command, "! ")
	command, want, prints := strings.Cut(command, "=>")
	want = strings.Join(strings.Fields(want), " ")
	for end := time.Now().Add(patient); ; time.Sleep(20 * time.Millisecond) {
		out, err := try(we.ns, nil, "", "sh", "-c", command)
		got := strings.Join(strings.Fields(out), " ")
		switch {
		case !prints && (err != nil) == fails, prints && err == nil && got == want:
			return true
		case !prints:
			t.Errorf("%v, want failure: %v; it printed %q", err, fails, got)
			return false
		case time.Now().After(end):
			t.Errorf("got %q, %v, want %q", got, err, want)
			return false
		}
	}
}

// TestLowOrderPeers: to a peer whose public key is a point of low order, nothing is ever sent, and others are served (the kernel's
// test does the same to its seven points). The points are RFC 7748's: u of order 1, 2, 4 and 8, and the forms above the prime.
func TestLowOrderPeers(t *testing.T) {
	t.Parallel()
	need(t, "wg", "ip", "ping", "nft")
	path := program(t)
	ends := tunnel(t, [2]string{path, path}, 0)
	a, b := ends[0], ends[1]
	for i, point := range []string{
		"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
		"7P///////////////////////////////////////38=", "7f///////////////////////////////////////38=",
		"7v///////////////////////////////////////38=", "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=",
		"X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc=",
	} {
		if _, err := crypto.ParsePublicKey(point); err != nil {
			t.Fatal(err)
		}
		must(t, a.ns, "wg", "set", a.name, "peer", point, "persistent-keepalive", "1", "allowed-ips", fmt.Sprintf("10.77.0.%d/32", i),
			"endpoint", netip.AddrPortFrom(b.outer[0], 7777).String())
	}
	must(t, a.ns, "ip", "route", "add", "10.77.0.0/24", "dev", a.name)
	must(t, b.ns, "nft", "table ip edge { counter heard { }; chain in { type filter hook input priority 0; udp dport 7777 counter name heard; }; }")
	for i := range 7 {
		if out, err := try(a.ns, nil, "", "ping", "-n", "-c", "1", "-W", "1", "10.77.0."+strconv.Itoa(i)); err == nil {
			t.Errorf("point %d answers: %s", i, out)
		}
	}
	ping(t, a.ns, 1, b.inner[0])
	if heard := must(t, b.ns, "nft", "list", "counter", "ip", "edge", "heard"); !strings.Contains(heard, "packets 0 ") {
		t.Errorf("datagrams were sent to peers of low order, want none: %s", heard)
	}
	for _, line := range strings.Split(strings.TrimSpace(must(t, a.ns, "wg", "show", a.name, "transfer")), "\n") {
		if fields := strings.Fields(line); len(fields) != 3 || fields[0] != b.private.Public().Encode() && fields[2] != "0" {
			t.Errorf("transfer %q, want nothing sent", line)
		}
	}
}
