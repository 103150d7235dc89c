package crypto

import (
	"net/netip"
	"time"
)

// The kernel's numbers (ratelimiter.c), and a bound of our own on the table.
const (
	messagesPerSecond = 20
	messageBurst      = 5
	messageCost       = time.Second / messagesPerSecond
	maxTokens         = messageCost * messageBurst
	bucketLifetime    = time.Second
	maxBuckets        = 8192
)

// Source is where a handshake message came from, as far as cookies and the bound on messages tell senders apart.
type Source struct {
	// Addr is the address and port that the message came from, a relay's if that has passed it on.
	Addr netip.AddrPort
	// Channel is the TURN channel by which the relay has passed it on, and so stands for the address of who sent it. 0: none.
	Channel uint16
	// Relay: the address is a relay's. Others are behind it too, each at a port or a channel of its own.
	Relay bool
}

// rateLimiter lets each source send 20 handshake messages a second, in bursts of 5. A source is an IPv4 address or the
// /64 network of an IPv6 address, which is what one customer gets: who owns a /64 gains nothing by using all of it. Behind a relay
// it is one port or channel, or who replays one peer's messages there would use up what all others may send.
//
// The table holds at most maxBuckets sources; idle ones are forgotten after a second. When it is full, new sources are
// refused (kernel ratelimiter.c, total_entries). It is only asked about sources that proved they can receive there, so
// filling it needs as many IPv4 addresses, or the networks of an IPv6 /51.
type rateLimiter struct {
	buckets map[Source]tokenBucket
	sweptAt time.Duration
}

type tokenBucket struct {
	tokens time.Duration // in time: a message costs messageCost of it
	at     time.Duration
}

// bucket returns what the bucket of src is filed under.
func (src Source) bucket() Source {
	addr := src.Addr.Addr().Unmap().WithZone("")
	if src.Relay || src.Channel != 0 {
		return Source{netip.AddrPortFrom(addr, src.Addr.Port()), src.Channel, true}
	}
	if !addr.Is4() {
		if network, err := addr.Prefix(64); err == nil { // else the zero Addr: all of those share a bucket
			addr = network.Addr()
		}
	}
	return Source{Addr: netip.AddrPortFrom(addr, 0)}
}

// allow takes a token of src.
func (r *rateLimiter) allow(now time.Duration, src Source) bool {
	r.sweep(now)
	key := src.bucket()
	b, known := r.buckets[key]
	if !known {
		if len(r.buckets) >= maxBuckets {
			return false
		}
		if r.buckets == nil {
			r.buckets = make(map[Source]tokenBucket)
		}
		b = tokenBucket{tokens: maxTokens, at: now}
	}
	b.tokens = min(maxTokens, b.tokens+max(0, now-b.at))
	b.at = now
	allowed := b.tokens >= messageCost
	if allowed {
		b.tokens -= messageCost
	}
	r.buckets[key] = b
	return allowed
}

// sweep forgets idle sources, at most once per lifetime, so that a full table does not make each message a scan.
func (r *rateLimiter) sweep(now time.Duration) {
	if now-r.sweptAt < bucketLifetime {
		return
	}
	r.sweptAt = now
	for key, b := range r.buckets { // the order does not matter: each is judged by itself
		if now-b.at >= bucketLifetime {
			delete(r.buckets, key)
		}
	}
	if len(r.buckets) == 0 {
		r.buckets = nil // a Go map does not shrink
	}
}
