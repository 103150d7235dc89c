package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/aead"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun"
	"github.com/sluice-vpn/sluice/tun/host"
)

// The rungs with a kernel under them, in namespaces of the test's own.
func BenchmarkLadderKernel(b *testing.B) {
	lab.NeedTUN(b)
	b.Run("7-udp", benchmarkUDP)
	b.Run("8-tun-write", benchmarkTUNWrite)
	b.Run("9-tun-read", benchmarkTUNRead)
	b.Run("10-null-tunnel", func(b *testing.B) {
		benchmarkTunnel(b, func(*[aead.KeySize]byte) aead.Cipher { return null{} })
	})
	b.Run("11-full-path", func(b *testing.B) { benchmarkTunnel(b, nil) })
}

// TestFullPath runs the two tunnel rungs long enough to know that they carry what they say.
func TestFullPath(t *testing.T) {
	lab.NeedTUN(t)
	for name, cipher := range map[string]func(*[aead.KeySize]byte) aead.Cipher{
		"null": func(*[aead.KeySize]byte) aead.Cipher { return null{} }, "sealed": nil,
	} {
		tunnel := newTunnel(t, cipher)
		if got := tunnel.transfer(t, 4<<20); got != 4<<20 {
			t.Errorf("%s: %d bytes arrived, want %d", name, got, 4<<20)
		}
	}
}

// null is a cipher that copies: what is left of a tunnel without ChaCha20-Poly1305. For measuring only.
type null struct{}

func (null) Seal(run []aead.Packet) {
	for i := range run {
		copy(run[i].Dst, run[i].Src)
	}
}

func (null) Open(run []aead.Packet) int {
	for i := range run {
		copy(run[i].Dst, run[i].Src)
		run[i].OK = true
	}
	return len(run)
}

func (null) Wipe() {}

// cable joins two new namespaces, whose outer addresses are 10.1.0.1 and 10.1.0.2.
func cable(tb testing.TB) (ends [2]*lab.Namespace) {
	tb.Helper()
	var plugs [2]lab.Plug
	for i := range ends {
		ns, err := lab.NewNamespace(fmt.Sprint("ladder", i))
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { ns.Close() })
		ends[i] = ns
		addr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 1)}), 24)
		plugs[i] = lab.Plug{Namespace: ns, Device: "outer0", Addrs: []netip.Prefix{addr}}
	}
	if err := lab.Connect(lab.Cable{}, plugs[0], plugs[1]); err != nil {
		tb.Fatal(err)
	}
	return ends
}

// in runs f in the namespace and fails the test if it does.
func in(tb testing.TB, ns *lab.Namespace, f func() error) {
	tb.Helper()
	if err := ns.Run(f); err != nil {
		tb.Fatal(err)
	}
}

// benchmarkUDP sends runs as the pipeline does and receives them on the other side of a cable, without a TUN.
func benchmarkUDP(b *testing.B) {
	ends := cable(b)
	var sockets [2]udp.Socket
	for i, ns := range ends {
		in(b, ns, func() error {
			pairs, err := udp.Listen(udp.Config{Port: 9000})
			if err == nil {
				sockets[i] = pairs[0].V4
			}
			return err
		})
		defer sockets[i].Close()
	}
	runs := []udp.Run{{Data: make([]byte, segments*sealed), SegmentSize: sealed, Dst: netip.MustParseAddrPort("10.1.0.2:9000")}}
	batch := make([]udp.Datagrams, segments)
	for i := range batch {
		batch[i].Buf = make([]byte, udp.BufferSize)
	}
	perPacket(b, func() {
		if n, err := sockets[0].Send(runs); n != 1 || err != nil {
			b.Fatal(n, err)
		}
		for got, deadline := 0, time.Now().Add(10*time.Second); got < segments*sealed; {
			n, err := sockets[1].Receive(batch)
			if err != nil || n == 0 && time.Now().After(deadline) {
				b.Fatalf("%d of %d bytes arrived: %v", got, segments*sealed, err)
			}
			for _, m := range batch[:n] {
				got += len(m.Data)
			}
		}
	})
}

// openTUN opens a TUN in the namespace and gives it an address and the link.
func openTUN(tb testing.TB, ns *lab.Namespace, name string, addr netip.Prefix) (device tun.Device) {
	tb.Helper()
	in(tb, ns, func() (err error) {
		if device, err = tun.Open(tun.Options{Name: name, MTU: mtu}); err != nil {
			return err
		}
		if err = host.AddAddress(name, addr); err != nil {
			return err
		}
		return host.SetUp(name)
	})
	return device
}

// benchmarkTUNWrite writes a superpacket from memory, for a destination that the kernel then drops: the cost of handing
// it over, not of TCP.
func benchmarkTUNWrite(b *testing.B) {
	device := openTUN(b, cable(b)[0], "ladder0", netip.MustParsePrefix("10.0.0.9/24"))
	defer device.Close()
	p := superpacket()
	run := []tun.Run{{Offload: p.Offload, Pieces: [][]byte{p.Data[:mtu]}}}
	for at := mtu; at < len(p.Data); at += payload {
		run[0].Pieces = append(run[0].Pieces, p.Data[at:at+payload])
	}
	perPacket(b, func() {
		if n, err := device.Queues()[0].Write(run); n != 1 || err != nil {
			b.Fatal(n, err)
		}
	})
}

// benchmarkTUNRead has the kernel make a superpacket (UDP_SEGMENT into the TUN), reads and discards it.
func benchmarkTUNRead(b *testing.B) {
	ns := cable(b)[0]
	device := openTUN(b, ns, "ladder0", netip.MustParsePrefix("10.0.0.9/24"))
	defer device.Close()
	if !device.Capabilities().USO {
		b.Skip("the kernel has no USO (Linux 6.2)")
	}
	var pairs []udp.Pair
	in(b, ns, func() (err error) {
		pairs, err = udp.Listen(udp.Config{})
		return err
	})
	defer pairs[0].V4.Close()
	const size = mtu - 28
	send := []udp.Run{{Data: make([]byte, segments*size), SegmentSize: size, Dst: netip.MustParseAddrPort("10.0.0.10:9")}}
	packets := []tun.Superpacket{{Buf: make([]byte, tun.ReadBufferSize)}}
	queue := device.Queues()[0]
	perPacket(b, func() {
		if n, err := pairs[0].V4.Send(send); n != 1 || err != nil {
			b.Fatal(n, err)
		}
		for got := 0; got < segments*size; {
			n, err := queue.Read(packets)
			if err != nil {
				b.Fatal(err)
			}
			if n == 1 && len(packets[0].Data) > size { // not what the kernel says of its own (IPv6 neighbours)
				got += len(packets[0].Data)
			}
		}
	})
}

// tunnel is two pipelines of this process with real TUNs in two namespaces; the inner addresses are 10.0.0.1 and 10.0.0.2.
type tunnel struct{ ends [2]*lab.Namespace }

func newTunnel(tb testing.TB, newCipher func(*[aead.KeySize]byte) aead.Cipher) *tunnel {
	tb.Helper()
	// Two shards, the sender and the receiver block in system calls, each with a processor of the runtime's in hand.
	before := runtime.GOMAXPROCS(8)
	tb.Cleanup(func() { runtime.GOMAXPROCS(before) })
	t := &tunnel{ends: cable(tb)}
	var keys [2]crypto.PrivateKey
	for i := range keys {
		keys[i] = crypto.PrivateKey{byte(8 * (i + 1)), 31: 64} // clamped, and of no value
	}
	for i, ns := range t.ends {
		inner := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 24)
		p, err := pipeline.New(pipeline.Config{
			Device: openTUN(tb, ns, "ladder0", inner), UDP: udp.Config{Port: 9000}, NewCipher: newCipher,
			Listen: func(cfg udp.Config) (pairs []udp.Pair, err error) {
				err = ns.Run(func() error { pairs, err = udp.Listen(cfg); return err })
				return pairs, err
			},
		})
		if err != nil {
			tb.Fatal(err)
		}
		ran := make(chan error, 1)
		go func() { ran <- p.Run(context.Background()) }()
		tb.Cleanup(func() {
			_ = p.Close()
			if err := <-ran; err != nil {
				tb.Error(err)
			}
		})
		_ = p.Edit(func(e *pipeline.Edit) error {
			e.SetPrivateKey(&keys[i])
			peer := e.AddPeer(keys[1-i].Public())
			peer.SetEndpoint(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(2 - i)}), 9000))
			peer.AddAllowedIP(netip.MustParsePrefix("10.0.0.0/24"))
			return nil
		})
	}
	return t
}

// transfer sends n bytes over one TCP connection through the tunnel and returns how many arrived.
func (t *tunnel) transfer(tb testing.TB, n int64) (got int64) {
	tb.Helper()
	var listener net.Listener
	var conn net.Conn
	in(tb, t.ends[1], func() (err error) { listener, err = net.Listen("tcp4", "10.0.0.2:7000"); return err })
	defer listener.Close()
	in(tb, t.ends[0], func() (err error) { conn, err = net.DialTimeout("tcp4", "10.0.0.2:7000", 10*time.Second); return err })
	arrived := make(chan int64, 1)
	go func() {
		c, err := listener.Accept()
		if err != nil {
			arrived <- 0
			return
		}
		defer c.Close()
		raw, _ := c.(*net.TCPConn).SyscallConn()
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20) })
		count, _ := io.CopyBuffer(io.Discard, struct{ io.Reader }{c}, make([]byte, 1<<20))
		arrived <- count
	}()
	chunk := make([]byte, 256<<10)
	for left := n; left > 0; {
		k, err := conn.Write(chunk[:min(left, int64(len(chunk)))])
		if err != nil {
			tb.Fatal(err)
		}
		left -= int64(k)
	}
	_ = conn.Close()
	return <-arrived
}

// benchmarkTunnel is one TCP connection through the tunnel; an operation is one full segment of it.
func benchmarkTunnel(b *testing.B, newCipher func(*[aead.KeySize]byte) aead.Cipher) {
	t := newTunnel(b, newCipher)
	t.transfer(b, 1<<20)         // handshake and slow start
	const segment = payload - 12 // with TCP timestamps
	b.SetBytes(segment)
	b.ReportAllocs()
	b.ResetTimer()
	if got := t.transfer(b, int64(b.N)*segment); got != int64(b.N)*segment {
		b.Fatalf("%d bytes arrived, want %d", got, int64(b.N)*segment)
	}
}
