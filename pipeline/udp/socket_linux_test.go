package udp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestNamespaceTrains(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(a, b *namespace)
	}{
		{"superpackets stay whole", func(a, b *namespace) {}},
		{"tx-udp-segmentation off", func(a, _ *namespace) { a.ethtool("vetha", "tx-udp-segmentation", "off") }},
		{"checksum offload off", func(a, _ *namespace) { a.ethtool("vetha", "tx", "off") }},
		{"small MTU", func(a, _ *namespace) { a.ip("link set vetha mtu 1300") }},
		{"GRO on the veth", func(a, b *namespace) {
			a.ethtool("vetha", "tx-udp-segmentation", "off")
			b.ethtool("vethb", "gro", "on")
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a, b := cable(t)
			test.prepare(a, b)
			from, to := a.open(Config{}), b.open(Config{})
			rng := rand.New(rand.NewPCG(5, 6))
			for _, f := range []family{v4, v6} {
				dst := netip.AddrPortFrom(netip.MustParseAddr(map[family]string{v4: "10.9.0.2", v6: "fd09::2"}[f]), to.port())
				var runs []Run
				for _, shape := range []struct{ bytes, size int }{{14521, 1452}, {3, 1}, {64 * 1000, 1000}, {1400, 1400}, {MaxDatagram, MaxDatagram}, {60001, 1440}} {
					runs = append(runs, Run{Data: randomBytes(rng, shape.bytes), SegmentSize: shape.size, Dst: dst})
				}
				for i := range runs { // one at a time: fragments must not wait behind a full queue
					c := newCollector()
					sendAll(t, from.of(f), runs[i:i+1])
					c.until(t, to.of(f), countDatagrams(runs[i:i+1]))
					c.expectData(t, runs[i:i+1])
				}
				stats := from.of(f).Stats()
				t.Logf("IPv%d: %d runs refused", f, stats.SegmentRefused.Load())
				if test.name == "small MTU" && stats.SegmentRefused.Load() == 0 && from.of(f).Offloads().SegmentSend {
					t.Errorf("IPv%d: no run was refused by an MTU below its segments", f)
				}
				if n := stats.SendErrors.Load() + stats.SendTooBig.Load(); n != 0 {
					t.Errorf("IPv%d: %d datagrams dropped", f, n)
				}
			}
		})
	}
}

// TestFamiliesAlternate: one lane that changes families with every run gets all destinations right.
func TestFamiliesAlternate(t *testing.T) {
	a, b := cable(t)
	from, to := a.open(Config{}), b.open(Config{})
	dst := map[family]netip.AddrPort{
		v4: netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), to.port()), v6: netip.AddrPortFrom(netip.MustParseAddr("fd09::2"), to.port()),
	}
	sent, received := map[family][]Run{}, map[family]*collector{v4: newCollector(), v6: newCollector()}
	for i := range 40 {
		f := []family{v4, v6}[i%2]
		r := Run{Data: fmt.Appendf(nil, "run %02d for IPv%d", i, f), SegmentSize: 5, Dst: dst[f]}
		sent[f] = append(sent[f], r)
		sendAll(t, from.of(f), []Run{r})
	}
	for _, f := range []family{v4, v6} {
		received[f].until(t, to.of(f), countDatagrams(sent[f]))
		received[f].expectData(t, sent[f])
	}
}

// TestLocalAddressUnderGRO: trains to several addresses of one socket are told apart, and answers leave from the address
// that was asked.
func TestLocalAddressUnderGRO(t *testing.T) {
	a, b := cable(t)
	server, client := a.open(Config{}), b.open(Config{})
	for _, test := range []struct {
		f     family
		addrs []string
	}{{v4, []string{"10.9.0.11", "10.9.0.1", "10.9.0.12"}}, {v6, []string{"fd09::11", "fd09::1"}}} {
		s, c := server.of(test.f), client.of(test.f)
		const trains = 9
		var runs []Run
		for i := range trains {
			addr := netip.MustParseAddr(test.addrs[i%len(test.addrs)])
			data := make([]byte, 10*500+1)
			for j := range data {
				data[j] = byte(i % len(test.addrs))
			}
			runs = append(runs, Run{Data: data, SegmentSize: 500, Dst: netip.AddrPortFrom(addr, s.LocalPort())})
		}
		sendAll(t, c, runs)
		got := newCollector()
		got.until(t, s, countDatagrams(runs))
		for i, d := range got.from {
			want := netip.MustParseAddr(test.addrs[got.got[i][0]])
			if d.Dst != want || d.IfIndex == 0 {
				t.Fatalf("datagram %d to %v is said to have come to %v on interface %d", i, want, d.Dst, d.IfIndex)
			}
			back := newCollector()
			sendAll(t, s, []Run{{Data: []byte("answer"), SegmentSize: 3, Dst: d.Src, Src: d.Dst, IfIndex: d.IfIndex}})
			back.until(t, c, 2)
			if back.from[0].Src.Addr() != want {
				t.Fatalf("the answer for %v left from %v", want, back.from[0].Src)
			}
		}
		if n := s.Stats().SourceRejected.Load(); n != 0 {
			t.Errorf("%d sources rejected", n)
		}
	}
}

// TestSourceGoes: after its address is deleted a sticky source is left out.
func TestSourceGoes(t *testing.T) {
	a, b := cable(t)
	server, client := a.open(Config{}), b.open(Config{})
	a.ip("addr del 10.9.0.11/24 dev vetha")
	a.ip("addr del fd09::11/64 dev vetha")
	for _, test := range []struct {
		f        family
		dst, src string
		want     string
	}{{v4, "10.9.0.2", "10.9.0.11", "10.9.0.1"}, {v6, "fd09::2", "fd09::11", "fd09::1"}} {
		s, c := server.of(test.f), client.of(test.f)
		runs := []Run{{Data: []byte("aabbc"), SegmentSize: 2, Src: netip.MustParseAddr(test.src), Dst: netip.AddrPortFrom(netip.MustParseAddr(test.dst), c.LocalPort())}}
		sendAll(t, s, runs)
		got := newCollector()
		got.until(t, c, 3)
		got.expectData(t, runs)
		if got.from[0].Src.Addr() != netip.MustParseAddr(test.want) || s.Stats().SourceRejected.Load() != 1 {
			t.Errorf("left from %v, %d sources rejected", got.from[0].Src, s.Stats().SourceRejected.Load())
		}
	}
}

// TestOuterHeader reads the headers on the wire: the whole TOS byte as asked, DF clear in IPv4 (the kernel's WireGuard
// sends with skb->ignore_df), and ECN told to the receiver.
func TestOuterHeader(t *testing.T) {
	a, b := cable(t)
	from, to := a.open(Config{}), b.open(Config{})
	tap := b.tap()
	for _, f := range []family{v4, v6} {
		dst := netip.AddrPortFrom(netip.MustParseAddr(map[family]string{v4: "10.9.0.2", v6: "fd09::2"}[f]), to.port())
		for _, tos := range []uint8{0, 0x88, 1, 2, 3, 0xff} {
			for _, size := range []int{7, 3} { // alone and as a run
				sendAll(t, from.of(f), []Run{{Data: []byte("abcdefg"), SegmentSize: size, Dst: dst, TOS: tos}})
				c := newCollector()
				c.until(t, to.of(f), (7+size-1)/size)
				if c.from[0].ECN != ECN(tos&3) {
					t.Errorf("IPv%d TOS %#x: the receiver sees ECN %d", f, tos, c.from[0].ECN)
				}
				gotTOS, df := readTap(t, tap, f)
				if gotTOS != tos || df {
					t.Errorf("IPv%d TOS %#x: on the wire %#x, DF %t", f, tos, gotTOS, df)
				}
			}
		}
	}
}

// tap opens a packet socket in the namespace that sees what comes in.
func (n *namespace) tap() int {
	n.t.Helper()
	fd := -1
	var err error
	n.in(func() {
		proto := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(proto))
	})
	if err != nil {
		n.t.Skipf("SKIPPED: no packet socket: %v", err)
	}
	n.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// readTap returns TOS and DF of the first UDP packet of a family that waits, and empties the rest.
func readTap(t *testing.T, fd int, f family) (tos uint8, df bool) {
	t.Helper()
	var buf [BufferSize]byte
	found := false
	for {
		n, err := unix.Read(fd, buf[:])
		if err != nil || n < 40 && f == v6 {
			break
		}
		switch {
		case found || n < 20:
		case f == v4 && buf[0]>>4 == 4 && buf[9] == unix.IPPROTO_UDP:
			tos, df, found = buf[1], buf[6]&0x40 != 0, true
		case f == v6 && buf[0]>>4 == 6 && buf[6] == unix.IPPROTO_UDP:
			tos, found = buf[0]<<4|buf[1]>>4, true
		}
	}
	if !found {
		t.Fatal("no packet on the wire")
	}
	return tos, df
}

// TestMark: a rule that prohibits marked packets shows that all that is sent carries the mark, and clearing it helps.
func TestMark(t *testing.T) {
	for _, portable := range []bool{false, true} {
		a, b := cable(t)
		to := b.open(Config{})
		if err := a.try("ip rule add fwmark 7 prohibit"); err != nil {
			t.Skipf("SKIPPED: %v", err)
		}
		from := a.open(Config{Mark: 7, Portable: portable}).V4
		r := Run{Data: []byte("hello"), SegmentSize: 2, Dst: netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), to.port())}
		sendAll(t, from, []Run{r})
		one := from.SendOne(r)
		if !portable && !errors.Is(one, unix.EACCES) {
			t.Errorf("SendOne with the mark: %v", one)
		}
		waitSettled(from, func() bool { return from.Stats().SendErrors.Load() == 4 })
		if n := from.Stats().SendErrors.Load(); n != 4 {
			t.Errorf("portable %t: %d datagrams refused, want 4", portable, n)
		}
		if err := from.SetMark(0); err != nil {
			t.Fatal(err)
		}
		sendAll(t, from, []Run{r})
		c := newCollector()
		c.until(t, to.V4, 3)
		c.expectData(t, []Run{r})
	}
}

// waitSettled waits for what the portable socket's pump does.
func waitSettled(s Socket, settled func() bool) {
	for i := 0; i < 100 && !settled(); i++ {
		waitFor(-1, 0, 20)
	}
}

// onOneCPU keeps this process, and with it the interrupts and timers that its packets cause, on one processor: from two, a veth pair
// delivers in another order.
func onOneCPU(t *testing.T) {
	t.Helper()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if before.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	all := func(set *unix.CPUSet) {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range threads {
			if tid, err := strconv.Atoi(thread.Name()); err == nil {
				_ = unix.SchedSetaffinity(tid, set) // it may have ended
			}
		}
	}
	all(&one)
	t.Cleanup(func() { all(&before) })
}

// TestSendBufferFull: a slow device fills the socket buffer; Send stops short and goes on, and all arrives in order, also
// where a run goes datagram by datagram.
func TestSendBufferFull(t *testing.T) {
	for _, test := range []struct {
		name string
		mtu  int
	}{{"runs", 1500}, {"datagram by datagram", 1000}} {
		t.Run(test.name, func(t *testing.T) {
			onOneCPU(t)
			a, b := cable(t)
			const slowDevice = "tc qdisc %s dev vetha root tbf limit 10000000 rate %s burst %d"
			if err := a.try(slowDevice, "add", "100kbit", 3000); err != nil {
				t.Skipf("SKIPPED: no slow device: %v", err)
			}
			a.ip("link set vetha mtu %d", test.mtu)
			from, to := a.open(Config{SendBuffer: 100 << 10}).V4, b.open(Config{}).V4
			rng := rand.New(rand.NewPCG(7, 8))
			var runs []Run
			for range 40 {
				runs = append(runs, Run{Data: randomBytes(rng, 20*1200+1), SegmentSize: 1200, Dst: netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), to.LocalPort())})
			}
			c := newCollector()
			short := 0
			for rest := runs; len(rest) > 0; {
				n, err := from.Send(rest)
				if err != nil {
					t.Fatal(err)
				}
				if rest = rest[n:]; len(rest) == 0 {
					break
				}
				if short++; short == 1 {
					if err := a.try(slowDevice, "change", "1gbit", 1000000); err != nil {
						t.Fatal(err)
					}
				}
				waitWritable(from)
			}
			c.until(t, to, countDatagrams(runs))
			c.expectData(t, runs)
			if short == 0 {
				t.Error("the socket buffer never filled")
			}
		})
	}
}

// TestZone: a link-local source has its interface's index as zone, and the same address can be sent to, whatever the interface is
// called meanwhile.
func TestZone(t *testing.T) {
	a, b := cable(t)
	a.ip("addr add fe80::a/64 dev vetha nodad")
	b.ip("addr add fe80::b/64 dev vethb nodad")
	left, right := a.open(Config{}).V6, b.open(Config{}).V6
	a.in(func() { waitReach(t, left, right, "fe80::b%11") }) // new addresses take a moment
	b.in(func() { waitReach(t, right, left, "fe80::a%12") })
	from, to := a.open(Config{}).V6, b.open(Config{}).V6
	c := newCollector()
	a.in(func() {
		sendAll(t, from, []Run{{Data: []byte("hello"), SegmentSize: 2, Dst: netip.AddrPortFrom(netip.MustParseAddr("fe80::b%11"), to.LocalPort())}})
	})
	b.in(func() { c.until(t, to, 3) })
	src := c.from[0].Src
	if src != netip.AddrPortFrom(netip.MustParseAddr("fe80::a%12"), from.LocalPort()) {
		t.Fatalf("from %v", src)
	}
	back := newCollector()
	b.in(func() {
		sendAll(t, to, []Run{{Data: []byte("back"), SegmentSize: 4, Dst: src, Src: c.from[0].Dst, IfIndex: c.from[0].IfIndex}})
	})
	a.in(func() { back.until(t, from, 1) })
	if n := to.Stats().SourceRejected.Load(); n != 0 {
		t.Errorf("%d sources rejected", n)
	}
	a.in(func() { _, _ = from.Send([]Run{{Data: []byte("x"), Dst: netip.MustParseAddrPort("[fe80::b%none]:1")}}) })
	if from.Stats().SendErrors.Load() != 1 {
		t.Error("a zone that is not there was not counted")
	}
}

// TestShards: the sockets of a port share its flows, and nobody else gets the port, even where both would share it.
func TestShards(t *testing.T) {
	pairs, err := Listen(Config{Shards: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(pairs)
	port := pairs[0].port()
	if len(pairs) != 3 {
		t.Fatalf("%d pairs", len(pairs))
	}
	if _, err := Listen(Config{Port: port, Shards: 3}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second Listen on port %d: %v", port, err)
	}
	const flows = 48
	for range flows {
		from := open(t, Config{})
		sendAll(t, from.V4, []Run{{Data: []byte("x"), SegmentSize: 1, Dst: loopback(pairs[0].V4, v4)}})
	}
	counts := make([]int, len(pairs))
	c := newCollector()
	deadline := time.Now().Add(patience)
	for total := 0; total < flows; {
		for i, p := range pairs {
			n, err := p.V4.Receive(c.batch)
			if err != nil {
				t.Fatal(err)
			}
			counts[i] += n
			total += n
		}
		if time.Now().After(deadline) {
			t.Fatalf("received %v of %d", counts, flows)
		}
	}
	for i, n := range counts {
		if n == 0 {
			t.Errorf("shard %d of %v received nothing of %d flows", i, counts, flows)
		}
	}
}

// TestNoAllocations: sending and receiving runs allocate nothing, over either family.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("SKIPPED: the race detector allocates")
	}
	forEachFamily(t, Config{}, func(t *testing.T, from, to Socket, dst netip.AddrPort) {
		runs := []Run{
			{Data: make([]byte, 14520), SegmentSize: 1452, Dst: dst, Src: dst.Addr(), TOS: 2},
			{Data: make([]byte, 100), SegmentSize: 100, Dst: dst},
		}
		batch := newCollector().batch
		drain := func(bytes int) {
			for bytes > 0 {
				n, err := to.Receive(batch)
				if err != nil {
					t.Fatal(err)
				}
				for i := range batch[:n] {
					bytes -= len(batch[i].Data)
				}
			}
		}
		allocs := testing.AllocsPerRun(200, func() {
			if n, err := from.Send(runs); n != 2 || err != nil {
				t.Fatal(n, err)
			}
			if err := from.SendOne(runs[1]); err != nil {
				t.Fatal(err)
			}
			drain(14520 + 100 + 100)
			if n, err := to.Receive(batch); n != 0 || err != nil {
				t.Fatal(n, err)
			}
		})
		if allocs != 0 {
			t.Errorf("%v allocations", allocs)
		}
	})
}
