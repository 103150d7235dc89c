package edge

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/ice"
	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/turn"
	"github.com/sluice-vpn/sluice/pipeline"
)

const (
	syncTimeout  = protocol.SyncHold + 10*time.Second
	freshTimeout = 3 * time.Second
	syncRetry    = time.Second
	syncRetryMax = 15 * time.Second
	syncLook     = 250 * time.Millisecond // between looks at whether the portal is back
	syncGap      = 50 * time.Millisecond  // between an answer and the next question at least
	// asksPerSecond is how many questions peers may cause, beside a burst: the portal drops what a node asks more than 20 times a second,
	// and its connections in the end.
	asksPerSecond = 4
	// burst is how many things that peers cause may happen at once.
	burst    = 5
	maxPeers = 4096
	// clockSkew is from when on a difference between our clock and the portal's is worth a warning.
	clockSkew = time.Hour
)

// peer is what the edge knows of another node. Owned by the edge's goroutine.
type peer struct {
	protocol.Peer
	share ice.Share
}

// follow asks the portal again and again for what has changed.
func (e *Edge) follow(ctx context.Context) {
	retry, known := syncRetry, uint64(0)
	for ctx.Err() == nil {
		asked := e.asked.Add(1)
		answer, err := e.ask(ctx, known, syncTimeout)
		if ctx.Err() != nil {
			return
		}
		done := make(chan struct{})
		e.post(func() {
			defer close(done)
			e.notePortal(err)
			if err == nil {
				e.handleSync(asked, answer)
			} else {
				e.wantPeers() // what is known will do, if peers can be told
			}
			known = e.view.Revision // not the answer's, if that was overtaken
		})
		select {
		case <-done:
		case <-ctx.Done():
			return
		}
		wait := syncGap
		if err == nil && answer.Refused == "" {
			retry = syncRetry
		} else {
			wait = retry + rand.N(retry/4)
			known, retry = 0, min(2*retry, syncRetryMax)
		}
		e.pause(ctx, wait)
	}
}

// pause waits before the next question, no longer than until the portal is back.
func (e *Edge) pause(ctx context.Context, wait time.Duration) {
	for end, down := e.config.Now().Add(wait), !e.signaling(); ctx.Err() == nil; {
		left := end.Sub(e.config.Now())
		if left <= 0 || down && e.signaling() {
			return
		}
		if down {
			left = min(left, syncLook)
		}
		select {
		case <-time.After(left):
		case <-ctx.Done():
		}
	}
}

// notePortal logs whether the portal answers, when that has changed.
func (e *Edge) notePortal(err error) {
	was := e.syncError
	if (was == nil) != (err == nil) || e.portalSince.IsZero() {
		e.portalSince = e.now
	}
	wrong := "the portal does not answer"
	if errors.Is(err, protocol.ErrAnswer) {
		wrong = "the portal's answer is not understood"
	}
	switch {
	case err != nil && !e.signaling(): // who gives PortalState tells
	case err != nil && was == nil: // once is nothing: the portal has its nodes connect anew when what they may do changes
	case err != nil && e.portalWrong != wrong:
		e.portalWrong = wrong
		e.log.Warn(wrong+"; connections that are up stay up", "error", err)
	case err == nil && e.portalWrong != "":
		e.portalWrong = ""
		e.log.Info("the portal answers again")
	}
	e.syncError = err
	e.silent.Store(err != nil)
}

// signaling reports whether messages may reach peers, as far as is known. Any goroutine.
func (e *Edge) signaling() bool { return e.config.PortalState == nil || e.config.PortalState().Up }

// reachable reports whether it makes sense to want peers. While it does not, no wish fails, so that no back-off grows, and
// all comes back with the portal. Any goroutine.
func (e *Edge) reachable() bool {
	return e.signaling() && (e.config.PortalState != nil || !e.silent.Load())
}

// ask is one request to the portal. Any goroutine.
func (e *Edge) ask(ctx context.Context, known uint64, timeout time.Duration) (protocol.Sync, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return e.config.Sync(ctx, protocol.SyncRequest{
		PublicKey: protocol.Key(e.key.Public()), Identity: protocol.IdentityOf(e.config.Identity), Signature: e.signed,
		Routes: e.config.Routes, Known: known, Program: e.config.Program,
	})
}

// askForAll asks the portal once for all who want to know what it says now. They are told the error of it on the owner's goroutine, when
// the answer is applied.
func (e *Edge) askForAll() {
	told := e.questions
	e.questions = nil
	e.tasks.Go(func() {
		asked := e.asked.Add(1)
		answer, err := e.ask(e.ctx, 0, freshTimeout)
		e.post(func() {
			if err == nil {
				e.handleSync(asked, answer)
			}
			for _, f := range told {
				f(err)
			}
		})
	})
}

// handleSync takes the portal's answer to the question of that number.
func (e *Edge) handleSync(asked uint64, s protocol.Sync) {
	if asked <= e.overtaken && s.Revision != e.view.Revision {
		return // it may be older than the view, since revisions have no order; follow asks again
	}
	e.synced = e.now
	e.noteClock(s.Time)
	if s.Refused != e.lastRefused {
		e.lastRefused = s.Refused
		if s.Refused != "" {
			e.log.Error("the portal refuses this node", "reason", s.Refused)
		} else {
			e.log.Info("the portal accepts this node again")
		}
	}
	if s.Displaced {
		e.standDown()
	}
	if s.Refused != "" {
		return
	}
	if s.Lease > 0 {
		e.leaseEnds = e.pipeline.Load().Now() + time.Duration(s.Lease)*time.Second
	}
	was := e.view
	was.Time = s.Time
	if e.applyError != nil || !e.applied || !reflect.DeepEqual(s, was) {
		e.apply(s)
	}
	e.wantPeers()
}

// standDown lets go of all peers: another program is this node now, and whatever is done under its name would disturb it. The
// generations are not forgotten, because the peers remember ours.
func (e *Edge) standDown() {
	_ = e.pipeline.Load().Edit(func(edit *pipeline.Edit) error { // fails when it has ended
		for name := range e.peers {
			e.removePeer(edit, name)
		}
		return nil
	})
	e.view, e.routes, e.judged = protocol.Sync{}, nil, nil
}

// followLease lets go of all peers when the portal was not heard for too long: one of them may have been removed meanwhile. It
// returns how long that is away, 0 if there is nothing to wait for. The clock runs while the host sleeps.
func (e *Edge) followLease() time.Duration {
	if e.leaseEnds == 0 {
		return 0
	}
	if left := e.leaseEnds - e.pipeline.Load().Now(); left > 0 {
		return left
	}
	e.leaseEnds = 0
	e.log.Error("the portal was not heard for longer than what it has allowed may last: all connections end until it is back",
		"last_heard", e.synced.UTC(), "peers", len(e.peers))
	e.standDown()
	return 0
}

// noteClock compares the portal's clock, seconds since 1970 or 0, with ours.
func (e *Edge) noteClock(portal int64) {
	if portal == 0 {
		return
	}
	skew := time.Unix(portal, 0).Sub(e.synced)
	switch far, was := skew.Abs() > clockSkew, e.skew.Abs() > clockSkew; {
	case far && !was:
		e.log.Warn("the portal's clock and ours differ; set them right", "portal_ahead", skew.Round(time.Second))
	case was && !far:
		e.log.Info("the portal's clock and ours agree again")
	}
	e.skew = skew
}

// apply configures pipeline, relays and host by the portal's answer.
func (e *Edge) apply(s protocol.Sync) {
	given := givenBy(&s)
	e.given.Store(&given)
	e.routes = e.choose(s)
	e.logRefused()
	used := without(s, e.routes)
	peers := e.admit(e.judge(used.Peers))
	if err := e.pipeline.Load().Edit(func(edit *pipeline.Edit) error {
		if e.config.Role == protocol.Client { // a gateway takes what is for the networks behind it
			edit.SetDestinations(addressesOf(s))
		}
		e.edit(edit, peers)
		return nil
	}); err != nil {
		return // it has ended
	}
	e.view, e.applied, e.overtaken = s, true, e.asked.Load()
	if host := forHost(used); e.config.Apply != nil && (e.applyError != nil || !reflect.DeepEqual(host, e.host)) {
		err := e.config.Apply(used)
		if err != nil && (e.applyError == nil || e.applyError.Error() != err.Error()) {
			e.log.Error("the host could not be configured", "error", err)
		}
		e.host, e.applyError = host, err
	}
	e.awaitSockets()
	e.applyRelays(s.Relays)
}

// addressesOf are the node's own in the tunnel.
func addressesOf(s protocol.Sync) []netip.Addr {
	own := make([]netip.Addr, len(s.Addresses))
	for i, p := range s.Addresses {
		own[i] = p.Addr()
	}
	return own
}

// socketWait is how long the relays and what they say of our addresses may wait for the interface to come up.
const socketWait = time.Second

// awaitSockets waits until the pipeline has sockets, which it opens when the interface comes up: what is sent before that is
// lost.
func (e *Edge) awaitSockets() {
	for begin := e.config.Now(); e.pipeline.Load().LocalPort() == 0 && e.config.Now().Sub(begin) < socketWait; {
		select {
		case <-time.After(time.Millisecond):
		case <-e.ctx.Done():
			return
		}
	}
}

// forHost is the part of the portal's answer that a host's addresses and routes depend on.
func forHost(s protocol.Sync) protocol.Sync {
	host := protocol.Sync{Name: s.Name, Role: s.Role, Addresses: s.Addresses, Overlay: s.Overlay, Offers: s.Offers}
	for _, p := range s.Peers {
		host.Peers = append(host.Peers, protocol.Peer{Name: p.Name, Role: p.Role, AllowedIPs: p.AllowedIPs})
	}
	return host
}

// applyRelays configures the relays.
func (e *Edge) applyRelays(relays []protocol.Relay) {
	var servers []turn.RelayServer
	for _, r := range relays {
		for _, addr := range r.Addrs {
			servers = append(servers, turn.RelayServer{
				Name: r.Name, Addr: addr, Credentials: turn.Credentials{Username: r.Username, Password: r.Password},
			})
		}
	}
	before := e.relays.Servers()
	e.relays.SetServers(servers)
	now := e.relays.Servers()
	e.pipeline.Load().SetRelays(now)
	e.prober.SetServers(now)
	switch {
	case len(now) == 0:
		e.waitForRelays(0)
	case !slices.Equal(before, now):
		e.waitForRelays(relayPatience)
	}
	if !slices.Equal(before, now) {
		e.listen()
	}
}

// waitForRelays has attempts wait for a first relay for so long.
func (e *Edge) waitForRelays(patience time.Duration) {
	until := time.Duration(0)
	if patience > 0 {
		until = e.pipeline.Load().Now() + patience
	}
	e.facts(func(f *link.Facts) { f.RelaysUntil = until })
	e.tellAll(func(now time.Duration, l *link.Link) { l.HandleRelays(now, link.RelayNews{}) })
}

// admit is which of the peers that the portal lists are taken: those with a name and a key of their own. A node could report
// another's key; who had it first keeps it.
func (e *Edge) admit(list []protocol.Peer) []protocol.Peer {
	names, keys := make(map[string]bool), map[protocol.Key]string{{}: "", protocol.Key(e.key.Public()): e.config.Name}
	for _, next := range list {
		if p := e.peers[next.Name]; p != nil && p.PublicKey == next.PublicKey {
			keys[next.PublicKey] = next.Name
		}
	}
	var admitted []protocol.Peer
	for _, next := range list {
		owner, taken := keys[next.PublicKey]
		switch {
		case next.PublicKey == protocol.Key{} || next.Name == e.config.Name || names[next.Name]:
		case taken && owner != next.Name:
			e.log.Warn("the peer has the key of another node and is left out", "peer", next.Name, "node", owner)
		case len(admitted) == maxPeers:
			e.log.Warn("the portal lists too many peers; the rest is left out", "most", maxPeers)
			return admitted
		default:
			names[next.Name], keys[next.PublicKey] = true, next.Name
			admitted = append(admitted, next)
		}
	}
	return admitted
}

// edit makes the pipeline's peers those of list.
func (e *Edge) edit(edit *pipeline.Edit, list []protocol.Peer) {
	owners, stay := make(map[protocol.Key]string, len(e.peers)), make(map[string]bool, len(list))
	for name, p := range e.peers {
		owners[p.PublicKey] = name
	}
	for _, next := range list {
		stay[next.Name] = true
	}
	for _, next := range list {
		if owner, held := owners[next.PublicKey]; held && owner != next.Name {
			stay[owner] = false // it has another key or name by now; it begins anew
		}
	}
	for name := range e.peers {
		if !stay[name] {
			e.removePeer(edit, name)
			e.links.Generations.Forget(name)
		}
	}
	for _, next := range list {
		p := e.peers[next.Name]
		if p == nil {
			p = &peer{}
			e.peers[next.Name] = p
			e.log.Debug("peer added", "peer", next.Name)
		}
		e.editPeer(edit, p, next)
	}
}

func (e *Edge) removePeer(edit *pipeline.Edit, name string) {
	edit.RemovePeer(crypto.PublicKey(e.peers[name].PublicKey))
	delete(e.peers, name)
	e.log.Debug("peer removed", "peer", name)
}

// editPeer changes one peer; p is new if it has no key.
func (e *Edge) editPeer(edit *pipeline.Edit, p *peer, next protocol.Peer) {
	key := crypto.PublicKey(next.PublicKey)
	pe := edit.Peer(crypto.PublicKey(p.PublicKey))
	switch {
	case p.PublicKey == (protocol.Key{}) || pe == nil:
		pe = edit.AddPeer(key)
		pe.SetName(next.Name)
		p.AllowedIPs = nil
	case p.PublicKey != next.PublicKey:
		if e.distrust(next.Name) == link.CloseUnspecified {
			e.log.Info("the peer has another key", "peer", next.Name)
		}
		pe.SetPublicKey(key)
	}
	if p.PresharedKey != next.PresharedKey || p.PublicKey == (protocol.Key{}) {
		pe.SetPresharedKey((*crypto.PresharedKey)(&next.PresharedKey))
	}
	if !slices.Equal(p.AllowedIPs, next.AllowedIPs) {
		pe.RemoveAllowedIPs()
		for _, prefix := range next.AllowedIPs {
			pe.AddAllowedIP(prefix)
		}
	}
	back := next.Online && !p.Online
	p.Peer = next
	if l := e.links.Of(next.Name); l != nil {
		l.HandlePeer(link.Peer{
			PublicKey: next.PublicKey, Client: next.Role == protocol.Client, Wanted: e.wants(p), Distrust: e.distrust(next.Name),
		}, back)
	}
	if back {
		pe.Retry()
	}
}

// wantPeers has a client connect to the gateways that are there.
func (e *Edge) wantPeers() {
	if e.reachable() {
		e.tellAll(func(now time.Duration, l *link.Link) { l.HandlePortal(now) })
	}
}

// wants reports whether a connection with the peer is to be there without traffic.
func (e *Edge) wants(p *peer) bool {
	return e.config.Role == protocol.Client && p.Role == protocol.Gateway && p.Online && e.distrust(p.Name) == link.CloseUnspecified
}
