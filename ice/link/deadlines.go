package link

import (
	"log/slog"
	"time"
)

// This file is the table of all deadlines of a link. The one that has fired stands in a line of the log, at level debug.

// deadline names a moment at which something is decided.
type deadline uint8

const (
	deadlineNone        deadline = iota
	deadlineAsk                  // a wish has failed: no attempt has begun
	deadlineBackOff              // the next attempt may begin
	deadlineRelay                // an attempt waits no longer for a first relay
	deadlineCandidates           // no_candidates, of the first or second agent
	deadlineICE                  // ice_timeout, of the first or second agent
	deadlineICELost              // ice_disconnected, or a second agent if the session lives
	deadlineQuiet                // nothing is heard over the path: ask
	deadlineLook                 // whether data flows again, which nobody tells
	deadlineSuspect              // nothing is heard although it was asked
	deadlineLive                 // ICE is lost and the session may live no longer
	deadlineHandshake            // handshake_timeout
	deadlineSession              // the keypair stops being usable
	deadlineConfirm              // the session needs no confirming any more
	deadlineKeepalive            // a keepalive is due
	deadlineIdle                 // no data for idleAfter
	deadlineIdleSuspect          // no keepalive of the peer's while idle
	deadlineAgent                // another agent is wanted and may start
	deadlineSend                 // the peer is to be told of an agent, or told again
	deadlineUpgrade              // a relayed connection tries to become direct
	deadlineCount
)

var deadlineNames = [deadlineCount]string{
	deadlineNone: "none", deadlineAsk: "ask", deadlineBackOff: "back_off", deadlineRelay: "relay", deadlineCandidates: "candidates",
	deadlineICE: "ice", deadlineICELost: "ice_lost", deadlineQuiet: "quiet", deadlineLook: "look", deadlineSuspect: "suspect",
	deadlineLive: "live", deadlineHandshake: "handshake", deadlineSession: "session", deadlineConfirm: "confirm",
	deadlineKeepalive: "keepalive", deadlineIdle: "idle", deadlineIdleSuspect: "idle_suspect", deadlineAgent: "agent",
	deadlineSend: "send", deadlineUpgrade: "upgrade",
}

// String returns the deadline's name as logs show it.
func (d deadline) String() string { return nameOf(deadlineNames[:], int(d)) }

// Of the constants that must stand in a relation: ICE gives up before the handshake does, or a second agent could never find another
// path for a handshake that runs; and a path that is silent has a second agent before the last but one initiation.
const (
	_ = uint64(handshakeLifetime - candidateTimeout - 1)
	_ = uint64(handshakeLifetime - iceTimeout - 1)
	_ = uint64(handshakeLifetime - iceLostAfter - 1)
	_ = uint64(6*time.Second - quietAfter - suspectAfter - 1)
)

// schedule is when each deadline is due; 0: it is not set.
type schedule [deadlineCount]time.Duration

// set sets a deadline, or moves it to an earlier moment. At 0 there is none.
func (s *schedule) set(d deadline, at time.Duration) {
	if at != 0 && (s[d] == 0 || at < s[d]) {
		s[d] = at
	}
}

// dueDeadline is a deadline and its moment.
type dueDeadline struct {
	at   time.Duration // 0: none is set
	name deadline
}

// next is the earliest.
func (s *schedule) next() (due dueDeadline) {
	for d, at := range s {
		if at != 0 && (due.at == 0 || at < due.at) {
			due = dueDeadline{at, deadline(d)}
		}
	}
	return due
}

// NextTimeout obeys pipeline.Link. After HandleView it is later than the now of that call.
func (l *Link) NextTimeout(now time.Duration) (at time.Duration, why string) {
	var s schedule
	if l.asking.since != 0 {
		s.set(deadlineAsk, l.asking.since+askTimeout)
	} else if !l.alive() && now < l.backoff.earliest { // a wish may be granted, or packets may wait again
		s.set(deadlineBackOff, l.backoff.earliest)
	}
	if l.asking.held {
		s.set(deadlineRelay, l.links.Facts.RelaysUntil)
	}
	if l.alive() {
		c := l.connection
		c.agentDeadlines(&s)
		c.handshakeDeadlines(&s)
		c.confirmDeadlines(&s)
		c.idleDeadlines(&s)
		c.quietDeadlines(&s)
		s.set(deadlineUpgrade, c.upgrade.at)
	}
	l.due = s.next()
	return l.due.at, l.due.name.String()
}

// logDue names the deadline that has fired. Those that only look are not worth a line.
func (l *Link) logDue(now time.Duration) {
	if l.due.at != 0 && now >= l.due.at && l.due.name != deadlineLook {
		l.log(slog.LevelDebug, "deadline", slog.String("name", l.due.name.String()))
	}
}
