package relay

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// deniedAddrs are addresses no relay may reach unless it was told to. Those with an IPv4 address inside are built for
// 127.0.0.1, 10.0.0.1, 169.254.169.254 and also for the public 8.8.8.8: the form is denied, whatever it carries.
var deniedAddrs = []string{
	// this host, private, shared, link-local, loopback
	"0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254",
	"169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255",
	// assignments, relays, benchmarks, multicast, reserved, broadcast, a cloud's host
	"192.0.0.1", "192.0.0.170", "192.88.99.1", "198.18.0.1", "198.19.255.255", "224.0.0.1", "239.255.255.255", "240.0.0.1",
	"255.255.255.255", "168.63.129.16",
	// unspecified, loopback, link-local, site-local, unique local, multicast, discard, segment identifiers
	"::", "::1", "fe80::1", "febf::1", "fec0::1", "fc00::1", "fd00:ec2::254", "fdff::1", "ff02::1", "ff0e::1", "100::1",
	"100:0:0:1::1", "5f00::1",
	// compatible
	"::127.0.0.1", "::10.0.0.1", "::169.254.169.254", "::8.8.8.8",
	// mapped
	"::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:8.8.8.8", "::ffff:0.0.0.0",
	// translated (RFC 2765)
	"::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8",
	// 6to4 of 127.0.0.1, 10.0.0.1, 169.254.169.254, 8.8.8.8
	"2002:7f00:1::1", "2002:a00:1::1", "2002:a9fe:a9fe::1", "2002:808:808::1",
	// NAT64, well-known and local-use
	"64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b:1::10.0.0.1",
	// Teredo, benchmarking, ORCHID, ORCHIDv2, and the rest of their block
	"2001::1", "2001:0:7f00:1::1", "2001:2::1", "2001:10::1", "2001:1f:ffff::1", "2001:20::1", "2001:2f:ffff::1", "2001:1ff::1",
	// not given out
	"4000::1", "8000::1", "e000::1",
}

var admittedAddrs = []string{
	"1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.1", "100.63.255.255", "100.128.0.1", "126.255.255.255", "128.0.0.1",
	"169.253.255.255", "169.255.0.1", "172.15.255.255", "172.32.0.1", "192.0.1.1", "192.167.255.255", "192.169.0.1",
	"198.17.255.255", "198.20.0.1", "223.255.255.255", "203.0.113.1",
	"2001:200::1", "2001:db8::1", "2001:4860:4860::8888", "2003::1", "2600::1", "2a00:1450::1", "3fff:ffff::1",
}

// TestDenyMatrix asks the policy.
func TestDenyMatrix(t *testing.T) {
	p := peerPolicy{}
	for _, s := range deniedAddrs {
		a := netip.MustParseAddr(s)
		if p.admitsAddr(a) || p.admits(netip.AddrPortFrom(a, 53)) {
			t.Errorf("%s is admitted", s)
		}
	}
	for _, s := range admittedAddrs {
		a := netip.MustParseAddr(s)
		if !p.admitsAddr(a) || !p.admits(netip.AddrPortFrom(a, 53)) {
			t.Errorf("%s is denied", s)
		}
		if p.admits(netip.AddrPortFrom(a, 0)) {
			t.Errorf("port 0 of %s is admitted", s)
		}
	}
	for _, a := range []netip.Addr{{}, netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("2600::1%eth0")} {
		if p.admitsAddr(a) {
			t.Errorf("%v is admitted", a)
		}
	}
}

// TestPolicyConfig: what is configured counts in this order: listening ports, denied, allowed, own, the matrix.
func TestPolicyConfig(t *testing.T) {
	p := peerPolicy{
		denied:    prefixes("8.8.8.0/24", "10.1.0.0/16"),
		allowed:   prefixes("10.0.0.0/8", "::ffff:0:0/96", "fd00::/8"),
		own:       map[netip.Addr]bool{netip.MustParseAddr("9.9.9.9"): true, netip.MustParseAddr("10.2.0.1"): true},
		listening: map[netip.AddrPort]bool{netip.MustParseAddrPort("9.9.9.9:3478"): true},
		ports:     map[uint16]bool{3478: true},
		local:     map[netip.Addr]bool{netip.MustParseAddr("9.9.9.10"): true},
		live:      func(at netip.AddrPort) bool { return at == netip.MustParseAddrPort("9.9.9.9:50000") },
	}
	for s, want := range map[string]bool{
		"8.8.8.8:53": false, "8.8.4.4:53": true, "10.0.0.1:53": true, "10.1.0.1:53": false, "192.168.0.1:53": false,
		"[fd00::1]:53": true, "[fc00::1]:53": false, "[::ffff:10.0.0.1]:53": false, // a mapped form is never allowed
		"9.9.9.9:3478": false, "9.9.9.9:22": false, "9.9.9.9:49999": false, "9.9.9.9:50000": true, "9.9.9.9:50001": false, "9.9.9.10:50000": false, "10.2.0.1:22": true, "10.2.0.1:3478": false,
	} {
		if got := p.admits(netip.MustParseAddrPort(s)); got != want {
			t.Errorf("%s: %v, want %v", s, got, want)
		}
	}
}

// TestDenyOnTheWire puts the whole matrix through CreatePermission, ChannelBind and Send, on a server that makes no
// exception. Each has to be refused with an error, or silently for Send, and no permission may come of it.
func TestDenyOnTheWire(t *testing.T) {
	s := start(t, func(c *Config) { c.AllowedPeers = nil })
	c4, c6 := dial(t, s, 0, "deny"), dial(t, s, 1, "deny")
	c4.allocate()
	c6.allocate6()
	denied := 0
	for i, text := range deniedAddrs {
		at := netip.AddrPortFrom(netip.MustParseAddr(text), 53)
		if at.Addr() == loopback4 || at.Addr() == loopback6 {
			// Own addresses of this relay have a permission, but for relayed ports only.
			for _, c := range []*client{c4, c6} {
				if c.addr().Addr() == at.Addr() && (c.permit(at) != 0 || c.bind(0x4000, at) != stun.CodeForbidden) {
					t.Errorf("%v: own address", at)
				}
			}
			continue
		}
		for _, c := range []*client{c4, c6} {
			want := stun.CodeForbidden
			if v4 := c.addr().Addr().Is4(); v4 != at.Addr().Unmap().Is4() {
				want = stun.CodePeerFamily
			}
			if code := c.permit(at); code != want {
				t.Errorf("CreatePermission %v on %v: %d, want %d", at, c.server, code, want)
			}
			if code := c.bind(0x4000+uint16(i), at); code != want {
				t.Errorf("ChannelBind %v on %v: %d, want %d", at, c.server, code, want)
			}
			c.indicate(at, []byte("x"))
			c.send(channelData(0x4000+uint16(i), []byte("x")))
			denied++
		}
	}
	eventually(t, "every Send to be dropped", func() bool {
		return s.stats.drops[dropNoPermission].Load() == uint64(denied) && s.stats.drops[dropNoChannel].Load() == uint64(denied)
	})
	if n := s.stats.datagrams[toPeer].Load(); n != 0 {
		t.Errorf("%d datagrams left the relay", n)
	}
}

// TestDenyPerDatagram has permissions and channels that should not exist, as if pion had a hole, and checks that no datagram of
// the matrix passes in either direction.
func TestDenyPerDatagram(t *testing.T) {
	s := start(t, func(c *Config) { c.AllowedPeers = nil })
	clients := []*client{dial(t, s, 0, "hole"), dial(t, s, 1, "hole")}
	clients[0].allocate()
	clients[1].allocate6()
	for gate, c := range clients {
		a := s.gates[gate].find(c.addr())
		for i, text := range deniedAddrs {
			at := netip.AddrPortFrom(netip.MustParseAddr(text), 53)
			a.permit(at.Addr())
			a.bind(uint16(0x4000+i), at)
			before := s.stats.drops[dropPeerDenied].Load()
			a.toChannel(uint16(0x4000+i), []byte("x"), 1, nil)
			a.fromPeer(received{data: []byte("x"), segment: 1, src: at}, new(scratch))
			if a.permitted(at, 1) {
				t.Errorf("%v: Send passes", at)
			}
			if got := s.stats.drops[dropPeerDenied].Load() - before; got != 3 {
				t.Errorf("%v: %d of 3 datagrams denied", at, got)
			}
		}
	}
	if n := s.stats.datagrams[toPeer].Load() + s.stats.datagrams[toClient].Load(); n != 0 {
		t.Errorf("%d datagrams were relayed", n)
	}
}

// TestOwnPorts: two clients of one relay reach each other through it, but nothing else on the machine, and not the relay.
func TestOwnPorts(t *testing.T) {
	s := start(t, func(c *Config) { c.AllowedPeers, c.MinPort, c.MaxPort = nil, 1024, 65535 })
	a, b := dial(t, s, 0, "a"), dial(t, s, 0, "b")
	atA, atB := a.allocate(), b.allocate()
	if code := a.bind(0x4000, s.Addrs()[0]); code != stun.CodeForbidden {
		t.Errorf("a channel to the relay itself: %d, want 403", code)
	}
	if a.bind(0x4001, atB) != 0 || b.permit(atA) != 0 {
		t.Fatal("relayed to relayed is refused")
	}
	a.send(channelData(0x4001, []byte("hello")))
	if from, _, ok := frame.ParseDataIndication(b.read(patience)); !ok || from != atA {
		t.Fatalf("b got data from %v, want %v", from, atA)
	}
	conn, other := peer(t, loopback4) // a program of this machine, at a port that relayed addresses may have
	if code := a.bind(0x4002, other); code != stun.CodeForbidden {
		t.Errorf("a channel to a port without allocation: %d, want 403", code)
	}
	a.indicate(other, []byte("x"))
	eventually(t, "the Send to be dropped", func() bool { return s.stats.drops[dropPeerDenied].Load() == 1 })
	if got, _ := readPeer(conn, 20*time.Millisecond); got != nil {
		t.Errorf("the program got %q", got)
	}
}

// TestPermissionEnds: a peer without permission reaches nobody, and a channel does not outlive its permission.
func TestPermissionEnds(t *testing.T) {
	s := start(t, nil)
	c := dial(t, s, 0, "x")
	relayed := c.allocate()
	conn, at := peer(t, loopback4)
	stranger, _ := peer(t, netip.MustParseAddr("127.0.0.2"))
	if c.bind(0x4000, at) != 0 {
		t.Fatal("ChannelBind")
	}
	stranger.WriteToUDPAddrPort([]byte("x"), relayed)
	eventually(t, "the stranger to be dropped", func() bool { return s.stats.drops[dropNoPermission].Load() == 1 })
	s.gates[0].find(c.addr()).forbid(at.Addr())
	conn.WriteToUDPAddrPort([]byte("x"), relayed)
	c.send(channelData(0x4000, []byte("x")))
	eventually(t, "both directions to be dropped", func() bool { return s.stats.drops[dropNoPermission].Load() == 3 })
	if b := c.read(20 * time.Millisecond); b != nil {
		t.Errorf("client got %x", b)
	}
}
