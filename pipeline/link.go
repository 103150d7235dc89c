package pipeline

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/secret"
)

// This file is the controller's part for named peers, which are reached through connections: when an attempt begins, what
// becomes of what a connection asks, and what is left when it is over.

// link is what control keeps of a named peer beside its core: the attempts to reach it, one at a time. Owned by control.
type link struct {
	name       string
	peer       *peer // nil once it was removed
	backoff    backoff
	asked      time.Duration // when RequestAttempt was made and no attempt has begun yet; 0: not
	connection *connection   // the newest, also when it is over; nil before the first
	attempt    *Attempt
	told       toldPath
	closed     *Closed // of the latest that ended; nil: none. Frozen.
	closedAt   time.Time
}

// toldPath is what the log has last said of a connection's path.
type toldPath struct {
	dst     netip.AddrPort
	relayed bool
}

// askTimeout is how long the edge may take from RequestAttempt to Begin.
const askTimeout = 10 * time.Second

// reach is what lanes do with packets for a peer that has no path.
type reach uint32

const (
	reachNone  reach = iota // a plain peer: unreachable
	reachLater              // an attempt has failed lately: unreachable, but control is told
	reachStage              // an attempt is under way or may begin: packets wait
)

// alive reports whether there is a connection that is not over.
func (l *link) alive() bool { return l.connection != nil && !l.connection.over() }

// reach says what lanes are to do while there is no path.
func (l *link) reach(now time.Duration) reach {
	if l.alive() || l.asked != 0 || now >= l.backoff.earliest {
		return reachStage
	}
	return reachLater
}

// nextTimeout is when the link needs looking after, beside its connection; 0: never.
func (l *link) nextTimeout(now time.Duration) time.Duration {
	switch {
	case l.asked != 0:
		return l.asked + askTimeout
	case !l.alive() && now < l.backoff.earliest:
		return l.backoff.earliest // the wish may be granted, or packets may wait again
	}
	return 0
}

// name makes p the peer of that name, or a plain one again.
func (c *controller) name(now time.Duration, p *peer, name string) {
	if p.link != nil {
		if p.link.name == name {
			return
		}
		c.unlink(now, p, CloseRemoved)
	}
	if name == "" || c.edge == nil {
		return
	}
	if other := c.named[name]; other != nil {
		c.unlink(now, other, CloseRemoved)
		c.touch(now, other)
	}
	p.link = &link{name: name, peer: p}
	p.title.Store(&name)
	if c.named == nil {
		c.named = make(map[string]*peer)
	}
	c.named[name] = p
	c.forgetSession(now, p) // a plain peer's, which no connection has made
	c.effects.purge(p)
	c.setKeepalive(now, p)
}

// unlink closes a peer's connection and makes it a plain peer. What waits for an attempt waits no more.
func (c *controller) unlink(now time.Duration, p *peer, reason CloseReason) {
	c.closeLink(now, p, reason)
	delete(c.named, p.link.name)
	p.link.peer, p.link = nil, nil
	p.title.Store(nil)
	c.setReach(p, reachNone)
	p.core.SetHandshakeLifetime(c.lifetime, false)
	c.setKeepalive(now, p)
}

// forgetSession leaves nothing of a session and its path.
func (c *controller) forgetSession(now time.Duration, p *peer) {
	p.core.Clear(now)
	p.stamps.reset()
	p.path.Store(nil) // also one that is not ICE's
}

// setReach tells the lanes what to do without a path. Those that have staged by what was said before are told to drop it.
func (c *controller) setReach(p *peer, next reach) {
	if old := reach(p.reach.Swap(uint32(next))); old == reachStage && next != reachStage {
		c.effects.purge(p)
	}
}

// setKeepalive gives the core the configured interval. With a named peer it counts while there is a session: it would begin a
// handshake of its own else.
func (c *controller) setKeepalive(now time.Duration, p *peer) {
	interval := time.Duration(p.keepalive) * time.Second
	if l := p.link; l != nil && (!l.alive() || l.connection.phase < PhaseUp) {
		interval = 0
	}
	if interval != p.core.PersistentKeepalive() {
		p.core.SetPersistentKeepalive(now, interval)
	}
}

// closeLink closes the connection of a named peer, if there is one.
func (c *controller) closeLink(now time.Duration, p *peer, reason CloseReason) {
	if p.link == nil || !p.link.alive() {
		return
	}
	p.link.connection.close(reason)
	c.follow(now, p)
}

// keysChanged begins anew with a named peer: another key or preshared key.
func (c *controller) keysChanged(now time.Duration, p *peer) {
	if p.link == nil {
		return
	}
	c.closeLink(now, p, CloseKeysChanged)
	c.retry(now, p)
}

// retry lets the next attempt begin as if none had failed. A wish that waits is granted at once.
func (c *controller) retry(now time.Duration, p *peer) {
	p.link.backoff.reset(now)
	c.grant(now, p.link)
}

// replaceKey puts a peer with another key in p's place. Nothing happens if that is p's key, another peer's or our own.
func (c *controller) replaceKey(now time.Duration, p *peer, key crypto.PublicKey) *peer {
	if key == p.key || c.find(key) != nil {
		return p
	}
	next, err := c.add(now, key)
	if err != nil { // ErrSelf
		return p
	}
	c.keysChanged(now, p)
	secret.Do(func() {
		psk := p.core.PresharedKey()
		next.core.SetPresharedKey(&psk)
	})
	next.keepalive = p.keepalive
	next.rxBytes.Store(p.rxBytes.Load())
	next.txBytes.Store(p.txBytes.Load())
	for prefix := range p.allowedIPs { // any order gives the same table
		c.routes.set(prefix, next)
	}
	if l := p.link; l != nil {
		p.link, next.link = nil, l
		next.title.Store(&l.name)
		l.peer = next
		c.named[l.name] = next
		c.effects.inherit(p, next)
		c.setReach(p, reachNone)
	} else {
		next.path.Store(p.path.Load())
	}
	c.setKeepalive(now, next)
	// next, which was added last, takes the place of p
	i := slices.Index(c.peers, p)
	c.peers[i], c.peers[len(c.peers)-1] = next, p
	c.remove(now, p)
	c.touch(now, next)
	return next
}

// wantLink asks for a session with a named peer: of the connection there is, or of one to be made.
func (c *controller) wantLink(now time.Duration, p *peer) {
	l := p.link
	switch {
	case l.alive():
		if l.connection.mayInitiate() {
			c.wantSession(now, p)
		}
	case l.asked != 0:
	case !c.up:
		l.backoff.wanted = true
	case l.backoff.want(now):
		c.ask(now, l)
	}
}

// ask has the edge begin an attempt.
func (c *controller) ask(now time.Duration, l *link) {
	l.asked = now
	c.request(l, Request{Kind: RequestAttempt})
}

func (c *controller) request(l *link, r Request) {
	r.Peer = l.name
	if l.connection != nil && r.Kind != RequestAttempt {
		r.Generation = l.connection.generation
	}
	c.edge(r)
}

// begin is Pipeline.Begin.
func (c *controller) begin(now time.Duration, name string, generation uint32, controlling bool, a *Attempt) error {
	p := c.named[name]
	switch {
	case p == nil:
		return ErrUnknownPeer
	case !c.up:
		return ErrDown
	}
	c.closeLink(now, p, CloseReplaced)
	l := p.link
	l.asked, l.backoff.wanted = 0, false
	l.connection, l.attempt, a.link = newConnection(now, generation, controlling), a, l
	c.log.Debug("connection attempt", "peer", l.name, "generation", generation, "controlling", controlling)
	c.touch(now, p)
	return nil
}

// handleLinkTimeout acts on what is due of a named peer, beside core and connection.
func (c *controller) handleLinkTimeout(now time.Duration, p *peer) {
	l := p.link
	if l.asked != 0 && now >= l.asked+askTimeout {
		l.asked = 0
		l.backoff.ended(now, 0, c.random())
		c.effects.purge(p)
		c.log.Info("no connection attempt: the portal or the peer is not reachable", "peer", l.name)
	}
	c.grant(now, l)
}

// grant has an attempt begin that is wanted and may.
func (c *controller) grant(now time.Duration, l *link) {
	if c.up && !l.alive() && l.asked == 0 && l.backoff.due(now) {
		c.ask(now, l)
	}
}

// setLinkUp follows the interface: connections close with it, and what was wanted meanwhile is, when it is up again.
func (c *controller) setLinkUp(now time.Duration, p *peer, up bool) {
	l := p.link
	switch {
	case !up:
		c.closeLink(now, p, CloseShutdown)
		l.backoff.wanted = l.backoff.wanted || l.asked != 0 // the edge cannot begin any more
		l.asked = 0
	case p.hasStaged(): // see setUp
		c.wantLink(now, p)
	default:
		c.grant(now, l)
	}
}

// follow lets the connection draw its conclusions and carries out what it wants, until nothing is left to do.
func (c *controller) follow(now time.Duration, p *peer) {
	l := p.link
	if l == nil {
		return
	}
	for again := l.connection != nil; again; {
		again = false
		activity, _ := p.stamps.watch()
		l.connection.advance(now, viewSession(now, p.core, activity, p.stamps.lastData(), time.Duration(l.attempt.heard.Load())))
		for out, ok := l.connection.poll(); ok; out, ok = l.connection.poll() {
			c.fulfil(now, p, out)
			again = true
		}
		c.drain(now, p)
	}
	c.setReach(p, l.reach(now))
	c.setKeepalive(now, p)
}

// noteUp says that the connection has its first session.
func (c *controller) noteUp(now time.Duration, l *link) {
	c.countUp(now - l.connection.began)
	attrs := []slog.Attr{
		slog.String("peer", l.name), slog.Uint64("generation", uint64(l.connection.generation)),
		slog.Duration("after", now-l.connection.began),
	}
	if path := l.peer.path.Load(); path != nil {
		attrs = append(attrs, path.attrs()...)
		l.told = toldPath{path.Dst, path.Relayed}
	}
	c.log.LogAttrs(context.Background(), slog.LevelInfo, "connection up", attrs...)
	c.request(l, Request{Kind: RequestUp})
}

// attrs describes the path in a log.
func (p *Path) attrs() []slog.Attr {
	via := "direct"
	if p.Relayed {
		via = "relay"
	}
	return []slog.Attr{slog.String("via", via), slog.String("endpoint", p.Dst.String())}
}

// fulfil carries out one output of a peer's connection.
func (c *controller) fulfil(now time.Duration, p *peer, out connectionOutput) {
	l := p.link
	switch out.kind {
	case connectionStartAgent:
		c.request(l, Request{Kind: RequestAgent, Agent: out.agent})
	case connectionCloseAgent:
		c.request(l, Request{Kind: RequestCloseAgent, Agent: out.agent})
	case connectionCheckAgent:
		c.request(l, Request{Kind: RequestCheck, Agent: out.agent})
	case connectionPublishPath:
		c.publishPath(now, p, out.path)
	case connectionClearPath:
		c.publishPath(now, p, nil)
	case connectionClearSession:
		c.forgetSession(now, p)
		if l.asked == 0 && l.connection.closed.Reason != CloseReplaced { // else what waits does so for the next attempt
			c.effects.purge(p)
		}
	case connectionStartHandshake:
		p.core.SetHandshakeLifetime(out.lifetime, true)
		if out.initiate {
			c.wantSession(now, p)
		}
	case connectionKeepalive:
		c.sendKeepalive(now, p)
	case connectionUp:
		c.noteUp(now, l)
	case connectionSendBye:
		c.request(l, Request{Kind: RequestBye, Bye: out.bye})
	case connectionClosed:
		c.noteClosed(now, p, out.closed)
	case connectionPeerReports:
		l.closed = &out.closed
		c.logClosed(l, "the peer reports after the close", &out.closed)
	}
}

// publishPath moves a named peer to the pair that an agent has selected.
func (c *controller) publishPath(now time.Duration, p *peer, path *Path) {
	if old := p.path.Load(); old != nil && c.paths[old.key()] == p {
		delete(c.paths, old.key())
	}
	p.path.Store(path)
	if path != nil {
		if c.paths == nil {
			c.paths = make(map[pathKey]*peer)
		}
		c.paths[path.key()] = p
		c.tellPath(p.link, path)
		p.core.Retry(now)
	}
	c.request(p.link, Request{Kind: RequestPath, Path: path})
}

// tellPath logs a path, for all to see if the connection is up and goes another way than before.
func (c *controller) tellPath(l *link, path *Path) {
	level, message, now := slog.LevelDebug, "path selected", toldPath{path.Dst, path.Relayed}
	if l.connection.upSince != 0 && now != l.told {
		level, message, l.told = slog.LevelInfo, "path changed", now
	}
	attrs := []slog.Attr{slog.String("peer", l.name), slog.Uint64("generation", uint64(l.connection.generation))}
	c.log.LogAttrs(context.Background(), level, message, append(attrs, path.attrs()...)...)
}

func (c *controller) noteClosed(now time.Duration, p *peer, closed Closed) {
	l := p.link
	l.closed, l.closedAt = &closed, c.wall()
	c.stats.closes[closed.Reason].Add(1)
	c.logClosed(l, "connection closed", &closed)
	if closed.Reason.backsOff() {
		l.backoff.ended(now, closed.Up, c.random())
	}
	c.request(l, Request{Kind: RequestClosed, Closed: closed})
}

func (c *controller) logClosed(l *link, message string, closed *Closed) {
	attrs := []slog.Attr{slog.String("peer", l.name), slog.Uint64("generation", uint64(closed.Generation))}
	level := slog.LevelInfo
	if closed.failed() {
		level = slog.LevelWarn
	}
	c.log.LogAttrs(context.Background(), level, message, append(attrs, closed.LogAttrs()...)...)
}

// handleLinkVerdict notes an authentic message of a named peer and where it came from. One that belongs to no connection
// is forgotten, and not answered.
func (c *controller) handleLinkVerdict(now time.Duration, p *peer, v crypto.Verdict, from *Path) {
	l := p.link
	if v.Roam && l.alive() && p.stray(now, *from) {
		c.request(l, Request{Kind: RequestStray, Path: p.strayed.Load()})
	}
	switch {
	case l.connection != nil:
		l.connection.handleVerdict(now, v)
	case v.Roam:
		c.forgetSession(now, p)
	}
}

// book counts a message of nobody's for the connection whose path it came over.
func (c *controller) book(now time.Duration, v crypto.Verdict, from *Path) {
	p := c.paths[from.key()]
	if p == nil || !p.link.connection.carries(p.path.Load(), from) {
		return
	}
	p.link.connection.handleVerdict(now, v)
	c.touch(now, p)
}

// ConnectionStatus is what a named peer's connection is at one moment.
type ConnectionStatus struct {
	// Phase of the newest attempt; PhaseClosed also if there was none.
	Phase       Phase
	Generation  uint32
	Controlling bool
	Age         time.Duration // since the attempt began
	Up          time.Duration // since it first had a session, 0: it has not
	// Path is where datagrams go, nil: nowhere. Frozen.
	Path *Path
	// Closed is how the latest connection that is over ended, nil if none has; Frozen.
	Closed   *Closed
	ClosedAt time.Time
	// Wanted: an attempt is wanted, which begins after NextAttempt if that is not 0, or as soon as the edge can.
	Wanted      bool
	NextAttempt time.Duration
}

func (l *link) status(now time.Duration) *ConnectionStatus {
	s := &ConnectionStatus{
		Phase: PhaseClosed, Path: l.peer.path.Load(), Closed: l.closed, ClosedAt: l.closedAt,
	}
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
