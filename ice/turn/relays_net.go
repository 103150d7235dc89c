package turn

import (
	"net"
	"net/netip"

	"github.com/pion/transport/v2"

	"github.com/sluice-vpn/sluice/ice"
)

// relayNet is the network of one agent's TURN clients: each of its packet sockets is a Facade, and there is nothing else.
type relayNet struct {
	ice.NoNet
	relays *Relays
	gate   *ice.Gate
}

// ListenPacket makes a Facade. Which server it stands for shows when the agent writes to it.
func (n relayNet) ListenPacket(string, string) (net.PacketConn, error) {
	if n.gate == nil {
		return nil, transport.ErrNotSupported
	}
	t, r := new(tenant), n.relays
	t.facade = newFacade(n.gate, func() { r.workFor(t) }, func(at netip.AddrPort) (relayed, mapped netip.AddrPort, ok bool) {
		return r.settle(t, at)
	})
	return t.facade, nil
}

// ResolveUDPAddr reads an address; there are no names.
func (relayNet) ResolveUDPAddr(_, address string) (*net.UDPAddr, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	return net.UDPAddrFromAddrPort(at), nil
}

// settle makes an agent a tenant of the server that it takes for its own.
func (r *Relays) settle(t *tenant, at netip.AddrPort) (relayed, mapped netip.AddrPort, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || at.Addr() != facadeAddr.Addr() {
		return relayed, mapped, false
	}
	for _, s := range r.servers {
		if s.port == at.Port() && s.status.Relayed.IsValid() {
			t.server = s
			s.tenants[t] = struct{}{}
			return s.status.Relayed, s.status.Mapped, true
		}
	}
	return relayed, mapped, false
}

// workFor notes that an agent has left something to be sent, or is gone.
func (r *Relays) workFor(t *tenant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.server == nil || t.pending || r.closed {
		return
	}
	t.pending = true
	r.ready = append(r.ready, t)
	r.rouse()
}
