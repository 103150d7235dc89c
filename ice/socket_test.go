package ice

import (
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp"
)

func stray(data []byte, src netip.AddrPort) *pipeline.Stray {
	return &pipeline.Stray{Data: data, Src: src, Dst: aliceAddr}
}

// loopback makes two machines on real sockets.
func loopback(t *testing.T) (a, b *node) {
	t.Helper()
	cfg := udp.Config{Portable: true} // it has Ready, which the test's pump wants
	mux := MuxConfig{Loopback: true, Addresses: func() []netip.Addr {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}
	}}
	return newNode(t, udp.Listen, cfg, mux), newNode(t, udp.Listen, cfg, mux)
}

// TestRealSockets connects, restarts and closes over the system's UDP, and leaves no goroutine.
func TestRealSockets(t *testing.T) {
	before := goroutines()
	a, b := loopback(t)
	l := newLink(a, b)
	for generation := uint32(1); generation <= 3; generation++ {
		l.restart(generation)
		moved := func() bool { return l.a.inUse() == generation && l.b.inUse() == generation }
		if !signal(a, b, l.peers(), 20*time.Second, moved) {
			t.Fatalf("generation %d: not connected; %v", generation, a.mux.Counters())
		}
	}
	if pa, pb := l.a.Path(), l.b.Path(); pa.Dst.Port() != b.mux.sender.LocalPort() || pb.Dst.Port() != a.mux.sender.LocalPort() {
		t.Errorf("paths %v, %v", pa, pb)
	}
	l.close()
	a.close()
	b.close()
	noneLeft(t, before)
}

// TestManyRealLinks is TestManyLinks over the system's UDP.
func TestManyRealLinks(t *testing.T) {
	before := goroutines()
	a, b := loopback(t)
	manyLinks(t, a, b, realLinks, time.Minute)
	a.close()
	b.close()
	noneLeft(t, before)
}

// goroutines lists those that run code of ours or pion's, but not the caller.
func goroutines() int {
	buf := make([]byte, 4<<20)
	n := 0
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "pion/ice") || strings.Contains(g, "sluice/ice.(") && !strings.Contains(g, "testing.tRunner") {
			n++
		}
	}
	return n
}

// noneLeft waits for what ends by itself: pion starts a goroutine for each candidate of the peer.
func noneLeft(t *testing.T, before int) {
	t.Helper()
	for range 100 {
		if goroutines() <= before {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	buf := make([]byte, 1<<20)
	t.Errorf("goroutines are left:\n%s", buf[:runtime.Stack(buf, true)])
}
