package pipeline

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// The answer to data from elsewhere goes there, whether or not control has run since: "the endpoint is set, then the packet is
// delivered" (kernel receive.c, wg_packet_consume_data_done).
func TestAnswerFollowsTheData(t *testing.T) {
	elsewhere := netip.MustParseAddrPort("198.51.100.7:7")
	local := netip.MustParseAddr("192.0.2.99")
	for _, c := range []struct {
		name string
		from udp.Datagrams
		path Path // of B to A, before
		want Path
	}{
		{"another address", udp.Datagrams{Src: elsewhere}, Path{Dst: netip.AddrPortFrom(laneAddrA, 1)}, Path{Dst: elsewhere}},
		{"another port", udp.Datagrams{Src: netip.AddrPortFrom(laneAddrA, 2)}, Path{Dst: netip.AddrPortFrom(laneAddrA, 1)},
			Path{Dst: netip.AddrPortFrom(laneAddrA, 2)}},
		{"another address of ours", udp.Datagrams{Src: elsewhere, Dst: local, IfIndex: 7}, Path{Dst: elsewhere, Src: laneAddrB, IfIndex: 7},
			Path{Dst: elsewhere, Src: local, IfIndex: 7}},
		{"off the relay", udp.Datagrams{Src: elsewhere}, Path{Dst: netip.AddrPortFrom(laneAddrA, 1), Channel: 0x4001, Relayed: true},
			Path{Dst: elsewhere}},
		{"a selected pair", udp.Datagrams{Src: elsewhere}, Path{Dst: netip.AddrPortFrom(laneAddrA, 1), Fixed: true},
			Path{Dst: netip.AddrPortFrom(laneAddrA, 1), Fixed: true}},
	} {
		for _, workers := range []int{0, 2} {
			l := newLanes(t, workers, tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}, laneInner)
			p := l.b.control.controller.peers[0]
			p.path.Store(&c.path)
			l.wire.from = c.from
			l.carry(t, 1)
			l.b.config.Device.(*tuntest.Device).InjectData(datagram(laneInner[1], laneInner[0], 1, 100))
			if _, err := l.b.shards[0].outbound.run(l.now); err != nil {
				t.Fatal(err)
			}
			if len(l.wire.runs) != 1 {
				t.Fatalf("%s, %d workers: %d answers were sent, want 1", c.name, workers, len(l.wire.runs))
			}
			if r := l.wire.runs[0]; r.Dst != c.want.Dst || r.Src != c.want.Src || r.IfIndex != c.want.IfIndex {
				t.Errorf("%s, %d workers: the answer went to %v from %v, want %v from %v", c.name, workers, r.Dst, r.Src, c.want.Dst, c.want.Src)
			}
			if got := *p.path.Load(); got != c.want {
				t.Errorf("%s, %d workers: the path is %+v, want %+v", c.name, workers, got, c.want)
			}
		}
	}
}

// What control has decided stays decided: a lane does not revive what is over, nor move a selected pair. A handshake message
// gives a first path.
func TestRoamObeysControl(t *testing.T) {
	from := Path{Dst: netip.MustParseAddrPort("198.51.100.7:7")}
	p := new(peer)
	p.roam(from)
	if got := p.path.Load(); got != nil {
		t.Errorf("data gave a peer without a path %+v", got)
	}
	p.hear(from)
	if got := p.path.Load(); got == nil || *got != from {
		t.Errorf("a handshake message gave %+v, want %+v", got, from)
	}
	fixed := &Path{Dst: netip.MustParseAddrPort("192.0.2.1:1"), Fixed: true}
	p.path.Store(fixed)
	p.roam(from)
	p.hear(from)
	if got := p.path.Load(); got != fixed {
		t.Errorf("a selected pair moved to %+v", got)
	}
}

// A move by a lane and a source that control forgets, at the same time, lose neither: under the race detector, too.
func TestRoamLosesNothing(t *testing.T) {
	p := new(peer)
	at := func(i int) Path {
		return Path{Dst: netip.AddrPortFrom(laneAddrA, uint16(1+i)), Src: laneAddrB, IfIndex: 1}
	}
	p.hear(at(0))
	stop, forgetting := make(chan struct{}), new(sync.WaitGroup)
	forgetting.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				p.forgetSource()
			}
		}
	})
	for i := range 20000 {
		p.roam(at(i))
		if got := p.path.Load(); got.Dst != at(i).Dst {
			t.Errorf("after move %d the path leads to %v, want %v", i, got.Dst, at(i).Dst)
			break
		}
	}
	close(stop)
	forgetting.Wait()
	p.forgetSource()
	if got := p.path.Load(); got.Src.IsValid() || got.IfIndex != 0 {
		t.Errorf("the source %v of interface %d was not forgotten", got.Src, got.IfIndex)
	}
	// Whatever the lanes are at, control's word is the last.
	lanes := new(sync.WaitGroup)
	for shard := range 3 {
		lanes.Go(func() {
			for i := range 20000 {
				p.roam(at(i*3 + shard))
			}
		})
	}
	fixed := &Path{Fixed: true}
	p.path.Store(fixed)
	lanes.Wait()
	if got := p.path.Load(); got != fixed {
		t.Errorf("the path is %+v, want what control has published last", got)
	}
}

// A peer that is heard from a few places in turn costs no memory for each datagram.
func TestRoamingDoesNotAllocate(t *testing.T) {
	l := newLanes(t, 0, tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}, laneInner)
	port, p := uint16(0), l.b.control.controller.peers[0]
	flap := func() {
		port = port%4 + 1
		l.wire.from.Src = netip.AddrPortFrom(laneAddrA, port)
		l.carry(t, 1)
		if got := p.path.Load().Dst.Port(); got != port {
			t.Fatalf("the path leads to port %d, want %d", got, port)
		}
	}
	for range 8 {
		flap()
	}
	if got := testing.AllocsPerRun(100, flap); got > 0 {
		t.Errorf("%v allocations for a move between four places, want none", got)
	}
}

// BenchmarkRoam is a move, between places that are remembered and between more of them than are.
func BenchmarkRoam(b *testing.B) {
	for name, places := range map[string]int{"four places": 4, "a thousand places": 1000} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			p := new(peer)
			p.hear(Path{Dst: netip.AddrPortFrom(laneAddrA, 1)})
			for i := range b.N {
				p.roam(Path{Dst: netip.AddrPortFrom(laneAddrA, uint16(1+i%places))})
			}
		})
	}
}

// Control hears of data that comes from elsewhere than the selected pair leads to, and not more often than it need; what comes by
// another relay, or from where the pair leads, is none of it.
func TestStray(t *testing.T) {
	pair := Path{Dst: netip.MustParseAddrPort("192.0.2.1:1"), Src: laneAddrB, Fixed: true}
	elsewhere := Path{Dst: netip.MustParseAddrPort("192.0.2.1:2"), Src: laneAddrB}
	relayed := Path{Dst: pair.Dst, Channel: 0x4001, Fixed: true}
	for _, c := range []struct {
		name string
		path *Path
		from Path
		want bool
	}{
		{"another port", &pair, elsewhere, true},
		{"another address", &pair, Path{Dst: netip.MustParseAddrPort("[2001:db8::1]:1")}, true},
		{"where the pair leads, at another address of ours", &pair, Path{Dst: pair.Dst, Src: laneAddrA, IfIndex: 3}, false},
		{"over a relay", &pair, Path{Dst: elsewhere.Dst, Channel: 0x4001}, false},
		{"off a relay", &relayed, elsewhere, false},
		{"by another relay", &relayed, Path{Dst: elsewhere.Dst, Channel: 0x4002}, false},
		{"the channel that the pair has", &relayed, Path{Dst: pair.Dst, Channel: 0x4001}, false},
		{"another channel", &relayed, Path{Dst: pair.Dst, Channel: 0x4002}, true},
		{"in a Data indication", &relayed, Path{Dst: pair.Dst, Peer: elsewhere.Dst}, true},
		{"in another relay's Data indication", &relayed, Path{Dst: elsewhere.Dst, Peer: elsewhere.Dst}, false},
		{"in a Data indication, off a relay", &pair, Path{Dst: elsewhere.Dst, Peer: elsewhere.Dst}, false},
		{"not fixed", &Path{Dst: pair.Dst}, elsewhere, false},
		{"no path", nil, elsewhere, false},
	} {
		p := new(peer)
		p.path.Store(c.path)
		if got := p.stray(1, c.from); got != c.want {
			t.Errorf("%s: control is told: %v, want %v", c.name, got, c.want)
		}
		if got := p.strayed.Load(); (got != nil) != c.want || c.want && *got != c.from {
			t.Errorf("%s: noted %+v, want %+v", c.name, got, c.from)
		}
	}
	p := new(peer)
	p.path.Store(&pair)
	told := 0
	allocs := testing.AllocsPerRun(1000, func() {
		told++
		p.stray(time.Duration(told)*time.Millisecond, elsewhere)
	})
	if allocs != 0 {
		t.Errorf("%v allocations for each run of datagrams", allocs)
	}
	n := 0
	for ms := range 1000 {
		if p.stray(time.Hour+time.Duration(ms)*time.Millisecond, elsewhere) {
			n++
		}
	}
	if want := int(time.Second / strayInterval); n != want {
		t.Errorf("control was told %d times in a second, want %d", n, want)
	}
}
