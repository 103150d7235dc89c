package pipeline

import (
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/secret"
)

// This file is the controller's part for named peers, whose paths a Connector finds: what it tells their links, and how it carries out
// what they order.

// name makes p the peer of that name, or a plain one again.
func (c *controller) name(now time.Duration, p *peer, name string) {
	if p.link != nil {
		if *p.title.Load() == name {
			return
		}
		c.unlink(now, p)
	}
	if name == "" || c.connector == nil {
		return
	}
	if other := c.named[name]; other != nil {
		c.unlink(now, other)
		c.touch(now, other)
	}
	p.link = c.connector.Link(name)
	if c.up {
		p.link.HandleChange(now, ChangeUp)
	}
	p.title.Store(&name)
	if c.named == nil {
		c.named = make(map[string]*peer)
	}
	c.named[name] = p
	c.forgetSession(now, p) // a plain peer's, which no link has made
	c.effects.purge(p)
	c.setKeepalive(now, p)
}

// unlink ends a peer's link and makes it a plain peer. What waits for a session waits no more.
func (c *controller) unlink(now time.Duration, p *peer) {
	c.change(now, p, ChangeRemoved)
	delete(c.named, *p.title.Load())
	p.link = nil
	p.title.Store(nil)
	c.setReach(p, ReachNone)
	p.core.SetHandshakeLifetime(c.lifetime, false)
	c.setKeepalive(now, p)
}

// forgetSession leaves nothing of a session and its path.
func (c *controller) forgetSession(now time.Duration, p *peer) {
	p.core.Clear(now)
	p.stamps.reset()
	p.path.Store(nil) // also one that no link has ordered
}

// setReach tells the lanes what to do without a path. Those that have staged by what was said before are told to drop it.
func (c *controller) setReach(p *peer, next Reach) {
	if old := Reach(p.reach.Swap(uint32(next))); old == ReachStage && next != ReachStage {
		c.effects.purge(p)
	}
}

// setKeepalive gives the core the configured interval. With a named peer it counts while there is a session: it would begin a
// handshake of its own else.
func (c *controller) setKeepalive(now time.Duration, p *peer) {
	interval := time.Duration(p.keepalive) * time.Second
	if p.link != nil && !p.link.Stance(now).Up {
		interval = 0
	}
	if interval != p.core.PersistentKeepalive() {
		p.core.SetPersistentKeepalive(now, interval)
	}
}

// change tells a named peer's link of a change, at once.
func (c *controller) change(now time.Duration, p *peer, change Change) {
	p.link.HandleChange(now, change)
	c.follow(now, p)
}

// keysChanged begins anew with a named peer: another key or preshared key.
func (c *controller) keysChanged(now time.Duration, p *peer) {
	if p.link != nil {
		c.change(now, p, ChangeKeys)
		c.change(now, p, ChangeRetry)
	}
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
	if p.link != nil {
		next.link, p.link = p.link, nil
		next.title.Store(p.title.Swap(nil))
		c.named[*next.title.Load()] = next
		c.effects.inherit(p, next)
		next.drops.inherit(&p.drops)
		c.setReach(p, ReachNone)
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

// setLinkUp follows the interface.
func (c *controller) setLinkUp(now time.Duration, p *peer, up bool) {
	switch {
	case !up:
		c.change(now, p, ChangeDown)
	case p.hasStaged(): // see setUp
		p.link.HandleChange(now, ChangeUp)
		p.link.HandleWant(now)
	default:
		p.link.HandleChange(now, ChangeUp)
	}
}

// follow lets a named peer's link draw its conclusions and carries out what it orders, until nothing is left to do.
func (c *controller) follow(now time.Duration, p *peer) {
	if p.link == nil {
		return
	}
	for again := true; again; {
		again = false
		p.link.HandleView(now, p.view(now))
		for o, ok := p.link.Poll(); ok; o, ok = p.link.Poll() {
			c.execute(now, p, o)
			again = true
		}
		c.drain(now, p)
	}
	c.setReach(p, p.link.Stance(now).Reach)
	c.setKeepalive(now, p)
}

// view looks at a peer.
func (p *peer) view(now time.Duration) View {
	activity, _ := p.stamps.watch()
	v := View{Tally: p.core.Tally(), Activity: activity, LastData: p.stamps.lastData(), Path: p.path.Load()}
	v.SeriesSince, _, v.SeriesRunning = p.core.Series()
	if k := p.core.Sending(); k != nil && k.Usable(now) {
		v.Usable, v.Created = true, k.Created
	}
	return v
}

// execute carries out one order of a peer's link.
func (c *controller) execute(now time.Duration, p *peer, o Order) {
	switch o.Kind {
	case OrderPath:
		c.publishPath(now, p, o.Path)
	case OrderForget:
		c.forgetSession(now, p)
	case OrderPurge:
		c.effects.purge(p)
	case OrderHandshake:
		p.core.SetHandshakeLifetime(o.Lifetime, true)
		if o.Initiate {
			c.wantSession(now, p)
		}
	case OrderSession:
		c.wantSession(now, p)
	case OrderKeepalive:
		c.sendKeepalive(now, p)
	}
}

// publishPath moves a named peer to where its link says.
func (c *controller) publishPath(now time.Duration, p *peer, path *Path) {
	if old := p.path.Load(); old != nil && c.paths[old.key()] == p {
		delete(c.paths, old.key())
	}
	p.path.Store(path)
	if path == nil {
		return
	}
	if c.paths == nil {
		c.paths = make(map[pathKey]*peer)
	}
	c.paths[path.key()] = p
	p.core.Retry(now)
}

// handleLinkVerdict tells a named peer's link of an authentic message, and where it came from if that is elsewhere.
func (c *controller) handleLinkVerdict(now time.Duration, p *peer, v crypto.Verdict, from *Path) {
	if v.Roam && p.stray(now, *from) {
		p.link.HandleStray(now, p.strayed.Load())
	}
	p.link.HandleVerdict(now, v)
}

// book counts a message of nobody's for the link whose path it came over, as far as its source says: an address that others can forge,
// so nothing but what is told of a failure may depend on it.
func (c *controller) book(now time.Duration, v crypto.Verdict, from *Path) {
	p := c.paths[from.key()]
	if p == nil {
		return
	}
	if path := p.path.Load(); path != nil && path.key() == from.key() {
		p.link.HandleVerdict(now, v)
		c.touch(now, p)
	}
}
