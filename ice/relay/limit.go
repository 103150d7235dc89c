package relay

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// limiterBuckets is the size of a limiter's table: 512 KiB.
const limiterBuckets = 1 << 16

// limiter bounds how many events per second one source may cause. A source is an IPv4 address or an IPv6 /64, the least that
// an attacker gets from a provider.
//
// The table has a fixed size and no keys. Sources whose hash is the same share a bucket: so a flood from forged addresses can
// neither grow the table nor give a source a fresh bucket by pushing its old one out. The hash is seeded at random, so nobody
// can choose to share the bucket of another. Any goroutine may call allow; the zero value is not usable.
type limiter struct {
	// frozen
	seed     maphash.Seed
	interval int64 // ns between events in the long run
	burst    int64 // ns: how far a source may be ahead of that

	// atomic: when the events of the bucket so far would have ended at the long-run rate, ns since start
	full []atomic.Int64
}

// newLimiter allows perSecond events and burst more at once.
func newLimiter(perSecond, burst int) *limiter {
	interval := int64(time.Second) / int64(perSecond)
	return &limiter{
		seed:     maphash.MakeSeed(),
		interval: interval,
		burst:    interval * int64(burst),
		full:     make([]atomic.Int64, limiterBuckets),
	}
}

// allow reports whether source may cause one more event at now, ns on any clock that does not run backwards.
func (l *limiter) allow(source netip.Addr, now int64) bool {
	bits := 32
	if source.Is6() {
		bits = 64
	}
	prefix, _ := source.Prefix(bits)
	return spend(&l.full[maphash.Comparable(l.seed, prefix)%limiterBuckets], l.interval, l.burst, now)
}

// spend reports whether something that takes cost of a bucket's time may happen at now, and then takes it. full is when what has happened
// would have ended at the long-run rate; burst is how far that may be ahead of now. All are ns on one clock.
func spend(full *atomic.Int64, cost, burst, now int64) bool {
	for {
		before := full.Load()
		next := max(before, now) + cost
		if next-now > burst {
			return false
		}
		if full.CompareAndSwap(before, next) {
			return true
		}
	}
}
