package pipeline

import (
	"net/netip"
	"sync/atomic"

	"github.com/gaissmai/bart"
)

// routes is the cryptokey routing table (WireGuard paper, section 2): longest prefix to peer, over all peers. Control
// changes a draft and publishes it; lanes look up in the table that they load, which is frozen.
type routes struct {
	table atomic.Pointer[bart.Fast[*peer]]
	draft *bart.Fast[*peer] // control's; nil: no change since publish
	// own are the only addresses that packets of peers may be for; nil: they may be for any.
	own atomic.Pointer[[]netip.Addr]
}

func (r *routes) init() { r.table.Store(new(bart.Fast[*peer])) }

// lookup returns the peer whose allowed IPs cover addr, or nil. addr must be unmapped. Any goroutine.
func (r *routes) lookup(addr netip.Addr) *peer {
	p, _ := r.table.Load().Lookup(addr)
	return p
}

// publish lets the lanes see what was changed since the last call, in one step.
func (r *routes) publish() {
	if r.draft != nil {
		r.table.Store(r.draft)
		r.draft = nil
	}
}

// change returns the draft. It is a copy of the whole table, so many changes are published together.
func (r *routes) change() *bart.Fast[*peer] {
	if r.draft == nil {
		r.draft = r.table.Load().Clone()
	}
	return r.draft
}

// set gives the prefix to p and takes it from whoever had it.
func (r *routes) set(prefix netip.Prefix, p *peer) {
	t := r.change()
	if old, ok := t.Get(prefix); ok {
		delete(old.allowedIPs, prefix)
	}
	p.allowedIPs[prefix] = struct{}{}
	t.Insert(prefix, p)
}

// unset takes the prefix from p; nothing happens if p does not have it.
func (r *routes) unset(prefix netip.Prefix, p *peer) {
	if _, ok := p.allowedIPs[prefix]; ok {
		delete(p.allowedIPs, prefix)
		r.change().Delete(prefix)
	}
}

// unsetAll takes every prefix from p.
func (r *routes) unsetAll(p *peer) {
	for prefix := range p.allowedIPs { // any order gives the same table
		r.change().Delete(prefix)
	}
	clear(p.allowedIPs)
}
