// Package rate has the token bucket that bounds what one peer, one node or one address may cause. The relay's limits are others: they
// are lock-free, and have a table of fixed size for sources that nobody knows.
package rate

import "time"

// Bucket is a token bucket. It is bound to nothing: rate and burst are arguments, and may differ from call to call. The zero value is
// full. It belongs to whoever holds the lock that guards it.
type Bucket struct {
	tokens float64
	at     time.Time
}

// Left fills the bucket for the time that has passed, and says how many tokens are in it.
func (b *Bucket) Left(now time.Time, perSecond, burst float64) float64 {
	// The zero time is so long ago that the bucket is full. A clock that runs back takes nothing away.
	b.tokens = min(burst, b.tokens+perSecond*max(0, now.Sub(b.at).Seconds()))
	b.at = now
	return b.tokens
}

// Take fills the bucket and takes one token. It reports whether there was one.
func (b *Bucket) Take(now time.Time, perSecond, burst float64) bool {
	if b.Left(now, perSecond, burst) < 1 {
		return false
	}
	b.tokens--
	return true
}

// Spend takes one token, or what there is of it.
func (b *Bucket) Spend() { b.tokens = max(0, b.tokens-1) }

// Give puts one token back, up to burst.
func (b *Bucket) Give(burst float64) { b.tokens = min(burst, b.tokens+1) }
