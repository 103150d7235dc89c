package portal

import (
	"context"
	"net/netip"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// AddNode makes a node and returns its token, which is not kept. allow names the gateways that a client may reach, empty: all;
// and those that a gateway may reach, empty: none.
func (p *Portal) AddNode(ctx context.Context, name string, role protocol.Role, allow []string) (protocol.Token, error) {
	secret, err := p.state.add(ctx, name, role, allow)
	if err != nil {
		return protocol.Token{}, err
	}
	p.log.Info("node added", "node", name, "role", string(role))
	p.permissionsChanged(name)
	return p.token(name, secret), nil
}

// RenewToken gives a node another token; the old one is refused from now on, and the node's tunnels end as those of a removed
// node do, until it signs in with the new one.
func (p *Portal) RenewToken(ctx context.Context, name string) (protocol.Token, error) {
	secret, err := p.state.renew(ctx, name)
	if err != nil {
		return protocol.Token{}, err
	}
	p.broker.Kick(name)
	p.log.Info("node has another token", "node", name)
	p.changed()
	return p.token(name, secret), nil
}

// RemoveNode forgets a node and ends its connections. Its tunnels end when its peers hear of it, which is at once.
func (p *Portal) RemoveNode(ctx context.Context, name string) error {
	linked := p.linked(name)
	if err := p.state.remove(ctx, name); err != nil {
		return err
	}
	p.broker.Kick(name)
	for _, other := range linked {
		p.broker.Kick(other)
	}
	p.forget(name)
	p.log.Info("node removed", "node", name)
	p.changed()
	return nil
}

// permissionsChanged has the nodes that are linked with name come back with what they may do now.
func (p *Portal) permissionsChanged(name string) {
	for _, other := range p.linked(name) {
		p.broker.Kick(other)
	}
	p.changed()
}

// linked names the nodes that may meet name.
func (p *Portal) linked(name string) (list []string) {
	nodes := p.state.list()
	for _, self := range nodes {
		if self.Name != name {
			continue
		}
		for _, other := range nodes {
			if mayMeet(self, other) {
				list = append(list, other.Name)
			}
		}
	}
	return list
}

// NodeStatus describes a node to the operator.
type NodeStatus struct {
	Name        string         `json:"name"`
	Role        protocol.Role  `json:"role"`
	Addresses   []netip.Prefix `json:"addresses"`
	Routes      []netip.Prefix `json:"routes,omitempty"`
	Allow       []string       `json:"allow,omitempty"`
	Online      bool           `json:"online"`
	From        []string       `json:"from,omitempty"` // host:port of each connection; two: its token is in use twice
	Since       time.Time      `json:"since,omitzero"` // connected since then
	Seen        time.Time      `json:"seen,omitzero"`  // its latest request
	Program     string         `json:"program,omitempty"`
	Refused     string         `json:"refused,omitempty"`
	Created     time.Time      `json:"created"`
	PublicKey   string         `json:"public_key,omitempty"`
	Connections int            `json:"connections"`
}

// Nodes lists all nodes by name.
func (p *Portal) Nodes() []NodeStatus {
	var list []NodeStatus
	for _, r := range p.state.list() {
		s := NodeStatus{
			Name: r.Name, Role: r.Role, Addresses: addresses(p.state.settings.overlay(), r.Index), Routes: r.Routes, Allow: r.Allow, Program: r.Program, Created: r.Created,
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
			if v.online {
				s.Since = v.since.UTC()
			}
		}
		p.mu.Unlock()
		list = append(list, s)
	}
	return list
}
