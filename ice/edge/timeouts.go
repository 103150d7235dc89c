package edge

import (
	"math/rand/v2"
	"time"
)

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
	for _, a := range e.attempts {
		for _, g := range a.agents {
			if g.sending == 0 && at(g.sendAt) || g.sending > 0 && g.sending < maxSending && !g.settled && at(g.repeatAt) {
				e.send(a, g)
			}
		}
		if at(a.upgradeAt) {
			a.upgradeAt = now.Add(upgradeEvery + rand.N(upgradeEvery/8))
			at(a.upgradeAt)
			a.handle.WantAgent() // of an idle one, too: the next packet may come in a hurry
		}
	}
	if len(e.questions) > 0 && (e.askAt.IsZero() || at(e.askAt)) {
		if e.askAt = (time.Time{}); e.asks.take(now, asksPerSecond) {
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
	if len(e.held) > 0 && (e.relaysUntil.IsZero() || at(e.relaysUntil)) {
		e.resume()
	}
	return next.Sub(now)
}
