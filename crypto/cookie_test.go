package crypto

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// cookieBench is one side's checker and the other's latest cookie, and a message between them.
type cookieBench struct {
	checker cookieChecker
	latest  latestCookie
	rand    *rand.ChaCha8
	msg     []byte
}

func newCookieBench() *cookieBench {
	public := PublicKey{1, 2, 3}
	b := &cookieBench{latest: newLatestCookie(&public), rand: rand.NewChaCha8([32]byte{9}), msg: make([]byte, SizeInitiation)}
	b.checker.rekey(&public)
	b.msg[0] = 1
	binary.LittleEndian.PutUint32(b.msg[4:], 0xabcd)
	return b
}

// fetch has the checker answer b.msg and the other side take the cookie.
func (b *cookieBench) fetch(t *testing.T, now time.Duration, src Source) {
	t.Helper()
	b.latest.addMacs(now, b.msg)
	reply := b.checker.makeReply(now, b.rand, src, b.msg)
	if !b.latest.consume(now, slices.Clone(reply)) {
		t.Fatal("the cookie reply does not open")
	}
}

// valid reports whether the checker takes the mac2 that a new message has.
func (b *cookieBench) valid(now time.Duration, src Source) bool {
	b.latest.addMacs(now, b.msg)
	return b.checker.checkMac1(b.msg) && b.checker.checkMac2(now, b.rand, src, b.msg)
}

// at is a source that no relay is in front of.
func at(addr string) Source { return Source{Addr: netip.MustParseAddrPort(addr)} }

// over is a source that the relay at v4 has a channel to.
func over(channel uint16) Source { return Source{Addr: v4.Addr, Channel: channel, Relay: true} }

var (
	v4 = at("192.0.2.1:1000")
	v6 = at("[2001:db8::1]:1000")
)

// Section 5.4.7: the cookie is for one address *and port*, and mapped addresses are the same address.
func TestCookieBindsAddress(t *testing.T) {
	for _, c := range []struct {
		got, used Source
		want      bool
	}{
		{v4, v4, true}, {v6, v6, true},
		{v4, at("192.0.2.1:1001"), false},
		{v4, at("192.0.2.2:1000"), false},
		{v4, at("[::ffff:192.0.2.1]:1000"), true},
		{v6, at("[2001:db8::1]:1001"), false},
		{v6, at("[2001:db8::2]:1000"), false},
		{v6, v4, false},
		{Source{}, v4, false},
		{over(1), over(1), true}, {over(1), over(2), false}, {over(1), v4, false}, {v4, over(1), false},
		{v4, Source{Addr: v4.Addr, Relay: true}, true},
	} {
		b := newCookieBench()
		b.fetch(t, time.Second, c.got)
		if got := b.valid(2*time.Second, c.used); got != c.want {
			t.Errorf("cookie for %v from %v: %v", c.got, c.used, got)
		}
	}
}

// Kernel messages.h: the secret lives 120 s, the initiator uses a cookie for 115 s (COOKIE_SECRET_LATENCY).
func TestCookieAges(t *testing.T) {
	b := newCookieBench()
	b.fetch(t, 1*time.Second, v4)
	if !b.valid(116*time.Second-1, v4) {
		t.Error("a cookie of less than 115 s")
	}
	b.latest.addMacs(116*time.Second, b.msg)
	if !bytes.Equal(b.msg[132:], make([]byte, 16)) {
		t.Error("a cookie of 115 s was used")
	}

	b = newCookieBench()
	b.fetch(t, 1*time.Second, v4) // makes the secret
	b.fetch(t, 60*time.Second, v4)
	if !b.valid(121*time.Second-1, v4) {
		t.Error("the secret must last 120 s")
	}
	if b.valid(121*time.Second, v4) {
		t.Error("the secret must change after 120 s")
	}
}

// Kernel cookie.c, wg_cookie_message_consume: only for the last mac1, once, and only if it opens.
func TestCookieReplyOnce(t *testing.T) {
	b := newCookieBench()
	if b.latest.consume(1, make([]byte, SizeCookieReply)) {
		t.Fatal("a cookie reply to nothing")
	}
	b.latest.addMacs(1, b.msg)
	reply := slices.Clone(b.checker.makeReply(1, b.rand, v4, b.msg))
	if len(reply) != SizeCookieReply || len(reply) >= len(b.msg) {
		t.Fatal("the reply must be shorter than the initiation")
	}
	if kind, ok := Classify(reply); !ok || kind != MessageCookieReply || binary.LittleEndian.Uint32(reply[4:]) != 0xabcd {
		t.Fatalf("%x", reply)
	}
	for i := 8; i < len(reply); i++ {
		bad := slices.Clone(reply)
		bad[i] ^= 1
		if b.latest.consume(1, bad) {
			t.Fatalf("byte %d may be changed", i)
		}
	}
	if !b.latest.consume(1, slices.Clone(reply)) || b.latest.consume(1, slices.Clone(reply)) {
		t.Fatal("a cookie reply is good once")
	}
	b.msg[8]++ // another message, another mac1
	b.latest.addMacs(2, b.msg)
	if b.latest.consume(2, reply) {
		t.Fatal("a cookie reply to an old message")
	}
}

// Section 5.4.4: mac1 covers all before it, mac2 all before it with mac1.
func TestMacsCoverTheMessage(t *testing.T) {
	b := newCookieBench()
	b.fetch(t, 1, v4)
	b.latest.addMacs(1, b.msg)
	for i := range b.msg {
		bad := slices.Clone(b.msg)
		bad[i] ^= 1
		mac1, mac2 := b.checker.checkMac1(bad), b.checker.checkMac2(1, b.rand, v4, bad)
		if mac1 != (i >= 132) || mac2 {
			t.Fatalf("byte %d: mac1 %v mac2 %v", i, mac1, mac2)
		}
	}
	if n := testing.AllocsPerRun(100, func() { b.checker.checkMac1(b.msg) }); n != 0 {
		t.Errorf("garbage costs %v allocations", n)
	}
}

// Kernel receive.c: under load is an eighth of the queue, and a second after it.
func TestUnderLoad(t *testing.T) {
	for _, c := range []struct {
		waiting, capacity int
		want              bool
	}{{0, 4096, false}, {511, 4096, false}, {512, 4096, true}, {128, 1024, true}, {127, 1024, false}, {0, 4, false}, {1, 4, true}} {
		var k cookieChecker
		k.noteQueue(time.Hour, c.waiting, c.capacity)
		if k.underLoad(time.Hour) != c.want {
			t.Errorf("%d of %d", c.waiting, c.capacity)
		}
		k.noteQueue(time.Hour+time.Millisecond, 0, c.capacity)
		if k.underLoad(time.Hour+time.Second-1) != c.want || k.underLoad(time.Hour+time.Second) {
			t.Errorf("%d of %d: it lasts a second", c.waiting, c.capacity)
		}
	}
}

// Kernel ratelimiter.c: 20 a second, bursts of 5, per IPv4 address and per IPv6 /64. The steps are those of its selftest.
func TestRateLimiter(t *testing.T) {
	var r rateLimiter
	now := time.Hour
	one, two := at("10.0.0.1:1"), at("10.0.0.2:1")
	for i, step := range []struct {
		wait time.Duration
		want bool
	}{
		{0, true}, {0, true}, {0, true}, {0, true}, {0, true}, {0, false}, // a burst of 5
		{50 * time.Millisecond, true}, {0, false}, // one token back
		{100 * time.Millisecond, true}, {0, true}, {0, false}, // two tokens back
		{10 * time.Second, true}, {0, true}, {0, true}, {0, true}, {0, true}, {0, false}, // never more than a burst
	} {
		now += step.wait
		if got := r.allow(now, one); got != step.want {
			t.Fatalf("step %d: %v", i, got)
		}
	}
	if !r.allow(now, two) {
		t.Fatal("one source's messages count against another's")
	}
}

func TestRateLimiterSources(t *testing.T) {
	for _, c := range []struct{ a, b Source }{
		{at("[2001:db8:1:2::1]:1"), at("[2001:db8:1:2:ffff::2]:2")}, {at("10.0.0.1:1"), at("[::ffff:10.0.0.1]:2")},
		{at("[fe80::1%eth0]:1"), at("[fe80::1%eth1]:1")}, {Source{}, Source{}}, {over(1), over(1)},
	} {
		if c.a.bucket() != c.b.bucket() {
			t.Errorf("%v and %v are one source", c.a, c.b)
		}
	}
	for _, c := range []struct{ a, b Source }{
		{at("[2001:db8:1:2::1]:1"), at("[2001:db8:1:3::1]:1")}, {at("10.0.0.1:1"), at("10.0.0.2:1")}, {at("[::1]:1"), at("1.0.0.1:1")},
		{over(1), over(2)}, {over(1), v4}, {Source{Addr: v4.Addr, Relay: true}, v4},
		{Source{Addr: v4.Addr, Relay: true}, Source{Addr: at("192.0.2.1:1001").Addr, Relay: true}},
	} {
		if c.a.bucket() == c.b.bucket() {
			t.Errorf("%v and %v are two sources", c.a, c.b)
		}
	}
}

// The table is bounded, and empty again a second after.
func TestRateLimiterBounded(t *testing.T) {
	var r rateLimiter
	now := time.Hour
	allowed := 0
	for i := range 100000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		if r.allow(now, Source{Addr: netip.AddrPortFrom(a, 1)}) {
			allowed++
		}
	}
	if len(r.buckets) != maxBuckets || allowed != maxBuckets {
		t.Fatalf("%d sources known, %d allowed", len(r.buckets), allowed)
	}
	if !r.allow(now+time.Second, v4) || len(r.buckets) != 1 {
		t.Fatalf("%d sources known a second later", len(r.buckets))
	}
}
