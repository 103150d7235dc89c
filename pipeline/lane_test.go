package pipeline

import (
	"crypto/rand"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// lanes is two pipelines that are not run: a test drives their shards by hand, so that nothing but the lanes is measured.
// What A sends is kept in its wire, from where B receives it.
type lanes struct {
	a, b   *Pipeline
	wire   *wireSocket
	source tuntest.Packet
	sunk   int // bytes that B wrote
	supply int // superpackets that A may still read
	now    time.Duration
}

// wireSocket is a socket that keeps what is sent, for Receive on the other side.
type wireSocket struct {
	udp.Socket
	runs  []udp.Run
	bytes []byte
	stats udp.Stats
}

func (w *wireSocket) Send(runs []udp.Run) (int, error) {
	for _, r := range runs {
		at := len(w.bytes)
		w.bytes = append(w.bytes, r.Data...)
		r.Data = w.bytes[at:]
		w.runs = append(w.runs, r)
	}
	return len(runs), nil
}

func (w *wireSocket) Receive(batch []udp.Datagrams) (int, error) {
	n := min(len(batch), len(w.runs))
	for i, r := range w.runs[:n] {
		batch[i].Data = batch[i].Buf[:copy(batch[i].Buf, r.Data)]
		batch[i].SegmentSize, batch[i].Src = r.SegmentSize, netip.AddrPortFrom(laneAddrA, 1)
	}
	if w.runs = w.runs[n:]; len(w.runs) == 0 {
		w.runs, w.bytes = w.runs[:0], w.bytes[:0]
	}
	return n, nil
}

func (w *wireSocket) FD() int                   { return -1 }
func (w *wireSocket) Ready() <-chan struct{}    { return nil }
func (w *wireSocket) Writable() <-chan struct{} { return nil }
func (w *wireSocket) Stats() *udp.Stats         { return &w.stats }

// courier is the effects of a controller whose messages go straight to the other one.
type courier struct {
	from Path
	to   func() *controller
}

func (c *courier) send(_ *Path, data []byte, _ uint8) {
	if data[0] == 4 {
		return // a keepalive; the first data packet confirms just as well
	}
	l := &letter{length: len(data), src: c.from}
	copy(l.message[:], data)
	c.to().handle(time.Hour, l)
}
func (*courier) release(*peer)      {}
func (*courier) purge(*peer)        {}
func (*courier) letGo() func() bool { return func() bool { return true } }

var laneAddrA, laneAddrB = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")

// newLanes makes a session from A to B and lets A's TUN read the packet over and over.
func newLanes(tb testing.TB, workers int, packet tuntest.Packet, inner [2]netip.Addr) *lanes {
	l := &lanes{source: packet, wire: &wireSocket{bytes: make([]byte, 0, 4<<20), runs: make([]udp.Run, 0, 4096)}, now: time.Hour}
	device := func() *tuntest.Device { return tuntest.New(tuntest.Config{Capabilities: tuntest.AllCapabilities}) }
	da, db := device(), device()
	var err error
	if l.a, err = New(Config{Device: da, Workers: workers}); err != nil {
		tb.Fatal(err)
	}
	if l.b, err = New(Config{Device: db, Workers: workers}); err != nil {
		tb.Fatal(err)
	}
	da.Queue(0).SetSource(func(p *tun.Superpacket) bool {
		if l.supply == 0 {
			return false
		}
		l.supply--
		p.Data = p.Buf[tun.ReadHeadroom:][:copy(p.Buf[tun.ReadHeadroom:], l.source.Data)]
		p.Offload = l.source.Offload
		return true
	})
	db.Queue(0).SetSink(func(r *tun.Run) error {
		for _, piece := range r.Pieces {
			l.sunk += len(piece)
		}
		return nil
	})
	l.handshake(tb, inner)
	for _, p := range []*Pipeline{l.a, l.b} {
		s := p.shards[0]
		s.pair, s.now, s.mtu = udp.Pair{V4: l.wire}, l.now, 1420
		s.outbound.crew.start(func(f func()) { go f() })
		s.inbound.crew.start(func(f func()) { go f() })
		tb.Cleanup(func() { s.outbound.crew.stop(); s.inbound.crew.stop() })
	}
	return l
}

func (l *lanes) handshake(tb testing.TB, inner [2]netip.Addr) {
	ka, _ := crypto.GeneratePrivateKey(rand.Reader)
	kb, _ := crypto.GeneratePrivateKey(rand.Reader)
	a, b := l.a.control.controller, l.b.control.controller
	a.effects = &courier{from: Path{Dst: netip.AddrPortFrom(laneAddrA, 1)}, to: func() *controller { return b }}
	b.effects = &courier{from: Path{Dst: netip.AddrPortFrom(laneAddrB, 1)}, to: func() *controller { return a }}
	a.up, b.up = true, true
	a.setPrivateKey(l.now, ka)
	b.setPrivateKey(l.now, kb)
	pb, err := a.add(l.now, kb.Public())
	if err != nil {
		tb.Fatal(err)
	}
	pa, err := b.add(l.now, ka.Public())
	if err != nil {
		tb.Fatal(err)
	}
	pb.path.Store(&Path{Dst: netip.AddrPortFrom(laneAddrB, 1)})
	l.a.routes.set(netip.PrefixFrom(inner[1], inner[1].BitLen()), pb)
	l.b.routes.set(netip.PrefixFrom(inner[0], inner[0].BitLen()), pa)
	l.a.routes.publish()
	l.b.routes.publish()
	pb.core.Want(l.now)
	a.touch(l.now, pb)
	if pb.core.Sending() == nil {
		tb.Fatal("no session")
	}
}

// carry sends n superpackets through both lanes and returns how many bytes came out.
func (l *lanes) carry(tb testing.TB, n int) int {
	l.supply, l.sunk = n, 0
	l.now += time.Microsecond
	for l.supply > 0 {
		if _, err := l.a.shards[0].outbound.run(l.now); err != nil {
			tb.Fatal(err)
		}
		for len(l.wire.runs) > 0 {
			if _, err := l.b.shards[0].inbound.run(l.now, l.wire); err != nil {
				tb.Fatal(err)
			}
		}
	}
	return l.sunk
}

var laneInner = [2]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}

// The lanes allocate nothing, whatever they carry and whoever helps.
func TestLanesDoNotAllocate(t *testing.T) {
	big, _ := superpacket(laneInner[0], laneInner[1], 1, 60000, 1380)
	small := tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}
	for _, workers := range []int{0, 2} {
		for name, packet := range map[string]tuntest.Packet{"superpackets": big, "small packets": small} {
			l := newLanes(t, workers, packet, laneInner)
			const n = 40
			want := 0
			for range 3 { // lets slices grow to their size
				want = l.carry(t, n)
			}
			if want < n*(len(packet.Data)-64) {
				t.Fatalf("%s, %d workers: %d bytes came out of %d superpackets of %d", name, workers, want, n, len(packet.Data))
			}
			if got := testing.AllocsPerRun(20, func() { l.carry(t, n) }); got > 0 {
				t.Errorf("%s, %d workers: %v allocations for %d superpackets", name, workers, got, n)
			}
		}
	}
}

// BenchmarkLanes is both lanes of a tunnel without the kernel: route, segment, seal, copy (for the network), look up, open,
// check, coalesce. One operation is one packet.
func BenchmarkLanes(b *testing.B) {
	big, segments := superpacket(laneInner[0], laneInner[1], 1, 45*1380, 1380)
	for _, c := range []struct {
		name     string
		packet   tuntest.Packet
		segments int
	}{
		{"1420B", big, len(segments)},
		{"128B", tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}, 1},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := newLanes(b, 0, c.packet, laneInner)
			b.ReportAllocs()
			b.SetBytes(int64(len(c.packet.Data) / c.segments))
			for done := 0; done < b.N; {
				n := max(1, min(16*45/c.segments, (b.N-done)/c.segments))
				l.carry(b, n)
				done += n * c.segments
			}
		})
	}
}
