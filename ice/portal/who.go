package portal

import (
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// handleWho tells a node whom its token stands for.
func (p *Portal) handleWho(m *nats.Msg) { p.tellWho(m, func(*visitor) {}) }

// handleLeave notes that a node's token was taken from its machine. The token stays good: to end that is the operator's.
func (p *Portal) handleLeave(m *nats.Msg) {
	name, told := p.tellWho(m, func(v *visitor) { v.left = time.Now() })
	if told {
		p.log.Info("node has signed out", "node", name)
	}
}

// tellWho answers with who asks, after note has had a look at the visitor, for which mu is held. It answers as often as it does requests.
func (p *Portal) tellWho(m *nats.Msg, note func(*visitor)) (name string, told bool) {
	p.counters.Requests.Add(1)
	name, _, ok := origin(m)
	if !ok {
		p.counters.Misaddressed.Add(1)
		return "", false
	}
	role, known := p.state.role(name)
	if !known {
		return "", false // it was removed this moment, and its connection ends
	}
	p.mu.Lock()
	v := p.visitor(name)
	ok = v.requests.Take(time.Now(), requestsPerSecond, requestsAtOnce)
	if ok {
		note(v)
	}
	p.mu.Unlock()
	if !ok {
		p.counters.Limited.Add(1)
		return "", false
	}
	if err := m.Respond(protocol.Who{Name: name, Role: role}.Encode()); err != nil {
		p.counters.Failed.Add(1)
		p.log.Debug("an answer was not sent", "error", err)
		return "", false
	}
	p.counters.Answers.Add(1)
	return name, true
}

// role is a node's.
func (s *state) role(name string) (protocol.Role, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.nodes[name]; r != nil {
		return r.Role, true
	}
	return "", false
}
