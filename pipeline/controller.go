package pipeline

import (
	"container/heap"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sort"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/aead"
	"github.com/sluice-vpn/sluice/crypto/secret"
	"github.com/sluice-vpn/sluice/pipeline/count"
)

// handshakeTOS marks handshake messages AF41, as the kernel does (HANDSHAKE_DSCP in drivers/net/wireguard/messages.h).
const handshakeTOS = 0x88

// effects is what the controller causes outside of itself.
type effects interface {
	// send sends one datagram and reports whether the system took it; data is borrowed.
	send(path *Path, data []byte, tos uint8) bool
	// release tells the shards that the peer has a session, purge that none came about.
	release(p *peer)
	purge(p *peer)
	// inherit tells them that what waits for p waits for heir from now on.
	inherit(p, heir *peer)
	// letGo returns a test that becomes true when no lane uses anything that was unpublished before the call.
	letGo() func() bool
	// sourceHolds tells whether the path's source is to be kept, see udp.Routes.
	sourceHolds(path *Path) bool
}

// controller is the sans-IO half of control: every peer's protocol state, the one list of deadlines, the routes. Owned by
// the control goroutine; after each input the caller asks nextTimeout for the one timer.
type controller struct {
	local     *crypto.Local
	routes    *routes
	effects   effects
	connector Connector // nil: none
	log       *slog.Logger
	shards    int
	lifetime  time.Duration
	peers     []*peer // in the order they were added
	named     map[string]*peer
	paths     map[pathKey]*peer // named peers by the path that was ordered
	deadlines deadlines
	retired   []retired
	up        bool // the interface is up: messages may be sent

	handshakes [crypto.ReasonCount]atomic.Uint64 // messages by what became of them
}

// retired is a keypair that waits for the lanes to let go of it before its keys are overwritten.
type retired struct {
	keypair *crypto.Keypair
	free    func() bool
}

// retryWipe is how soon a keypair that a lane still used is looked at again.
const retryWipe = time.Millisecond

// deadline is a peer's place in the controller's list of deadlines.
type deadline struct {
	at    time.Duration // 0: none
	index int           // in deadlines, valid if at is not 0
}

// deadlines is a heap of peers by deadline.
type deadlines []*peer

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].deadline.at < d[j].deadline.at }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].deadline.index, d[j].deadline.index = i, j
}
func (d *deadlines) Push(x any) {
	p := x.(*peer)
	p.deadline.index = len(*d)
	*d = append(*d, p)
}
func (d *deadlines) Pop() any {
	old := *d
	p := old[len(old)-1]
	old[len(old)-1] = nil
	*d = old[:len(old)-1]
	return p
}

// schedule sets, moves or removes the peer's deadline.
func (d *deadlines) schedule(p *peer, at time.Duration) {
	had := p.deadline.at != 0
	p.deadline.at = at
	switch {
	case at == 0 && had:
		heap.Remove(d, p.deadline.index)
	case at != 0 && had:
		heap.Fix(d, p.deadline.index)
	case at != 0:
		heap.Push(d, p)
	}
}

// add makes a peer. crypto.ErrSelf if the key is our own.
func (c *controller) add(now time.Duration, key crypto.PublicKey) (*peer, error) {
	p := &peer{key: key, outbound: make([]outboundLane, c.shards), allowedIPs: make(map[netip.Prefix]struct{})}
	for i := range p.outbound {
		p.outbound[i].first = -1
	}
	core, err := c.local.AddPeer(now, crypto.PeerConfig{PublicKey: key, HandshakeLifetime: c.lifetime, Owner: p})
	if err != nil {
		return nil, err
	}
	p.core = core
	c.peers = append(c.peers, p)
	return p, nil
}

// find returns the peer with this key, or nil.
func (c *controller) find(key crypto.PublicKey) *peer {
	if core := c.local.Peer(key); core != nil {
		return core.Owner().(*peer)
	}
	return nil
}

// remove forgets a peer: its routes, session, staged packets and deadline.
func (c *controller) remove(now time.Duration, p *peer) {
	if p.link != nil {
		c.unlink(now, p)
	}
	c.local.RemovePeer(now, p.core)
	c.forget(now, p)
}

// forget takes out of our tables a peer that the core has removed.
func (c *controller) forget(now time.Duration, p *peer) {
	c.routes.unsetAll(p)
	p.path.Store(nil)
	c.drain(now, p)
	c.deadlines.schedule(p, 0)
	c.effects.purge(p)
	for i, q := range c.peers {
		if q == p {
			c.peers = slices.Delete(c.peers, i, i+1)
			return
		}
	}
}

// setUp starts (peers with persistent keepalive speak first) or stops all sessions with the interface.
func (c *controller) setUp(now time.Duration, up bool) {
	if c.up == up {
		return
	}
	c.up = up
	for _, p := range c.peers {
		if p.link != nil {
			c.setLinkUp(now, p, up)
		}
		if up {
			p.core.Up(now)
			if p.link == nil && p.hasStaged() { // the device was up a moment before we were, and what lanes wanted was not heard
				p.core.Want(now)
			}
		} else {
			p.core.Clear(now)
			p.stamps.reset()
			c.effects.purge(p)
		}
		c.touch(now, p)
	}
}

// handle takes one handshake message from the mailbox.
func (c *controller) handle(now time.Duration, l *letter) {
	msg := l.message[:l.length]
	from := crypto.Source{Addr: l.src.Dst, Channel: l.src.Channel, Relay: l.relay}
	v := c.local.Handle(now, from, msg, func(core *crypto.Peer) {
		if p := core.Owner().(*peer); p.link == nil || p.link.Stance(now).Alive {
			p.hear(l.src)
			c.checkSources(p, false) // before the answer, and what waits for the session
		}
	})
	c.handshakes[v.Reason].Add(1)
	if v.Reply != nil {
		c.effects.send(&l.src, v.Reply, handshakeTOS)
	}
	if v.Peer == nil {
		c.book(now, v, &l.src)
		return
	}
	p := v.Peer.Owner().(*peer)
	if v.Roam { // not a cookie reply, which the kernel does not count either (receive.c, wg_receive_handshake_packet)
		p.rxBytes.Add(uint64(l.length))
		p.stamps.received(now, false)
	}
	if p.link != nil {
		c.handleLinkVerdict(now, p, v, &l.src)
	}
	c.touch(now, p)
}

// notice takes a peer's signals from the lanes.
func (c *controller) notice(now time.Duration, p *peer, signals uint32) {
	if c.find(p.key) != p {
		return // removed meanwhile
	}
	if signals&signalConfirmed != 0 {
		if kp := p.confirmed.Load(); kp != nil {
			p.core.Confirm(now, kp)
			p.confirmed.CompareAndSwap(kp, nil)
		}
	}
	if signals&signalLoop != 0 {
		c.warnOfLoop(p)
	}
	if signals&signalStray != 0 && p.link != nil {
		p.link.HandleStray(now, p.strayed.Load())
	}
	if signals&signalSource != 0 {
		c.checkSources(p, false)
	}
	if signals&signalWant != 0 && c.up {
		c.want(now, p)
	}
	c.touch(now, p)
}

// checkSources forgets the sources of the peer's paths whose route leads elsewhere; all of them are looked at, or those that are new.
func (c *controller) checkSources(p *peer, all bool) { p.checkSources(all, c.effects.sourceHolds) }

// want asks for a session, unless there is a fresh one: a lane may have looked just before it came up.
func (c *controller) want(now time.Duration, p *peer) {
	if p.link != nil {
		p.link.HandleWant(now)
		return
	}
	c.wantSession(now, p)
}

func (c *controller) wantSession(now time.Duration, p *peer) {
	if kp := p.sending(now); kp == nil || kp.RekeyOnSend(now) {
		p.core.Want(now)
	}
}

// handleTimeout acts on every deadline that is due, on each peer once.
func (c *controller) handleTimeout(now time.Duration) {
	var due []*peer
	for len(c.deadlines) > 0 && c.deadlines[0].deadline.at <= now {
		p := c.deadlines[0]
		c.deadlines.schedule(p, 0)
		due = append(due, p)
	}
	for _, p := range due {
		p.core.HandleTimeout(now, p.stamps.activity())
		if p.link != nil {
			p.link.HandleTimeout(now)
		}
		c.touch(now, p)
	}
	c.wipe()
}

// nextTimeout returns when handleTimeout is next to be called, 0 for never.
func (c *controller) nextTimeout(now time.Duration) time.Duration {
	var at time.Duration
	if len(c.deadlines) > 0 {
		at = c.deadlines[0].deadline.at
	}
	if len(c.retired) > 0 && (at == 0 || at > now+retryWipe) {
		at = now + retryWipe
	}
	return at
}

// touch drains the peer's outputs and sets its deadline.
func (c *controller) touch(now time.Duration, p *peer) {
	c.drain(now, p)
	c.follow(now, p)
	activity, watched := p.stamps.watch()
	at, _ := p.core.NextTimeout(activity)
	if p.link != nil {
		next, _ := p.link.NextTimeout(now)
		at = sooner(at, next)
	}
	if look := now + watchInterval; watched && (at == 0 || at > look) {
		at = look
	}
	c.deadlines.schedule(p, at)
}

// sooner returns the earlier of two deadlines, of which 0 is none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

func (c *controller) drain(now time.Duration, p *peer) {
	for {
		out, ok := p.core.Poll()
		if !ok {
			return
		}
		c.obey(now, p, out)
	}
}

// obey carries out one output of a peer's core.
func (c *controller) obey(now time.Duration, p *peer, out crypto.Output) {
	switch out.Kind {
	case crypto.SendMessage:
		c.sendHandshake(now, p, out)
	case crypto.SendKeepalive:
		c.sendKeepalive(now, p)
	case crypto.SessionUp:
		c.log.Debug("session established", "peer", shortKey(p.key), "initiator", out.Initiator)
		if !p.hasStaged() && out.Initiator {
			c.sendKeepalive(now, p) // confirms the keys to the responder
		}
		c.effects.release(p)
	case crypto.Retired:
		c.retired = append(c.retired, retired{out.Keypair, c.effects.letGo()})
		c.wipe()
	case crypto.SeriesExpired:
		p.stamps.firstUnanswered.Store(0) // it has had its series
		if p.link != nil {
			p.link.HandleExpired(now, out.Expired)
		}
		level := slog.LevelDebug
		if !out.Expired.Quiet && p.link == nil { // a named peer's link sees to it
			c.effects.purge(p)
			level = slog.LevelInfo
		}
		c.log.Log(context.Background(), level, "handshake did not complete", "peer", shortKey(p.key), "after", now-out.Expired.Since,
			"initiations", out.Expired.Initiations, "responses_rejected", out.Expired.RejectedResponses())
	}
}

// hasStaged tells whether any lane has packets that wait for a session.
func (p *peer) hasStaged() bool {
	for i := range p.outbound {
		if p.outbound[i].count.Load() > 0 {
			return true
		}
	}
	return false
}

func (c *controller) sendHandshake(now time.Duration, p *peer, out crypto.Output) {
	path := p.path.Load()
	if path == nil || !c.up {
		return
	}
	if out.ClearSource {
		p.forgetSource()
		path = p.path.Load()
	}
	c.sendTo(now, p, path, out.Message, handshakeTOS)
}

// forgetSources forgets the cached source addresses of all peers: mark or port have changed (kernel netlink.c, set_port
// and wg_set_device).
func (c *controller) forgetSources() {
	for _, p := range c.peers {
		p.forgetSource()
	}
}

// sendKeepalive sends an empty packet, or asks for a session to send it in.
func (c *controller) sendKeepalive(now time.Duration, p *peer) {
	path, kp := p.way(now)
	if path == nil || !c.up {
		return
	}
	if kp == nil {
		p.core.Want(now)
		return
	}
	counter, ok := kp.Reserve(1)
	if !ok {
		p.core.Want(now)
		return
	}
	var msg [crypto.SizeKeepalive]byte
	crypto.PutTransportHeader(msg[:], kp.RemoteIndex, counter)
	body := msg[crypto.SizeTransportHeader:]
	kp.SealRun([]aead.Packet{{Dst: body, Src: body[:0], Counter: counter}})
	c.sendTo(now, p, path, msg[:], 0)
	if kp.RekeyOnSend(now) {
		p.core.Want(now)
	}
}

// sendTo sends an authentic message without data. As in the kernel it has been sent as far as timers go (send.c), and its bytes
// count if the system took them (socket.c, wg_socket_send_skb_to_peer).
func (c *controller) sendTo(now time.Duration, p *peer, path *Path, msg []byte, tos uint8) {
	p.stamps.sent(now, false)
	if c.effects.send(path, msg, tos) {
		p.txBytes.Add(uint64(len(msg)))
	}
}

// wipe overwrites the retired keypairs that no lane uses any more.
func (c *controller) wipe() {
	kept := c.retired[:0]
	for _, r := range c.retired {
		if r.free() {
			r.keypair.Wipe()
		} else {
			kept = append(kept, r)
		}
	}
	clear(c.retired[len(kept):])
	c.retired = kept
}

// setPrivateKey changes who we are; a peer that is ourselves goes.
func (c *controller) setPrivateKey(now time.Duration, k *crypto.PrivateKey) {
	var public crypto.PublicKey
	secret.Do(func() { public = k.Public() })
	if public != c.local.PublicKey() { // one key has several forms
		for _, p := range c.peers {
			c.keysChanged(now, p)
		}
	}
	for _, core := range c.local.SetPrivateKey(now, k) {
		p := core.Owner().(*peer)
		if p.link != nil {
			c.unlink(now, p)
		}
		c.forget(now, p)
	}
	for _, p := range c.peers {
		c.touch(now, p)
	}
}

// status describes all peers as of now, in the order they were added.
func (c *controller) status(now time.Duration) []PeerStatus {
	list := make([]PeerStatus, 0, len(c.peers))
	for _, p := range c.peers {
		s := PeerStatus{
			PublicKey: p.key, PresharedKey: p.core.PresharedKey(), PersistentKeepalive: p.keepalive,
			LastHandshake: p.core.LastHandshake(), RxBytes: p.rxBytes.Load(), TxBytes: p.txBytes.Load(), Drops: p.drops.read(now),
		}
		if path := p.path.Load(); path != nil {
			s.Endpoint, s.Path = path.Dst, path
		}
		if p.link != nil {
			s.Name = *p.title.Load()
		}
		for prefix := range p.allowedIPs {
			s.AllowedIPs = append(s.AllowedIPs, prefix)
		}
		sort.Slice(s.AllowedIPs, func(i, j int) bool { return s.AllowedIPs[i].Compare(s.AllowedIPs[j]) < 0 })
		list = append(list, s)
	}
	return list
}

// shortKey is a public key as logs show it.
func shortKey(k crypto.PublicKey) string { return k.Encode()[:10] + "…" }

var familyHandshakes = count.Family{Series: "sluice_handshake_messages_total", Help: "Handshake messages received, by what became of them."}

// counters are the controller's. Called by control.
func (c *controller) counters() (list []count.Counter) {
	for r := range crypto.ReasonCount {
		list = append(list, count.Labeled(familyHandshakes, "handshake_"+r.String(), "Handshake messages that ended so.", c.handshakes[r].Load(), "result", r.String()))
	}
	if c.connector != nil {
		list = append(list, c.connector.Counters()...)
	}
	return list
}
