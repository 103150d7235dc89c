package link

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/ice/rate"
	"github.com/sluice-vpn/sluice/pipeline"
)

// Link is all that is kept of a named peer beside its core: the attempts to reach it, one at a time. Owned by control.
type Link struct {
	// frozen
	links *Links
	name  string

	peer       Peer // as the portal says
	up         bool // the interface is
	removed    bool
	due        dueDeadline // as NextTimeout has told it last
	view       pipeline.View
	orders     []pipeline.Order
	backoff    backoff
	asking     asking
	connection *connection // the newest, also when it is over; nil before the first
	told       toldPath
	last       ended
	closed     *Closed // of the latest that ended; nil: none. Frozen.
	closedAt   time.Time
	absent     bool        // the portal said so at the last message
	announced  [32]byte    // a key of the peer that is not the portal's, and logged
	offers     rate.Bucket // of new attempts
	replies    rate.Bucket // to messages that belong to no attempt
}

// toldPath is what the log has last said of a connection's path.
type toldPath struct {
	dst     netip.AddrPort
	relayed bool
}

// alive reports whether there is a connection that is not over.
func (l *Link) alive() bool { return l.connection != nil && !l.connection.over() }

// Stance obeys pipeline.Link.
func (l *Link) Stance(now time.Duration) pipeline.Stance {
	s := pipeline.Stance{Reach: pipeline.ReachLater, Alive: l.alive()}
	if s.Alive || l.asking.since != 0 || now >= l.backoff.earliest {
		s.Reach = pipeline.ReachStage
	}
	s.Up = s.Alive && l.connection.phase >= PhaseUp
	return s
}

// Poll obeys pipeline.Link.
func (l *Link) Poll() (o pipeline.Order, ok bool) {
	if len(l.orders) == 0 {
		l.orders = nil
		return o, false
	}
	o = l.orders[0]
	l.orders = l.orders[1:]
	return o, true
}

func (l *Link) order(o pipeline.Order) { l.orders = append(l.orders, o) }

func (l *Link) task(t Task) {
	t.Peer = l.name
	if l.connection != nil && t.Kind != TaskAsk {
		t.Attempt, t.Serial, t.Controlling = l.connection.number, l.connection.serial, l.connection.controlling
	}
	l.links.config.Task(t)
}

// log writes a line about the peer.
func (l *Link) log(level slog.Level, message string, attrs ...slog.Attr) {
	l.links.config.Logger.LogAttrs(context.Background(), level, message, append([]slog.Attr{slog.String("peer", l.name)}, attrs...)...)
}

// logConnection is log with the number of the newest attempt.
func (l *Link) logConnection(level slog.Level, message string, attrs ...slog.Attr) {
	l.log(level, message, append([]slog.Attr{slog.Uint64("generation", uint64(l.connection.number))}, attrs...)...)
}

// HandleChange obeys pipeline.Link. Connections close with the interface, and what was wanted meanwhile is, when it is up again.
func (l *Link) HandleChange(now time.Duration, c pipeline.Change) {
	switch c {
	case pipeline.ChangeUp:
		l.up = true
		l.grant(now)
	case pipeline.ChangeDown:
		l.Close(CloseShutdown)
		l.backoff.wanted = l.backoff.wanted || l.asking.since != 0 // nothing can begin any more
		l.asking.since, l.up = 0, false
	case pipeline.ChangeKeys:
		l.Close(CloseKeysChanged)
	case pipeline.ChangeRetry: // the next attempt may begin as if none had failed; a wish that waits is granted at once
		l.backoff.reset(now)
		l.grant(now)
	case pipeline.ChangeRemoved:
		l.Close(CloseRemoved)
		if l.removed = true; l.links.named[l.name] == l {
			delete(l.links.named, l.name)
		}
	}
}

// Close closes the connection for a reason of ours, if there is one.
func (l *Link) Close(reason CloseReason) {
	if l.alive() {
		l.connection.close(reason)
	}
}

// HandlePeer notes what the portal says of the peer.
func (l *Link) HandlePeer(p Peer, online bool) {
	l.peer = p
	if online {
		l.absent = false
	}
}

// Distrust notes why there may be no session with the peer, and ends what there is.
func (l *Link) Distrust(reason CloseReason) {
	l.peer.Distrust, l.peer.Wanted = reason, false
	l.Close(reason)
}

// HandlePortal wants the peer, if it is to be there without traffic: the portal was heard, or is back.
func (l *Link) HandlePortal(now time.Duration) {
	if l.peer.Wanted && !l.removed && !l.alive() && !l.asking.begins && l.links.config.Reachable() {
		l.HandleWant(now)
	}
}

// HandleWant obeys pipeline.Link: it asks for a session of the connection there is, or of one to be made.
func (l *Link) HandleWant(now time.Duration) {
	switch {
	case l.alive():
		if l.connection.mayInitiate() {
			l.order(pipeline.Order{Kind: pipeline.OrderSession})
		}
	case l.asking.since != 0:
	case !l.up:
		l.backoff.wanted = true
	case l.backoff.want(now):
		l.ask(now)
	}
}

// HandleView obeys pipeline.Link.
func (l *Link) HandleView(now time.Duration, v pipeline.View) {
	l.view = v
	if l.connection != nil {
		l.connection.advance(now)
	}
}

// HandleVerdict obeys pipeline.Link. What belongs to no connection is forgotten, and not answered.
func (l *Link) HandleVerdict(now time.Duration, v crypto.Verdict) {
	switch {
	case l.connection != nil:
		l.connection.handleVerdict(now, v)
	case v.Roam:
		l.order(pipeline.Order{Kind: pipeline.OrderForget})
	}
}

// HandleExpired obeys pipeline.Link.
func (l *Link) HandleExpired(_ time.Duration, e crypto.HandshakeExpired) {
	if l.alive() {
		l.connection.handleExpired(e)
	}
}

// HandleStray obeys pipeline.Link.
func (l *Link) HandleStray(_ time.Duration, from *pipeline.Path) {
	if l.alive() {
		l.task(Task{Kind: TaskStray, Agent: l.connection.current.number, Path: from})
	}
}

// HandleNetwork looks for another path beside the one in use: the network has changed.
func (l *Link) HandleNetwork(now time.Duration) {
	if l.alive() {
		l.connection.wantAgent(now)
	}
}

// HandleRelays follows our relays. An agent gets those that are up when it is made, and none later. Where an allocation is another one
// than before, what is sent to the peer shows it where we are; and since a NAT in front of the peer may let nothing through from there,
// another agent tells it through the portal as well.
func (l *Link) HandleRelays(now time.Duration, r RelayNews) {
	if c := l.connection; l.alive() {
		for _, a := range c.list() {
			a.relays = max(0, a.relays-len(r.Lost))
		}
		over := func(list []netip.AddrPort) bool {
			return c.path != nil && c.path.Channel != 0 && slices.Contains(list, c.path.Dst)
		}
		if over(r.Moved) {
			l.task(Task{Kind: TaskCheck, Agent: c.current.number})
		}
		if over(r.Lost) || over(r.Moved) || r.Changed && c.lacksRelay(l.links.Facts.RelaysUp) {
			c.wantAgent(now)
		}
	}
	l.resume(now)
}

// publishPath moves the peer to the pair that an agent has selected; nil: nowhere.
func (l *Link) publishPath(path *pipeline.Path) {
	l.view.Path, l.connection.path = path, path
	l.order(pipeline.Order{Kind: pipeline.OrderPath, Path: path})
	if path != nil {
		l.tellPath(path)
	}
	l.task(Task{Kind: TaskPath, Path: path})
}

// tellPath logs a path, for all to see if the connection is up and goes another way than before.
func (l *Link) tellPath(path *pipeline.Path) {
	level, message, now := slog.LevelDebug, "path selected", toldPath{path.Dst, path.Relayed}
	if l.connection.upSince != 0 && now != l.told {
		level, message, l.told = slog.LevelInfo, "path changed", now
	}
	l.logConnection(level, message, pathAttrs(path)...)
}

// pathAttrs describes the path in a log.
func pathAttrs(p *pipeline.Path) []slog.Attr {
	via := viaDirect
	if p.Relayed {
		via = viaRelay
	}
	return []slog.Attr{slog.String("via", via), slog.String("endpoint", p.Dst.String())}
}

// noteUp says that the connection has its first session.
func (l *Link) noteUp(now time.Duration) {
	after := now - l.connection.began
	l.links.countUp(after)
	attrs := []slog.Attr{slog.Duration("after", after)}
	if path := l.view.Path; path != nil {
		attrs = append(attrs, pathAttrs(path)...)
		l.told = toldPath{path.Dst, path.Relayed}
	}
	l.logConnection(slog.LevelInfo, "connection up", attrs...)
	l.task(Task{Kind: TaskUp})
}

// noteClosed says that the connection is over, and wants another one if there is to be one.
func (l *Link) noteClosed(now time.Duration, closed Closed) {
	l.closed, l.closedAt, l.last = &closed, l.links.config.Wall(), ended{number: closed.Attempt, run: l.connection.run}
	l.links.stats.closes[closed.Reason].Add(1)
	l.logClosed("connection closed", &closed)
	if closed.Reason.backsOff() {
		l.backoff.ended(now, closed.Up, l.links.config.Random())
	}
	l.task(Task{Kind: TaskClosed, Closed: closed})
}

// noteReport says what the peer reports after the close.
func (l *Link) noteReport(closed Closed) {
	l.closed = &closed
	l.logClosed("the peer reports after the close", &closed)
}

func (l *Link) logClosed(message string, closed *Closed) {
	level := slog.LevelInfo
	if closed.failed() {
		level = slog.LevelWarn
	}
	l.logConnection(level, message, closed.LogAttrs()...)
}

// Status is what a named peer's link is at one moment.
type Status struct {
	// Phase of the newest attempt; PhaseClosed also if there was none.
	Phase         Phase
	Attempt       AttemptNumber
	Serial        uint64
	Up            time.Duration // since it first had a session, 0: it has not
	Agent         AgentNumber   // that has selected the path, 0: none, or it is closed
	Newest        AgentNumber   // the newest there was
	Agents        int           // there are
	Waiting       int           // messages of the peer that nothing could be done with yet
	Local, Remote string        // types of the path's candidates
	Relayed       bool
	Obstacle      CloseCause // why ICE may find nothing, as far as it is known
	// Closed is how the latest connection that is over ended, nil if none has; Frozen.
	Closed   *Closed
	ClosedAt time.Time
	// Wanted: an attempt is wanted, which begins after NextAttempt if that is not 0, or as soon as it can.
	Wanted      bool
	NextAttempt time.Duration
	Absent      bool // the peer was not connected to the portal when it was told something last
}

// Status describes the link. Control only.
func (l *Link) Status(now time.Duration) Status {
	s := Status{Phase: PhaseClosed, Closed: l.closed, ClosedAt: l.closedAt, Absent: l.absent}
	if c := l.connection; c != nil {
		s.Phase, s.Attempt, s.Serial = c.phase, c.number, c.serial
		if s.Newest, s.Waiting = c.newest, len(l.asking.waiting)+len(c.pending); !c.over() {
			s.Agents = len(c.list())
			s.Local, s.Remote, s.Relayed, s.Obstacle = c.local, c.remote, c.relayed(), c.obstacle()
			if c.current.selected != 0 {
				s.Agent = c.current.number
			}
			if c.upSince != 0 {
				s.Up = now - c.upSince
			}
		}
	}
	if !l.alive() {
		s.Wanted = l.asking.since != 0 || l.backoff.wanted
		if l.asking.since == 0 && now < l.backoff.earliest {
			s.NextAttempt = l.backoff.earliest - now
		}
	}
	return s
}
