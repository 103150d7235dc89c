package edge

import "time"

// handleTimeouts does what is due and returns when to look again.
func (e *Edge) handleTimeouts(now time.Time) time.Duration {
	next := now.Add(time.Hour)
	at := func(t time.Time) bool {
		if t.IsZero() {
			return false
		}
		if t.After(now) {
			if t.Before(next) {
				next = t
			}
			return false
		}
		return true
	}
	if len(e.questions) > 0 && (e.askAt.IsZero() || at(e.askAt)) {
		if e.askAt = (time.Time{}); e.asks.Take(now, asksPerSecond, burst) {
			e.askForAll()
		} else {
			e.askAt = now.Add(time.Second / asksPerSecond)
			at(e.askAt)
		}
	}
	at(e.followPassage(now))
	if left := e.followLease(); left > 0 {
		at(now.Add(left))
	}
	return next.Sub(now)
}
