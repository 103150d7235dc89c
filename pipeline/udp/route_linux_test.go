package udp

import (
	"net/netip"
	"testing"
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

// TestSlowDeviceHoldsUpNobody: a slow device fills its own queue and not the socket, which others send by.
func TestSlowDeviceHoldsUpNobody(t *testing.T) {
	a, b := cable(t)
	a.secondUplink()
	if err := a.try("tc qdisc add dev uplink root tbf rate 1mbit burst 3000 limit 16000000"); err != nil {
		t.Skipf("SKIPPED: no slow device: %v", err)
	}
	slow := map[family]string{v4: "10.8.0.2", v6: "fd08::2"}
	a.ip("neigh replace 10.8.0.2 lladdr 02:00:00:00:00:03 dev uplink nud permanent")
	a.ip("neigh replace fd08::2 lladdr 02:00:00:00:00:03 dev uplink nud permanent")
	for _, cfg := range []Config{{}, {NoSegment: true}} {
		from, to := a.open(cfg), b.open(Config{})
		for _, f := range []family{v4, v6} {
			if got := from.of(f).Offloads().SendBuffer; got < 1<<28 {
				t.Skipf("SKIPPED: the kernel grants no more than %d bytes", got)
			}
			data := make([]byte, 40*1400)
			for i := range 200 { // 11 MB
				r := []Run{{Data: data, SegmentSize: 1400, Dst: netip.AddrPortFrom(netip.MustParseAddr(slow[f]), 9)}}
				if n, err := from.of(f).Send(r); n != 1 || err != nil {
					t.Fatalf("IPv%d: run %d to the slow device: %d sent, error %v", f, i, n, err)
				}
			}
			r := Run{Data: []byte("hello"), SegmentSize: 5, Dst: netip.AddrPortFrom(cableAddr[f], to.port())}
			if err := from.of(f).SendOne(r); err != nil {
				t.Fatalf("IPv%d: to the fast device: %v", f, err)
			}
			newCollector().until(t, to.of(f), 1)
		}
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
