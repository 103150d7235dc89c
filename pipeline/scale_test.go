package pipeline

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// heapInUse is how many bytes of the heap are in use.
func heapInUse() int64 {
	runtime.GC()
	runtime.GC() // what the first one finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// running starts a pipeline on a device and a network in memory.
func running(t *testing.T) *Pipeline {
	t.Helper()
	host := udptest.New(1).Host(netip.MustParseAddr("192.0.2.1"))
	p, err := New(Config{Device: tuntest.New(tuntest.Config{}), Listen: host.Listen})
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
	return p
}

// numbered is the public key and the inner addresses of peer i.
func numbered(i int) (key crypto.PublicKey, v4, v6 netip.Prefix) {
	rng := rand.NewChaCha8([32]byte{byte(i), byte(i >> 8), byte(i >> 16), 1})
	_, _ = rng.Read(key[:])
	a4, a6 := [4]byte{10}, [16]byte{0: 0xfd}
	binary.BigEndian.PutUint32(a4[:], 10<<24|uint32(i+1))
	binary.BigEndian.PutUint32(a6[12:], uint32(i+1))
	return key, netip.PrefixFrom(netip.AddrFrom4(a4), 32), netip.PrefixFrom(netip.AddrFrom16(a6), 128)
}

// addNumbered adds peers from to to-1.
func addNumbered(e *Edit, from, to int, keepalive uint16) {
	for i := from; i < to; i++ {
		key, v4, v6 := numbered(i)
		peer := e.AddPeer(key)
		peer.SetPresharedKey((*crypto.PresharedKey)(&key))
		peer.SetEndpoint(netip.MustParseAddrPort("192.0.2.9:9"))
		peer.AddAllowedIP(v4)
		peer.AddAllowedIP(v6)
		peer.SetPersistentKeepalive(keepalive)
	}
}

// A peer that is configured and idle takes 4 KiB at most (the bound leaves room for what the allocator rounds up).
func TestMemoryOfAnIdlePeer(t *testing.T) {
	p := running(t)
	_ = p.Edit(func(e *Edit) error { e.SetPrivateKey(&crypto.PrivateKey{1}); return nil })
	before := heapInUse()
	_ = p.Edit(func(e *Edit) error { addNumbered(e, 0, idlePeers, 0); return nil })
	each := (heapInUse() - before) / idlePeers
	t.Logf("%d bytes each", each)
	if each > 5<<10 {
		t.Errorf("%d bytes for each of %d idle peers", each, idlePeers)
	}
}

// Peers that are added and removed leave nothing behind, whether or not a handshake had begun.
func TestPeersComeAndGo(t *testing.T) {
	p := running(t)
	const rounds = 10
	round := func(n int, keepalive uint16, remove func(*Edit)) {
		_ = p.Edit(func(e *Edit) error {
			addNumbered(e, n*comingPeers/rounds, (n+1)*comingPeers/rounds, keepalive)
			return nil
		})
		_ = p.Edit(func(e *Edit) error { remove(e); return nil })
	}
	all := func(e *Edit) { e.RemovePeers() }
	_ = p.Edit(func(*Edit) error { return nil }) // all goroutines have started
	goroutines, before := runtime.NumGoroutine(), heapInUse()
	for n := range rounds {
		round(n, 0, all)
	}
	if grown := heapInUse() - before; grown > comingPeers/rounds*512 { // the empty tables keep their size
		t.Errorf("%d bytes are left of %d peers, %d at a time", grown, comingPeers, comingPeers/rounds)
	}
	_ = p.Edit(func(e *Edit) error { e.SetPrivateKey(&crypto.PrivateKey{1}); return nil })
	for range 2 { // with handshakes that begin, removed one by one
		_ = p.Edit(func(e *Edit) error { addNumbered(e, 0, 500, 1); return nil })
		_ = p.Edit(func(e *Edit) error {
			e.c.controller.handleTimeout(e.c.now)
			for i := range 500 {
				key, _, _ := numbered(i)
				e.RemovePeer(key)
			}
			return nil
		})
	}
	if grown := heapInUse() - before; grown > comingPeers/rounds*512 {
		t.Errorf("%d bytes are left when handshakes had begun", grown)
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("%d goroutines, %d before", n, goroutines)
	}
	_ = p.Edit(func(e *Edit) error {
		c := e.c.controller
		if len(c.peers)+len(c.deadlines)+len(c.retired) != 0 || p.routes.table.Load().Size() != 0 {
			t.Errorf("%d peers, %d deadlines, %d retired keypairs, %d routes are left",
				len(c.peers), len(c.deadlines), len(c.retired), p.routes.table.Load().Size())
		}
		return nil
	})
}

// Peers that never answer keep a bounded number of packets, and do not keep another peer's traffic from flowing.
func TestDeadPeersWithTraffic(t *testing.T) {
	runWorld(t, offload, func(w *world) {
		_ = w.a.Edit(func(e *Edit) error {
			e.c.controller.lifetime = 6 * time.Second // else most of the time goes into retries
			addNumbered(e, 1<<16, 1<<16+deadPeers, 0)
			return nil
		})
		for i := range deadPeers {
			_, v4, _ := numbered(1<<16 + i)
			w.a.device.InjectData(datagrams(w.a.inner4, v4.Addr(), 40, 1000)...)
			if i%100 == 99 {
				w.exchange(t)
			}
			if s := w.a.shards[0]; i%100 == 99 && s.staged > stagedBytes+2000 {
				t.Fatalf("%d bytes are staged for peers that do not answer", s.staged)
			}
		}
		w.settle()
		if full := w.a.counter("drop_staged_full"); full == 0 {
			t.Error("more was staged than may be")
		}
		there := datagrams(w.a.inner4, w.b.inner4, 100, 1000)
		w.a.device.InjectData(there...)
		w.settle()
		w.wantPackets(w.b, there...)
		w.sleep(2 * time.Minute)
		if s := w.a.shards[0]; s.staged != 0 {
			t.Errorf("%d bytes are still staged when every handshake has been given up", s.staged)
		}
		total := w.a.counter("drop_staged_full") + w.a.counter("drop_staged_expired")
		if total != 40*deadPeers {
			t.Errorf("%d of %d packets were counted as dropped", total, 40*deadPeers)
		}
	})
}
