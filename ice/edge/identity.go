package edge

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/pipeline"
)

// This file decides whose keys are used. The portal says which WireGuard key a peer has, and the peer's identity must have signed it.
// The first identity that a peer is told with is pinned; with another one it is another node, until somebody trusts that.
//
// Whom to meet, and ICE, do not depend on it: it is the key for the pipeline that is withheld. A peer that is not trusted keeps its
// name, its networks and what is known of it, so nothing that was for it goes to others; but under a key that nobody has.

// maxPins bounds the pins: those of peers that were removed from the portal stay.
const maxPins = 4 * maxPeers

// judgement is what was found of a peer's identity. Frozen.
type judgement struct {
	offered protocol.Peer // by the portal: name, key, identity and signature
	pinned  protocol.Identity
	// distrust is why the offered key is not used, and the reason with which connections end; CloseUnspecified: it is used.
	distrust link.CloseReason
	instead  protocol.Key // is used then. It was drawn, not made of a private key.
}

// judge puts what may be used in the place of the keys that are not to be trusted, and ends connections with their peers.
func (e *Edge) judge(list []protocol.Peer) []protocol.Peer {
	list = slices.Clone(list)
	judged, pins := make(map[string]*judgement, len(list)), len(e.pins)
	for i := range list {
		next := &list[i]
		if next.PublicKey == (protocol.Key{}) {
			continue // it has not signed in with the token that it has now
		}
		j := e.judgePeer(next)
		judged[next.Name] = j
		if j.distrust != link.CloseUnspecified {
			next.PublicKey = j.instead
		}
	}
	e.judged = judged
	if len(e.pins) != pins {
		e.savePins()
	}
	return list
}

// judgePeer judges one peer, and pins it when it is met. Signatures are verified once.
func (e *Edge) judgePeer(next *protocol.Peer) *judgement {
	pinned, met := e.pins[next.Name]
	old := e.judged[next.Name]
	if old != nil && old.pinned == pinned && old.offered.PublicKey == next.PublicKey && old.offered.Identity == next.Identity &&
		old.offered.Signature == next.Signature {
		return old
	}
	j := &judgement{pinned: pinned, offered: protocol.Peer{
		Name: next.Name, PublicKey: next.PublicKey, Identity: next.Identity, Signature: next.Signature,
	}}
	switch {
	case met && !pinned.Equal(next.Identity): // none is another one, too
		j.distrust = link.CloseIdentityChanged
	case !next.Signed():
		j.distrust = link.CloseKeyUnsigned
	case met:
	case len(e.pins) >= maxPins:
		e.log.Warn("there are too many pins: the identity of a new peer is not kept; remove what is old from the file of pins", "peer", next.Name)
	default:
		e.pins[next.Name], j.pinned = next.Identity, next.Identity
		e.log.Debug("identity pinned", "peer", next.Name, "identity", next.Identity.Fingerprint())
	}
	e.noteJudgement(old, j)
	return j
}

// noteJudgement tells of a peer that is not trusted any more, or is again, and ends what it has with us.
func (e *Edge) noteJudgement(old, j *judgement) {
	was := old != nil && old.distrust != link.CloseUnspecified
	switch {
	case j.distrust == link.CloseUnspecified && was:
		e.log.Info("the peer is trusted again", "peer", j.offered.Name, "identity", j.offered.Identity.Fingerprint())
	case j.distrust == link.CloseUnspecified:
	case was && old.distrust == j.distrust && old.offered.Identity == j.offered.Identity:
		j.instead = old.instead
	default:
		rand.Read(j.instead[:]) // never fails
		e.log.Error("no session with the peer", "reason", j.distrust.String(), "cause", j.explain(), "peer", j.offered.Name,
			"identity", j.offered.Identity.Fingerprint(), "pinned", j.pinned.Fingerprint())
		e.tell(j.offered.Name, func(_ time.Duration, l *link.Link) { l.Distrust(j.distrust) })
	}
}

// explain says in one sentence why a peer is not trusted, and what to do.
func (j *judgement) explain() string {
	now, name := j.offered.Identity.Fingerprint(), j.offered.Name
	switch {
	case j.offered.Identity == protocol.Identity{}:
		return "the portal gives no identity for it (it was met with " + j.pinned.Fingerprint() + "): somebody may be in between"
	case j.distrust == link.CloseKeyUnsigned:
		return "its identity " + now + " has not signed the key that the portal gives for it: somebody may be in between"
	}
	return fmt.Sprintf("its identity was %s and is %s: it has another token, or somebody is in between; if its own sluice status shows the new"+
		" one, run: sluice trust %s", j.pinned.Fingerprint(), now, name)
}

// distrust is why there is no session with a peer; CloseUnspecified: there may be.
func (e *Edge) distrust(name string) link.CloseReason {
	if j := e.judged[name]; j != nil {
		return j.distrust
	}
	return link.CloseUnspecified
}

// savePins hands out a copy.
func (e *Edge) savePins() {
	if e.config.SavePins != nil {
		e.config.SavePins(maps.Clone(e.pins))
	}
}

// Pin is what is known of a peer's identity. Either may be zero: Pinned if it was never met, Offered if the portal names it not, or
// no identity for it.
type Pin struct {
	Peer    string            `json:"peer"`
	Pinned  protocol.Identity `json:"pinned,omitzero"`
	Offered protocol.Identity `json:"offered,omitzero"`
	// Distrust is the reason with which connections end, "" if there may be some.
	Distrust string `json:"distrust,omitempty"`
}

// Pins lists all peers that were met, and those that the portal names now, by name. Errors are as Status's.
func (e *Edge) Pins(ctx context.Context) (list []Pin, err error) {
	err = e.call(ctx, func() {
		all := make(map[string]Pin, len(e.pins))
		for name, id := range e.pins {
			all[name] = Pin{Peer: name, Pinned: id}
		}
		for name, j := range e.judged {
			pin := Pin{Peer: name, Pinned: e.pins[name], Offered: j.offered.Identity}
			if j.distrust != link.CloseUnspecified {
				pin.Distrust = j.distrust.String()
			}
			all[name] = pin
		}
		list = slices.SortedFunc(maps.Values(all), func(a, b Pin) int { return strings.Compare(a.Peer, b.Peer) })
	})
	return list, err
}

// Trust pins the identity that the portal offers for a peer now, which must be the one given: whoever asks has seen that. Errors say
// what to do.
func (e *Edge) Trust(ctx context.Context, name string, id protocol.Identity) (err error) {
	failed := e.call(ctx, func() {
		j := e.judged[name]
		switch {
		case j == nil:
			err = fmt.Errorf("the portal names no peer %s that has signed in", name)
		case id == protocol.Identity{} || !id.Equal(j.offered.Identity):
			err = fmt.Errorf("the identity of %s is %s now; look again with sluice trust", name, j.offered.Identity.Fingerprint())
		case !j.offered.Signed():
			err = fmt.Errorf("the key that the portal gives for %s is not signed by that identity, and trust does not mend it", name)
		case e.pins[name] != id:
			e.log.Info("the peer's identity is trusted from now on", "peer", name, "identity", id.Fingerprint(), "before", e.pins[name].Fingerprint())
			e.pins[name] = id
			e.savePins()
			e.apply(e.view)
			e.pipeline.Load().Want(name)
		}
	})
	if failed != nil {
		return failed
	}
	return err
}

// call runs f on the owner's goroutine. Errors are ctx's, and that of an edge that does not run (any more); f does not run then.
func (e *Edge) call(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case e.posts <- func() { defer close(done); f() }:
		<-done
		return nil
	case <-e.ended:
		return fmt.Errorf("edge: %w", pipeline.ErrClosed)
	case <-ctx.Done():
		return ctx.Err()
	}
}
