package relay

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// TestLocalAddress: on an unspecified address the relay answers, and relays, from the address that the client sent to.
func TestLocalAddress(t *testing.T) {
	s := start(t, func(c *Config) {
		c.Listen = []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), 0)}
		c.PublicAddrs = []netip.Addr{loopback4}
	})
	server := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.7"), s.Addrs()[0].Port())
	c := dial(t, s, 0, "x")
	c.server = server
	conn, at := peer(t, loopback4)
	relayed := c.allocate()
	if c.bind(0x4001, at) != 0 {
		t.Fatal("ChannelBind")
	}
	b := make([]byte, 100)
	conn.WriteToUDPAddrPort([]byte("x"), relayed)
	c.conn.SetReadDeadline(time.Now().Add(patience))
	if _, src, err := c.conn.ReadFromUDPAddrPort(b); err != nil || stun.Unmap(src) != server {
		t.Errorf("ChannelData from %v, want %v: %v", src, server, err)
	}
	other, _ := peer(t, netip.MustParseAddr("127.0.0.1"))
	if c.permit(other.LocalAddr().(*net.UDPAddr).AddrPort()) != 0 {
		t.Fatal("CreatePermission")
	}
	other.WriteToUDPAddrPort([]byte("x"), relayed)
	c.conn.SetReadDeadline(time.Now().Add(patience))
	if _, src, err := c.conn.ReadFromUDPAddrPort(b); err != nil || stun.Unmap(src) != server {
		t.Errorf("Data indication from %v, want %v: %v", src, server, err)
	}
}

// TestBuffers: the kernel tells what it granted. As root it is what was asked for.
func TestBuffers(t *testing.T) {
	s := start(t, nil)
	for _, g := range s.gates {
		if g.sock.granted < 100<<10 {
			t.Errorf("%v: a receive buffer of %d bytes", g.sock.local, g.sock.granted)
		}
		t.Logf("%v: %d of %d bytes granted", g.sock.local, g.sock.granted, s.cfg.ReceiveBuffer)
	}
}

// TestSendBuffers: nothing that is sent waits for what a slow device's queue holds: not on the socket that all clients share, nor for
// a peer, which would hold up the goroutine that reads from all clients.
func TestSendBuffers(t *testing.T) {
	s := start(t, nil)
	c := dial(t, s, 0, "x")
	c.allocate()
	for _, sock := range []*socket{s.gates[0].sock, c.find(t, s).sock} {
		var got int
		err := sock.raw.Control(func(fd uintptr) { got, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF) })
		if err != nil {
			t.Fatal(err)
		}
		if unix.Geteuid() != 0 {
			t.Skipf("SKIP: only root may pass net.core.wmem_max; %d bytes granted", got)
		}
		if got < 1<<30 {
			t.Errorf("%v: a send buffer of %d bytes, want no bound", sock.local, got)
		}
	}
}

// TestBurst: 3 MiB that come while the relay has no time are kept and relayed, from a client and from a peer alike.
func TestBurst(t *testing.T) {
	s := start(t, nil)
	if granted := s.gates[0].sock.granted; granted < s.cfg.ReceiveBuffer {
		t.Skipf("SKIP: the kernel grants a receive buffer of %d bytes only", granted)
	}
	c := dial(t, s, 0, "x")
	relayed := c.allocate()
	conn, at := peer(t, loopback4)
	if c.bind(0x4001, at) != 0 {
		t.Fatal("ChannelBind")
	}
	a := c.find(t, s)
	const size, count = 60000, 3 << 20 / 60000
	for _, way := range []direction{toPeer, toClient} {
		a.mu.Lock() // nothing can be relayed
		for range count {
			if way == toPeer {
				c.send(channelData(0x4001, make([]byte, size)))
			} else if _, err := conn.WriteToUDPAddrPort(make([]byte, size), relayed); err != nil {
				t.Fatal(err)
			}
		}
		a.mu.Unlock()
		eventually(t, "the burst to be relayed "+directionNames[way], func() bool {
			return s.stats.datagrams[way].Load() == count
		})
	}
}

// TestRelayAllocates: relaying ChannelData allocates nothing, in either direction.
func TestRelayAllocates(t *testing.T) {
	s := start(t, nil)
	open := func() *socket {
		sock, err := openSocket(netip.AddrPortFrom(loopback4, 0), socketConfig{offloads: s.offloads, localAddress: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { sock.conn.Close() })
		return sock
	}
	_, client := peer(t, loopback4)
	_, at := peer(t, loopback4)
	g := newGate(s, open())
	a := newAllocation(g, open(), "x", new(meter), netip.MustParseAddrPort("127.0.0.1:50000"))
	a.client, a.local, a.work = client, loopback4, new(scratch)
	g.allocations[client] = a
	a.permit(at.Addr())
	a.bind(0x4001, at)
	one := channelData(0x4001, make([]byte, 500))
	var run []byte
	for range 20 {
		run = append(run, one...)
	}
	work := make([]byte, len(run))
	if n := testing.AllocsPerRun(100, func() {
		copy(work, run) // headers are closed up in place
		g.left = received{data: work, segment: len(one), src: client}
		g.relayRun()
	}); n != 0 {
		t.Errorf("to the peer: %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { a.fromPeer(received{data: run, segment: 500, src: at}, a.work) }); n != 0 {
		t.Errorf("to the client: %v allocations", n)
	}
	other := newAllocation(g, open(), "y", new(meter), at)
	other.client, other.local = client, loopback4
	other.permit(a.relayed.Addr())
	other.bind(0x4002, a.relayed)
	s.inside.add(other)
	if n := testing.AllocsPerRun(100, func() {
		copy(work, run)
		g.left = received{data: work, segment: len(one), src: client}
		g.relayRun()
	}); n != 0 {
		t.Errorf("to the client of another allocation: %v allocations", n)
	}
	if s.stats.datagrams[toPeer].Load() != 202*20 || s.stats.datagrams[toClient].Load() == 0 {
		t.Errorf("%d datagrams to the peer, %d to the client", s.stats.datagrams[toPeer].Load(), s.stats.datagrams[toClient].Load())
	}
}
