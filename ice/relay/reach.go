package relay

import (
	"net"
	"net/netip"
)

// reach is where the world reaches us and which peers may be reached. Frozen; it is replaced as a whole when our public address
// changes.
type reach struct {
	peerPolicy
	public map[bool]netip.Addr // the address of relayed transport addresses, by whether it is IPv4; invalid: none
	bind   map[bool]netip.Addr // where their sockets are bound
}

// SetPublicAddrs changes Config.PublicAddrs of a server that is ready. Allocations that there are keep the address that their
// clients were told: whoever still reaches it is not cut off, and the others make new ones.
func (s *Server) SetPublicAddrs(addrs []netip.Addr) error {
	if err := checkPublic("PublicAddrs", addrs); err != nil {
		return err
	}
	s.reach.Store(s.newReach(addrs))
	return nil
}

// newReach looks at the machine: the public address of each family, and where a socket for it can be bound, which is the same
// address unless a NAT translates it. The gates are open.
func (s *Server) newReach(public []netip.Addr) *reach {
	r := &reach{public: map[bool]netip.Addr{}, bind: map[bool]netip.Addr{}}
	for _, a := range public {
		r.public[a.Is4()] = a
	}
	for _, g := range s.gates {
		a := g.sock.local.Addr()
		v4 := a.Is4()
		if !r.public[v4].IsValid() && !s.cfg.OnlyPublic {
			if r.public[v4] = a; a.IsUnspecified() {
				r.public[v4] = outward(v4)
			}
		}
		if !r.bind[v4].IsValid() {
			r.bind[v4] = a
		}
	}
	for v4, public := range r.public {
		if !r.bind[v4].IsValid() { // a family for peers only
			r.bind[v4] = netip.IPv6Unspecified()
			if v4 {
				r.bind[v4] = netip.IPv4Unspecified()
			}
		}
		if sock, err := openSocket(netip.AddrPortFrom(public, 0), socketConfig{}); public.IsValid() && err == nil {
			r.bind[v4] = public
			sock.conn.Close()
		}
	}
	r.peerPolicy = s.newPolicy(r.public)
	return r
}

// newPolicy is the peer policy for relayed addresses of those public ones.
func (s *Server) newPolicy(public map[bool]netip.Addr) peerPolicy {
	p := peerPolicy{
		denied: s.cfg.DeniedPeers, allowed: s.cfg.AllowedPeers,
		listening: map[netip.AddrPort]bool{}, ports: map[uint16]bool{}, own: map[netip.Addr]bool{},
		local: map[netip.Addr]bool{}, live: func(at netip.AddrPort) bool { return s.inside.find(at) != nil },
	}
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if prefix, ok := a.(*net.IPNet); ok {
				ip, _ := netip.AddrFromSlice(prefix.IP)
				p.local[ip.Unmap()] = true
			}
		}
	}
	for _, a := range public {
		if a.IsValid() {
			p.own[a] = true
		}
	}
	for _, g := range s.gates {
		p.listens(g.sock.local)
	}
	for _, m := range s.mirrors {
		p.listens(m.sock.local)
	}
	return p
}

// listens notes a port of the relay's own, at every address of its own.
func (p *peerPolicy) listens(at netip.AddrPort) {
	p.listening[at] = true
	p.ports[at.Port()] = true
	for a := range p.own {
		p.listening[netip.AddrPortFrom(a, at.Port())] = true
	}
}
