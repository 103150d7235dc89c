package udptest

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/udp"
)

var (
	alice4 = netip.MustParseAddr("10.0.0.1")
	bob4   = netip.MustParseAddr("10.0.0.2")
	alice6 = netip.MustParseAddr("fd00::1")
	bob6   = netip.MustParseAddr("fd00::2")
)

func listen(t *testing.T, l udp.Listener, cfg udp.Config) []udp.Pair {
	t.Helper()
	pairs, err := l(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return pairs
}

func send(t *testing.T, s udp.Socket, runs ...udp.Run) {
	t.Helper()
	if n, err := s.Send(runs); n != len(runs) || err != nil {
		t.Fatalf("Send of %d runs: %d, %v", len(runs), n, err)
	}
}

// receive takes all that waits.
func receive(t *testing.T, s udp.Socket) []udp.Datagrams {
	t.Helper()
	var all []udp.Datagrams
	for {
		batch := make([]udp.Datagrams, 4)
		for i := range batch {
			batch[i].Buf = make([]byte, udp.BufferSize)
		}
		n, err := s.Receive(batch)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return all
		}
		all = append(all, batch[:n]...)
	}
}

func texts(all []udp.Datagrams) []string {
	var out []string
	for _, d := range all {
		out = append(out, string(d.Data))
	}
	return out
}

func TestDelivery(t *testing.T) {
	n := New(1)
	a := listen(t, n.Listen(alice4, alice6), udp.Config{})[0]
	b := listen(t, n.Listen(bob4, bob6), udp.Config{Port: 51820})[0]
	if a.V4.LocalPort() != a.V6.LocalPort() || b.V4.LocalPort() != 51820 {
		t.Fatal("ports differ")
	}
	for _, test := range []struct {
		from, to udp.Socket
		src, dst netip.Addr
	}{{a.V4, b.V4, alice4, bob4}, {a.V6, b.V6, alice6, bob6}} {
		dst := netip.AddrPortFrom(test.dst, 51820)
		send(t, test.from, udp.Run{Data: []byte("aabbc"), SegmentSize: 2, Dst: dst, TOS: 0x8a})
		got := receive(t, test.to)
		if want := []string{"aa", "bb", "c"}; !slices.Equal(texts(got), want) {
			t.Fatalf("received %q", texts(got))
		}
		d := got[0]
		if d.Src != netip.AddrPortFrom(test.src, test.from.LocalPort()) || d.Dst != test.dst || d.ECN != 2 || d.SegmentSize != 2 || d.IfIndex == 0 {
			t.Fatalf("received %+v", d)
		}
	}
	send(t, a.V4, udp.Run{Data: []byte("x"), SegmentSize: 1, Dst: netip.AddrPortFrom(bob4, 9)})
	if d := n.Dropped(); d != (Drops{NoSocket: 1}) {
		t.Fatalf("dropped %+v", d)
	}
}

func TestListenErrors(t *testing.T) {
	n := New(1)
	h := n.Host(alice4)
	pairs := listen(t, h.Listen, udp.Config{Port: 7, Shards: 2})
	if len(pairs) != 2 || pairs[0].V6 != nil || pairs[1].V4 == nil {
		t.Fatalf("pairs %+v", pairs)
	}
	if _, err := h.Listen(udp.Config{Port: 7}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("taken port: %v", err)
	}
	if _, err := n.Host().Listen(udp.Config{}); !errors.Is(err, udp.ErrNoFamily) {
		t.Fatalf("no address: %v", err)
	}
	for _, p := range pairs {
		p.V4.Close()
	}
	listen(t, h.Listen, udp.Config{Port: 7})
	if _, err := pairs[0].V4.Send(nil); !errors.Is(err, udp.ErrClosed) {
		t.Fatalf("Send after Close: %v", err)
	}
	if _, err := pairs[0].V4.Receive(nil); !errors.Is(err, udp.ErrClosed) {
		t.Fatalf("Receive after Close: %v", err)
	}
	for range 1 << 14 { // more than the ephemeral ports there are
		p, err := h.Listen(udp.Config{})
		if err != nil {
			t.Fatal(err)
		}
		p[0].V4.Close()
	}
}

func TestJoinRuns(t *testing.T) {
	tests := []struct {
		name string
		runs []string // data of 2-byte segments; a leading '!' gives it another ECN mark
		want []string
	}{
		{"equal", []string{"aa", "bb", "cc"}, []string{"aabbcc"}},
		{"odd tail ends a run", []string{"aa", "b", "cc"}, []string{"aab", "cc"}},
		{"longer starts one", []string{"a", "bbb"}, []string{"a", "bbb"}},
		{"ECN", []string{"aa", "!bb", "!cc", "dd"}, []string{"aa", "bbcc", "dd"}},
		{"64 at most", []string{string(bytes.Repeat([]byte("z"), 2*64)), "yy"}, []string{string(bytes.Repeat([]byte("z"), 2*64)), "yy"}},
	}
	for _, test := range tests {
		n := New(1)
		n.JoinRuns(true)
		a := listen(t, n.Listen(alice4, alice6), udp.Config{})[0]
		b := listen(t, n.Listen(bob4, bob6), udp.Config{Port: 1})[0]
		for _, data := range test.runs {
			r := udp.Run{Data: []byte(data), SegmentSize: 2, Dst: netip.AddrPortFrom(bob4, 1)}
			if data[0] == '!' {
				r.Data, r.TOS = r.Data[1:], 3
			}
			send(t, a.V4, r)
		}
		if got := texts(receive(t, b.V4)); !slices.Equal(got, test.want) {
			t.Errorf("%s: received %q", test.name, got)
		}
	}
}

func TestImpairments(t *testing.T) {
	outcome := func(seed uint64, imp Impairment) []string {
		n := New(seed)
		n.Impair(func(_, dst netip.AddrPort) Impairment {
			if dst.Addr() == bob4 {
				return imp
			}
			return Impairment{Loss: 1}
		})
		a := listen(t, n.Listen(alice4, alice6), udp.Config{})[0]
		b := listen(t, n.Listen(bob4, bob6), udp.Config{Port: 1})[0]
		for i := range 200 {
			send(t, a.V4, udp.Run{Data: fmt.Appendf(nil, "%03d", i), SegmentSize: 3, Dst: netip.AddrPortFrom(bob4, 1)})
		}
		n.Flush()
		return texts(receive(t, b.V4))
	}
	whole := outcome(1, Impairment{})
	if len(whole) != 200 || !slices.IsSorted(whole) {
		t.Fatalf("a perfect link delivered %d", len(whole))
	}
	lossy := outcome(1, Impairment{Loss: 0.5})
	if len(lossy) < 60 || len(lossy) > 140 || !slices.IsSorted(lossy) {
		t.Errorf("loss of a half delivered %d of 200", len(lossy))
	}
	if !slices.Equal(lossy, outcome(1, Impairment{Loss: 0.5})) || slices.Equal(lossy, outcome(2, Impairment{Loss: 0.5})) {
		t.Error("the seed does not decide")
	}
	if doubled := outcome(1, Impairment{Duplicate: 1}); len(doubled) != 400 || doubled[0] != doubled[1] {
		t.Errorf("duplication delivered %d", len(doubled))
	}
	mixed := outcome(1, Impairment{Reorder: 0.3})
	if slices.IsSorted(mixed) {
		t.Error("nothing was reordered")
	}
	if slices.Sort(mixed); !slices.Equal(mixed, whole) {
		t.Errorf("reordering lost some: %d left", len(mixed))
	}
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		n.Impair(func(_, _ netip.AddrPort) Impairment { return Impairment{Delay: 40 * time.Millisecond} })
		a := listen(t, n.Listen(alice4, alice6), udp.Config{})[0]
		b := listen(t, n.Listen(bob4, bob6), udp.Config{Port: 1})[0]
		start := time.Now()
		send(t, a.V4, udp.Run{Data: []byte("x"), SegmentSize: 1, Dst: netip.AddrPortFrom(bob4, 1)})
		if got := receive(t, b.V4); len(got) != 0 {
			t.Fatalf("%d datagrams came at once", len(got))
		}
		<-b.V4.Ready()
		if took := time.Since(start); took != 40*time.Millisecond || len(receive(t, b.V4)) != 1 {
			t.Fatalf("came after %v", took)
		}
	})
}

// TestHook translates addresses as a NAT does.
func TestHook(t *testing.T) {
	n := New(1)
	a := listen(t, n.Listen(alice4, alice6), udp.Config{Port: 5})[0]
	b := listen(t, n.Listen(bob4, bob6), udp.Config{Port: 1})[0]
	outside := netip.MustParseAddrPort("203.0.113.9:777")
	n.Hook(func(d *Datagram) bool {
		if d.Src.Addr() == alice4 {
			d.Src = outside
		}
		if d.Dst == outside {
			d.Dst = netip.AddrPortFrom(alice4, 5)
		}
		d.Data = append(d.Data, '!')
		return d.Data[0] != 'x'
	})
	send(t, a.V4, udp.Run{Data: []byte("x"), SegmentSize: 1, Dst: netip.AddrPortFrom(bob4, 1)},
		udp.Run{Data: []byte("y"), SegmentSize: 1, Dst: netip.AddrPortFrom(bob4, 1)})
	got := receive(t, b.V4)
	if len(got) != 1 || got[0].Src != outside || string(got[0].Data) != "y!" {
		t.Fatalf("received %v", got)
	}
	send(t, b.V4, udp.Run{Data: []byte("z"), SegmentSize: 1, Dst: got[0].Src})
	if back := receive(t, a.V4); len(back) != 1 || n.Dropped().Hooked != 1 {
		t.Fatalf("%d came back, %+v", len(back), n.Dropped())
	}
}

func TestStallAndQueueLimit(t *testing.T) {
	n := New(1)
	n.QueueLimit(2)
	a := listen(t, n.Listen(alice4, alice6), udp.Config{Port: 5})[0]
	b := listen(t, n.Listen(bob4, bob6), udp.Config{Port: 1})[0]
	r := udp.Run{Data: []byte("x"), SegmentSize: 1, Dst: netip.AddrPortFrom(bob4, 1)}
	n.Stall(netip.AddrPortFrom(alice4, 5), true)
	if k, err := a.V4.Send([]udp.Run{r}); k != 0 || err != nil {
		t.Fatalf("a stalled socket sent %d, %v", k, err)
	}
	select {
	case <-a.V4.Writable():
		t.Fatal("a stalled socket is writable")
	default:
	}
	n.Stall(netip.AddrPortFrom(alice4, 5), false)
	<-a.V4.Writable()
	send(t, a.V4, r, r, r)
	if got := receive(t, b.V4); len(got) != 2 || n.Dropped().QueueFull != 1 {
		t.Fatalf("%d came, dropped %+v", len(got), n.Dropped())
	}
}

func TestAddressesOfAHost(t *testing.T) {
	n := New(1)
	h := n.Host(alice4)
	second := netip.MustParseAddr("10.0.0.11")
	a := listen(t, h.Listen, udp.Config{Port: 5})[0]
	b := listen(t, n.Listen(bob4, bob6), udp.Config{Port: 1})[0]
	h.AddAddress(second)
	dst := netip.AddrPortFrom(bob4, 1)
	r := udp.Run{Data: []byte("x"), SegmentSize: 1, Dst: dst, Src: second}
	send(t, a.V4, r)
	if got := receive(t, b.V4); got[0].Src.Addr() != second {
		t.Fatalf("left from %v", got[0].Src)
	}
	send(t, b.V4, udp.Run{Data: []byte("y"), SegmentSize: 1, Dst: netip.AddrPortFrom(second, 5)})
	if got := receive(t, a.V4); len(got) != 1 || got[0].Dst != second || got[0].IfIndex != 2 {
		t.Fatalf("received %+v", got)
	}
	h.RemoveAddress(second)
	send(t, a.V4, r)
	if got := receive(t, b.V4); got[0].Src.Addr() != alice4 || a.V4.Stats().SourceRejected.Load() != 1 {
		t.Fatalf("left from %v", got[0].Src)
	}
	n.Inject(Datagram{Src: dst, Dst: netip.AddrPortFrom(second, 5), Data: []byte("z")})
	if n.Dropped().NoSocket != 1 {
		t.Fatal("a datagram to a removed address was delivered")
	}
}

// TestShardsKeepFlows: a flow stays at one of the sockets that share the port.
func TestShardsKeepFlows(t *testing.T) {
	n := New(1)
	pairs := listen(t, n.Listen(bob4, bob6), udp.Config{Port: 1, Shards: 4})
	used := 0
	for port := range uint16(32) {
		for range 3 {
			n.Inject(Datagram{Src: netip.AddrPortFrom(alice4, port+1), Dst: netip.AddrPortFrom(bob4, 1), Data: []byte("x")})
		}
		for _, p := range pairs {
			if got := receive(t, p.V4); len(got) == 3 {
				used |= 1 << slices.Index(pairs, p)
			} else if len(got) != 0 {
				t.Fatalf("a flow of 3 has %d datagrams at one shard", len(got))
			}
		}
	}
	if used != 15 {
		t.Fatalf("shards in use: %04b", used)
	}
}

func TestShortBufferAndMark(t *testing.T) {
	n := New(1)
	b := listen(t, n.Listen(bob4, bob6), udp.Config{Port: 1, Mark: 3})[0]
	n.Inject(Datagram{Src: netip.AddrPortFrom(alice4, 1), Dst: netip.AddrPortFrom(bob4, 1), Data: []byte("longer")})
	batch := []udp.Datagrams{{Buf: make([]byte, 3)}}
	if k, err := b.V4.Receive(batch); k != 1 || err != nil || len(batch[0].Data) != 0 || b.V4.Stats().ReceiveTruncated.Load() != 1 {
		t.Fatalf("%d, %v, %q", k, err, batch[0].Data)
	}
	if Mark(b.V4) != 3 || b.V4.SetMark(9) != nil || Mark(b.V4) != 9 {
		t.Fatal("the mark is not kept")
	}
}

// TestConcurrent is for the race detector: everything at once, and Close wakes a waiter.
func TestConcurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a := listen(t, n.Listen(alice4, alice6), udp.Config{})[0]
		b := listen(t, n.Listen(bob4, bob6), udp.Config{Port: 1})[0]
		var wg sync.WaitGroup
		total := 0
		wg.Go(func() {
			batch := []udp.Datagrams{{Buf: make([]byte, udp.BufferSize)}}
			for {
				k, err := b.V4.Receive(batch)
				if errors.Is(err, udp.ErrClosed) {
					return
				}
				total += k
				if k == 0 {
					<-b.V4.Ready()
				}
			}
		})
		for range 4 {
			wg.Go(func() {
				for range 50 {
					if err := a.V4.SendOne(udp.Run{Data: []byte("x"), Dst: netip.AddrPortFrom(bob4, 1)}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		synctest.Wait()
		b.V4.Close()
		wg.Wait()
		if total != 200 {
			t.Fatalf("received %d of 200", total)
		}
	})
}
