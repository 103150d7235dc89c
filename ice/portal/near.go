package portal

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// relayAddrs are where our own relay is for a node that has reached us at via, one of each family: the public addresses, or, for a
// node that came by another address of this machine, that. Nothing need lead from here to the public address of a 1:1 NAT.
func (p *Portal) relayAddrs(via netip.Addr) (list []netip.AddrPort) {
	public := p.addrsOf(p.config.Public)
	near := !slices.Contains(public, via) && isOwn(via)
	for _, addr := range public {
		for _, at := range p.relay.Addrs() {
			if at.Addr().Is4() != addr.Is4() {
				continue
			}
			switch {
			case !near:
			case !at.Addr().IsUnspecified():
				addr = at.Addr()
			case via.Is4() == addr.Is4():
				addr = via
			case addr.Is4(): // via is of the other family, and on this machine
				addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
			default:
				addr = netip.IPv6Loopback()
			}
			list = append(list, netip.AddrPortFrom(addr, at.Port()))
			break
		}
	}
	return list
}

// isOwn reports whether addr is one of this machine's. A loopback address always is: who has reached us there is on this machine,
// or our ports are published there.
func isOwn(addr netip.Addr) bool {
	if !addr.IsValid() || addr.IsLoopback() {
		return addr.IsValid()
	}
	list, _ := net.InterfaceAddrs() // none if the system does not tell
	return slices.ContainsFunc(list, func(a net.Addr) bool {
		prefix, ok := a.(*net.IPNet)
		return ok && prefix.IP.Equal(net.IP(addr.AsSlice()))
	})
}

// adviseOnPorts tells what has to lead here where the public address is none of this machine's.
func (p *Portal) adviseOnPorts() {
	public := p.addrsOf(p.config.Public)
	if slices.ContainsFunc(public, isOwn) || len(public) == 0 {
		return
	}
	attrs := []any{"public", public, "tcp", p.Addr().Port()}
	if p.relay != nil {
		low, high := p.relay.Ports()
		attrs = append(attrs, "udp", p.relay.Addrs()[0].Port(), "udp_range", fmt.Sprintf("%d-%d", low, high))
	}
	p.log.Info("the public address is no address of this machine; these ports have to be forwarded from it to here", attrs...)
}
