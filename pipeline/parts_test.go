package pipeline

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun"
)

// The lengths are those of the kernel's validate_header_len (drivers/net/wireguard/receive.c): exact for handshake
// messages, at least 32 for data; reserved bytes must be zero.
func TestClassify(t *testing.T) {
	message := func(kind byte, length int) []byte {
		b := make([]byte, length)
		b[0] = kind
		return b
	}
	cases := []struct {
		name string
		b    []byte
		want datagramClass
	}{
		{"empty", nil, classOther},
		{"short", []byte{4, 0, 0}, classOther},
		{"type word only", message(4, 4), classMalformed},
		{"initiation", message(1, 148), classHandshake},
		{"initiation, one short", message(1, 147), classMalformed},
		{"initiation, one long", message(1, 149), classMalformed},
		{"response", message(2, 92), classHandshake},
		{"cookie reply", message(3, 64), classHandshake},
		{"cookie reply, long", message(3, 65), classMalformed},
		{"keepalive", message(4, 32), classTransport},
		{"data, one short", message(4, 31), classMalformed},
		{"data", message(4, 1452), classTransport},
		{"reserved byte set", append([]byte{4, 0, 1, 0}, make([]byte, 60)...), classOther},
		{"STUN binding request", append([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, make([]byte, 12)...), classOther},
		{"data whose index is the STUN cookie", append([]byte{4, 0, 0, 0, 0x21, 0x12, 0xa4, 0x42}, make([]byte, 24)...), classTransport},
		{"ChannelData", append([]byte{0x40, 0, 0, 4}, make([]byte, 60)...), classOther},
		{"type 5", message(5, 148), classOther},
	}
	for _, c := range cases {
		if got := classify(c.b); got != c.want {
			t.Errorf("%s: class %d, want %d", c.name, got, c.want)
		}
	}
}

func FuzzClassify(f *testing.F) {
	f.Add([]byte{4, 0, 0, 0})
	f.Add(make([]byte, 148))
	f.Fuzz(func(t *testing.T, b []byte) {
		if class := classify(b); class == classTransport && len(b) < crypto.SizeKeepalive {
			t.Errorf("%d bytes taken as transport data", len(b))
		}
	})
}

// A run of the queue is what one UDP_SEGMENT send can carry: equal sizes but a shorter last, one path, one mark, back to
// back, at most MaxSegments and MaxDatagram.
func TestSendQueueAppend(t *testing.T) {
	arena := make([]byte, 1<<20)
	a, b := &Path{Dst: netip.MustParseAddrPort("192.0.2.1:1")}, &Path{Dst: netip.MustParseAddrPort("192.0.2.2:1")}
	type step struct {
		path *Path
		size int
		tos  uint8
		gap  int
	}
	repeat := func(n int, s step) (list []step) {
		for range n {
			list = append(list, s)
		}
		return list
	}
	cases := []struct {
		name  string
		steps []step
		want  []int // datagrams of each run
	}{
		{"equal", repeat(3, step{path: a, size: 100}), []int{3}},
		{"shorter last", append(repeat(3, step{path: a, size: 100}), step{path: a, size: 60}), []int{4}},
		{"nothing after a shorter one", []step{{path: a, size: 100}, {path: a, size: 60}, {path: a, size: 60}}, []int{2, 1}},
		{"longer", []step{{path: a, size: 60}, {path: a, size: 100}}, []int{1, 1}},
		{"other path", []step{{path: a, size: 100}, {path: b, size: 100}}, []int{1, 1}},
		{"other mark", []step{{path: a, size: 100}, {path: a, size: 100, tos: 3}}, []int{1, 1}},
		{"not back to back", []step{{path: a, size: 100}, {path: a, size: 100, gap: 1}}, []int{1, 1}},
		{"most segments", repeat(udp.MaxSegments+1, step{path: a, size: 100}), []int{udp.MaxSegments, 1}},
		{"most bytes", repeat(46, step{path: a, size: 1452}), []int{45, 1}},
	}
	for _, c := range cases {
		var q sendQueue
		at := 0
		for _, s := range c.steps {
			at += s.gap
			q.append(owner{path: s.path}, arena, at, s.size, outerMarks{tos: s.tos})
			at += s.size
		}
		var got []int
		for _, r := range q.runs {
			got = append(got, (len(r.Data)+r.SegmentSize-1)/r.SegmentSize)
		}
		if len(got) != len(c.want) {
			t.Errorf("%s: runs %v, want %v", c.name, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s: runs %v, want %v", c.name, got, c.want)
			}
		}
	}
}

// fullSocket takes only so many runs.
type fullSocket struct {
	udp.Socket
	room int
}

func (f *fullSocket) Send(runs []udp.Run) (int, error) {
	n := min(f.room, len(runs))
	f.room -= n
	return n, nil
}

// Socket.Send wants the rest "unchanged": of the run at which it stopped, a part may be on its way.
func TestRunThatWaitsIsNotChanged(t *testing.T) {
	arena := make([]byte, 1000)
	path := &Path{Dst: netip.MustParseAddrPort("192.0.2.1:1")}
	s := &shard{stats: new(shardStats)}
	var q sendQueue
	to := owner{peer: new(peer), path: path}
	q.append(to, arena, 0, 100, outerMarks{})
	if q.send(s, &fullSocket{}) {
		t.Fatal("a full socket took something")
	}
	q.append(to, arena, 100, 100, outerMarks{})
	if len(q.runs) != 2 || len(q.runs[0].Data) != 100 {
		t.Errorf("%d runs wait, the first of %d bytes; want 2, the first unchanged", len(q.runs), len(q.runs[0].Data))
	}
	if !q.send(s, &fullSocket{room: 2}) || len(q.runs) != 0 {
		t.Error("not everything was sent")
	}
}

// A superpacket without payload, as a virtual machine may send one, still is a packet.
func TestSegmentCount(t *testing.T) {
	sp := tun.Superpacket{Data: make([]byte, 40), Offload: tun.Offload{Type: tun.GSOTCPv4, HeaderLen: 40, SegmentSize: 100}}
	for payload, want := range map[int]int{0: 1, 1: 1, 100: 1, 101: 2, 300: 3} {
		sp.Data = make([]byte, 40+payload)
		if got := segmentCount(&sp); got != want {
			t.Errorf("%d bytes of payload: %d segments, want %d", payload, got, want)
		}
	}
	if got := segmentCount(&tun.Superpacket{Data: make([]byte, 9000)}); got != 1 {
		t.Errorf("a single packet is %d segments", got)
	}
}

// WireGuard paper, section 6.4, and the kernel's MAX_STAGED_PACKETS: the oldest give way.
func TestStaged(t *testing.T) {
	var q staged
	bytes, dropped := 0, 0
	for i := range crypto.MaxStagedPackets + 5 {
		d, grown := q.push(&tun.Superpacket{Data: []byte{byte(i), 1, 2, 3}})
		bytes += grown
		dropped += d
	}
	if dropped != 5 || len(q.packets) != crypto.MaxStagedPackets || bytes != 4*crypto.MaxStagedPackets {
		t.Fatalf("dropped %d, kept %d packets of %d bytes", dropped, len(q.packets), bytes)
	}
	if q.packets[0].Data[0] != 5 {
		t.Errorf("the oldest is %d, want 5", q.packets[0].Data[0])
	}
	const size = 40 + crypto.MaxStagedPackets
	all := tun.Superpacket{Data: make([]byte, size), Offload: tun.Offload{HeaderLen: 40, SegmentSize: 1}}
	if _, grown := q.push(&all); grown != size-4*crypto.MaxStagedPackets {
		t.Errorf("a superpacket of all places grew the queue by %d", grown)
	}
	if segments, bytes := q.clear(); segments != crypto.MaxStagedPackets || bytes != size || q.count.Load() != 0 {
		t.Errorf("cleared %d segments, %d bytes", segments, bytes)
	}
}

func TestTokenBucket(t *testing.T) {
	var b tokenBucket
	taken := 0
	for i := range 1000 {
		if b.take(time.Hour + time.Duration(i)*time.Microsecond) {
			taken++
		}
	}
	if taken != icmpRate {
		t.Errorf("a burst took %d, want %d", taken, icmpRate)
	}
	taken = 0
	for i := range 1000 { // one second in steps of 1 ms, from the empty bucket on
		if b.take(time.Hour + time.Duration(i+2)*time.Millisecond) {
			taken++
		}
	}
	if taken < icmpRate-2 || taken > icmpRate+1 {
		t.Errorf("a second took %d, want about %d", taken, icmpRate)
	}
}

func TestStamps(t *testing.T) {
	var s stamps
	if !s.sent(10, true) {
		t.Error("the first data sent did not signal")
	}
	if a, watched := s.watch(); a.FirstUnanswered != 10 || !watched {
		t.Errorf("activity %+v, watched %v", a, watched)
	}
	if s.sent(20, true) {
		t.Error("signalled although a deadline watches")
	}
	for i := range time.Duration(10) { // data goes to and fro, and control is left alone
		if s.received(21+i, true) || s.sent(21+i, true) {
			t.Fatal("signalled although control will look")
		}
	}
	if s.received(30, true) {
		t.Error("signalled although control will look")
	}
	if a, _ := s.watch(); a.FirstUnanswered != 0 || a.FirstUnkept != 30 || a.LastSent != 30 {
		t.Errorf("activity %+v", a)
	}
	if s.sent(40, false) || s.activity().FirstUnkept != 0 {
		t.Error("a keepalive counted as data, or did not count as sent")
	}
	if _, watched := s.watch(); watched {
		t.Error("nothing to watch is watched")
	}
	if s.received(50, false) || s.activity().FirstUnkept != 0 {
		t.Error("a keepalive received asks for a keepalive") // WireGuard paper, section 6.5
	}
	if !s.received(60, true) {
		t.Error("the first data received did not signal")
	}
}

// Every signal arrives, and a peer is never lost between its signals' swap and the next push.
func TestNotified(t *testing.T) {
	n := notified{wake: make(chan struct{}, 1)}
	peers := make([]*peer, 8)
	for i := range peers {
		peers[i] = &peer{}
	}
	const each = 2000
	var sent, seen [8]atomic.Int64
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for k := range each {
				i := k % len(peers)
				sent[i].Add(1)
				n.notify(peers[i], 1)
			}
		})
	}
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	note := func(p *peer, _ uint32) {
		for i := range peers {
			if peers[i] == p {
				seen[i].Store(sent[i].Load())
			}
		}
	}
	for running := true; running; {
		select {
		case <-n.wake:
		case <-done:
			running = false
		}
		n.drain(note)
	}
	for i := range peers {
		if seen[i].Load() != 4*each/int64(len(peers)) {
			t.Errorf("peer %d was last drained at %d of %d signals", i, seen[i].Load(), sent[i].Load())
		}
	}
}

// Cryptokey routing, WireGuard paper, section 2: the longest prefix over all peers; a prefix has one owner.
func TestRoutes(t *testing.T) {
	var r routes
	r.init()
	a := &peer{allowedIPs: map[netip.Prefix]struct{}{}}
	b := &peer{allowedIPs: map[netip.Prefix]struct{}{}}
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	r.set(prefix("10.0.0.0/8"), a)
	r.set(prefix("10.1.0.0/16"), b)
	r.set(prefix("::/0"), b)
	if r.lookup(addr("10.0.0.1")) != nil {
		t.Error("a draft was seen before it was published")
	}
	r.publish()
	if r.lookup(addr("10.0.0.1")) != a || r.lookup(addr("10.1.0.1")) != b || r.lookup(addr("fd00::1")) != b {
		t.Error("longest prefix not found")
	}
	if r.lookup(addr("11.0.0.1")) != nil {
		t.Error("an address that nobody has found a peer")
	}
	r.set(prefix("10.0.0.0/8"), b)
	r.publish()
	if len(a.allowedIPs) != 0 || r.lookup(addr("10.0.0.1")) != b {
		t.Error("the prefix did not move")
	}
	r.unset(prefix("10.0.0.0/8"), a)
	r.publish()
	if r.lookup(addr("10.0.0.1")) != b {
		t.Error("a prefix was taken from a peer that does not have it")
	}
	r.unsetAll(b)
	r.publish()
	if len(b.allowedIPs) != 0 || r.lookup(addr("10.1.0.1")) != nil || r.table.Load().Size() != 0 {
		t.Error("prefixes are left")
	}
}

// TestDropTable: each reason is declared, once.
func TestDropTable(t *testing.T) {
	seen := map[string]bool{}
	for i, d := range dropTable {
		if d.stage == "" || d.reason == "" || d.help == "" || seen[d.reason] {
			t.Errorf("drop reason %d is declared as %+v", i, d)
		}
		seen[d.reason] = true
	}
}

// refusingSocket refuses the first bytes of each run.
type refusingSocket struct {
	udp.Socket
	bytes int
}

func (r *refusingSocket) Send(runs []udp.Run) (int, error) {
	for i := range runs {
		runs[i].Refused = min(r.bytes, len(runs[i].Data))
	}
	return len(runs), nil
}

// What the socket refused was not sent, and its peer owes no answer for it.
func TestRefusedIsNotSent(t *testing.T) {
	arena := make([]byte, 1000)
	for _, channel := range []uint16{0, 0x4000} {
		path := &Path{Dst: netip.MustParseAddrPort("192.0.2.1:1"), Channel: channel}
		for refused, want := range map[int]struct {
			bytes int
			asked time.Duration
		}{0: {250, time.Second}, 100: {150, time.Second}, 200: {50, time.Second}, 250: {0, 0}} {
			to := owner{peer: new(peer), path: path, at: time.Second}
			to.peer.stamps.sent(to.at, true)
			var q sendQueue
			q.append(to, arena, 0, 100, outerMarks{})
			q.append(to, arena, 100, 100, outerMarks{})
			q.append(to, arena, 200, 50, outerMarks{})
			if !q.send(&shard{stats: new(shardStats)}, &refusingSocket{bytes: refused}) {
				t.Fatal("something is left")
			}
			messages := (want.bytes + 99) / 100
			if got := int(to.peer.txBytes.Load()); got != want.bytes-messages*path.overhead() {
				t.Errorf("channel %d, %d of 250 bytes refused: %d bytes counted, want %d", channel, refused, got, want.bytes-messages*path.overhead())
			}
			if got := to.peer.stamps.activity().FirstUnanswered; got != want.asked {
				t.Errorf("channel %d, %d of 250 bytes refused: first unanswered at %v, want %v", channel, refused, got, want.asked)
			}
		}
	}
}
