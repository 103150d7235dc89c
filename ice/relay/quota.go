package relay

import "sync"

// quota bounds allocations, in all and per user. Only users that have an allocation are in it.
type quota struct {
	all, each int // frozen

	mu    sync.Mutex
	used  int
	users map[string]int
}

func newQuota(all, each int) *quota { return &quota{all: all, each: each, users: map[string]int{}} }

// room reports whether user may have one more.
func (q *quota) room(user string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.used < q.all && q.users[user] < q.each
}

// take takes one for user; false if there is none left.
func (q *quota) take(user string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.used >= q.all || q.users[user] >= q.each {
		return false
	}
	q.used++
	q.users[user]++
	return true
}

// release gives back what take took.
func (q *quota) release(user string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.used--
	if q.users[user]--; q.users[user] == 0 {
		delete(q.users, user)
	}
}

// count is how many are taken, and by how many users.
func (q *quota) count() (allocations, users int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.used, len(q.users)
}
