package relay

import (
	"sync"
	"sync/atomic"
	"time"
)

// quota bounds allocations, in all and per user. Only users that have an allocation are in it.
type quota struct {
	all, each int // frozen

	mu    sync.Mutex
	used  int
	users map[string]*user
}

// user is one that has allocations.
type user struct {
	allocations int // guarded by quota.mu
	meter       meter
}

func newQuota(all, each int) *quota { return &quota{all: all, each: each, users: map[string]*user{}} }

// room reports whether a user may have one more.
func (q *quota) room(name string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.roomLocked(name)
}

func (q *quota) roomLocked(name string) bool {
	u := q.users[name]
	return q.used < q.all && (u == nil || u.allocations < q.each)
}

// take takes one for a user and returns the user's meter; nil if there is none left.
func (q *quota) take(name string) *meter {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.roomLocked(name) {
		return nil
	}
	u := q.users[name]
	if u == nil {
		u = &user{}
		q.users[name] = u
	}
	q.used++
	u.allocations++
	return &u.meter
}

// release gives back what take took.
func (q *quota) release(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.used--
	u := q.users[name]
	if u.allocations--; u.allocations == 0 {
		delete(q.users, name)
	}
}

// count is how many are taken, and by how many users.
func (q *quota) count() (allocations, users int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.used, len(q.users)
}

// leastBurst is what may come at once however low the rate is: a few of the longest runs that a socket gives.
const leastBurst = 256 << 10

// meter bounds the bytes per second of one user. Any goroutine may use it; the zero value is full.
type meter struct {
	full atomic.Int64 // when what has passed would have ended at the rate, ns since the server's start
}

// allow reports whether n bytes may pass at now, ns since the server's start, at so many bytes per second.
func (m *meter) allow(n, perSecond int, now int64) bool {
	cost := int64(float64(n) / float64(perSecond) * float64(time.Second))
	burst := int64(max(float64(perSecond)/4, leastBurst) / float64(perSecond) * float64(time.Second))
	return spend(&m.full, cost, burst, now)
}
