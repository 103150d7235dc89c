package udptest

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// Host is a machine with addresses. Its sockets receive at all of them, and send from the first of the family unless a
// Run names another. Interface indexes count its addresses from 1.
type Host struct {
	network *Network
	addrs   []netip.Addr // guarded by network.mu
}

// Host adds a machine to the network. Invalid addresses are left out. Two hosts must not share an address.
func (n *Network) Host(addrs ...netip.Addr) *Host {
	h := &Host{network: n}
	for _, a := range addrs {
		if a.IsValid() {
			h.addrs = append(h.addrs, a.Unmap())
		}
	}
	return h
}

// Listen opens cfg.Shards pairs of sockets on one port. It is a [udp.Listener]. It fails with EADDRINUSE where a port is
// taken and with [udp.ErrNoFamily] for a host without addresses. Mark is obeyed as SetMark is; buffer sizes and the
// switches for offloads mean nothing here, except that NoGRO keeps this socket's datagrams apart.
func (h *Host) Listen(cfg udp.Config) ([]udp.Pair, error) {
	n := h.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(h.addrs) == 0 {
		return nil, fmt.Errorf("udptest: listen: %w", udp.ErrNoFamily)
	}
	port := cfg.Port
	for tries := 0; cfg.Port == 0 && tries < 1<<14; tries++ {
		port = n.next
		n.next = max(n.next+1, ephemeralFirst) // wraps to 0 after 65535
		if !h.taken(port) {
			break
		}
	}
	if h.taken(port) {
		return nil, fmt.Errorf("udptest: listen on port %d: %w", port, syscall.EADDRINUSE)
	}
	pairs := make([]udp.Pair, max(1, cfg.Shards))
	for i := range pairs {
		if s := h.open(cfg, port, true); s != nil {
			pairs[i].V4 = s
		}
		if s := h.open(cfg, port, false); s != nil {
			pairs[i].V6 = s
		}
	}
	return pairs, nil
}

// AddAddress and RemoveAddress change the addresses of a host that is running, for tests of roaming and of sources that
// are no longer ours. Sockets follow.
func (h *Host) AddAddress(a netip.Addr) {
	n := h.network
	n.mu.Lock()
	defer n.mu.Unlock()
	var siblings []*socket
	for _, old := range h.addrs {
		if old.Is4() == a.Is4() {
			siblings = h.socketsAt(old)
			break
		}
	}
	h.addrs = append(h.addrs, a)
	for _, s := range siblings {
		n.bind(s, a)
	}
}

// RemoveAddress takes an address away; see AddAddress. Sockets stay open.
func (h *Host) RemoveAddress(a netip.Addr) {
	n := h.network
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range h.socketsAt(a) {
		delete(n.bound, netip.AddrPortFrom(a, s.port))
	}
	h.addrs = slices.DeleteFunc(h.addrs, func(b netip.Addr) bool { return a == b })
}

func (h *Host) taken(port uint16) bool {
	for _, a := range h.addrs {
		if len(h.network.bound[netip.AddrPortFrom(a, port)]) > 0 {
			return true
		}
	}
	return false
}

// socketsAt lists this host's sockets at one address in the order of their ports and shards.
func (h *Host) socketsAt(a netip.Addr) []*socket {
	var found []*socket
	for at, sockets := range h.network.bound {
		if at.Addr() == a {
			found = append(found, sockets...)
		}
	}
	slices.SortStableFunc(found, func(a, b *socket) int { return int(a.port) - int(b.port) })
	return found
}

// open makes one socket of one family and binds it at the host's addresses; nil if there are none.
func (h *Host) open(cfg udp.Config, port uint16, is4 bool) *socket {
	s := newSocket(h, cfg, port, is4)
	found := false
	for _, a := range h.addrs {
		if a.Is4() == is4 {
			h.network.bind(s, a)
			found = true
		}
	}
	if !found {
		return nil
	}
	return s
}

func (n *Network) bind(s *socket, a netip.Addr) {
	at := netip.AddrPortFrom(a, s.port)
	n.bound[at] = append(n.bound[at], s)
}

// unbind takes a closed socket off every address.
func (n *Network) unbind(s *socket) {
	for _, a := range s.host.addrs {
		at := netip.AddrPortFrom(a, s.port)
		if left := slices.DeleteFunc(n.bound[at], func(b *socket) bool { return b == s }); len(left) > 0 {
			n.bound[at] = left
		} else {
			delete(n.bound, at)
		}
	}
}
