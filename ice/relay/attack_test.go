package relay

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// TestAmplification sends, without credentials, every method and class with few and with many attributes; no answer may be
// more than three times as long as what caused it, and nothing may be kept.
func TestAmplification(t *testing.T) {
	s := start(t, func(c *Config) { c.Realm = "twenty bytes of text" })
	c := dial(t, s, 0, "stranger")
	id := newID()
	peerAt := peerAttr(netip.MustParseAddrPort("127.0.0.1:9"), &id)
	tails := [][]attr{
		nil, {udpTransport}, {peerAt}, {udpTransport, {stun.Software, make([]byte, 40)}}, {{0x7abc, nil}},
		{{0x7abc, nil}, {0x7abd, nil}, {0x7abe, nil}, {0x7abf, nil}}, {channelAttr(0x4000), peerAt},
		{{stun.Username, []byte("1:x")}, {stun.Integrity, make([]byte, 20)}},
		{{stun.Username, []byte("1:x")}, {stun.Realm, []byte("r")}, {stun.Nonce, []byte("n")}, {stun.Integrity, make([]byte, 20)}},
	}
	in, out := 0, 0
	for method := range stun.Method(16) {
		for class := range stun.Class(4) {
			for _, tail := range tails {
				b := plain(method, class, newID(), tail...)
				c.send(b)
				in += len(b)
				for b := c.readNew(time.Millisecond); b != nil; b = c.readNew(0) {
					out += len(b)
					c.sound(b)
				}
			}
		}
	}
	for _, tail := range tails { // one by one, each for itself
		for _, method := range []stun.Method{stun.Binding, stun.Allocate, stun.Refresh, stun.ChannelBind} {
			b := plain(method, stun.Request, newID(), tail...)
			if r := c.exchange(b, 5*time.Millisecond); len(r) > maxAmplification*len(b) {
				t.Errorf("method %#x: %d bytes in, %d out", method, len(b), len(r))
			}
		}
	}
	t.Logf("%d bytes in, %d out", in, out)
	if out == 0 || out > maxAmplification*in {
		t.Errorf("%d bytes in, %d out", in, out)
	}
	if s.stats.drops[dropAmplification].Load() == 0 {
		t.Error("a bare Allocate was answered, or never came")
	}
	if n, users := s.quota.count(); n != 0 || users != 0 {
		t.Errorf("state without authentication: %d, %d", n, users)
	}
}

// TestShortChallenge: the shortest Allocate there is gets its 401 also with the longest realm.
func TestShortChallenge(t *testing.T) {
	s := start(t, func(c *Config) { c.Realm = "twenty bytes of text" })
	c := dial(t, s, 0, "x")
	c.challenge()
	if string(c.realm) != "twenty bytes of text" || len(c.nonce) == 0 {
		t.Fatalf("realm %q, nonce %q", c.realm, c.nonce)
	}
}

// TestRateLimit: one source gets its burst of answers and no more; another source is not affected, nor is one that is
// authenticated.
func TestRateLimit(t *testing.T) {
	s := start(t, func(c *Config) { c.RefusalsPerSecond, c.BindingsPerSecond = 1, 2 })
	known := dial(t, s, 0, "known")
	known.allocate() // one refusal: the challenge
	flood := dial(t, s, 0, "flood")
	answers := func(method stun.Method, attrs ...attr) (n, seconds int) {
		begin, before := time.Now(), s.stats.drops[dropNoAllocation].Load()
		for range 100 {
			flood.send(plain(method, stun.Request, newID(), attrs...))
		}
		flood.send(channelData(0x4000, nil)) // read after all of them
		eventually(t, "the flood to be read", func() bool { return s.stats.drops[dropNoAllocation].Load() > before })
		seconds = int(time.Since(begin)/time.Second) + 1
		for flood.readNew(100*time.Millisecond) != nil {
			n++
		}
		return n, seconds
	}
	if n, seconds := answers(stun.Allocate, udpTransport); n < 1 || n > 5+seconds {
		t.Errorf("%d of 100 strangers' requests answered within %d s, want 4 or little more", n, seconds)
	}
	if n, seconds := answers(stun.Binding); n < 10 || n > 10+2*seconds {
		t.Errorf("%d of 100 Binding requests answered within %d s, want 10 or little more", n, seconds)
	}
	// Signed by nobody: the key is wrong, so the answers count as refusals.
	flood.realm, flood.nonce, flood.password = known.realm, known.nonce, "wrong"
	for range 100 {
		flood.send(flood.signed(stun.Refresh, newID()))
	}
	if _, code := known.call(stun.Refresh); code != 0 {
		t.Errorf("the known client: %d", code)
	}
	if s.stats.drops[dropUnauthorizedLimited].Load() < 150 || s.stats.drops[dropBindingLimited].Load() < 80 {
		t.Errorf("limits did not count: %d, %d", s.stats.drops[dropUnauthorizedLimited].Load(), s.stats.drops[dropBindingLimited].Load())
	}
	other := dial(t, s, 1, "other") // another source
	if r := other.exchange(plain(stun.Binding, stun.Request, newID()), patience); r == nil {
		t.Error("another source is not answered")
	}
}

// TestLimiter drives the limiter by its clock.
func TestLimiter(t *testing.T) {
	l := newLimiter(10, 5)
	second := int64(time.Second)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	count := func(a netip.Addr, now int64) (n int) {
		for range 100 {
			if l.allow(a, now) {
				n++
			}
		}
		return n
	}
	if n := count(a, 0); n != 5 {
		t.Errorf("burst of %d, want 5", n)
	}
	if n := count(a, second/5); n != 2 {
		t.Errorf("%d after 200 ms, want 2", n)
	}
	if n := count(a, 100*second); n != 5 {
		t.Errorf("%d after a long time, want 5", n)
	}
	if n := count(b, 0); n != 5 {
		t.Errorf("IPv6: %d, want 5", n)
	}
	if n := count(netip.MustParseAddr("2001:db8::ffff:1"), 0); n != 0 {
		t.Errorf("the same /64: %d, want 0", n)
	}
	for i := range 200000 { // a flood from forged sources makes no bucket fresh
		l.allow(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 0)
	}
	if n := count(b, 0); n != 0 {
		t.Errorf("after a flood: %d, want 0", n)
	}
}

// TestSourcePortZero: such a datagram cannot be sent with an ordinary socket, so it is handed to the gate.
func TestSourcePortZero(t *testing.T) {
	g := newGate(&Server{}, &socket{})
	for src, want := range map[string]bool{
		"192.0.2.1:0": false, "0.0.0.0:9": false, "224.0.0.1:9": false, "255.255.255.255:9": false, "[ff02::1]:9": false,
		"[::]:9": false, "192.0.2.1:9": true, "[2001:db8::1]:9": true,
	} {
		if got := g.welcome(received{data: []byte("x"), segment: 1, src: netip.MustParseAddrPort(src)}); got != want {
			t.Errorf("%s: %v, want %v", src, got, want)
		}
	}
	if n := g.server.stats.drops[dropSource].Load(); n != 6 {
		t.Errorf("%d counted, want 6", n)
	}
}

// TestIndicationsUnanswered: RFC 8489 section 6.3.2, "unknown comprehension-required attributes, the indication is discarded".
func TestIndicationsUnanswered(t *testing.T) {
	s := start(t, nil)
	c := dial(t, s, 0, "x")
	c.allocate()
	conn, at := peer(t, loopback4)
	if c.permit(at) != 0 {
		t.Fatal("CreatePermission")
	}
	c.indicate(at, []byte("bad"), attr{0x7abc, []byte("1234")})
	c.indicate(at, []byte("good"))
	if b, _ := readPeer(conn, patience); string(b) != "good" {
		t.Errorf("the peer got %q", b)
	}
	if b := c.readNew(50 * time.Millisecond); b != nil {
		t.Errorf("the indication was answered: %x", b)
	}
	if n := s.stats.drops[dropMalformed].Load(); n != 1 {
		t.Errorf("%d counted, want 1", n)
	}
}

// mutate changes a message at random, and mends its length often enough that it passes the first test.
func mutate(r *rand.Rand, b []byte) []byte {
	b = append([]byte{}, b...)
	for range 1 + r.IntN(4) {
		switch r.IntN(6) {
		case 0, 1:
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		case 2:
			b[r.IntN(len(b))] = byte(r.Uint32())
		case 3:
			b = b[:1+r.IntN(len(b))]
		case 4:
			b = append(b, make([]byte, r.IntN(12))...)
		case 5:
			at := r.IntN(len(b))
			b = append(b[:at], append([]byte{byte(r.Uint32()), byte(r.Uint32()), 0, byte(r.IntN(24))}, b[at:]...)...)
		}
	}
	if len(b) > maxMessage+100 {
		b = b[:maxMessage+100]
	}
	if len(b) >= frame.HeaderSize && r.IntN(2) == 0 {
		b = b[:len(b)&^3]
		b[2], b[3] = byte((len(b)-frame.HeaderSize)>>8), byte(len(b)-frame.HeaderSize)
	}
	return b
}

// TestMutated sends 1e5 mutated messages, from a stranger and from the client's own 5-tuple, and every truncation of the
// originals. The server and the client's allocation live on, and it comes to rest.
func TestMutated(t *testing.T) {
	s := start(t, nil)
	c, stranger := dial(t, s, 0, "victim"), dial(t, s, 0, "stranger")
	relayed := c.allocate()
	conn, at := peer(t, loopback4)
	if c.bind(0x4001, at) != 0 {
		t.Fatal("ChannelBind")
	}
	id := newID()
	originals := [][]byte{
		plain(stun.Binding, stun.Request, id), c.signed(stun.Allocate, id, udpTransport), c.signed(stun.Refresh, id),
		c.signed(stun.CreatePermission, id, peerAttr(at, &id)),
		c.signed(stun.ChannelBind, id, channelAttr(0x4001), peerAttr(at, &id)),
		plain(stun.Send, stun.Indication, id, peerAttr(at, &id), attr{stun.Data, []byte("data")}),
		channelData(0x4001, []byte("data")),
	}
	r := rand.New(rand.NewPCG(3, 1))
	for i := range 50000 {
		b := mutate(r, originals[i%len(originals)])
		stranger.send(b)
		c.send(b)
		if i%64 == 0 {
			time.Sleep(50 * time.Microsecond) // do not only fill the socket's buffer
		}
	}
	for _, b := range originals {
		for n := range len(b) {
			stranger.send(b[:n])
		}
	}
	eventually(t, "the relayed path to be alive", func() bool {
		for b, _ := readPeer(conn, time.Millisecond); b != nil; b, _ = readPeer(conn, time.Millisecond) {
		}
		for c.readNew(time.Millisecond) != nil {
		}
		if c.find(t, s) == nil { // a mutated Refresh cannot be signed
			t.Fatal("the allocation is gone")
		}
		c.send(channelData(0x4001, []byte("still alive")))
		b, _ := readPeer(conn, 100*time.Millisecond)
		conn.WriteToUDPAddrPort([]byte("and back"), relayed)
		return bytes.Equal(b, []byte("still alive")) && bytes.Equal(c.readNew(100*time.Millisecond), channelData(0x4001, []byte("and back")))
	})
	if s.stats.drops[dropMalformed].Load() < 10000 {
		t.Errorf("only %d messages failed the check", s.stats.drops[dropMalformed].Load())
	}
	rests(t)
}

func (c *client) find(t testing.TB, s *Server) *allocation {
	t.Helper()
	return s.gates[0].find(c.addr())
}

// TestAttacksRest floods with each kind of traffic that costs something, and waits for the CPU to come to rest.
func TestAttacksRest(t *testing.T) {
	s := start(t, func(c *Config) { c.RefusalsPerSecond, c.BindingsPerSecond = 10, 100 })
	c := dial(t, s, 0, "x")
	c.allocate()
	_, at := peer(t, loopback4)
	c.bind(0x4001, at)
	bad := *c
	bad.password = "wrong"
	id := newID()
	for name, b := range map[string][]byte{
		"garbage":          bytes.Repeat([]byte{0xff}, 1200),
		"empty":            {},
		"binding":          plain(stun.Binding, stun.Request, id),
		"stranger":         plain(stun.Allocate, stun.Request, id, udpTransport),
		"wrong key":        bad.signed(stun.Refresh, id),
		"long":             bytes.Repeat([]byte{0, 1, 2, 3}, 16000),
		"channel":          channelData(0x4001, make([]byte, 1200)),
		"unbound channel":  channelData(0x4fff, make([]byte, 1200)),
		"no such channel":  channelData(0x5000, nil),
		"long channel":     {0x40, 1, 0xff, 0xff},
		"permission flood": c.signed(stun.CreatePermission, id, peerAttr(at, &id)),
	} {
		for range 2000 {
			c.send(b)
		}
		t.Log(name)
	}
	rests(t)
	// Like any client it asks again: the floods may still fill the server's buffer, and their answers the client's.
	eventually(t, "the client to be served after the attacks", func() bool {
		for c.readNew(time.Millisecond) != nil {
		}
		r := c.exchange(c.signed(stun.Refresh, newID()), 100*time.Millisecond)
		return r != nil && stun.CodeOf(r) == 0
	})
}
