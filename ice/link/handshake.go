package link

import (
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline"
)

// This file is what a connection does about the handshake, once there is a path. Its deadline, 15 s, is here.

const (
	handshakeLifetime = 15 * time.Second
	// seriesDelay is how late after the nomination the core may begin its series (the least gap between two initiations).
	seriesDelay = time.Second
)

// handshake is how far it has come.
type handshake struct {
	from    time.Duration // the deadline counts from then
	asked   bool          // control was told to begin
	counted bool          // from is that of the core's series
	heardAt time.Duration // the last accepted handshake message
	booked  [crypto.ReasonCount]uint32
	expired *crypto.HandshakeExpired
}

// deadline is when the handshake is given up. Nothing moves it.
func (h *handshake) deadline() time.Duration { return h.from + handshakeLifetime }

// handleExpired notes that a series of the core has ended without a session.
func (c *connection) handleExpired(e crypto.HandshakeExpired) {
	if e.Quiet || c.phase < PhaseHandshake {
		return
	}
	if c.phase == PhaseHandshake && e.Since < c.handshake.from {
		c.handshake.asked = false // it began when there was no path, so nobody heard it
		return
	}
	c.handshake.expired = &e
}

// countSeries takes over from which moment the core's series counts. The first initiation may come a little after the
// nomination, but that is as far as the deadline can move.
func (c *connection) countSeries() {
	h, v := &c.handshake, c.view()
	if c.phase != PhaseHandshake || !c.controlling || !h.asked || h.counted || !v.SeriesRunning {
		return
	}
	if v.SeriesSince >= h.from {
		h.counted = true
		h.from = min(v.SeriesSince, h.from+seriesDelay)
	}
}

// followSession moves between handshake and up.
func (c *connection) followSession() {
	switch {
	case c.phase < PhaseHandshake:
	case c.view().Usable && c.phase == PhaseHandshake:
		c.startHandshake(false)
		c.phase = PhaseUp
		c.handshake.asked, c.handshake.counted = false, false
		c.handshake.booked = [crypto.ReasonCount]uint32{}
		if c.controlling {
			c.confirm.until = c.now + handshakeLifetime
		}
		if c.upSince == 0 {
			c.upSince = c.now
			c.link.noteUp(c.now)
		}
	case c.view().Usable:
	case c.phase == PhaseHandshake:
		c.startHandshake(c.controlling)
	default:
		c.loseSession()
	}
}

// loseSession goes back to the handshake: another session has as long as the first, from the rekey on if one is being tried.
func (c *connection) loseSession() {
	c.phase, c.handshake.from = PhaseHandshake, c.now
	if v := c.view(); v.SeriesRunning {
		c.handshake.from, c.handshake.counted = max(v.SeriesSince, c.now-handshakeLifetime+1), true
	}
	c.startHandshake(c.controlling)
	if c.current.number == 0 && c.second.number == 0 {
		c.wantAgent(c.now)
	}
}

// startHandshake has the core begin, once. Either role bounds its series by the lifetime and retries fast; initiate: the first
// initiation is ours and due now.
func (c *connection) startHandshake(initiate bool) {
	if !c.handshake.asked {
		c.handshake.asked = true
		c.link.order(pipeline.Order{Kind: pipeline.OrderHandshake, Lifetime: handshakeLifetime, Initiate: initiate})
	}
}

// unanswered is the reason of a close whose handshake ran out of time. Where no agent was in use and nothing came, it is not the
// handshake that is to blame.
func (c *connection) unanswered() CloseReason {
	if counters := countersOf(&c.view().Tally, &c.handshake.booked); c.current.number == 0 && counters.silent() {
		return CloseICEDisconnected
	}
	return CloseHandshakeTimeout
}

func (c *connection) handshakeDeadlines(s *schedule) {
	switch c.phase {
	case PhaseHandshake:
		s.set(deadlineHandshake, c.handshake.deadline())
	case PhaseUp, PhaseIdle:
		s.set(deadlineSession, c.view().Created+crypto.RejectAfterTime)
	}
}
