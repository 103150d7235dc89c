package pipeline

import (
	"net/netip"
	"sync/atomic"

	"github.com/gaissmai/bart"
)

// routes is the cryptokey routing table (WireGuard paper, section 2): longest prefix to peer, over all peers. Control
// edits it by publishing a new table that shares what did not change; lanes look up in whichever they loaded.
type routes struct {
	table atomic.Pointer[bart.Fast[*peer]]
}

func (r *routes) init() { r.table.Store(new(bart.Fast[*peer])) }

// lookup returns the peer whose allowed IPs cover addr, or nil. addr must be unmapped.
func (r *routes) lookup(addr netip.Addr) *peer {
	p, _ := r.table.Load().Lookup(addr)
	return p
}

// set gives the prefix to p and takes it, in the same step, from whoever had it.
func (r *routes) set(prefix netip.Prefix, p *peer) {
	t := r.table.Load()
	if old, ok := t.Get(prefix); ok {
		delete(old.allowedIPs, prefix)
	}
	p.allowedIPs[prefix] = struct{}{}
	r.table.Store(t.InsertPersist(prefix, p))
}

// unset takes the prefix from p; nothing happens if p does not have it.
func (r *routes) unset(prefix netip.Prefix, p *peer) {
	if _, ok := p.allowedIPs[prefix]; !ok {
		return
	}
	delete(p.allowedIPs, prefix)
	r.table.Store(r.table.Load().DeletePersist(prefix))
}

// unsetAll takes every prefix from p.
func (r *routes) unsetAll(p *peer) {
	t := r.table.Load()
	for prefix := range p.allowedIPs { // any order gives the same table
		t = t.DeletePersist(prefix)
	}
	clear(p.allowedIPs)
	r.table.Store(t)
}
