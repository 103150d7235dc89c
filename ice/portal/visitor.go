package portal

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/rate"
	"github.com/sluice-vpn/sluice/ice/signal"
)

const (
	// A node asks again as soon as it has an answer, and is answered at most every settleTime, so an honest one stays far
	// below these limits, for requests and for changes of its key or routes.
	requestsPerSecond, requestsAtOnce = 20, 60
	// floodLength is after how many requests that were dropped a node's connections are ended.
	floodLength                     = 1000
	changesPerSecond, changesAtOnce = 1, 10
	// onlineGrace is for how long a node counts as connected after its connection ended: the portal ends it itself to give
	// the node other permissions, and networks do at every change.
	onlineGrace = 3 * time.Second
	// maxOlder is how many displaced sessions of a node are known.
	maxOlder = 8
	// logPause is the least time between two lines about one node's refusals.
	logPause = 10 * time.Second
)

// visitor is what is known of a node beside its record: nothing that has to survive. Guarded by Portal.mu.
type visitor struct {
	online    bool
	since     time.Time // online: from when on
	connected time.Time // when it was last seen connected
	asked     time.Time // its latest request
	refused   string    // the answer to that, "" if it was taken
	logged    time.Time // the latest line about a refusal
	left      time.Time // when its token was taken from its machine; zero once it asks again
	held      *hold     // a request that waits for news

	rank    uint64   // of session, among those of all portals
	session string   // the connection whose requests count
	ranked  string   // the session that rank is of
	older   []string // displaced ones, the latest last

	requests, changes rate.Bucket
	limited           int // requests that were dropped
}

// hold is a request that waits for news.
type hold struct {
	known   uint64
	via     netip.Addr // where the node has reached us, as it says
	session string
	reply   *nats.Msg
	until   time.Time
}

// latest reports whether session is the newest of the node's, which has that many connections. Two programs with one token
// would else take turns: each would replace the other's key, and wake the other at once. An older session counts again when the
// newer one's connection is gone.
func (v *visitor) latest(session string, connections int) bool {
	if session == v.session {
		return true
	}
	if connections > 1 && slices.Contains(v.older, session) {
		return false
	}
	v.older = slices.DeleteFunc(v.older, func(s string) bool { return s == session })
	if v.session != "" {
		v.older = append(v.older, v.session)
	}
	if n := len(v.older) - maxOlder; n > 0 {
		v.older = slices.Delete(v.older, 0, n)
	}
	v.session = session
	return true
}

// origin returns the node that a request is of, which the broker vouches for, and the session: the connection that the answer
// goes to, told by its inbox. The answer holds keys and goes to nobody but the node, so the inbox must be the node's.
func origin(m *nats.Msg) (name, session string, ok bool) {
	parts := strings.Split(m.Subject, ".")
	if len(parts) != 3 || !signal.ValidName(parts[1]) {
		return "", "", false
	}
	name = parts[1]
	inbox, ok := strings.CutPrefix(m.Reply, signal.InboxPrefix(name)+".")
	if !ok || len(inbox) > 128 || strings.ContainsAny(inbox, "*> \t") {
		return "", "", false
	}
	session, _, _ = strings.Cut(inbox, ".")
	return name, session, true
}

// visitor returns what is known of a node. mu is held.
func (p *Portal) visitor(name string) *visitor {
	v := p.visitors[name]
	if v == nil {
		v = new(visitor)
		p.visitors[name] = v
	}
	return v
}

// admit notes a request. Not ok: the node asks too often. Displaced: a newer session of the node is there.
func (p *Portal) admit(name, session string, now time.Time) (displaced, ok bool) {
	connections := len(p.broker.Clients(name))
	p.mu.Lock()
	v := p.visitor(name)
	v.asked, v.left = now, time.Time{}
	if !v.requests.Take(now, requestsPerSecond, requestsAtOnce) {
		v.refused = "it asks too often"
		p.warn(v, now, "node asks too often", "node", name)
		v.limited++
		flood := v.limited%floodLength == 0
		p.mu.Unlock()
		if flood {
			p.broker.Kick(name) // and with the connection goes what else is on its way
		}
		return false, false
	}
	displaced = !v.latest(session, connections)
	if v.ranked != v.session { // a new one comes after all that were heard of
		p.topRank++
		v.rank, v.ranked = p.topRank, v.session
		p.arrived()
	}
	displaced = displaced || p.elsewhere(name, v.rank)
	if displaced {
		p.warn(v, now, "two programs use the token of one node", "node", name, "connections", connections)
	}
	var left *hold
	if h := v.held; h != nil && !displaced && h.session != session {
		left, v.held = h, nil
	}
	p.mu.Unlock()
	if left != nil {
		p.respond(left.reply, displace(name))
	}
	return displaced, true
}

// displace is the answer to a program that is not the node any more.
func displace(name string) protocol.Sync {
	s := refuse("another program has signed in later with the token of " + name +
		"; stop one of the two, or give this one a token of its own: sluice portal node add NAME")
	s.Displaced = true
	return s
}

// warn writes a line about a node, rarely. mu is held.
func (p *Portal) warn(v *visitor, now time.Time, text string, attrs ...any) {
	if now.Sub(v.logged) < logPause {
		return
	}
	v.logged = now
	p.log.Warn(text, attrs...)
}

// mayChange reports whether the node may change its key or routes now.
func (p *Portal) mayChange(name string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.visitor(name).changes.Take(now, changesPerSecond, changesAtOnce)
}

// visit notes what a node is told.
func (p *Portal) visit(name, refused string, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.visitor(name)
	if refused != "" && refused != v.refused {
		p.warn(v, now, "node refused", "node", name, "reason", refused)
	}
	v.refused = refused
}

// wait keeps a request until there is news, and returns the one that the node had waiting.
func (p *Portal) wait(name string, h *hold) (old *hold) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.visitor(name)
	old, v.held = v.held, h
	return old
}

// waiting lists the requests that are held and of which that holds.
func (p *Portal) waiting(of func(*hold) bool) map[string]*hold {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make(map[string]*hold)
	for name, v := range p.visitors {
		if v.held != nil && of(v.held) {
			list[name] = v.held
		}
	}
	return list
}

// take reports whether the request is still to be answered, by the caller.
func (p *Portal) take(name string, h *hold) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.visitors[name]
	if v == nil || v.held != h {
		return false
	}
	v.held = nil
	return true
}

// left notes that a node is gone, and not to connect anew.
func (p *Portal) left(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v := p.visitors[name]; v != nil {
		v.online, v.connected = false, time.Time{}
	}
}

// forget drops what is known of a node that was removed.
func (p *Portal) forget(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.visitors, name)
}

// look compares who is connected with who was.
func (p *Portal) look(now time.Time) (changed bool) {
	nodes := p.state.list()
	names := make(map[string]bool, len(nodes))
	for _, r := range nodes {
		names[r.Name] = true
		connected := len(p.broker.Clients(r.Name)) > 0
		p.mu.Lock()
		v := p.visitor(r.Name)
		if connected {
			v.connected = now
		}
		grace := onlineGrace
		if !v.left.IsZero() { // it does not come back at once
			grace = 0
		}
		if online := connected || now.Sub(v.connected) < grace; online != v.online {
			v.online, v.since, changed = online, now, true
			event := "node online"
			if !online {
				event = "node offline"
			}
			p.log.Info(event, "node", r.Name)
		}
		p.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for name := range p.visitors {
		if !names[name] {
			delete(p.visitors, name)
		}
	}
	return changed
}

func (p *Portal) isOnline(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v := p.visitors[name]; v != nil && v.online {
		return true
	}
	for _, s := range p.siblings { // at would sort them, and this is asked for each peer of each answer
		if _, there := s.Nodes[name]; there {
			return true
		}
	}
	return false
}

// refuse is an answer that says only what is wrong.
func refuse(text string) protocol.Sync {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, text)
	return protocol.Sync{Refused: text[:min(len(text), protocol.MaxRefusal)]}
}
