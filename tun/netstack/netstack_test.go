package netstack

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"github.com/sluice-vpn/sluice/tun"
)

var (
	client4, client6 = netip.MustParsePrefix("100.64.0.2/10"), netip.MustParsePrefix("fd00:2021:1111::2/107")
	server4, server6 = netip.MustParsePrefix("100.64.0.1/10"), netip.MustParsePrefix("fd00:2021:1111::1/107")
)

// cable joins two stacks as a tunnel does: superpackets are cut, single packets arrive, and are joined again.
type cable struct {
	a, b    *Stack
	largest atomic.Int64 // of the runs written, bytes
}

func newCable(t *testing.T, a, b Config) *cable {
	t.Helper()
	c := &cable{}
	for _, end := range []struct {
		stack  **Stack
		config Config
		own    []netip.Prefix
	}{{&c.a, a, []netip.Prefix{client4, client6}}, {&c.b, b, []netip.Prefix{server4, server6}}} {
		s, err := New(end.config)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SetAddresses(end.own); err != nil {
			t.Fatal(err)
		}
		*end.stack = s
	}
	done := make(chan struct{})
	var carried sync.WaitGroup
	carried.Go(func() { c.carry(done, c.a, c.b) })
	carried.Go(func() { c.carry(done, c.b, c.a) })
	t.Cleanup(func() {
		close(done)
		carried.Wait()
		c.a.Close()
		c.b.Close()
	})
	return c
}

// carry is a shard of one direction. It looks again and again, so that it needs neither descriptors nor channels.
func (c *cable) carry(done chan struct{}, from, to *Stack) {
	batch := make([]tun.Superpacket, 16)
	for i := range batch {
		batch[i].Buf = make([]byte, tun.ReadBufferSize)
	}
	coalescer := tun.NewCoalescer(to.Capabilities())
	var segmenter tun.Segmenter
	for {
		select {
		case <-done:
			return
		default:
		}
		n, err := from.queue.Read(batch)
		if err != nil {
			return
		}
		if n == 0 {
			time.Sleep(50 * time.Microsecond)
			continue
		}
		coalescer.Reset()
		for i := range n {
			if err := segmenter.Init(&batch[i]); err != nil {
				panic(err)
			}
			for k := range segmenter.Count() {
				packet := make([]byte, segmenter.Len(k))
				segmenter.Cut(k, packet)
				coalescer.Add(packet)
			}
		}
		runs := coalescer.Runs()
		for i := range runs {
			size := 0
			for _, piece := range runs[i].Pieces {
				size += len(piece)
			}
			c.largest.Store(max(c.largest.Load(), int64(size)))
		}
		if _, err := to.queue.Write(runs); err != nil {
			return
		}
	}
}

func (c *cable) listen(t *testing.T, at netip.AddrPort) net.Listener {
	t.Helper()
	l, err := gonet.ListenTCP(c.b.stack, full(at), protocolOf(at.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// TestTransfer: bytes arrive as they are in superpackets, in both directions at once, and each direction ends by itself.
func TestTransfer(t *testing.T) {
	for name, server := range map[string]netip.Prefix{"IPv4": server4, "IPv6": server6, "without offload": server4} {
		t.Run(name, func(t *testing.T) {
			offload := name != "without offload"
			config := Config{MTU: 1416, NoOffload: !offload}
			c := newCable(t, config, config)
			at := netip.AddrPortFrom(server.Addr(), 80)
			l := c.listen(t, at)
			go func() { // echoes, and ends when the other side has
				conn, err := l.Accept()
				if err != nil {
					return
				}
				io.Copy(conn, conn)
				conn.(*gonet.TCPConn).CloseWrite()
			}()
			conn, err := c.a.DialTCP(t.Context(), at)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(time.Minute))
			size := int64(16 << 20)
			if !offload {
				size = 2 << 20
			}
			sent, got := sha256.New(), sha256.New()
			go func() {
				io.Copy(io.MultiWriter(conn, sent), io.LimitReader(rand.NewChaCha8([32]byte{1}), size))
				conn.CloseWrite()
			}()
			n, err := io.Copy(got, conn)
			if n != size || err != nil || string(got.Sum(nil)) != string(sent.Sum(nil)) {
				t.Errorf("%d bytes came back (%v), want %d, and the same", n, err, size)
			}
			if largest := c.largest.Load(); (largest > 20000) != offload {
				t.Errorf("the largest run had %d bytes; superpackets: want %v", largest, offload)
			}
			stats := c.a.queue.Stats()
			if packets, segments := stats.ReadPackets.Load(), stats.ReadSegments.Load(); (segments > 2*packets) != offload {
				t.Errorf("%d packets were read for %d segments; superpackets: want %v", packets, segments, offload)
			}
		})
	}
}

// TestRefusals: who dials is told why it failed.
func TestRefusals(t *testing.T) {
	c := newCable(t, Config{}, Config{})
	for _, server := range []netip.Prefix{server4, server6} {
		_, err := c.a.DialTCP(t.Context(), netip.AddrPortFrom(server.Addr(), 81))
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a closed port: %v, want %v", err, syscall.ECONNREFUSED)
		}
	}
	ctx, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer stop()
	if _, err := c.a.DialTCP(ctx, netip.MustParseAddrPort("192.0.2.1:80")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody answers: %v, want %v", err, context.DeadlineExceeded)
	}
	if err := c.a.SetAddresses([]netip.Prefix{client4}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.a.DialTCP(t.Context(), netip.AddrPortFrom(server6.Addr(), 81)); !errors.Is(err, syscall.ENETUNREACH) && !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("without an address of the family: %v, want unreachable", err)
	}
}

// TestEcho: signs of life come back, and where there is nobody none does.
func TestEcho(t *testing.T) {
	c := newCable(t, Config{}, Config{})
	for _, to := range []netip.Addr{server4.Addr(), server6.Addr()} {
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
		if took, err := c.a.Echo(ctx, to, 258); err != nil || took <= 0 {
			t.Errorf("echo to %v: %v, %v", to, took, err)
		}
		stop()
	}
	ctx, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer stop()
	if took, err := c.a.Echo(ctx, netip.MustParseAddr("192.0.2.1"), 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("echo to nobody: %v, %v, want %v", took, err, context.DeadlineExceeded)
	}
}

// TestDatagrams: UDP goes there and back, larger than a packet too.
func TestDatagrams(t *testing.T) {
	c := newCable(t, Config{}, Config{})
	for _, server := range []netip.Prefix{server4, server6} {
		at := full(netip.AddrPortFrom(server.Addr(), 53))
		l, err := gonet.DialUDP(c.b.stack, &at, nil, protocolOf(server.Addr()))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			buffer := make([]byte, 5000)
			n, from, _ := l.ReadFrom(buffer)
			l.WriteTo(buffer[:n], from)
		}()
		conn, err := c.a.DialUDP(netip.AddrPortFrom(server.Addr(), 53))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		conn.Write(make([]byte, 3000))
		n, err := conn.Read(make([]byte, 5000))
		if n != 3000 || err != nil {
			t.Errorf("%v: %d bytes came back (%v), want 3000", server, n, err)
		}
	}
}

// TestClose: connections that are open end, and so does whoever reads.
func TestClose(t *testing.T) {
	c := newCable(t, Config{}, Config{})
	at := netip.AddrPortFrom(server4.Addr(), 80)
	c.listen(t, at)
	conn, err := c.a.DialTCP(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		ended <- err
	}()
	c.a.Close()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a read of a connection of a closed stack: no error")
		}
	case <-time.After(10 * time.Second):
		t.Error("a read goes on after the end of the stack")
	}
	if _, err := c.a.queue.Read(make([]tun.Superpacket, 1)); err != tun.ErrClosed {
		t.Errorf("Read: %v, want %v", err, tun.ErrClosed)
	}
	if _, err := c.a.queue.Write(nil); err != tun.ErrClosed {
		t.Errorf("Write: %v, want %v", err, tun.ErrClosed)
	}
	if _, err := c.a.DialTCP(t.Context(), at); err == nil {
		t.Error("a closed stack dials")
	}
}

// TestBacklog: packets that nobody reads are dropped and counted, and what is no packet is not let in.
func TestBacklog(t *testing.T) {
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.SetAddresses([]netip.Prefix{client4})
	conn, err := s.DialUDP(netip.MustParseAddrPort("100.64.0.1:9"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range backlog + 10 {
		conn.Write([]byte("x"))
	}
	if got := s.queue.stats.ReadDropped.Load(); got != 10 {
		t.Errorf("%d packets were dropped, want 10", got)
	}
	s.queue.Write([]tun.Run{{Pieces: [][]byte{{0x45, 0}}}, {Pieces: [][]byte{{}}}, {Pieces: [][]byte{make([]byte, 40)}}})
	if got := s.queue.stats.WriteRefused.Load(); got != 3 {
		t.Errorf("%d of 3 were refused", got)
	}
}
