package udp

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// secondUplink gives a a device that leads nowhere, with addresses of its own, and returns its index and those.
func (n *namespace) secondUplink() (ifIndex int, addrs map[family]netip.Addr) {
	n.t.Helper()
	n.ip("link add uplink index 21 type veth peer name nowhere index 22")
	n.ip("link set nowhere up")
	n.ip("addr add 10.8.0.1/24 dev uplink")
	n.ip("addr add fd08::1/64 dev uplink nodad")
	n.ip("link set uplink up")
	return 21, map[family]netip.Addr{v4: netip.MustParseAddr("10.8.0.1"), v6: netip.MustParseAddr("fd08::1")}
}

var cableAddr = map[family]netip.Addr{v4: netip.MustParseAddr("10.9.0.2"), v6: netip.MustParseAddr("fd09::2")}

// TestSourceForcesNoInterface: what was heard on one uplink is answered over the one that the route leads to.
func TestSourceForcesNoInterface(t *testing.T) {
	a, b := cable(t)
	ifIndex, addrs := a.secondUplink()
	from, to := a.open(Config{}), b.open(Config{})
	for _, f := range []family{v4, v6} {
		r := Run{Data: []byte("answer"), SegmentSize: 3, Src: addrs[f], IfIndex: ifIndex, Dst: netip.AddrPortFrom(cableAddr[f], to.port())}
		sendAll(t, from.of(f), []Run{r})
		if err := from.of(f).SendOne(r); err != nil {
			t.Errorf("IPv%d: SendOne: %v", f, err)
		}
		c := newCollector()
		c.until(t, to.of(f), 3)
		if got := c.from[0].Src.Addr(); got != addrs[f] {
			t.Errorf("IPv%d: left from %v, want %v", f, got, addrs[f])
		}
	}
}

// TestRefusedBytes: Send tells which bytes the kernel refused, with and without UDP_SEGMENT, beside others that left.
func TestRefusedBytes(t *testing.T) {
	a, b := cable(t)
	a.ip("route add prohibit 10.7.0.0/16")
	a.ip("route add prohibit fd07::/64")
	for _, cfg := range []Config{{}, {NoSegment: true}} {
		from, to := a.open(cfg), b.open(Config{})
		for f, prohibited := range map[family]string{v4: "10.7.0.1", v6: "fd07::1"} {
			runs := []Run{
				{Data: []byte("abcde"), SegmentSize: 2, Dst: netip.AddrPortFrom(netip.MustParseAddr(prohibited), 9)},
				{Data: []byte("abcde"), SegmentSize: 2, Dst: netip.AddrPortFrom(cableAddr[f], to.port())},
			}
			sendAll(t, from.of(f), runs)
			newCollector().until(t, to.of(f), 3)
			if runs[0].Refused != 5 || runs[1].Refused != 0 {
				t.Errorf("IPv%d, NoSegment %t: %d and %d bytes refused, want 5 and 0", f, cfg.NoSegment, runs[0].Refused, runs[1].Refused)
			}
			if bytes, datagrams := runs[0].Sent(); bytes != 0 || datagrams != 0 {
				t.Errorf("IPv%d: %d bytes, %d datagrams sent of what was refused", f, bytes, datagrams)
			}
			if bytes, datagrams := runs[1].Sent(); bytes != 5 || datagrams != 3 {
				t.Errorf("IPv%d: %d bytes, %d datagrams sent, want 5 and 3", f, bytes, datagrams)
			}
		}
	}
}

// TestSlowDeviceHoldsUpNobody: slow devices fill their own queues and not the socket, which others send by; also where the kernel
// refuses a large buffer.
func TestSlowDeviceHoldsUpNobody(t *testing.T) {
	a, b := cable(t)
	a.secondUplink()
	slow := map[family]string{v4: "10.8.0.2", v6: "fd08::2"}
	a.ip("neigh replace 10.8.0.2 lladdr 02:00:00:00:00:03 dev uplink nud permanent")
	a.ip("neigh replace fd08::2 lladdr 02:00:00:00:00:03 dev uplink nud permanent")
	for _, test := range []struct {
		Config
		refused bool
	}{{}, {Config: Config{NoSegment: true}}, {refused: true}, {Config{NoSegment: true}, true}} {
		if err := a.try("tc qdisc add dev uplink root tbf rate 1mbit burst 3000 limit 32000000"); err != nil {
			t.Skipf("SKIPPED: no slow device: %v", err)
		}
		open := a.open
		if test.refused {
			open = a.openWithoutForce
		}
		from, to := open(test.Config), b.open(Config{})
		for _, f := range []family{v4, v6} {
			data := make([]byte, 40*1400)
			for i := range 250 { // 14 MB
				r := []Run{{Data: data, SegmentSize: 1400, Dst: netip.AddrPortFrom(netip.MustParseAddr(slow[f]), 9)}}
				if n, err := from.of(f).Send(r); n != 1 || err != nil {
					t.Fatalf("IPv%d, %+v: run %d to the slow device: %d sent, error %v", f, test, i, n, err)
				}
			}
			r := Run{Data: []byte("hello"), SegmentSize: 5, Dst: netip.AddrPortFrom(cableAddr[f], to.port())}
			sendAll(t, from.of(f), []Run{r})
			if err := from.of(f).SendOne(r); err != nil {
				t.Fatalf("IPv%d, %+v: to the fast device: %v", f, test, err)
			}
			newCollector().until(t, to.of(f), 2)
		}
		if err := a.try("tc qdisc del dev uplink root"); err != nil { // and what is in its queue
			t.Fatal(err)
		}
	}
}

// openWithoutForce opens a pair as root of a user namespace does, whose buffers the system's limits bind.
func (n *namespace) openWithoutForce(cfg Config) Pair { return n.openAllWithoutForce(cfg)[0] }

func (n *namespace) openAllWithoutForce(cfg Config) []Pair {
	n.t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	capset := func(effective uint32) {
		had := had
		had[0].Effective = effective
		if err := unix.Capset(&header, &had[0]); err != nil {
			n.t.Errorf("capset: %v", err)
		}
	}
	n.in(func() {
		if err := unix.Capget(&header, &had[0]); err != nil {
			n.t.Errorf("capget: %v", err)
		}
		capset(had[0].Effective &^ (1 << unix.CAP_NET_ADMIN))
	})
	defer n.in(func() { capset(had[0].Effective) })
	return n.openAll(cfg)
}

// TestSparesReceiveNothing: with spare sockets on its port each shard still gets all of its flows, and what it sends by any of them
// comes from that port.
func TestSparesReceiveNothing(t *testing.T) {
	a, b := cable(t)
	for _, shards := range []int{1, 2} {
		pairs := a.openAllWithoutForce(Config{Shards: shards})
		for _, f := range []family{v4, v6} {
			const flows, each = 48, 3
			dst := netip.AddrPortFrom(map[family]netip.Addr{v4: netip.MustParseAddr("10.9.0.1"), v6: netip.MustParseAddr("fd09::1")}[f], pairs[0].port())
			for range flows {
				from := b.open(Config{}).of(f)
				for range each {
					sendAll(t, from, []Run{{Data: []byte("x"), SegmentSize: 1, Dst: dst}})
				}
			}
			sources, total := make([]map[netip.AddrPort]int, shards), 0
			for deadline := time.Now().Add(patience); total < flows*each; {
				for i, p := range pairs {
					c := newCollector()
					n, err := p.of(f).Receive(c.batch)
					if err != nil {
						t.Fatal(err)
					}
					if sources[i] == nil {
						sources[i] = make(map[netip.AddrPort]int)
					}
					for _, m := range c.batch[:n] {
						sources[i][m.Src] += len(m.Data)
						total += len(m.Data)
					}
				}
				if time.Now().After(deadline) {
					t.Fatalf("IPv%d, %d shards: received %d of %d: %v", f, shards, total, flows*each, sources)
				}
			}
			for i, of := range sources {
				if len(of) < flows/shards/3 {
					t.Errorf("IPv%d: %d of %d flows came to shard %d of %d", f, len(of), flows, i, shards)
				}
				for src, n := range of {
					if n != each {
						t.Errorf("IPv%d: shard %d got %d of %d datagrams from %v", f, i, n, each, src)
					}
				}
			}
			to := b.open(Config{}).of(f)
			for i, p := range pairs {
				s := p.of(f).(*linuxSocket)
				if len(s.senders) < 2 {
					t.Fatalf("IPv%d: shard %d has no spares, although the kernel refuses a large buffer", f, i)
				}
				c := newCollector()
				for s.lane.via = range s.senders {
					sendAll(t, s, []Run{{Data: []byte("x"), SegmentSize: 1, Dst: netip.AddrPortFrom(cableAddr[f], to.LocalPort())}})
				}
				c.until(t, to, len(s.senders))
				for _, m := range c.from {
					if m.Src.Port() != dst.Port() { // of the addresses the kernel chooses one
						t.Fatalf("IPv%d: a spare's datagram came from %v, want port %d", f, m.Src, dst.Port())
					}
				}
			}
		}
		closeAll(pairs)
	}
}

// TestRename: what came over a link-local address is answered after its interface has got another name.
func TestRename(t *testing.T) {
	a, b := cable(t)
	a.ip("addr add fe80::a/64 dev vetha nodad")
	b.ip("addr add fe80::b/64 dev vethb nodad")
	from, to := a.open(Config{}).V6, b.open(Config{}).V6
	waitReach(t, from, to, "fe80::b%11") // new addresses take a moment
	waitReach(t, to, from, "fe80::a%12")
	c := newCollector()
	sendAll(t, from, []Run{{Data: []byte("hello"), SegmentSize: 5, Dst: netip.AddrPortFrom(netip.MustParseAddr("fe80::b%11"), to.LocalPort())}})
	c.until(t, to, 1)
	if err := b.try("ip link set vethb name other"); err != nil {
		t.Skipf("SKIPPED: an interface that is up keeps its name: %v", err)
	}
	sendAll(t, to, []Run{{Data: []byte("back"), SegmentSize: 4, Dst: c.from[0].Src, Src: c.from[0].Dst, IfIndex: c.from[0].IfIndex}})
	newCollector().until(t, from, 1)
}
