package link

import (
	"time"

	"github.com/sluice-vpn/sluice/pipeline"
)

// This file is about the keepalives of a connection: they confirm a new session, and hold a path that no agent holds.

// confirmKeepalive is how far apart the initiator repeats the keepalive that confirms a first session, until it hears from
// the responder or the responder's lifetime is over: a single one that is lost would end the connection there.
const confirmKeepalive = 3 * time.Second

// confirm is until when a new session needs confirming.
type confirm struct {
	until time.Duration // keepalives confirm it until then; 0: they need not
	sent  time.Duration // the last keepalive that was asked for
}

// followConfirm ends the repeated confirming: something came in the new session, or the responder waits no longer.
func (c *connection) followConfirm() {
	if c.confirm.until == 0 {
		return
	}
	v := c.view()
	heard := v.Activity.LastDataReceived > v.Created || v.Activity.LastReceived > v.Created && v.Activity.LastReceived != c.handshake.heardAt
	if heard || c.now >= c.confirm.until || c.phase != PhaseUp {
		c.confirm.until = 0
	}
}

// keepaliveAt is when the next keepalive is due: soon while a first session is to be confirmed, and while no agent holds the
// path so often that no NAT forgets it. What comes from the peer does not count, as some NATs keep a mapping only for what
// leaves (RFC 4787, section 4.3). 0: none is.
func (c *connection) keepaliveAt() time.Duration {
	interval := idleKeepalive
	switch {
	case c.phase != PhaseUp && c.phase != PhaseIdle:
		return 0
	case c.confirm.until != 0:
		interval = confirmKeepalive
	case c.current.number != 0:
		return 0
	}
	return max(c.view().Activity.LastSent, c.confirm.sent) + interval
}

func (c *connection) followKeepalive() {
	if at := c.keepaliveAt(); at != 0 && c.now >= at {
		c.sendKeepalive()
	}
}

func (c *connection) sendKeepalive() {
	c.confirm.sent = c.now
	c.link.order(pipeline.Order{Kind: pipeline.OrderKeepalive})
}

func (c *connection) confirmDeadlines(s *schedule) {
	s.set(deadlineConfirm, c.confirm.until)
	s.set(deadlineKeepalive, c.keepaliveAt())
}
