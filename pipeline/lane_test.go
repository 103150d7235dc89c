package pipeline

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/flow"
	"github.com/sluice-vpn/sluice/pipeline/frame"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun"
	"github.com/sluice-vpn/sluice/tun/ip"
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
	runs    []udp.Run
	bytes   []byte
	longest int           // run
	from    udp.Datagrams // Src, Dst, IfIndex and Arrived of what Receive returns
	stats   udp.Stats
}

func (w *wireSocket) Send(runs []udp.Run) (int, error) {
	for _, r := range runs {
		at := len(w.bytes)
		w.bytes = append(w.bytes, r.Data...)
		r.Data = w.bytes[at:]
		w.longest = max(w.longest, len(r.Data))
		w.runs = append(w.runs, r)
	}
	return len(runs), nil
}

func (w *wireSocket) Receive(batch []udp.Datagrams) (int, error) {
	n := min(len(batch), len(w.runs))
	for i, r := range w.runs[:n] {
		batch[i].Data = batch[i].Buf[:copy(batch[i].Buf, r.Data)]
		batch[i].SegmentSize, batch[i].Src, batch[i].Dst, batch[i].IfIndex = r.SegmentSize, w.from.Src, w.from.Dst, w.from.IfIndex
		batch[i].Arrived = w.from.Arrived
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
	now  time.Duration // time.Hour if 0
	to   func() *controller
}

func (c *courier) send(_ *Path, data []byte, _ uint8) bool {
	if data[0] == 4 {
		return true // a keepalive; the first data packet confirms just as well
	}
	now := c.now
	if now == 0 {
		now = time.Hour
	}
	l := &letter{length: len(data), src: c.from}
	copy(l.message[:], data)
	c.to().handle(now, l)
	return true
}
func (*courier) release(*peer)          {}
func (*courier) inherit(*peer, *peer)   {}
func (*courier) purge(*peer)            {}
func (*courier) sourceHolds(*Path) bool { return true }
func (*courier) letGo() func() bool     { return func() bool { return true } }

var laneAddrA, laneAddrB = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")

// newLanes makes a session from A to B and lets A's TUN read the packet over and over.
func newLanes(tb testing.TB, workers int, packet tuntest.Packet, inner [2]netip.Addr) *lanes {
	l := &lanes{source: packet, wire: &wireSocket{bytes: make([]byte, 0, 4<<20), runs: make([]udp.Run, 0, 4096)}, now: time.Hour}
	l.wire.from.Src = netip.AddrPortFrom(laneAddrA, 1)
	device := func() *tuntest.Device { return tuntest.New(tuntest.Config{Capabilities: tuntest.AllCapabilities}) }
	da, db := device(), device()
	var err error
	wall := time.Now()
	walls := func() time.Time { wall = wall.Add(time.Second); return wall } // every initiation is newer than the one before
	if l.a, err = New(Config{Device: da, Workers: workers, Wall: walls}); err != nil {
		tb.Fatal(err)
	}
	if l.b, err = New(Config{Device: db, Workers: workers, Wall: walls}); err != nil {
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
	a.setPrivateKey(l.now, &ka)
	b.setPrivateKey(l.now, &kb)
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

// relay lets A's datagrams go to B, and come there, as ChannelData of a relay. The header stays on in between, as if the wire
// were the relay's and B had the same number for its channel to A.
func (l *lanes) relay() *lanes {
	const channel = 0x4001
	l.a.control.controller.peers[0].path.Store(&Path{Dst: netip.AddrPortFrom(laneAddrB, 1), Channel: channel})
	l.b.control.controller.peers[0].path.Store(&Path{Dst: netip.AddrPortFrom(laneAddrA, 1), Channel: channel})
	l.b.SetRelays([]netip.AddrPort{netip.AddrPortFrom(laneAddrA, 1)})
	return l
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
	cases := []struct {
		name    string
		packet  tuntest.Packet
		relayed bool
		own     bool // B's destinations are checked
	}{
		{"superpackets", big, false, false}, {"small packets", small, false, false}, {"relayed superpackets", big, true, false},
		{"relayed small packets", small, true, false}, {"superpackets for own addresses", big, false, true}, {"small packets for own addresses", small, false, true},
	}
	for _, workers := range []int{0, 2} {
		for _, c := range cases {
			name, packet := c.name, c.packet
			l := newLanes(t, workers, packet, laneInner)
			if c.relayed {
				l.relay()
			}
			if c.own {
				(&Edit{l.b.control}).SetDestinations([]netip.Addr{netip.MustParseAddr("10.0.0.9"), laneInner[1]})
			}
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
			sent, received := l.a.shards[0].stats.ChannelSent.Load(), l.b.shards[0].stats.ChannelReceived.Load()
			if segments := l.a.shards[0].stats.OutboundSegments.Load(); c.relayed && (sent != segments || received != segments) || !c.relayed && sent+received != 0 {
				t.Errorf("%s: %d of %d packets were framed, %d stripped", name, sent, segments, received)
			}
		}
	}
}

// A node that has its own addresses takes nothing that is for another, whoever sends it, until it is told otherwise.
func TestDestinations(t *testing.T) {
	packet := tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}
	l := newLanes(t, 0, packet, laneInner)
	edit, stats := &Edit{l.b.control}, l.b.shards[0].stats
	for i, tt := range []struct {
		own  []netip.Addr
		pass bool
	}{
		{nil, true}, {[]netip.Addr{laneInner[1]}, true}, {[]netip.Addr{laneInner[0], netip.MustParseAddr("fd00::1")}, false}, {[]netip.Addr{}, false},
		{[]netip.Addr{laneInner[0], laneInner[1]}, true}, {nil, true},
	} {
		edit.SetDestinations(tt.own)
		before := stats.drops[dropDestinationNotOwn].Load()
		const n = 5
		got, dropped := l.carry(t, n), stats.drops[dropDestinationNotOwn].Load()-before
		if (got > 0) != tt.pass || (dropped == 0) != tt.pass || !tt.pass && dropped != n {
			t.Errorf("%d, own addresses %v: %d bytes came out and %d packets of %d were dropped, want them to pass: %v", i, tt.own, got, dropped, n, tt.pass)
		}
	}
}

// A node that takes only answers takes what it was sent by whom it has sent to, over whatever shard, and nothing else.
func TestUnasked(t *testing.T) {
	packet := tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}
	l := newLanes(t, 0, packet, laneInner)
	stats, table := l.b.shards[0].stats, flow.NewTable()
	l.b.shards[0].inbound.flows = table.View()
	const n = 5
	if got, dropped := l.carry(t, n), stats.drops[dropUnasked].Load(); got != 0 || dropped != n {
		t.Errorf("%d bytes came out and %d packets of %d were dropped, want all", got, dropped, n)
	}
	question := datagram(laneInner[1], laneInner[0], 1, 100)
	copy(question[20:22], packet.Data[22:24])
	copy(question[22:24], packet.Data[20:22])
	table.View().Sent(l.now, question)
	if got, dropped := l.carry(t, n), stats.drops[dropUnasked].Load(); got == 0 || dropped != n {
		t.Errorf("%d bytes of answers came out and %d were dropped, want none", got, dropped-n)
	}
	if got := testing.AllocsPerRun(10, func() { l.carry(t, n) }); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

// When the counters run out, staged packets stay staged and nothing newer overtakes them (paper, section 6.2: the packet
// waits for the next session).
func TestReleaseWithoutCounters(t *testing.T) {
	big, segments := superpacket(laneInner[0], laneInner[1], 1, 4*1380, 1380)
	l := newLanes(t, 0, tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}, laneInner)
	p, s := l.a.control.controller.peers[0], l.a.shards[0]
	kp := p.core.Sending()
	used, _ := kp.Reserve(1)
	spare := crypto.RejectAfterMessages - (used + 1) - 2 // leaves fewer than the superpacket has segments
	kp.Reserve(int(spare / 2))
	kp.Reserve(int(spare - spare/2))
	lane := &p.outbound[0]
	s.outbound.stage(p, &tun.Superpacket{Data: big.Data, Offload: big.Offload})
	l.supply = 1
	if _, err := s.outbound.run(l.now); err != nil {
		t.Fatal(err)
	}
	if len(l.wire.runs) != 0 {
		t.Errorf("%d runs left before the staged packet", len(l.wire.runs))
	}
	if got := int(lane.count.Load()); got != len(segments)+1 || s.staged != len(big.Data)+len(l.source.Data) {
		t.Errorf("%d segments and %d bytes are staged, want %d", got, s.staged, len(segments)+1)
	}
	if s.stats.drops[dropStagedFull].Load()+s.stats.drops[dropStagedExpired].Load() != 0 || s.stats.OutboundSegments.Load() != 0 {
		t.Error("something was dropped or sealed")
	}
}

// A lane that found no session a moment before it came up stages packets after control has looked: control tells every
// shard that is in a batch.
func TestReleaseReachesShardsInABatch(t *testing.T) {
	for _, kind := range []commandKind{commandRelease, commandPurge} {
		l := newLanes(t, 0, tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}, laneInner)
		p, s := l.a.control.controller.peers[0], l.a.shards[0]
		l.a.control.tell(p, kind)
		if s.posted.Load() {
			t.Error("a shard between two batches, with nothing staged, was told")
		}
		s.epoch.Add(1)
		l.a.control.tell(p, kind)
		s.outbound.stage(p, &tun.Superpacket{Data: l.source.Data})
		if err := s.obey(); err != nil {
			t.Fatal(err)
		}
		if p.hasStaged() || s.staged != 0 {
			t.Errorf("command %d: %d bytes are still staged", kind, s.staged)
		}
		if sent := len(l.wire.runs); kind == commandRelease && sent != 1 || kind == commandPurge && sent != 0 {
			t.Errorf("command %d: %d runs were sent", kind, sent)
		}
	}
}

// A lane's wish that was overtaken by the session it asks for makes no second handshake.
func TestWantAfterSession(t *testing.T) {
	l := newLanes(t, 0, tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}, laneInner)
	a, p := l.a.control.controller, l.a.control.controller.peers[0]
	running := func(after time.Duration) bool {
		a.notice(l.now+after, p, signalWant)
		a.handleTimeout(l.now + after + 6*time.Second) // less than 5 s after a handshake none may begin
		_, _, running := p.core.Series()
		return running
	}
	if running(time.Second) {
		t.Error("a handshake began although there is a fresh session")
	}
	if !running(crypto.RekeyAfterTime) {
		t.Error("no handshake began after RekeyAfterTime")
	}
}

// The answer to the first data of a new session leaves under that session, even if control has not heard of the data yet:
// the peer may have started anew and know no other (kernel noise.c, wg_noise_received_with_keypair).
func TestAnswerUsesTheNewSession(t *testing.T) {
	l := newLanes(t, 0, tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}, laneInner)
	a, b := l.a.control.controller, l.b.control.controller
	pa, pb := b.peers[0], a.peers[0]
	l.carry(t, 1)
	b.notice(l.now, pa, signalConfirmed)
	old := pa.core.Sending()
	if old == nil || pa.confirmed.Load() != nil {
		t.Fatal("the first session was not confirmed")
	}
	l.now += time.Minute
	a.effects.(*courier).now, b.effects.(*courier).now = l.now, l.now
	pb.core.Clear(l.now)
	pb.core.Want(l.now)
	a.touch(l.now, pb)
	l.carry(t, 1)
	l.b.config.Device.(*tuntest.Device).InjectData(datagram(laneInner[1], laneInner[0], 1, 100))
	if _, err := l.b.shards[0].outbound.run(l.now); err != nil {
		t.Fatal(err)
	}
	if len(l.wire.runs) != 1 {
		t.Fatalf("%d answers were sent", len(l.wire.runs))
	}
	if index, _, _ := crypto.ParseTransport(l.wire.runs[0].Data); index != pb.core.Sending().LocalIndex {
		t.Error("the answer left under the old session")
	}
	b.notice(l.now, pa, signalConfirmed)
	if pa.core.Sending() == old || pa.confirmed.Load() != nil {
		t.Error("control did not make the new session the current one")
	}
}

// A cookie reply is no sign of the session's life and is not counted as received (kernel receive.c,
// wg_receive_handshake_packet).
func TestCookieReplyIsNotCounted(t *testing.T) {
	l := newLanes(t, 0, tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}, laneInner)
	a, p := l.a.control.controller, l.a.control.controller.peers[0]
	now := l.now + crypto.RekeyAfterTime
	before, heard := p.rxBytes.Load(), p.lastReceived.Load()
	l.b.local.NoteQueue(now, 1024, 1024)
	l.b.control.controller.effects.(*courier).now = now
	a.effects.(*courier).now = now
	p.core.Want(now)
	a.touch(now, p)
	if p.core.Tally().CookieReplies != 1 {
		t.Fatal("no cookie reply came")
	}
	if p.rxBytes.Load() != before || p.lastReceived.Load() != heard {
		t.Errorf("%d bytes were counted, received at %v", p.rxBytes.Load()-before, time.Duration(p.lastReceived.Load()))
	}
}

// What a device takes nothing of is counted in packets, not in runs.
func TestFullDeviceCountsPackets(t *testing.T) {
	big, segments := superpacket(laneInner[0], laneInner[1], 1, 20*1380, 1380)
	l := newLanes(t, 0, big, laneInner)
	queue := l.b.config.Device.(*tuntest.Device).Queue(0)
	queue.SetLimit(0)
	l.carry(t, 3)
	if got := l.b.shards[0].stats.drops[dropTUNFull].Load(); got != uint64(3*len(segments)) {
		t.Errorf("%d packets were counted, want %d", got, 3*len(segments))
	}
}

// Whatever the sizes, nothing overflows: segments of one byte, the largest packet there is, an MTU of 65535, as many
// packets as a batch takes.
func TestExtremeSizes(t *testing.T) {
	tiny, tinySegments := superpacket(laneInner[0], laneInner[1], 1, 65535-40, 1)
	few, fewSegments := superpacket(laneInner[0], laneInner[1], 1, 65535-40, 9000)
	single := func(length int) tuntest.Packet {
		return tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, length-28)}
	}
	type extreme struct {
		name              string
		packet            tuntest.Packet
		segments, n, lost int
	}
	for _, header := range []int{0, frame.ChannelHeaderSize} {
		most := MaxMTU - header
		for _, c := range []extreme{
			{"65495 segments of one byte", tiny, len(tinySegments), 1, 0},
			{"segments of 9000 bytes", few, len(fewSegments), 40, 0},
			{"the largest packet that fits a datagram", single(most), 1, 40, 0},
			{"one byte more", single(most + 1), 1, 40, 40},
			{"the largest packet", single(65535), 1, 40, 40},
			{"empty datagrams", single(28), 1, 1000, 0},
		} {
			for _, workers := range []int{0, 2} {
				for _, mtu := range []int{68, 65535} {
					l := newLanes(t, workers, c.packet, laneInner)
					if header > 0 {
						l.relay()
					}
					stats := l.a.shards[0].stats
					l.a.shards[0].mtu = mtu
					packets := 0
					l.b.config.Device.(*tuntest.Device).Queue(0).SetSink(func(r *tun.Run) error { packets += len(r.Pieces); return nil })
					l.carry(t, c.n)
					what := fmt.Sprintf("%s, a header of %d, %d workers, MTU %d", c.name, header, workers, mtu)
					if want := (c.n - c.lost) * c.segments; packets != want || stats.OutboundSegments.Load() != uint64(want) {
						t.Errorf("%s: %d packets came out, want %d", what, packets, want)
					}
					if got := stats.drops[dropTooBig].Load(); got != uint64(c.lost) {
						t.Errorf("%s: %d were counted as too big, want %d", what, got, c.lost)
					}
					if l.wire.longest > udp.MaxDatagram {
						t.Errorf("%s: a run of %d bytes", what, l.wire.longest)
					}
					errors := l.a.config.Device.(*tuntest.Device).Take()
					if c.lost > 0 && (len(errors) == 0 || !isTooBig(errors[0].Data, most)) {
						t.Errorf("%s: %d ICMP errors, want packet too big for %d", what, len(errors), most)
					}
				}
			}
		}
	}
}

// isTooBig tells whether the packet is ICMP "fragmentation needed" (RFC 1191) for this MTU.
func isTooBig(b []byte, mtu int) bool {
	return len(b) > 28 && b[9] == ip.ProtocolICMP && b[20] == 3 && b[21] == 4 && int(b[26])<<8|int(b[27]) == mtu
}

// BenchmarkLanes is both lanes of a tunnel without the kernel: route, segment, seal, copy (for the network), look up, open,
// check, coalesce. One operation is one packet.
func BenchmarkLanes(b *testing.B) {
	big, segments := superpacket(laneInner[0], laneInner[1], 1, 45*1380, 1380)
	for _, c := range []struct {
		name     string
		packet   tuntest.Packet
		segments int
		relayed  bool
	}{
		{"1420B", big, len(segments), false},
		{"128B", tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}, 1, false},
		{"1420B relayed", big, len(segments), true},
		{"128B relayed", tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}, 1, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := newLanes(b, 0, c.packet, laneInner)
			if c.relayed {
				l.relay()
			}
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
