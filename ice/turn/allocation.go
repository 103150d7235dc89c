package turn

import (
	"encoding/binary"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// allocate begins an attempt, with the newest credentials.
func (c *Client) allocate(now time.Duration) {
	c.use(c.next)
	c.state = stateAllocating
	c.allocation.begin()
	c.request(now, &c.allocation, stun.Allocate)
}

// use takes credentials into use.
func (c *Client) use(login Credentials) {
	if c.inUse == login {
		return
	}
	c.inUse = login
	if c.key != nil {
		c.key = stun.LongTerm(login.Username, c.realm, login.Password)
	}
}

// login is what a request is to be signed with, once there is a key.
func (c *Client) login(method stun.Method) (Credentials, *stun.Key) {
	if c.state != stateAllocated || method != stun.Refresh || c.tied || c.next == c.inUse {
		return c.inUse, c.key
	}
	return c.next, stun.LongTerm(c.next.Username, c.realm, c.next.Password)
}

// refresh asks for another lifetime.
func (c *Client) refresh(now time.Duration) { c.request(now, &c.allocation, stun.Refresh) }

// allocationDue: a wait is over, or half of the life.
func (c *Client) allocationDue(now time.Duration) {
	switch {
	case c.state == stateWaiting, c.state == stateRefused:
		c.allocate(now)
	case c.state == stateAllocated && now >= c.expires:
		c.lose(now, ReasonExpired, 0)
	case c.state == stateAllocated:
		c.refresh(now)
	}
}

// allocationTimeout: a request was never answered.
func (c *Client) allocationTimeout(now time.Duration) {
	switch c.state {
	case stateReleasing:
		c.released()
	case stateAllocated:
		c.lose(now, ReasonSilent, 0)
	default:
		c.retry(now) // silence was reported long ago
	}
}

// allocationAnswered: Allocate or Refresh succeeded, and the answer is complete.
func (c *Client) allocationAnswered(now time.Duration) {
	lifetime, _ := lifetimeOf(&c.message)
	allocate := c.allocation.method == stun.Allocate
	switch {
	case c.state == stateReleasing && allocate:
		c.request(now, &c.allocation, stun.Refresh)
	case c.state == stateReleasing:
		c.released()
	case c.state == stateDeleting:
		c.allocate(now)
	case allocate:
		c.relayed, _ = addressOf(&c.message, stun.XORRelayedAddress)
		c.mapped, _ = addressOf(&c.message, stun.XORMappedAddress)
		c.allocated(now, lifetime)
	case lifetime == 0 && c.state == stateAllocated:
		c.lose(now, ReasonExpired, 0)
	case lifetime == 0:
		c.doubtful = false
		c.retry(now)
	case c.state == stateConfirming:
		c.allocated(now, lifetime) // it is ours still, with its addresses
	default:
		c.use(c.allocation.login)
		c.live(now, lifetime)
	}
}

// allocated reports the allocation and binds what is held.
func (c *Client) allocated(now, lifetime time.Duration) {
	c.state, c.allocatedAt = stateAllocated, now
	c.doubtful, c.deleted, c.tied = false, false, false
	c.live(now, lifetime)
	c.schedule(&c.keepalive, now+KeepaliveEvery, WhyKeepalive)
	c.emit(Output{Kind: Allocated, Relayed: c.relayed, Mapped: c.mapped})
	for _, b := range c.list {
		b.refused = false
		if b.held > 0 {
			c.enqueue(b)
		}
	}
}

// live notes the lifetime and sets the time of the next refresh.
func (c *Client) live(now, lifetime time.Duration) {
	lifetime = min(lifetime, maxLifetime)
	c.expires = now + lifetime
	c.schedule(&c.allocation, now+max(lifetime/2, minRefresh), WhyRefresh)
}

// keepaliveAnswered looks at the mapped address: where it has changed, the server sees another 5-tuple, and our allocation
// belongs to the old one.
func (c *Client) keepaliveAnswered(now time.Duration) {
	mapped, _ := addressOf(&c.message, stun.XORMappedAddress)
	if mapped != c.mapped {
		c.lose(now, ReasonMapped, 0)
		return
	}
	c.schedule(&c.keepalive, now+KeepaliveEvery, WhyKeepalive)
}

// allocationRefused: the server answered Allocate or Refresh with an error.
func (c *Client) allocationRefused(now time.Duration, code int) {
	switch c.state {
	case stateReleasing:
		c.released() // 437, or nothing that we could do about it
	case stateAllocated:
		c.refreshRefused(now, code)
	case stateConfirming:
		c.doubtful = false
		c.retry(now)
	case stateDeleting:
		if code == stun.CodeMismatch {
			c.allocate(now)
			return
		}
		// It was made with other credentials (441), so it has to run out.
		c.emit(Output{Kind: Failed, Reason: ReasonMismatch, Code: code})
		c.retry(now)
	default:
		c.allocateRefused(now, code)
	}
}

// allocateRefused: 437 to Allocate says that our 5-tuple has an allocation already. After silence it is likely our own; else it
// is one of a process that had our port before, or whose Refresh with lifetime 0 was lost.
func (c *Client) allocateRefused(now time.Duration, code int) {
	switch {
	case code == stun.CodeMismatch && c.doubtful && now < c.expires:
		c.state = stateConfirming
		c.allocation.begin()
		c.refresh(now)
	case code == stun.CodeMismatch && !c.deleted && c.key != nil:
		c.state, c.deleted = stateDeleting, true
		c.allocation.begin()
		c.request(now, &c.allocation, stun.Refresh)
	default:
		c.fail(now, code)
	}
}

// refreshRefused: newer credentials are not taken, and those in use go on. Any other error that may pass is lived with until
// the allocation runs out.
func (c *Client) refreshRefused(now time.Duration, code int) {
	switch reason := reasonOf(code); {
	case reason == ReasonMismatch:
		c.lose(now, reason, code)
	case c.allocation.login != c.inUse:
		c.tied = true
		c.allocation.begin()
		c.refresh(now)
	case reason == ReasonCredentials:
		c.lose(now, reason, code)
	default:
		if now >= c.expires {
			c.lose(now, ReasonExpired, code)
			return
		}
		c.schedule(&c.allocation, min(now+refreshRetry, c.expires), WhyRefresh)
	}
}

// lose reports the allocation lost, ends all that hung on it, and asks for another: at once a few times, then with a
// back-off, so that an address that flaps makes no storm.
func (c *Client) lose(now time.Duration, reason Reason, code int) {
	c.emit(Output{Kind: Lost, Reason: reason, Code: code})
	c.stop(&c.allocation)
	c.stop(&c.keepalive)
	c.unschedule(&c.silence)
	c.unbindAll()
	c.doubtful = reason == ReasonSilent
	c.deleted = false
	if now-c.allocatedAt >= stableAfter {
		c.failures, c.losses = 0, 0
	}
	if reason == ReasonCredentials && c.inUse == c.next {
		c.refuse(now, reason, code)
		return
	}
	if c.losses++; c.losses <= promptLosses {
		c.failures = max(c.failures, 1)
		c.allocate(now)
		return
	}
	c.retry(now)
}

// fail reports that there is no allocation, and tries again later if that has a chance.
func (c *Client) fail(now time.Duration, code int) {
	if final(code) {
		c.refuse(now, reasonOf(code), code)
		return
	}
	c.emit(Output{Kind: Failed, Reason: reasonOf(code), Code: code})
	c.retry(now)
}

// refuse stops asking for a while, unless there are newer credentials to ask with. A server that has a wrong clock or secret
// may be put right without a word.
func (c *Client) refuse(now time.Duration, reason Reason, code int) {
	again := c.inUse != c.next
	c.emit(Output{Kind: Failed, Reason: reason, Code: code, Final: !again})
	if again {
		c.retry(now)
		return
	}
	c.state, c.doubtful = stateRefused, false
	c.unschedule(&c.silence)
	c.schedule(&c.allocation, now+c.jitter(refusedRetry), WhyRetry)
}

// retry waits for 1, 2, 4 .. 60 s.
func (c *Client) retry(now time.Duration) {
	c.state, c.deleted = stateWaiting, false
	wait := min(time.Second<<min(c.failures, 6), maxBackoff)
	c.failures++
	c.unschedule(&c.silence)
	c.schedule(&c.allocation, now+c.jitter(wait), WhyRetry)
}

// jitter adds up to a quarter, so that many clients of one server do not march in step.
func (c *Client) jitter(wait time.Duration) time.Duration {
	var b [2]byte
	c.read(b[:])
	return wait + wait/4*time.Duration(binary.BigEndian.Uint16(b[:]))/65536
}
