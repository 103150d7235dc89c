package pipeline

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/aead"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// runOf is a run of one packet that is sealed in place behind its header.
func runOf(msg []byte, length int, counter uint64) []aead.Packet {
	body := msg[crypto.SizeTransportHeader:]
	return []aead.Packet{{Dst: body, Src: body[:length], Counter: counter}}
}

func configWithPort(port uint16) udp.Config { return udp.Config{Port: port} }

func TestConfigErrors(t *testing.T) {
	device := tuntest.New(tuntest.Config{})
	for name, cfg := range map[string]Config{
		"no device":         {},
		"negative workers":  {Device: device, Workers: -1},
		"too many workers":  {Device: device, Workers: 65},
		"negative lifetime": {Device: device, HandshakeLifetime: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Calls after Run has ended say so; Run ends with its context.
func TestContextEnds(t *testing.T) {
	p, err := New(Config{Device: tuntest.New(tuntest.Config{}), Listen: udptest.New(1).Host(netip.MustParseAddr("192.0.2.1")).Listen})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error)
	go func() { ran <- p.Run(ctx) }()
	if err := p.Edit(func(*Edit) error { return syscall.EINVAL }); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("Edit returned %v, want its function's error", err)
	}
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	if err := p.Edit(func(*Edit) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("Edit after the end: %v", err)
	}
	if len(p.Counters()) == 0 {
		t.Error("no counters after the end")
	}
}

// Edges that a shard cannot wait for together are refused, not half served.
func TestEdgesThatDoNotFit(t *testing.T) {
	runWorld(t, queues, func(w *world) {
		w.exchange(t)
		listen := w.a.config.Listen
		_ = w.a.Edit(func(*Edit) error {
			w.a.config.Listen = func(cfg udp.Config) ([]udp.Pair, error) {
				pairs, err := listen(cfg)
				for _, pair := range pairs[1:] {
					_ = pair.V4.Close()
				}
				return pairs[:1], err
			}
			return nil
		})
		if err := w.a.Edit(func(e *Edit) error { return e.SetListenPort(9) }); err == nil {
			t.Error("one pair of sockets for two queues was accepted")
		}
		w.exchange(t)
	})
}

func TestListenPort(t *testing.T) {
	runWorld(t, offload, func(w *world) {
		w.exchange(t)
		other := w.b.host
		taken, err := other.Listen(configWithPort(7000))
		if err != nil {
			t.Fatal(err)
		}
		err = w.b.Edit(func(e *Edit) error { return e.SetListenPort(7000) })
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("a taken port: %v", err)
		}
		w.exchange(t) // the old sockets are still in use
		for _, pair := range taken {
			_ = pair.V4.Close()
		}
		if err := w.b.Edit(func(e *Edit) error { return e.SetListenPort(7000) }); err != nil {
			t.Fatal(err)
		}
		w.b.device.InjectData(datagram(w.b.inner4, w.a.inner4, 1, 20))
		w.settle()
		if got := w.a.endpoint(t).Port(); got != 7000 {
			t.Errorf("the peer sees port %d", got)
		}
		w.wantPackets(w.a, datagram(w.b.inner4, w.a.inner4, 1, 20))
		w.exchange(t)
		if err := w.b.Edit(func(e *Edit) error { return e.SetMark(42) }); err != nil {
			t.Fatal(err)
		}
		if s, _ := w.b.Status(); s.ListenPort != 7000 || s.Mark != 42 {
			t.Errorf("status says port %d, mark %d", s.ListenPort, s.Mark)
		}
	})
}

// Removing a peer ends its session and its routes; a new one with the same key starts from nothing.
func TestRemovePeer(t *testing.T) {
	runWorld(t, offload, func(w *world) {
		w.exchange(t)
		_ = w.b.Edit(func(e *Edit) error { e.RemovePeers(); return nil })
		w.a.device.InjectData(datagram(w.a.inner4, w.b.inner4, 1, 20))
		w.settle()
		w.wantPackets(w.b)
		w.wantCounter(w.b, "drop_unknown_index", 1)
		w.b.know(w.a, crypto.PresharedKey{})
		w.b.device.InjectData(datagram(w.b.inner4, w.a.inner4, 1, 20))
		w.settle()
		w.wantPackets(w.a, datagram(w.b.inner4, w.a.inner4, 1, 20))
		w.exchange(t)
	})
}

// A peer with our own key is ignored when it is added, and goes when our key becomes its (kernel netlink.c).
func TestOwnKey(t *testing.T) {
	runWorld(t, plain, func(w *world) {
		_ = w.a.Edit(func(e *Edit) error {
			self := e.AddPeer(w.a.key.Public())
			self.SetEndpoint(w.b.outer)
			self.AddAllowedIP(netip.MustParsePrefix("10.7.0.0/16"))
			self.SetPersistentKeepalive(5)
			return nil
		})
		s, _ := w.a.Status()
		if len(s.Peers) != 1 {
			t.Fatalf("%d peers, want only the other one", len(s.Peers))
		}
		_ = w.a.Edit(func(e *Edit) error { e.SetPrivateKey(&w.b.key); return nil })
		if s, _ = w.a.Status(); len(s.Peers) != 0 {
			t.Errorf("the peer that we became is still there")
		}
	})
}

func TestStatus(t *testing.T) {
	runWorld(t, plain, func(w *world) {
		w.exchange(t)
		s, err := w.a.Status()
		if err != nil || len(s.Peers) != 1 {
			t.Fatal(err, len(s.Peers))
		}
		p := s.Peers[0]
		if !s.PrivateKey.Equal(w.a.key) || p.PublicKey != w.b.key.Public() || p.Endpoint != w.b.outer || p.LastHandshake.IsZero() {
			t.Errorf("status %+v", p)
		}
		// Initiation 148 and 20+28 bytes in 16+48+16; response 92 and the same back (paper, section 5.4).
		if p.TxBytes != 148+80 || p.RxBytes != 92+80 {
			t.Errorf("%d bytes sent, %d received", p.TxBytes, p.RxBytes)
		}
		if len(p.AllowedIPs) != 2 || p.AllowedIPs[0].Addr() != w.b.inner4 {
			t.Errorf("allowed IPs %v", p.AllowedIPs)
		}
	})
}

// Whoever sees a packet and then asks is told what the packet did: what the lanes signalled before the question is known in the answer.
// Of the two, select would take either.
func TestAskedAfterPackets(t *testing.T) {
	runWorld(t, plain, func(w *world) {
		for round := range 40 {
			peers := w.a.control.controller.peers
			held, signalled := make(chan struct{}), make(chan struct{})
			go w.a.call(func() { close(held); <-signalled })
			<-held
			var left uint32
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				w.a.call(func() { left = peers[0].signals.Load() })
			}()
			synctest.Wait()
			w.a.notified.notify(peers[0], signalSource)
			close(signalled)
			<-answered
			if left != 0 {
				t.Fatalf("round %d: asked with signals %b not noticed, want none", round, left)
			}
		}
	})
}

// An interface that comes up while its port is taken starts as soon as another port is set.
func TestPortTakenWhenUp(t *testing.T) {
	runWorld(t, offload, func(w *world) {
		w.b.device.SetUp(false)
		w.settle()
		taken, err := w.b.host.Listen(configWithPort(w.b.outer.Port()))
		if err != nil {
			t.Fatal(err)
		}
		w.b.device.SetUp(true)
		w.settle()
		if err := w.b.Edit(func(e *Edit) error { return e.SetListenPort(7001) }); err != nil {
			t.Fatal(err)
		}
		w.b.device.InjectData(datagram(w.b.inner4, w.a.inner4, 1, 20))
		w.settle()
		w.wantPackets(w.a, datagram(w.b.inner4, w.a.inner4, 1, 20))
		for _, pair := range taken {
			_ = pair.V4.Close()
		}
	})
}

// A port that was chosen for us is kept while the interface goes down and up (kernel socket.c, wg_socket_reinit).
func TestChosenPortStays(t *testing.T) {
	runWorld(t, plain, func(w *world) {
		if err := w.b.Edit(func(e *Edit) error { return e.SetListenPort(0) }); err != nil {
			t.Fatal(err)
		}
		port := func() uint16 { s, _ := w.b.Status(); return s.ListenPort }
		chosen := port()
		w.b.device.SetUp(false)
		w.settle()
		if got := port(); got != chosen || got == 0 {
			t.Errorf("port %d while down, %d was chosen", got, chosen)
		}
		w.b.device.SetUp(true)
		w.settle()
		if got := port(); got != chosen {
			t.Errorf("port %d after up, %d was chosen", got, chosen)
		}
	})
}

// A new mark or port clears the cached source addresses (kernel netlink.c, wg_set_device and set_port).
func TestSourcesForgotten(t *testing.T) {
	for name, change := range map[string]func(*Edit) error{
		"mark": func(e *Edit) error { return e.SetMark(7) },
		"port": func(e *Edit) error { return e.SetListenPort(7002) },
	} {
		t.Run(name, func(t *testing.T) {
			runWorld(t, plain, func(w *world) {
				w.exchange(t)
				if src := w.path(w.b).Src; src != w.b.outer.Addr() {
					t.Fatalf("cached source %v, want %v", src, w.b.outer.Addr())
				}
				if err := w.b.Edit(change); err != nil {
					t.Fatal(err)
				}
				if p := w.path(w.b); p.Src.IsValid() || p.IfIndex != 0 || p.Dst != w.a.outer {
					t.Errorf("path %+v after the change", p)
				}
			})
		})
	}
}

// path is the path to n's only peer.
func (w *world) path(n *node) (path Path) {
	_ = n.Edit(func(e *Edit) error {
		path = *e.c.controller.peers[0].path.Load()
		return nil
	})
	return path
}

// A packet that a lane took before control had heard that the interface is up gets its session when control has.
func TestPacketBeforeUp(t *testing.T) {
	runWorld(t, plain, func(w *world) {
		w.a.device.SetUp(false)
		w.settle()
		early := datagram(w.a.inner4, w.b.inner4, 1, 20)
		w.a.device.InjectData(early)
		w.settle()
		w.a.device.SetUp(true)
		w.settle()
		w.wantPackets(w.b, early)
	})
}

// Ten pings and the handshake make 1428 bytes one way and 1372 back (Linux tools/testing/selftests/wireguard/netns.sh).
func TestByteCounts(t *testing.T) {
	eachVariant(t, func(w *world) {
		for i := range 10 {
			w.a.device.InjectData(datagram(w.a.inner4, w.b.inner4, i, 56))
			w.settle()
			w.b.device.InjectData(datagram(w.b.inner4, w.a.inner4, i, 56))
			w.settle()
		}
		a, _ := w.a.Status()
		b, _ := w.b.Status()
		if p := a.Peers[0]; p.TxBytes != 1428 || p.RxBytes != 1372 {
			t.Errorf("initiator: %d sent, %d received", p.TxBytes, p.RxBytes)
		}
		if p := b.Peers[0]; p.TxBytes != 1372 || p.RxBytes != 1428 {
			t.Errorf("responder: %d sent, %d received", p.TxBytes, p.RxBytes)
		}
	})
}
