package portal

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/relay"
)

const (
	// credentialLife is how long a relay credential is good, at least; a new one is given every credentialStep, and takes the
	// place of the old one in the allocations that there are. So it is for how long relayed connections outlive the portal.
	credentialLife = 7 * 24 * time.Hour
	credentialStep = 24 * time.Hour
	// leaseTime is for how long nodes act upon an answer: so long a node that was removed may still be met by one that the portal
	// cannot reach.
	leaseTime = 24 * time.Hour
	// watchEvery is how often the portal looks who is connected.
	watchEvery = 500 * time.Millisecond
	// answerSpare is room for the numbers that are set last.
	answerSpare = 128
	// settleTime is how long the portal lets changes gather before it tells of them; settleMost the same if telling takes long.
	settleTime = 50 * time.Millisecond
	settleMost = 2 * time.Second
)

// handle takes a node's request. It answers, or holds the request until there is news.
func (p *Portal) handle(ctx context.Context, m *nats.Msg) {
	p.counters.Requests.Add(1)
	name, session, ok := origin(m)
	if !ok {
		p.counters.Misaddressed.Add(1)
		return
	}
	now := time.Now()
	displaced, ok := p.admit(name, session, now)
	if !ok {
		p.counters.Limited.Add(1)
		return
	}
	if displaced {
		p.counters.Displaced.Add(1)
		p.respond(m, displace(name))
		return
	}
	request, err := protocol.DecodeRequest(m.Data)
	if err != nil {
		p.counters.Malformed.Add(1)
		why := err.Error()
		if errors.Is(err, protocol.ErrForm) {
			why = "the portal does not understand this program (" + why + "); update the older of the two"
		}
		answer := refuse(why)
		p.visit(name, answer.Refused, now)
		p.respond(m, answer)
		return
	}
	if refused := p.report(ctx, name, &request, now); refused != "" {
		p.counters.Refused.Add(1)
		p.respond(m, refuse(refused))
		return
	}
	p.answer(name, &hold{known: request.Known, via: request.Via, session: session, reply: m, until: now.Add(protocol.SyncHold)})
}

// report takes what a node says of itself; not "" is what it must change.
func (p *Portal) report(ctx context.Context, name string, r *protocol.SyncRequest, now time.Time) (refused string) {
	changed, refused, err := p.state.report(ctx, name, r, func() bool { return p.mayChange(name, now) })
	if err != nil {
		p.counters.Failed.Add(1)
		refused = "the portal cannot take the report: " + err.Error()
	}
	p.visit(name, refused, now)
	if changed {
		p.log.Info("node reports", "node", name, "routes", r.Routes)
	}
	return refused
}

// answer answers now if the node does not know the answer. The request is held before the view is made: a change that comes after
// that finds it.
func (p *Portal) answer(name string, h *hold) {
	old := p.wait(name, h)
	view := p.view(name, h.via)
	if old != nil {
		p.respond(old.reply, view) // one request of a node waits
	}
	if (view.Refused != "" || view.Revision != h.known) && p.take(name, h) {
		p.respond(h.reply, view)
	}
}

// changed lets the requests that wait look whether their answer is another one now, soon.
func (p *Portal) changed() {
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// tell answers the requests whose answer is another one now, and those that were held for long enough.
func (p *Portal) tell(of func(*hold) bool) {
	for name, h := range p.waiting(of) {
		if view := p.view(name, h.via); (view.Revision != h.known || time.Now().After(h.until)) && p.take(name, h) {
			p.respond(h.reply, view)
		}
	}
}

// watch notices nodes that come and go, and answers what was held.
func (p *Portal) watch(ctx context.Context) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	pause := settleTime
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if p.look(now) {
				p.arrived()
				p.changed()
			}
			p.tell(func(h *hold) bool { return now.After(h.until) })
		case <-p.news:
			// Changes come in swarms: each is a reason to look at every request that waits, all together need but one look.
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			select {
			case <-p.news:
			default:
			}
			begin := time.Now()
			p.tell(func(*hold) bool { return true })
			pause = min(max(settleTime, 4*time.Since(begin)), settleMost)
		}
	}
}

// view is the answer to a node that has reached us at via.
func (p *Portal) view(name string, via netip.Addr) protocol.Sync {
	self, peers, err := p.state.peers(name, p.isOnline)
	if err != nil {
		p.counters.Failed.Add(1)
		return refuse("the portal cannot answer: " + err.Error())
	}
	now := time.Now()
	overlay := p.state.settings.overlay()
	s := protocol.Sync{
		Name: name, Role: self.Role, Addresses: addresses(overlay, self.Index), Overlay: overlay, Peers: peers, Offers: p.state.allOffers()[name],
		Lease: int64(leaseTime / time.Second), Relays: p.relays(now, self.relayUser(), via),
	}
	text, err := json.Marshal(s)
	switch {
	case err != nil:
		p.counters.Failed.Add(1)
		return refuse("the portal cannot answer: " + err.Error())
	case len(text) > protocol.MaxAnswer-answerSpare || len(peers) > protocol.MaxPeers:
		p.counters.Failed.Add(1)
		return refuse("there are too many nodes and routes to reach from " + name + "; allow it fewer: sluice portal node set " + name + " -allow NAMES")
	}
	sum := sha256.Sum256(text)
	s.Revision = max(1, binary.BigEndian.Uint64(sum[:])) // differs where the view does
	s.Time = now.Unix()
	return s
}

// relays lists the relays with credentials for a user, which change once a day.
func (p *Portal) relays(now time.Time, user string, via netip.Addr) (list []protocol.Relay) {
	expiry := now.Truncate(credentialStep).Add(credentialStep + credentialLife)
	add := func(name, secret string, addrs []netip.AddrPort) {
		if len(addrs) == 0 {
			return
		}
		username, password := relay.Credential(secret, expiry, user)
		list = append(list, protocol.Relay{Name: name, Addrs: addrs, Username: username, Password: password, Expires: expiry.Unix()})
	}
	if p.relay != nil {
		add(p.relayName(), p.state.settings.RelaySecret, p.relayAddrs(via))
	}
	for _, other := range p.others() {
		add(other.Member, p.state.settings.RelaySecret, other.Relay)
	}
	for _, r := range p.config.Relays {
		addrs := r.Addrs
		if r.Host != "" {
			addrs = nil
			for _, addr := range p.addrsOf(r.Host) {
				addrs = append(addrs, netip.AddrPortFrom(addr, r.Addrs[0].Port()))
			}
		}
		add(r.Name, r.Secret, addrs)
	}
	if p.config.Cluster != nil { // the same at all portals
		slices.SortFunc(list, func(a, b protocol.Relay) int { return strings.Compare(a.Name, b.Name) })
	}
	return list[:min(len(list), protocol.MaxRelays)]
}

// relayName is what nodes call our own relay.
func (p *Portal) relayName() string {
	if p.config.Cluster != nil {
		return p.config.Cluster.Self
	}
	return "portal"
}

// respond sends an answer. A node that does not hear it asks again.
func (p *Portal) respond(m *nats.Msg, s protocol.Sync) {
	text, err := json.Marshal(s)
	if err == nil {
		err = m.Respond(text)
	}
	if err != nil {
		p.counters.Failed.Add(1)
		p.log.Debug("an answer was not sent", "error", err)
		return
	}
	p.counters.Answers.Add(1)
}
