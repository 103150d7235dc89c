package portal

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"
)

// This file is how the state changes where several portals share a store. A change is worked out from memory and written only if the
// store holds nothing newer; else what is newer is taken first, and the change worked out anew. What others write is taken from the
// store as it comes. Either way the portal acts upon it as an effect.

const (
	// maxTries is how often a change is worked out; each time that it is in vain another portal's has succeeded.
	maxTries = 50
	// changeTime bounds all tries together.
	changeTime = 15 * time.Second
)

// effect is what a change of a node's record means to nodes that are connected.
type effect struct {
	name             string
	removed, renewed bool     // it is gone, or has another token
	apart            []string // nodes that may meet it now and might not, or the other way round
}

// change runs op with the lock held, again if another portal has changed something meanwhile.
func (s *state) change(ctx context.Context, op func() error) error {
	limited, cancel := context.WithTimeout(ctx, changeTime)
	defer cancel()
	s.mu.Lock()
	err := op()
	for try := 1; errors.Is(err, errConflict) && try < maxTries; try++ {
		if err = s.catchUp(limited); err == nil {
			err = op()
		}
	}
	effects := s.effects
	s.effects = nil
	s.mu.Unlock()
	s.act(effects)
	return err
}

// catchUp waits until all that is stored now is in memory. The lock is held, and let go of meanwhile.
func (s *state) catchUp(ctx context.Context) error {
	kv := s.kv
	s.mu.Unlock()
	last, err := kv.last(ctx)
	s.mu.Lock()
	for err == nil && s.revision < last {
		progressed := s.progressed
		s.mu.Unlock()
		select {
		case <-progressed:
		case <-ctx.Done():
			err = errConflict
		}
		s.mu.Lock()
	}
	return err
}

// note keeps for act what becomes of a change of a record; nil: there is none. The lock is held.
func (s *state) note(name string, old, new *record) {
	e := effect{name: name, removed: new == nil, renewed: old != nil && new != nil && old.KeyHash != new.KeyHash}
	if old == nil || new == nil || old.Closed != new.Closed || strings.Join(old.Allow, " ") != strings.Join(new.Allow, " ") {
		for _, other := range s.sorted() {
			if other.Name == name {
				continue
			}
			if (old != nil && mayMeet(old, other)) != (new != nil && mayMeet(new, other)) {
				e.apart = append(e.apart, other.Name)
			}
		}
	}
	s.effects = append(s.effects, e)
}

// take is given what was written, by us or another portal. What memory has already is left.
func (s *state) take(e entry) {
	s.mu.Lock()
	if e.revision > s.revision && e.revision > s.revisions[e.key] {
		s.adopt(e)
	}
	if e.revision > s.revision {
		s.revision = e.revision
		close(s.progressed)
		s.progressed = make(chan struct{})
	}
	effects := s.effects
	s.effects = nil
	s.mu.Unlock()
	s.act(effects)
}

// adopt takes another portal's write. What cannot be understood, of a newer version perhaps, leaves what was there. The lock is held.
func (s *state) adopt(e entry) {
	name, isNode := strings.CutPrefix(e.key, prefixNode)
	old := s.nodes[name]
	switch {
	case e.key == keySettings && e.value != nil:
		var next settings
		if err := json.Unmarshal(e.value, &next); err != nil {
			s.log.Error("another portal has stored what this one does not understand; update the older of the two", "key", e.key, "error", err)
			return
		}
		s.settings.NextIndex = next.NextIndex // the rest is frozen while several portals share it
	case isNode && e.value == nil && old != nil:
		s.note(name, old, nil)
		delete(s.nodes, name)
		delete(s.revisions, e.key)
	case isNode && e.value != nil:
		r := new(record)
		err := json.Unmarshal(e.value, r)
		if err == nil {
			err = r.check(name)
		}
		if err != nil {
			s.log.Error("another portal has stored what this one does not understand; update the older of the two", "key", e.key, "error", err)
			return
		}
		s.note(name, old, r)
		s.nodes[name] = r
	case e.key == keyProbe:
		s.revisions[e.key] = e.revision
		return
	default:
		return
	}
	if e.value != nil {
		s.revisions[e.key] = e.revision
	}
	if !isNode {
		return
	}
	s.publishUsers()
	if offering(old) || offering(s.nodes[name]) {
		s.offers, _ = settleGrants(s.nodes, s.settings.overlay()) // whoever has written it stores what follows
	}
}

// offering reports whether a node has to do with the networks of gateways.
func offering(r *record) bool {
	return r != nil && len(r.Routes)+len(r.Granted)+len(r.Approved)+len(r.Refused) > 0
}

// act has nodes that are connected feel what has changed.
func (p *Portal) act(effects []effect) {
	for _, e := range effects {
		if e.removed || e.renewed || len(e.apart) > 0 {
			p.broker.Kick(e.name)
		}
		for _, other := range e.apart { // they come back with what they may do now
			p.broker.Kick(other)
		}
		switch {
		case e.removed:
			p.forget(e.name)
		case e.renewed:
			p.left(e.name)
		}
	}
	if len(effects) > 0 {
		p.changed()
	}
}
