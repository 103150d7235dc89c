package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun"
)

func TestMain(m *testing.M) { lab.Main(m) }

// labNode is a pipeline with a real TUN and real sockets, in a namespace of its own.
type labNode struct {
	*Pipeline
	ns *lab.Namespace
}

// newLabNode starts node i of a pair: outer address 10.1.0.i+1 on a cable, inner address 10.0.0.i+1.
func newLabNode(t *testing.T, ns *lab.Namespace, i int, queues int, outer udp.Config) labNode {
	t.Helper()
	endpoint := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(2 - i)}), 9000)
	return startLabNode(t, ns, i, queues, Config{UDP: outer}, endpoint)
}

// startLabNode starts node i of a pair, whose peer is at endpoint, nowhere if that is invalid.
func startLabNode(t *testing.T, ns *lab.Namespace, i int, queues int, cfg Config, endpoint netip.AddrPort) labNode {
	t.Helper()
	var device tun.Device
	inner := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 24)
	err := ns.Run(func() (err error) {
		device, err = tun.Open(tun.Options{Name: "pipe0", MTU: 1420, Queues: queues})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Device = device
	cfg.Listen = func(cfg udp.Config) (pairs []udp.Pair, err error) {
		err = ns.Run(func() error { pairs, err = udp.Listen(cfg); return err })
		return pairs, err
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- p.Run(context.Background()) }()
	t.Cleanup(func() {
		_ = p.Close()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	_ = p.Edit(func(e *Edit) error {
		key := labKey(i)
		e.SetPrivateKey(&key)
		peer := e.AddPeer(labKey(1 - i).Public())
		if endpoint.IsValid() {
			peer.SetEndpoint(endpoint)
		}
		peer.AddAllowedIP(netip.MustParsePrefix("10.0.0.0/24"))
		return nil
	})
	if err := ns.AddAddr("pipe0", inner); err != nil {
		t.Fatal(err)
	}
	if err := ns.SetUp("pipe0"); err != nil {
		t.Fatal(err)
	}
	return labNode{p, ns}
}

// waitUp returns when the node's sockets are open; what came before would be lost.
func (n labNode) waitUp(t *testing.T) {
	t.Helper()
	for range 1000 {
		up := false
		_ = n.Edit(func(e *Edit) error { up = e.c.pairs != nil; return nil })
		if up {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the sockets do not open")
}

// labKey is a clamped key of no value.
func labKey(i int) crypto.PrivateKey { return crypto.PrivateKey{byte(8 * (i + 1)), 31: 64} }

// newLabPair starts two nodes on a cable. Their TUNs have no IPv6, so that the kernel has nothing to say by itself.
func newLabPair(t *testing.T, queues int) (nodes [2]labNode) {
	t.Helper()
	return newLabPairWith(t, queues, udp.Config{Port: 9000})
}

// newLabPairWith does so with sockets of another kind, whose port must be 9000.
func newLabPairWith(t *testing.T, queues int, outer udp.Config) (nodes [2]labNode) {
	t.Helper()
	lab.NeedTUN(t)
	var plugs [2]lab.Plug
	for i := range plugs {
		ns, err := lab.NewNamespace("pipeline")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		addr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(i + 1)}), 24)
		plugs[i] = lab.Plug{Namespace: ns, Device: "outer0", Addrs: []netip.Prefix{addr}}
	}
	if err := lab.Connect(lab.Cable{}, plugs[0], plugs[1]); err != nil {
		t.Fatal(err)
	}
	for i, plug := range plugs {
		err := plug.Namespace.Run(func() error {
			err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
			if errors.Is(err, os.ErrNotExist) {
				return nil // no IPv6 at all
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		nodes[i] = newLabNode(t, plug.Namespace, i, queues, outer)
	}
	return nodes
}

// echo sends a datagram through the tunnel and waits until it comes back.
func echo(t *testing.T, nodes [2]labNode) {
	t.Helper()
	nodes[0].waitUp(t)
	nodes[1].waitUp(t)
	var server, client net.PacketConn
	for i, conn := range []*net.PacketConn{&client, &server} {
		err := nodes[i].ns.Run(func() (err error) {
			*conn, err = net.ListenPacket("udp4", netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 7).String())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer (*conn).Close()
		_ = (*conn).SetDeadline(time.Now().Add(20 * time.Second))
	}
	b := make([]byte, 2000)
	if _, err := client.WriteTo(b[:1200], server.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	n, from, err := server.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := server.WriteTo(b[:n], from); err != nil {
		t.Fatal(err)
	}
	if n, _, err = client.ReadFrom(b); err != nil || n != 1200 {
		t.Fatal(n, err)
	}
}

// wakes is how often shards have returned from waiting.
func wakes(nodes [2]labNode) (n uint64) {
	for _, node := range nodes {
		for _, s := range node.shards {
			n += s.stats.Wakes.Load()
		}
	}
	return n
}

// wantQuiet fails the test unless the shards soon sleep, and then for half a second.
func wantQuiet(t *testing.T, nodes [2]labNode, when string) {
	t.Helper()
	var woken uint64
	for range 10 { // until what was under way is done
		before := wakes(nodes)
		time.Sleep(500 * time.Millisecond)
		if woken = wakes(nodes) - before; woken == 0 {
			return
		}
	}
	t.Errorf("%s the shards woke %d times in half a second", when, woken)
}

// Shards whose edges are idle sleep: with a session, with the interface down, and after its deletion Run ends.
func TestIdleShardsSleep(t *testing.T) {
	for _, queues := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d queues", queues), func(t *testing.T) {
			nodes := newLabPair(t, queues)
			echo(t, nodes)
			wantQuiet(t, nodes, "with a session")
			handle := nodes[0].ns.Netlink()
			link, err := handle.LinkByName("pipe0")
			if err != nil {
				t.Fatal(err)
			}
			if err := handle.LinkSetDown(link); err != nil {
				t.Fatal(err)
			}
			wantQuiet(t, nodes, "with the interface down")
			if err := handle.LinkSetUp(link); err != nil {
				t.Fatal(err)
			}
			echo(t, nodes)
			if err := handle.LinkDel(link); err != nil {
				t.Fatal(err)
			}
			select {
			case <-nodes[0].ended:
			case <-time.After(20 * time.Second):
				t.Error("Run goes on although the device is gone")
			}
		})
	}
}
