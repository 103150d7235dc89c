package portal

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"
)

const (
	// resolveEvery is how often names are resolved again: the resolver does not tell for how long its answer is good, and names of
	// lines whose address changes are good for a minute.
	resolveEvery = 15 * time.Second
	// resolveTime is how long that may take.
	resolveTime = 10 * time.Second
)

// OnePerFamily is which addresses of a name are used when found are those it has now, and current those that were used before: one
// of each family. One that the name still has stays, whatever the order; and so does one of a family that was not found, because a
// resolver that has lost half of its answer cannot be told from a name that has lost an address.
func OnePerFamily(current, found []netip.Addr) (list []netip.Addr) {
	for _, is4 := range []bool{true, false} {
		ofFamily := func(a netip.Addr) bool { return a.Unmap().Is4() == is4 }
		was, is := slices.IndexFunc(current, ofFamily), slices.IndexFunc(found, ofFamily)
		switch {
		case was >= 0 && (is < 0 || slices.Contains(found, current[was])):
			list = append(list, current[was])
		case is >= 0:
			list = append(list, found[is].Unmap())
		}
	}
	return list
}

// follow resolves the names of relays and of this machine again and again, until ctx ends.
func (p *Portal) follow(ctx context.Context) {
	ticker := time.NewTicker(resolveEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			p.renew(ctx)
		}
	}
}

// renew resolves every name once. Nodes hear of what has changed. A name that does not resolve keeps its addresses.
func (p *Portal) renew(ctx context.Context) {
	for host, was := range p.places() {
		if _, err := netip.ParseAddr(host); err == nil {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, resolveTime)
		found, err := p.config.Resolve(limited, host)
		cancel()
		if err == nil && len(found) == 0 {
			err = errors.New("it has no address")
		}
		if ctx.Err() != nil {
			return
		}
		p.noteName(host, was, err)
		now := OnePerFamily(was, found)
		if err != nil || slices.Equal(now, was) {
			continue
		}
		p.log.Info("the name has another address", "name", host, "addresses", now, "before", was)
		p.move(host, now)
	}
}

// noteName tells that a name does not resolve, once, and that it does again.
func (p *Portal) noteName(host string, addrs []netip.Addr, err error) {
	switch {
	case err != nil && !p.mute[host]:
		p.log.Warn("the name does not resolve; the addresses that it had are used", "name", host, "addresses", addrs, "error", err)
	case err == nil && p.mute[host]:
		p.log.Info("the name resolves again", "name", host)
	}
	p.mute[host] = err != nil
}

// move gives a name other addresses.
func (p *Portal) move(host string, addrs []netip.Addr) {
	p.mu.Lock()
	p.addrs[host] = addrs
	p.mu.Unlock()
	if host == p.config.Public && p.relay != nil {
		if err := p.relay.SetPublicAddrs(addrs); err != nil {
			p.log.Error("the relay cannot have this address", "addresses", addrs, "error", err)
		}
	}
	p.changed()
}

// places are the addresses of every host that nodes are told of.
func (p *Portal) places() map[string][]netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	places := make(map[string][]netip.Addr, len(p.addrs))
	for host, addrs := range p.addrs {
		places[host] = addrs
	}
	return places
}

// addrsOf are the addresses of a host, frozen.
func (p *Portal) addrsOf(host string) []netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addrs[host]
}

// knownAddrs are the addresses of hosts at the start.
func (cfg *Config) knownAddrs() map[string][]netip.Addr {
	known := map[string][]netip.Addr{}
	for _, r := range cfg.Relays {
		if r.Host == "" {
			continue
		}
		for _, a := range r.Addrs {
			known[r.Host] = append(known[r.Host], a.Addr())
		}
	}
	known[cfg.Public] = cfg.Relay.PublicAddrs
	if addr, err := netip.ParseAddr(cfg.Public); err == nil && len(cfg.Relay.PublicAddrs) == 0 {
		known[cfg.Public] = []netip.Addr{addr.Unmap()}
	}
	return known
}
