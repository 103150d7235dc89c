package link

import "time"

const (
	backoffFirst = time.Second
	backoffMost  = time.Minute
	// backoffProven is how long a connection must have been up for its end not to count as another failure in a row.
	backoffProven = handshakeLifetime
)

// backoff paces the attempts to one peer: 1, 2, 4 .. 60 s after an attempt has failed, and up to a quarter more at random,
// so that the peers of a gateway that was away do not come back at one moment. The zero value lets the first attempt begin
// at once. Owned by control.
//
// Whoever wants the peer calls want; if that says no, due says yes once the time has come.
type backoff struct {
	failures int
	earliest time.Duration // no attempt before; 0: at once
	wanted   bool
}

// want asks for an attempt. True: begin it now. False: the wish is kept until due.
func (b *backoff) want(now time.Duration) bool {
	b.wanted = true
	return b.due(now)
}

// due reports whether an attempt is wanted and may begin now; a true answer takes the wish.
func (b *backoff) due(now time.Duration) bool {
	if !b.wanted || now < b.earliest {
		return false
	}
	b.wanted = false
	return true
}

// ended notes that an attempt, or the connection it became, is over. up is for how long there was a session since, random
// any number.
func (b *backoff) ended(now, up time.Duration, random uint32) {
	if up >= backoffProven {
		b.failures = 0
	}
	delay := backoffMost
	if b.failures < 6 {
		delay = min(backoffFirst<<b.failures, backoffMost)
	}
	b.failures++
	b.earliest = now + delay + (delay/4>>16)*time.Duration(random>>16)
}

// reset forgets the failures: a key or preshared key has changed, or the peer is back, so the next attempt is another one. A
// wish that waits is due at once.
func (b *backoff) reset(now time.Duration) {
	b.failures, b.earliest = 0, now
}
