package portal

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/relay"
	"github.com/sluice-vpn/sluice/ice/signal"
)

const (
	// credentialLife is how long a relay credential is good, at least; a new one is given every credentialStep. An allocation
	// keeps the credential that it was made with, so sessions of days need a long life.
	credentialLife = 7 * 24 * time.Hour
	credentialStep = 24 * time.Hour
	// watchEvery is how often the portal looks who is connected.
	watchEvery = 500 * time.Millisecond
	// requestTime bounds the work on one request.
	requestTime = 5 * time.Second
)

// hold is a request that waits for news.
type hold struct {
	known uint64
	reply *nats.Msg
	until time.Time
}

// handle takes a node's request. The subject is what the broker vouches for.
func (p *Portal) handle(ctx context.Context, m *nats.Msg) {
	parts := strings.Split(m.Subject, ".")
	if len(parts) != 3 || !signal.ValidName(parts[1]) {
		return
	}
	name := parts[1]
	if !strings.HasPrefix(m.Reply, signal.InboxPrefix(name)+".") {
		return // the answer holds keys: it goes to nobody else
	}
	request, err := protocol.DecodeRequest(m.Data)
	if err != nil {
		p.respond(m, protocol.Sync{Refused: "the portal does not understand this program: " + err.Error()})
		return
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	changed, refused, err := p.state.report(ctx, name, &request)
	if err != nil {
		p.log.Error("a node's report was not taken", "node", name, "error", err)
		refused = "the portal cannot take the report: " + err.Error()
	}
	p.visit(name, refused)
	if changed {
		p.log.Info("node reports", "node", name, "routes", request.Routes)
		defer p.changed()
	}
	if refused != "" {
		p.respond(m, protocol.Sync{Refused: refused})
		return
	}
	view := p.view(ctx, name)
	if view.Refused != "" || view.Revision != request.Known {
		p.respond(m, view)
		return
	}
	p.wait(name, &hold{known: request.Known, reply: m, until: time.Now().Add(protocol.SyncHold)})
}

// visit notes a node's request.
func (p *Portal) visit(name, refused string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if refused != "" && refused != p.seen[name].refused {
		p.log.Warn("node refused", "node", name, "reason", refused)
	}
	p.seen[name] = visitor{time.Now().UTC(), refused}
}

// wait keeps a request; an older one of the node is answered.
func (p *Portal) wait(name string, h *hold) {
	p.mu.Lock()
	old := p.held[name]
	p.held[name] = h
	p.mu.Unlock()
	if old != nil {
		p.release(name, old)
	}
}

// release answers a request that was held.
func (p *Portal) release(name string, h *hold) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTime)
	defer cancel()
	p.respond(h.reply, p.view(ctx, name))
}

// changed answers the requests whose answer is another one now.
func (p *Portal) changed() {
	ctx, cancel := context.WithTimeout(context.Background(), requestTime)
	defer cancel()
	for name, h := range p.waiting(func(*hold) bool { return true }) {
		if view := p.view(ctx, name); view.Revision != h.known && p.take(name, h) {
			p.respond(h.reply, view)
		}
	}
}

// expire answers those that were held for long enough.
func (p *Portal) expire(now time.Time) {
	for name, h := range p.waiting(func(h *hold) bool { return now.After(h.until) }) {
		if p.take(name, h) {
			p.release(name, h)
		}
	}
}

// waiting lists the requests that are held and of which that holds.
func (p *Portal) waiting(of func(*hold) bool) map[string]*hold {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make(map[string]*hold)
	for name, h := range p.held {
		if of(h) {
			list[name] = h
		}
	}
	return list
}

// take reports whether the request is still to be answered, by the caller.
func (p *Portal) take(name string, h *hold) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held[name] != h {
		return false
	}
	delete(p.held, name)
	return true
}

// watch notices nodes that come and go, and answers requests that were held for long enough.
func (p *Portal) watch(ctx context.Context) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if p.look() {
				p.changed()
			}
			p.expire(now)
		}
	}
}

// look compares who is connected with who was.
func (p *Portal) look() (changed bool) {
	for _, r := range p.state.list() {
		online := len(p.broker.Clients(r.Name)) > 0
		p.mu.Lock()
		if p.online[r.Name] != online {
			p.online[r.Name], changed = online, true
			p.log.Info("node", "node", r.Name, "online", online)
		}
		p.mu.Unlock()
	}
	return changed
}

func (p *Portal) isOnline(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.online[name]
}

// view is the answer to a node.
func (p *Portal) view(ctx context.Context, name string) protocol.Sync {
	self, peers, err := p.state.peers(ctx, name, p.isOnline)
	if err != nil {
		return protocol.Sync{Refused: "the portal cannot answer: " + err.Error()}
	}
	now := time.Now()
	s := protocol.Sync{
		Name: name, Role: self.Role, Addresses: addresses(self.Index), Overlay: protocol.DefaultOverlay(), Peers: peers,
		Relays: p.relays(now, name),
	}
	text, err := json.Marshal(s)
	if err != nil {
		return protocol.Sync{Refused: "the portal cannot answer: " + err.Error()}
	}
	sum := sha256.Sum256(text)
	s.Revision = max(1, binary.BigEndian.Uint64(sum[:])) // differs where the view does
	s.Time = now.Unix()
	return s
}

// relays lists the relays with credentials for a node, which change once a day.
func (p *Portal) relays(now time.Time, name string) (list []protocol.Relay) {
	expiry := now.Truncate(credentialStep).Add(credentialStep + credentialLife)
	add := func(relayName, secret string, addrs []netip.AddrPort) {
		if len(addrs) == 0 {
			return
		}
		username, password := relay.Credential(secret, expiry, name)
		list = append(list, protocol.Relay{Name: relayName, Addrs: addrs, Username: username, Password: password, Expires: expiry.Unix()})
	}
	if p.relay != nil {
		add("portal", p.state.settings.RelaySecret, p.relayAddrs())
	}
	for _, r := range p.config.Relays {
		add(r.Name, r.Secret, r.Addrs)
	}
	return list
}

// relayAddrs are the public addresses of our own relay, one of each family.
func (p *Portal) relayAddrs() (list []netip.AddrPort) {
	if !p.relay.Ready() {
		return nil
	}
	public := p.config.Relay.PublicAddrs
	if addr, err := netip.ParseAddr(p.config.Public); err == nil && len(public) == 0 {
		public = []netip.Addr{addr.Unmap()}
	}
	for _, addr := range public {
		for _, at := range p.relay.Addrs() {
			if at.Addr().Is4() == addr.Is4() {
				list = append(list, netip.AddrPortFrom(addr, at.Port()))
				break
			}
		}
	}
	return list
}

// respond sends an answer. A node that does not hear it asks again.
func (p *Portal) respond(m *nats.Msg, s protocol.Sync) {
	text, err := json.Marshal(s)
	if err == nil {
		err = m.Respond(text)
	}
	if err != nil {
		p.log.Warn("an answer was not sent", "error", err)
	}
}
