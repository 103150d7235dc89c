package pipeline

import (
	"net/netip"
	"time"
)

// This file is how a path follows the peer (WireGuard paper, section 2.1). Control owns the decision where a peer is; a lane
// that hears the peer elsewhere moves the path itself, since what answers the packet may leave before control has run. Both
// publish by comparing, so that neither overwrites what the other has published in between.

// roam moves the path to the origin of authentic data, from any lane. As in the kernel (receive.c,
// wg_packet_consume_data_done) the endpoint is set before the packet is delivered. A path that is fixed stays: the link owns it. So
// does no path at all: the peer, or its connection, is over, and what comes late must not revive it. It tells whether control has
// yet to check the source that is used from now on.
func (p *peer) roam(from Path) (unchecked bool) {
	for {
		old := p.path.Load()
		if old == nil || old.Fixed || old.sameEndpoint(&from) {
			return false
		}
		if path, moved := p.move(old, from); moved {
			return path.unchecked()
		}
	}
}

// move publishes the path to from in the place of old, under the lock under which control publishes what it finds of sources.
func (p *peer) move(old *Path, from Path) (path *Path, moved bool) {
	p.inbound.mu.Lock()
	defer p.inbound.mu.Unlock()
	path = p.inbound.visit(from)
	return path, p.path.CompareAndSwap(old, path)
}

// strayInterval is how far apart control hears of data that comes from elsewhere than the selected pair leads to. Where a NAT sends
// each packet by another of its addresses that is for good.
const strayInterval = 200 * time.Millisecond

// stray notes that authentic data came from elsewhere than the selected pair leads to, from any lane, and tells whether control is to
// hear of it: a NAT may have mapped the peer anew, which the link can find out. What comes over a relay where the path leads over none or
// over another one, or the other way round, took another way and tells of no other address.
func (p *peer) stray(now time.Duration, from Path) bool {
	path := p.path.Load()
	if path == nil || !path.Fixed {
		return false
	}
	same, over := path.Dst == from.Dst, from.Channel != 0 || from.Peer.IsValid()
	if over != (path.Channel != 0) || over != same || over && from.Channel == path.Channel {
		return false
	}
	last := p.strayedAt.Load()
	if last != 0 && now < time.Duration(last)+strayInterval || !p.strayedAt.CompareAndSwap(last, int64(now)) {
		return false
	}
	p.inbound.mu.Lock()
	defer p.inbound.mu.Unlock()
	p.strayed.Store(p.inbound.visit(from))
	return true
}

// hear is roam for an authentic handshake message, which may also give a peer its first path. Control only, for a plain peer
// or one whose connection is alive.
func (p *peer) hear(from Path) {
	if p.path.Load() == nil { // and stays so: lanes move only what is there
		p.move(nil, from)
		return
	}
	p.roam(from)
}

// unchecked tells whether the path has a source that control has not looked at.
func (p *Path) unchecked() bool {
	return p.Src.IsValid() && p.source == sourceUnchecked && !p.Fixed
}

// checkSources has holds look at the sources of the paths by which the peer was lately heard: those that nobody has looked at, or
// all of them. One that does not hold is forgotten, for as long as it does not, and by none of the paths that lanes move to.
// Control only.
func (p *peer) checkSources(all bool, holds func(*Path) bool) {
	p.inbound.mu.Lock()
	paths := p.inbound.visited.paths
	p.inbound.mu.Unlock()
	for i, path := range paths {
		if path == nil || !path.Src.IsValid() || !all && !path.unchecked() {
			continue
		}
		state := sourceForgotten
		if holds(path) {
			state = sourceHeld
		}
		if state != path.source {
			p.setSource(i, path, state)
		}
	}
}

// setSource publishes what was found of the source of path, the i-th of those visited.
func (p *peer) setSource(i int, path *Path, state sourceState) {
	next := *path
	next.source = state
	p.inbound.mu.Lock()
	defer p.inbound.mu.Unlock()
	if p.inbound.visited.paths[i] == path { // else lanes have moved on
		p.inbound.visited.paths[i] = &next
		p.path.CompareAndSwap(path, &next)
	}
}

// forgetSource leaves the choice of the local address to the routing table again. Control only.
func (p *peer) forgetSource() {
	for {
		path := p.path.Load()
		if path == nil || path.Fixed || !path.Src.IsValid() && path.IfIndex == 0 {
			return
		}
		next := *path
		next.Src, next.IfIndex = netip.Addr{}, 0
		if p.path.CompareAndSwap(path, &next) {
			return
		}
	}
}

// visited keeps the paths by which the peer was last heard, with what is known of their sources, so that one that is heard from a few places in turn (a NAT with
// several addresses, two uplinks, somebody who repeats its packets from elsewhere) does not cost an allocation each time. It
// is a ring of a few: more places than that in turn cost one small allocation for each run of datagrams.
type visited struct {
	paths [4]*Path
	next  uint8
}

// visit returns a frozen path to from: one of the last few, or a new one. The caller holds mu.
func (l *inboundLane) visit(from Path) *Path {
	v := &l.visited
	for _, path := range v.paths {
		if path != nil && path.sameEndpoint(&from) {
			return path
		}
	}
	path := new(Path) // not &from, which would be allocated for those that are found, too
	*path = from
	v.paths[v.next] = path
	v.next = (v.next + 1) % uint8(len(v.paths))
	return path
}
