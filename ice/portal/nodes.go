package portal

import (
	"context"
	"net/netip"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// Words in place of the names of NewNode.Allow. No node is called so.
const (
	AllowAll  = "all"
	AllowNone = "none"
)

// NewNode describes a node to make.
type NewNode struct {
	Name string        `json:"name"`
	Role protocol.Role `json:"role"`
	// Allow are the gateways that a node may reach, or one of the words: AllowAll is a client's default, AllowNone a gateway's,
	// which then is reached by clients only.
	Allow []string `json:"allow,omitempty"`
	// Routes are the networks that a gateway may offer, each with what is within. Nil: private networks that no other gateway
	// has; empty: none.
	Routes []netip.Prefix `json:"routes"`
}

// AddNode makes a node and returns its token, which is not kept.
func (p *Portal) AddNode(ctx context.Context, n NewNode) (protocol.Token, error) {
	secret, err := p.state.add(ctx, n)
	if err != nil {
		return protocol.Token{}, err
	}
	p.log.Info("node added", "node", n.Name, "role", string(n.Role))
	return p.token(n.Name, secret), nil
}

// SetAllow changes which gateways a node may reach, as NewNode.Allow says. Tunnels that stay allowed go on.
func (p *Portal) SetAllow(ctx context.Context, name string, allow []string) error {
	if err := p.state.allow(ctx, name, allow); err != nil {
		return err
	}
	p.log.Info("node may reach others than before", "node", name, "allow", allow)
	return nil
}

// Routes tells what has become of the networks that a gateway offers, after the operator has approved and refused some. What is
// approved or refused need not be offered yet. A network that is refused is no more approved, and the other way round.
func (p *Portal) Routes(ctx context.Context, name string, approve, refuse []netip.Prefix) (protocol.Offers, error) {
	offers, err := p.state.decide(ctx, name, approve, refuse)
	if err == nil && len(approve)+len(refuse) > 0 {
		p.log.Info("the networks of a gateway are decided about", "node", name, "approve", approve, "refuse", refuse)
	}
	return offers, err
}

// RenewToken gives a node another token, and with it another identity; the old one is refused from now on, and the node's tunnels
// end as those of a removed node do, until it signs in with the new one. Peers that have met it do not take it for the same before
// they are told to.
func (p *Portal) RenewToken(ctx context.Context, name string) (protocol.Token, error) {
	secret, err := p.state.renew(ctx, name)
	if err != nil {
		return protocol.Token{}, err
	}
	p.log.Info("node has another token", "node", name)
	return p.token(name, secret), nil
}

// RemoveNode forgets a node and ends its connections. Its tunnels end when its peers hear of it, which is at once.
func (p *Portal) RemoveNode(ctx context.Context, name string) error {
	if err := p.state.remove(ctx, name); err != nil {
		return err
	}
	p.log.Info("node removed", "node", name)
	return nil
}

// NodeStatus describes a node to the operator.
type NodeStatus struct {
	Name        string          `json:"name"`
	Role        protocol.Role   `json:"role"`
	Addresses   []netip.Prefix  `json:"addresses"`
	Offers      protocol.Offers `json:"offers,omitempty"`
	Allow       []string        `json:"allow,omitempty"`     // as in NewNode
	Online      bool            `json:"online"`              // connected now or within the last onlineGrace
	From        []string        `json:"from,omitempty"`      // host:port of each connection; two: its token is in use twice
	Since       time.Time       `json:"since,omitzero"`      // connected since then
	Seen        time.Time       `json:"seen,omitzero"`       // its latest request
	SignedOut   time.Time       `json:"signed_out,omitzero"` // its token was taken from its machine then
	Program     string          `json:"program,omitempty"`
	Refused     string          `json:"refused,omitempty"`
	Outdated    bool            `json:"outdated,omitempty"` // its token is of before there were identities
	Created     time.Time       `json:"created"`
	PublicKey   string          `json:"public_key,omitempty"`
	Identity    string          `json:"identity,omitempty"` // its fingerprint
	Connections int             `json:"connections"`
	Portals     []string        `json:"portals,omitempty"` // the other portals of a cluster where it is connected
}

// Nodes lists all nodes by name.
func (p *Portal) Nodes() []NodeStatus {
	var list []NodeStatus
	offers := p.state.allOffers()
	for _, r := range p.state.list() {
		s := NodeStatus{
			Name: r.Name, Role: r.Role, Addresses: addresses(p.state.settings.overlay(), r.Index), Offers: offers[r.Name],
			Allow: r.allowed(), Program: r.Program, Created: r.Created, Outdated: r.Outdated != "",
		}
		if r.Identity != (protocol.Identity{}) {
			s.Identity = r.Identity.Fingerprint()
		}
		if text, _ := r.PublicKey.MarshalText(); r.PublicKey != (protocol.Key{}) {
			s.PublicKey = string(text)
		}
		for _, c := range p.broker.Clients(r.Name) {
			s.From = append(s.From, c.Addr)
		}
		s.Connections, s.Online = len(s.From), len(s.From) > 0
		p.mu.Lock()
		if v := p.visitors[r.Name]; v != nil {
			s.Seen, s.Refused = v.asked.UTC(), v.refused
			if !v.left.IsZero() {
				s.SignedOut = v.left.UTC()
			}
			if v.online { // also while it connects anew, as all do to which a node was added
				s.Online, s.Since = true, v.since.UTC()
			}
		}
		if s.Portals = p.at(r.Name); len(s.Portals) > 0 {
			s.Online = true
		}
		p.mu.Unlock()
		list = append(list, s)
	}
	return list
}
