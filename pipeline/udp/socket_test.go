package udp

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"
)

// patience bounds waits for loopback; it is only spent by a test that fails.
const patience = 10 * time.Second

// forEachKind runs a test of the contract with the platform's own socket, with it without offloads, and with the portable one.
func forEachKind(t *testing.T, test func(t *testing.T, cfg Config)) {
	for _, kind := range []struct {
		name string
		cfg  Config
	}{{"native", Config{}}, {"without offloads", Config{NoSegment: true, NoGRO: true}}, {"portable", Config{Portable: true}}} {
		t.Run(kind.name, func(t *testing.T) { test(t, kind.cfg) })
	}
}

// open listens and closes at the test's end.
func open(t testing.TB, cfg Config) Pair {
	t.Helper()
	pairs, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(pairs) })
	return pairs[0]
}

func loopback(s Socket, f family) netip.AddrPort {
	if f == v6 {
		return netip.AddrPortFrom(netip.IPv6Loopback(), s.LocalPort())
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), s.LocalPort())
}

// forEachFamily opens a receiver and a sender and runs the test in the families that the machine has.
func forEachFamily(t *testing.T, cfg Config, test func(t *testing.T, from, to Socket, dst netip.AddrPort)) {
	a, b := open(t, cfg), open(t, cfg)
	for _, f := range []family{v4, v6} {
		t.Run(fmt.Sprintf("IPv%d", f), func(t *testing.T) {
			if a.of(f) == nil {
				t.Skip("SKIPPED: this machine lacks the address family")
			}
			test(t, a.of(f), b.of(f), loopback(b.of(f), f))
		})
	}
}

// sendAll sends runs and waits while the socket is full.
func sendAll(t testing.TB, s Socket, runs []Run) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for len(runs) > 0 {
		n, err := s.Send(runs)
		if err != nil {
			t.Fatal(err)
		}
		runs = runs[n:]
		if len(runs) > 0 {
			waitWritable(s)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d runs not sent", len(runs))
		}
	}
}

// collector takes datagrams apart and keeps them in order.
type collector struct {
	batch []Datagrams
	got   [][]byte
	from  []Datagrams // without Buf and Data
}

func newCollector() *collector {
	c := &collector{batch: make([]Datagrams, 8)}
	for i := range c.batch {
		c.batch[i].Buf = make([]byte, BufferSize)
	}
	return c
}

// until receives until n datagrams are there.
func (c *collector) until(t testing.TB, s Socket, n int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for len(c.got) < n {
		k, err := s.Receive(c.batch)
		if err != nil {
			t.Fatal(err)
		}
		for i := range c.batch[:k] {
			c.split(t, &c.batch[i])
		}
		if k == 0 {
			waitReadable(s)
		}
		if time.Now().After(deadline) {
			t.Fatalf("received %d of %d datagrams; %d truncated", len(c.got), n, s.Stats().ReceiveTruncated.Load())
		}
	}
}

func (c *collector) split(t testing.TB, d *Datagrams) {
	t.Helper()
	if len(d.Data) > 0 && d.SegmentSize < 1 {
		t.Fatalf("segment size %d of %d bytes", d.SegmentSize, len(d.Data))
	}
	rest := d.Data
	for first := true; first || len(rest) > 0; first = false {
		n := min(max(1, d.SegmentSize), len(rest))
		c.got = append(c.got, bytes.Clone(rest[:n]))
		c.from = append(c.from, Datagrams{Src: d.Src, Dst: d.Dst, IfIndex: d.IfIndex, ECN: d.ECN, SegmentSize: len(rest)})
		rest = rest[n:]
	}
}

// expectData compares received datagrams with those that runs are made of.
func (c *collector) expectData(t testing.TB, runs []Run) {
	t.Helper()
	i := 0
	for r := range runs {
		size := runs[r].segmentSize()
		for off := 0; off == 0 || off < len(runs[r].Data); off += size {
			want := runs[r].Data[off:min(off+size, len(runs[r].Data))]
			if i >= len(c.got) || !bytes.Equal(c.got[i], want) {
				t.Fatalf("datagram %d (run %d, offset %d, %d bytes) differs or is missing; received %d", i, r, off, len(want), len(c.got))
			}
			i++
		}
	}
	if i != len(c.got) {
		t.Fatalf("received %d datagrams, sent %d", len(c.got), i)
	}
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func countDatagrams(runs []Run) int {
	n := 0
	for i := range runs {
		n += segmentCount(len(runs[i].Data), runs[i].segmentSize())
	}
	return n
}

// TestTrains: runs with odd tails, single datagrams, the largest and the empty one, in order and whole.
func TestTrains(t *testing.T) {
	forEachKind(t, func(t *testing.T, cfg Config) {
		forEachFamily(t, cfg, func(t *testing.T, from, to Socket, dst netip.AddrPort) {
			rng := rand.New(rand.NewPCG(1, 2))
			for _, shape := range []struct{ bytes, size int }{
				{1452, 1452}, {14520, 1452}, {14521, 1452}, {14519, 1452}, {MaxSegments * 100, 100}, {MaxSegments*100 - 99, 100},
				{(MaxSegments + 9) * 32, 32}, {MaxDatagram, MaxDatagram}, {MaxDatagram, 1440}, {65000, 1300}, {1, 1}, {40, 1}, {0, 0},
			} {
				runs := []Run{{Data: randomBytes(rng, shape.bytes), SegmentSize: shape.size, Dst: dst}, {Data: []byte("end"), SegmentSize: 3, Dst: dst}}
				c := newCollector()
				sendAll(t, from, runs)
				c.until(t, to, countDatagrams(runs))
				c.expectData(t, runs)
				if want := netip.AddrPortFrom(dst.Addr(), from.LocalPort()); c.from[0].Src != want {
					t.Fatalf("from %v, want %v", c.from[0].Src, want)
				}
			}
			if n := to.Stats().ReceiveTruncated.Load(); n != 0 {
				t.Errorf("%d truncated", n)
			}
		})
	})
}

// TestManyRuns sends a seeded mixture: nothing is lost and nothing overtaken. Few runs are on the way at once, so that the
// receive buffer of a machine that grants little does not overflow.
func TestManyRuns(t *testing.T) {
	forEachKind(t, func(t *testing.T, cfg Config) {
		cfg.SendBuffer = 16 << 10
		forEachFamily(t, cfg, func(t *testing.T, from, to Socket, dst netip.AddrPort) {
			rng := rand.New(rand.NewPCG(3, 4))
			for range 12 {
				var runs []Run
				for range 4 {
					size := 1 + rng.IntN(1452)
					count := 1 + rng.IntN(MaxSegments)
					total := min(size*count-rng.IntN(size), MaxDatagram, 20000)
					runs = append(runs, Run{Data: randomBytes(rng, total), SegmentSize: size, Dst: dst})
				}
				c := newCollector()
				sendAll(t, from, runs)
				c.until(t, to, countDatagrams(runs))
				c.expectData(t, runs)
			}
		})
	})
}

// TestShortBuffer: a datagram longer than the buffer is dropped, counted, keeps its place, and hurts no other.
func TestShortBuffer(t *testing.T) {
	forEachKind(t, func(t *testing.T, cfg Config) {
		forEachFamily(t, cfg, func(t *testing.T, from, to Socket, dst netip.AddrPort) {
			c := newCollector()
			for i := range c.batch {
				c.batch[i].Buf = make([]byte, 100)
			}
			sendAll(t, from, []Run{{Data: make([]byte, 101), SegmentSize: 101, Dst: dst}, {Data: make([]byte, 100), SegmentSize: 100, Dst: dst}})
			c.until(t, to, 2)
			if len(c.got[0]) != 0 || len(c.got[1]) != 100 || to.Stats().ReceiveTruncated.Load() != 1 {
				t.Fatalf("received %d and %d bytes, %d truncated", len(c.got[0]), len(c.got[1]), to.Stats().ReceiveTruncated.Load())
			}
		})
	})
}

// TestPortUnreachable: the ICMP messages that come back from a closed port break neither direction.
func TestPortUnreachable(t *testing.T) {
	forEachKind(t, func(t *testing.T, cfg Config) {
		forEachFamily(t, cfg, func(t *testing.T, from, to Socket, dst netip.AddrPort) {
			gone := open(t, Config{Portable: cfg.Portable})
			nobody := netip.AddrPortFrom(dst.Addr(), gone.port())
			closeAll([]Pair{gone})
			var runs []Run
			for i := range 20 {
				runs = append(runs, Run{Data: []byte{byte(i)}, SegmentSize: 1, Dst: []netip.AddrPort{nobody, dst}[i%2]})
			}
			c := newCollector()
			sendAll(t, from, runs)
			c.until(t, to, 10)
			sendAll(t, to, []Run{{Data: []byte("back"), SegmentSize: 4, Dst: netip.AddrPortFrom(dst.Addr(), from.LocalPort())}})
			newCollector().until(t, from, 1)
		})
	})
}

func TestSendOneFromManyGoroutines(t *testing.T) {
	forEachKind(t, func(t *testing.T, cfg Config) {
		forEachFamily(t, cfg, func(t *testing.T, from, to Socket, dst netip.AddrPort) {
			const senders, each = 4, 50
			var wg sync.WaitGroup
			for g := range senders {
				wg.Go(func() {
					for i := range each {
						r := Run{Data: []byte{byte(g), byte(i)}, Dst: dst, TOS: 0x88}
						err := from.SendOne(r)
						for errors.Is(err, errFull) { // a busy machine may not drain in time
							err = from.SendOne(r)
						}
						if err != nil {
							t.Error(err)
						}
					}
				})
			}
			sendAll(t, from, []Run{{Data: []byte{9, 9}, SegmentSize: 2, Dst: dst}}) // beside the lane
			wg.Wait()
			c := newCollector()
			c.until(t, to, senders*each+1)
			var next [10]byte
			for _, d := range c.got {
				if d[0] != 9 && d[1] != next[d[0]] {
					t.Fatalf("goroutine %d: datagram %d came when %d was due", d[0], d[1], next[d[0]])
				}
				next[d[0]]++
			}
		})
	})
}

func TestClose(t *testing.T) {
	forEachKind(t, func(t *testing.T, cfg Config) {
		before := runtime.NumGoroutine()
		pairs, err := Listen(cfg)
		if err != nil {
			t.Fatal(err)
		}
		s := pairs[0].V4
		woken := make(chan error)
		go func() {
			for {
				_, err := s.Receive([]Datagrams{{Buf: make([]byte, BufferSize)}})
				if err != nil {
					woken <- err
					return
				}
				waitReadable(s)
			}
		}()
		closeAll(pairs)
		select {
		case err := <-woken:
			if !errors.Is(err, ErrClosed) {
				t.Fatalf("Receive after Close: %v", err)
			}
		case <-time.After(patience):
			t.Fatal("Close did not wake the goroutine that waits")
		}
		if _, err := s.Send([]Run{{Dst: dstAny}}); !errors.Is(err, ErrClosed) {
			t.Errorf("Send after Close: %v", err)
		}
		if err := s.SendOne(Run{Dst: dstAny}); !errors.Is(err, ErrClosed) {
			t.Errorf("SendOne after Close: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		cfg.Port = s.LocalPort()
		closeAll([]Pair{open(t, cfg)}) // the port is free again
		if after := runtime.NumGoroutine(); after > before+1 {
			t.Errorf("%d goroutines before, %d after", before, after)
		}
	})
}

var dstAny = netip.MustParseAddrPort("127.0.0.1:9")

func TestOffloads(t *testing.T) {
	p := open(t, Config{ReceiveBuffer: 64 << 10, SendBuffer: 32 << 10, Portable: true})
	if o := p.V4.Offloads(); o.SegmentSend || o.GROReceive || o.BatchCalls || o.LocalAddress {
		t.Errorf("the portable socket has %+v", o)
	}
	if portableOnly {
		t.Skip("SKIPPED: this platform has only the portable socket")
	}
	p = open(t, Config{ReceiveBuffer: 64 << 10, SendBuffer: 32 << 10, NoSegment: true, NoGRO: true})
	want := Offloads{BatchCalls: true, LocalAddress: true, ReceiveBuffer: 64 << 10, SendBuffer: 32 << 10}
	if o := p.V4.Offloads(); o != want {
		t.Errorf("got %+v, want %+v", o, want)
	}
}
