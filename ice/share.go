package ice

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/ice/rate"
)

// What one peer may have of the allocations that all share. A permission lasts five minutes and a channel ten, whether anybody needs it
// or not (RFC 8656, sections 9 and 12), and a server grants only so many.
const (
	maxShare       = 16
	permissionLife = 5 * time.Minute
	channelLife    = 10 * time.Minute
)

// Share is what one peer has used of what there is for all peers together. It outlives connections, or a peer had a new one with each
// attempt. Its owner keeps it as long as it knows the peer. The zero value has used nothing. Its methods may be called by any goroutine.
type Share struct {
	known atomic.Bool

	mu       sync.Mutex // a leaf
	permits  recent[netip.Addr]
	channels recent[netip.AddrPort]

	checks rate.Bucket // guarded by the mux's lock
}

// Known notes that the peer has had a session: it comes before those who have not.
func (s *Share) Known() { s.known.Store(true) }

// Permit tells whether the peer may have a permission for an address at a time on any clock: at most 16 addresses in 5 minutes.
func (s *Share) Permit(now time.Duration, a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.permits.take(now, a, maxShare, permissionLife)
}

// Bind tells whether the peer may have a channel to an address: at most 16 in 10 minutes, and where they are scarce one.
func (s *Share) Bind(now time.Duration, to netip.AddrPort, scarce bool) bool {
	limit := maxShare
	if scarce {
		limit = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.channels.take(now, to, limit, channelLife)
}

// recent is when what was taken was taken last.
type recent[K comparable] map[K]time.Duration

// take takes k, again or if fewer than limit others were taken within life.
func (r *recent[K]) take(now time.Duration, k K, limit int, life time.Duration) bool {
	for other, at := range *r {
		if now-at >= life {
			delete(*r, other)
		}
	}
	if _, again := (*r)[k]; !again && len(*r) >= limit {
		return false
	}
	if *r == nil {
		*r = recent[K]{}
	}
	(*r)[k] = now
	return true
}
