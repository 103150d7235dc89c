package link

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline"
)

// Config describes Links. Edge is required.
type Config struct {
	// Edge gets what links ask of the connectivity edge, on the control goroutine. It must not block, nor call the pipeline's methods:
	// it fills a mailbox.
	Edge func(Request)
	// Logger is nil to discard; Wall reads the wall clock, nil is the system's; Random spreads back-offs, nil is math/rand/v2.
	Logger *slog.Logger
	Wall   func() time.Time
	Random func() uint32
}

// Links are the links to all named peers of a pipeline, whose Connector they are. Owned by control.
type Links struct {
	config Config
	named  map[string]*link
	stats  stats
}

// New makes Links for one pipeline.
func New(cfg Config) *Links {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Wall == nil {
		cfg.Wall = wallClock
	}
	if cfg.Random == nil {
		cfg.Random = rand.Uint32
	}
	return &Links{config: cfg, named: make(map[string]*link)}
}

// Link obeys pipeline.Connector.
func (c *Links) Link(name string) pipeline.Link {
	l := &link{links: c, name: name}
	c.named[name] = l
	return l
}

// link is what is kept of a named peer beside its core: the attempts to reach it, one at a time. Owned by control.
type link struct {
	links      *Links
	name       string
	up         bool // the interface is
	view       pipeline.View
	orders     []pipeline.Order
	backoff    backoff
	asked      time.Duration // when RequestAttempt was made and no attempt has begun yet; 0: not
	connection *connection   // the newest, also when it is over; nil before the first
	attempt    *Attempt
	told       toldPath
	closed     *Closed // of the latest that ended; nil: none. Frozen.
	closedAt   time.Time
}

var _ pipeline.Connector = (*Links)(nil)

// toldPath is what the log has last said of a connection's path.
type toldPath struct {
	dst     netip.AddrPort
	relayed bool
}

// askTimeout is how long the edge may take from RequestAttempt to Begin.
const askTimeout = 10 * time.Second

// alive reports whether there is a connection that is not over.
func (l *link) alive() bool { return l.connection != nil && !l.connection.over() }

// Stance obeys pipeline.Link.
func (l *link) Stance(now time.Duration) pipeline.Stance {
	s := pipeline.Stance{Reach: pipeline.ReachLater, Alive: l.alive()}
	if s.Alive || l.asked != 0 || now >= l.backoff.earliest {
		s.Reach = pipeline.ReachStage
	}
	s.Up = s.Alive && l.connection.phase >= PhaseUp
	return s
}

// NextTimeout obeys pipeline.Link.
func (l *link) NextTimeout(now time.Duration) (at time.Duration, why string) {
	switch {
	case l.asked != 0:
		at, why = l.asked+askTimeout, "asked"
	case !l.alive() && now < l.backoff.earliest:
		at, why = l.backoff.earliest, "back_off" // the wish may be granted, or packets may wait again
	}
	if l.connection != nil {
		if next, w := l.connection.nextTimeout(); next != 0 && (at == 0 || next < at) {
			at, why = next, w.String()
		}
	}
	return at, why
}

// Poll obeys pipeline.Link.
func (l *link) Poll() (o pipeline.Order, ok bool) {
	if len(l.orders) == 0 {
		l.orders = nil
		return o, false
	}
	o = l.orders[0]
	l.orders = l.orders[1:]
	return o, true
}

func (l *link) order(o pipeline.Order) { l.orders = append(l.orders, o) }

// HandleChange obeys pipeline.Link. Connections close with the interface, and what was wanted meanwhile is, when it is up again.
func (l *link) HandleChange(now time.Duration, c pipeline.Change) {
	switch c {
	case pipeline.ChangeUp:
		l.up = true
		l.grant(now)
	case pipeline.ChangeDown:
		l.close(CloseShutdown)
		l.backoff.wanted = l.backoff.wanted || l.asked != 0 // the edge cannot begin any more
		l.asked, l.up = 0, false
	case pipeline.ChangeKeys:
		l.close(CloseKeysChanged)
	case pipeline.ChangeRetry: // the next attempt may begin as if none had failed; a wish that waits is granted at once
		l.backoff.reset(now)
		l.grant(now)
	case pipeline.ChangeRemoved:
		l.close(CloseRemoved)
		if l.links.named[l.name] == l {
			delete(l.links.named, l.name)
		}
	}
}

// close closes the connection, if there is one.
func (l *link) close(reason CloseReason) {
	if l.alive() {
		l.connection.close(reason)
	}
}

// HandleWant obeys pipeline.Link: it asks for a session of the connection there is, or of one to be made.
func (l *link) HandleWant(now time.Duration) {
	switch {
	case l.alive():
		if l.connection.mayInitiate() {
			l.order(pipeline.Order{Kind: pipeline.OrderSession})
		}
	case l.asked != 0:
	case !l.up:
		l.backoff.wanted = true
	case l.backoff.want(now):
		l.ask(now)
	}
}

// ask has the edge begin an attempt.
func (l *link) ask(now time.Duration) {
	l.asked = now
	l.request(Request{Kind: RequestAttempt})
}

func (l *link) request(r Request) {
	r.Peer = l.name
	if l.connection != nil && r.Kind != RequestAttempt {
		r.Generation = l.connection.generation
	}
	l.links.config.Edge(r)
}

// begin is Begin.
func (l *link) begin(now time.Duration, generation uint32, controlling bool, a *Attempt) error {
	if !l.up {
		return ErrDown
	}
	if l.alive() {
		l.connection.close(CloseReplaced)
		l.HandleView(now, l.view)
	}
	l.asked, l.backoff.wanted = 0, false
	l.connection, l.attempt, a.link = newConnection(now, generation, controlling), a, l
	l.log(slog.LevelDebug, "connection attempt", slog.Uint64("generation", uint64(generation)), slog.Bool("controlling", controlling))
	return nil
}

// log writes a line about the peer.
func (l *link) log(level slog.Level, message string, attrs ...slog.Attr) {
	l.links.config.Logger.LogAttrs(context.Background(), level, message, append([]slog.Attr{slog.String("peer", l.name)}, attrs...)...)
}

// HandleTimeout obeys pipeline.Link: it acts on what is due beside the connection, which HandleView sees to.
func (l *link) HandleTimeout(now time.Duration) {
	if l.asked != 0 && now >= l.asked+askTimeout {
		l.asked = 0
		l.backoff.ended(now, 0, l.links.config.Random())
		l.order(pipeline.Order{Kind: pipeline.OrderPurge})
		l.log(slog.LevelInfo, "no connection attempt: the portal or the peer is not reachable")
	}
	l.grant(now)
}

// grant has an attempt begin that is wanted and may.
func (l *link) grant(now time.Duration) {
	if l.up && !l.alive() && l.asked == 0 && l.backoff.due(now) {
		l.ask(now)
	}
}

// HandleView obeys pipeline.Link.
func (l *link) HandleView(now time.Duration, v pipeline.View) {
	l.view = v
	if l.connection == nil {
		return
	}
	l.connection.advance(now, sessionView{View: v, lastSTUN: time.Duration(l.attempt.heard.Load())})
	for out, ok := l.connection.poll(); ok; out, ok = l.connection.poll() {
		l.fulfil(now, out)
	}
}

// HandleVerdict obeys pipeline.Link. What belongs to no connection is forgotten, and not answered.
func (l *link) HandleVerdict(now time.Duration, v crypto.Verdict) {
	switch {
	case l.connection != nil:
		l.connection.handleVerdict(now, v)
	case v.Roam:
		l.order(pipeline.Order{Kind: pipeline.OrderForget})
	}
}

// HandleExpired obeys pipeline.Link.
func (l *link) HandleExpired(_ time.Duration, e crypto.HandshakeExpired) {
	if l.alive() {
		l.connection.handleExpired(e)
	}
}

// HandleStray obeys pipeline.Link.
func (l *link) HandleStray(_ time.Duration, from *pipeline.Path) {
	if l.alive() {
		l.request(Request{Kind: RequestStray, Path: from})
	}
}

// fulfil carries out one output of the connection.
func (l *link) fulfil(now time.Duration, out connectionOutput) {
	switch out.kind {
	case connectionStartAgent:
		l.request(Request{Kind: RequestAgent, Agent: out.agent})
	case connectionCloseAgent:
		l.request(Request{Kind: RequestCloseAgent, Agent: out.agent})
	case connectionCheckAgent:
		l.request(Request{Kind: RequestCheck, Agent: out.agent})
	case connectionPublishPath:
		l.publishPath(out.path)
		l.tellPath(out.path)
	case connectionClearPath:
		l.publishPath(nil)
	case connectionClearSession:
		l.order(pipeline.Order{Kind: pipeline.OrderForget})
		if l.asked == 0 && l.connection.closed.Reason != CloseReplaced { // else what waits does so for the next attempt
			l.order(pipeline.Order{Kind: pipeline.OrderPurge})
		}
	case connectionStartHandshake:
		l.order(pipeline.Order{Kind: pipeline.OrderHandshake, Lifetime: out.lifetime, Initiate: out.initiate})
	case connectionKeepalive:
		l.order(pipeline.Order{Kind: pipeline.OrderKeepalive})
	case connectionUp:
		l.noteUp(now)
	case connectionSendBye:
		l.request(Request{Kind: RequestBye, Bye: out.bye})
	case connectionClosed:
		l.noteClosed(now, out.closed)
	case connectionPeerReports:
		l.closed = &out.closed
		l.logClosed("the peer reports after the close", &out.closed)
	}
}

// noteUp says that the connection has its first session.
func (l *link) noteUp(now time.Duration) {
	l.links.countUp(now - l.connection.began)
	attrs := []slog.Attr{
		slog.Uint64("generation", uint64(l.connection.generation)), slog.Duration("after", now-l.connection.began),
	}
	if path := l.view.Path; path != nil {
		attrs = append(attrs, pathAttrs(path)...)
		l.told = toldPath{path.Dst, path.Relayed}
	}
	l.log(slog.LevelInfo, "connection up", attrs...)
	l.request(Request{Kind: RequestUp})
}

// pathAttrs describes the path in a log.
func pathAttrs(p *pipeline.Path) []slog.Attr {
	via := viaDirect
	if p.Relayed {
		via = viaRelay
	}
	return []slog.Attr{slog.String("via", via), slog.String("endpoint", p.Dst.String())}
}

// publishPath moves the peer to the pair that an agent has selected.
func (l *link) publishPath(path *pipeline.Path) {
	l.view.Path = path
	l.order(pipeline.Order{Kind: pipeline.OrderPath, Path: path})
	l.request(Request{Kind: RequestPath, Path: path})
}

// tellPath logs a path, for all to see if the connection is up and goes another way than before.
func (l *link) tellPath(path *pipeline.Path) {
	level, message, now := slog.LevelDebug, "path selected", toldPath{path.Dst, path.Relayed}
	if l.connection.upSince != 0 && now != l.told {
		level, message, l.told = slog.LevelInfo, "path changed", now
	}
	l.log(level, message, append([]slog.Attr{slog.Uint64("generation", uint64(l.connection.generation))}, pathAttrs(path)...)...)
}

func (l *link) noteClosed(now time.Duration, closed Closed) {
	l.closed, l.closedAt = &closed, l.links.config.Wall()
	l.links.stats.closes[closed.Reason].Add(1)
	l.logClosed("connection closed", &closed)
	if closed.Reason.backsOff() {
		l.backoff.ended(now, closed.Up, l.links.config.Random())
	}
	l.request(Request{Kind: RequestClosed, Closed: closed})
}

func (l *link) logClosed(message string, closed *Closed) {
	level := slog.LevelInfo
	if closed.failed() {
		level = slog.LevelWarn
	}
	l.log(level, message, append([]slog.Attr{slog.Uint64("generation", uint64(closed.Generation))}, closed.LogAttrs()...)...)
}

// ConnectionStatus is what a named peer's connection is at one moment.
type ConnectionStatus struct {
	// Phase of the newest attempt; PhaseClosed also if there was none.
	Phase       Phase
	Generation  uint32
	Controlling bool
	Age         time.Duration // since the attempt began
	Up          time.Duration // since it first had a session, 0: it has not
	// Closed is how the latest connection that is over ended, nil if none has; Frozen.
	Closed   *Closed
	ClosedAt time.Time
	// Wanted: an attempt is wanted, which begins after NextAttempt if that is not 0, or as soon as the edge can.
	Wanted      bool
	NextAttempt time.Duration
}

// StatusOf describes the connection of a link that Links has made, by control.
func StatusOf(now time.Duration, k pipeline.Link) *ConnectionStatus {
	l := k.(*link)
	s := &ConnectionStatus{Phase: PhaseClosed, Closed: l.closed, ClosedAt: l.closedAt}
	if k := l.connection; k != nil {
		s.Phase, s.Generation, s.Controlling, s.Age = k.phase, k.generation, k.controlling, now-k.began
		if k.upSince != 0 && !k.over() {
			s.Up = now - k.upSince
		}
	}
	if !l.alive() {
		s.Wanted = l.asked != 0 || l.backoff.wanted
		if l.asked == 0 && now < l.backoff.earliest {
			s.NextAttempt = l.backoff.earliest - now
		}
	}
	return s
}
