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
	if clock := e.pipeline.Load().Now(); len(e.questions) > 0 && clock >= e.askAt {
		if e.askAt = 0; e.asks.Take(clock, asksPerSecond) {
			e.askForAll()
		} else {
			e.askAt = clock + time.Second/asksPerSecond
		}
	}
	if len(e.questions) > 0 {
		at(now.Add(e.askAt - e.pipeline.Load().Now()))
	}
	at(e.followPassage(now))
	if left := e.followLease(); left > 0 {
		at(now.Add(left))
	}
	return next.Sub(now)
}
