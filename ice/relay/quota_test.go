package relay

import (
	"testing"
	"time"
)

// TestUserRate: what one user has relayed in both directions, by all of its allocations, is bounded; another user has its own.
func TestUserRate(t *testing.T) {
	s := start(t, func(c *Config) { c.BytesPerSecondPerUser = 1 }) // so that nothing comes back while the test runs
	a, b, c := dial(t, s, 0, "greedy"), dial(t, s, 0, "greedy"), dial(t, s, 0, "modest")
	conn, at := peer(t, loopback4)
	relayed := a.allocate()
	b.allocate()
	c.allocate()
	for _, one := range []*client{a, b, c} {
		if one.bind(0x4001, at) != 0 {
			t.Fatal("ChannelBind")
		}
	}
	const size = 1000
	for passed := 0; s.stats.drops[dropRate].Load() == 0; passed++ { // one after the other, so that no buffer overflows
		if passed > leastBurst/size {
			t.Fatalf("%d bytes have passed, more than %d", passed*size, leastBurst)
		}
		sent := s.stats.datagrams[toPeer].Load() + s.stats.drops[dropRate].Load()
		[]*client{a, b}[passed%2].send(channelData(0x4001, make([]byte, size)))
		eventually(t, "a datagram", func() bool { return s.stats.datagrams[toPeer].Load()+s.stats.drops[dropRate].Load() > sent })
		readPeer(conn, time.Millisecond)
	}
	drops := s.stats.drops[dropRate].Load()
	conn.WriteToUDPAddrPort(make([]byte, size), relayed)
	eventually(t, "what comes back to be dropped too", func() bool { return s.stats.drops[dropRate].Load() == drops+1 })
	before := s.stats.datagrams[toPeer].Load()
	c.send(channelData(0x4001, make([]byte, size)))
	eventually(t, "another user's datagram to pass", func() bool { return s.stats.datagrams[toPeer].Load() == before+1 })
}

// TestMeter: over a second as much passes as the rate says, and a quarter of it at once.
func TestMeter(t *testing.T) {
	const rate = 10_000_000
	var m meter
	passed := 0
	for now := int64(0); now <= int64(time.Second); now += int64(time.Millisecond) {
		for m.allow(1000, rate, now) {
			passed += 1000
		}
	}
	if want := rate + rate/4; passed < want-2000 || passed > want {
		t.Errorf("%d bytes have passed in the first second, want %d", passed, want)
	}
}
