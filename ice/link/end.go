package link

// This file is how a connection ends.

// unanswered is the reason of a close whose handshake ran out of time. Where no agent was in use and nothing came, it is not the
// handshake that is to blame.
func (c *connection) unanswered() CloseReason {
	if counters := countersOf(&c.view.Tally, &c.booked); c.current.number == 0 && counters.silent() {
		return CloseICEDisconnected
	}
	return CloseHandshakeTimeout
}

// end cleans up and says why.
func (c *connection) end(reason CloseReason) {
	c.closed = Closed{
		Generation: c.generation, Reason: reason, Phase: c.phase, Lasted: c.now - c.began, PeerReports: c.report,
		Counters: countersOf(&c.view.Tally, &c.booked),
	}
	if c.upSince != 0 {
		c.closed.Up = c.now - c.upSince
	}
	if c.phase == PhaseHandshake {
		c.closed.Waited = c.now - c.handshakeFrom
	}
	c.closed.Cause = c.cause(reason)
	if c.paths > 0 {
		c.emit(connectionOutput{kind: connectionClearPath})
	}
	for _, a := range [...]*agent{&c.current, &c.second} {
		if a.number != 0 {
			c.closeAgent(a.number)
		}
		*a = agent{}
	}
	c.emit(connectionOutput{kind: connectionClearSession})
	if bye, ok := c.closed.Bye(); ok {
		c.emit(connectionOutput{kind: connectionSendBye, bye: bye})
	}
	c.emit(connectionOutput{kind: connectionClosed, closed: c.closed})
	c.phase, c.wanted, c.expired = PhaseClosing, false, nil
	if len(c.closing) == 0 {
		c.phase = PhaseClosed
	}
}

// cause names what stood in the way: of the handshake, or of ICE.
func (c *connection) cause(reason CloseReason) CloseCause {
	if reason == ClosePeerClosed && c.report != nil {
		reason = c.report.Reason // it has ended for the same
	}
	switch reason {
	case CloseHandshakeTimeout:
		return causeOf(c.closed.Counters, c.report)
	case CloseNoCandidates, CloseICETimeout, CloseICEDisconnected:
		return c.obstacle
	}
	return CauseNone
}
