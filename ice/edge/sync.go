package edge

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/turn"
	"github.com/sluice-vpn/sluice/pipeline"
)

const (
	syncTimeout  = protocol.SyncHold + 10*time.Second
	freshTimeout = 3 * time.Second
	syncRetry    = time.Second
	syncRetryMax = 15 * time.Second
	// clockSkew is from when on a difference between our clock and the portal's is worth a warning.
	clockSkew = time.Hour
)

// peer is what the edge knows of another node. Owned by the edge's goroutine.
type peer struct {
	protocol.Peer
	attempt   *attempt        // the one under way or in use, nil if none
	last      *attempt        // the latest that is over, for the peer's bye
	beginning bool            // an attempt is being prepared
	waiting   []signalMessage // came meanwhile
	absent    bool            // the portal said so at the last message
	done      finished
	offers    int // taken in the second that began at offersAt
	offersAt  time.Time
}

// finished names the latest attempt that is over, so that a late offer does not begin it again.
type finished struct{ run, generation uint64 }

// follow asks the portal again and again for what has changed.
func (e *Edge) follow(ctx context.Context) {
	retry, known := syncRetry, uint64(0)
	for ctx.Err() == nil {
		answer, err := e.ask(ctx, known, syncTimeout)
		if ctx.Err() != nil {
			return
		}
		done := make(chan struct{})
		e.post(func() {
			defer close(done)
			e.handleSync(answer, err)
		})
		select {
		case <-done:
		case <-ctx.Done():
			return
		}
		if err == nil && answer.Refused == "" {
			known, retry = answer.Revision, syncRetry
			continue
		}
		select {
		case <-time.After(retry + rand.N(retry/4)):
		case <-ctx.Done():
			return
		}
		known, retry = 0, min(2*retry, syncRetryMax)
	}
}

// ask is one request to the portal. Any goroutine.
func (e *Edge) ask(ctx context.Context, known uint64, timeout time.Duration) (protocol.Sync, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return e.config.Sync(ctx, protocol.SyncRequest{
		PublicKey: protocol.Key(e.key.Public()), Routes: e.config.Routes, Known: known, Program: e.config.Program,
	})
}

// handleSync takes the portal's answer.
func (e *Edge) handleSync(s protocol.Sync, err error) {
	e.syncError = err
	if err != nil {
		return
	}
	e.synced = time.Now()
	if s.Time != 0 {
		skew := time.Unix(s.Time, 0).Sub(e.synced)
		if (skew.Abs() > clockSkew) != (e.skew.Abs() > clockSkew) {
			e.log.Warn("the portal's clock and ours differ; set them right", "portal_ahead", skew.Round(time.Second))
		}
		e.skew = skew
	}
	if s.Refused != e.lastRefused {
		e.lastRefused = s.Refused
		if s.Refused != "" {
			e.log.Error("the portal refuses this node", "reason", s.Refused)
		}
	}
	if s.Refused != "" || s.Revision == e.view.Revision && e.applyError == nil {
		return
	}
	e.apply(s)
}

// apply configures pipeline, relays and host by the portal's answer.
func (e *Edge) apply(s protocol.Sync) {
	if err := e.pipeline.Load().Edit(func(edit *pipeline.Edit) error { e.edit(edit, s); return nil }); err != nil {
		return // it has ended
	}
	e.view = s
	var servers []turn.RelayServer
	for _, r := range s.Relays {
		for _, addr := range r.Addrs {
			servers = append(servers, turn.RelayServer{
				Name: r.Name, Addr: addr, Credentials: turn.Credentials{Username: r.Username, Password: r.Password},
			})
		}
	}
	before := e.relays.Servers()
	e.relays.SetServers(servers)
	if !slices.Equal(before, e.relays.Servers()) {
		e.relaysAsked = time.Now()
	}
	e.pipeline.Load().SetRelays(e.relays.Servers())
	e.prober.SetServers(e.relays.Servers())
	if e.config.Apply != nil {
		err := e.config.Apply(s)
		if err != nil && (e.applyError == nil || e.applyError.Error() != err.Error()) {
			e.log.Error("the host could not be configured", "error", err)
		}
		e.applyError = err
	}
	e.wantPeers()
}

// edit makes the pipeline's peers those of s.
func (e *Edge) edit(edit *pipeline.Edit, s protocol.Sync) {
	gone := make(map[string]bool, len(e.peers))
	for name := range e.peers {
		gone[name] = true
	}
	for _, next := range s.Peers {
		if next.PublicKey == (protocol.Key{}) || next.Name == e.config.Name {
			continue
		}
		delete(gone, next.Name)
		p := e.peers[next.Name]
		if p == nil {
			p = &peer{}
			e.peers[next.Name] = p
			e.log.Debug("peer added", "peer", next.Name)
		}
		e.editPeer(edit, p, next)
	}
	for name := range gone {
		edit.RemovePeer(crypto.PublicKey(e.peers[name].PublicKey))
		e.generations.Forget(name)
		delete(e.peers, name)
		e.log.Debug("peer removed", "peer", name)
	}
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
		e.log.Info("the peer has another key", "peer", next.Name)
		pe.SetPublicKey(key)
	}
	if p.PresharedKey != next.PresharedKey || p.PublicKey == (protocol.Key{}) {
		pe.SetPresharedKey(crypto.PresharedKey(next.PresharedKey))
	}
	if !slices.Equal(p.AllowedIPs, next.AllowedIPs) {
		pe.RemoveAllowedIPs()
		for _, prefix := range next.AllowedIPs {
			pe.AddAllowedIP(prefix)
		}
	}
	p.Peer = next
}

// wantPeers has a client connect to the gateways that are there.
func (e *Edge) wantPeers() {
	for name, p := range e.peers {
		if e.wants(p) && p.attempt == nil && !p.beginning {
			e.pipeline.Load().Want(name)
		}
	}
}

// wants reports whether a connection with the peer is to be there without traffic.
func (e *Edge) wants(p *peer) bool {
	return e.config.Role == protocol.Client && p.Role == protocol.Gateway && p.Online
}
