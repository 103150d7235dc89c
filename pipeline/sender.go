package pipeline

import (
	"net/netip"
	"sync/atomic"

	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// This file is what the connectivity edge needs of the sockets.

// SendOne sends one datagram from the pipeline's present sockets; any goroutine, shards included. Errors are those of
// udp.Socket.SendOne, udp.ErrNoFamily, and udp.ErrClosed while the interface is down.
func (p *Pipeline) SendOne(r udp.Run) error {
	pair := p.sockets.Load()
	if pair == nil {
		return udp.ErrClosed
	}
	socket := pair.V4
	if !r.Dst.Addr().Is4() {
		socket = pair.V6
	}
	if socket == nil {
		return udp.ErrNoFamily
	}
	err := socket.SendOne(r)
	p.captureSent(&r, socket.LocalPort(), 0, err)
	return err
}

// LocalPort is the UDP port of the sockets, 0 while there are none. Any goroutine.
func (p *Pipeline) LocalPort() uint16 {
	if pair := p.sockets.Load(); pair != nil {
		return pair.LocalPort()
	}
	return 0
}

// SetRelays names the TURN servers whose ChannelData the lanes take: what comes from elsewhere is a stray. Any goroutine. The
// slice is copied.
func (p *Pipeline) SetRelays(servers []netip.AddrPort) { p.relays.set(servers) }

// relays is the set of TURN servers.
type relays struct {
	servers atomic.Pointer[map[netip.AddrPort]struct{}] // nil: none; frozen after publish
}

func (r *relays) set(servers []netip.AddrPort) {
	if len(servers) == 0 {
		r.servers.Store(nil)
		return
	}
	set := make(map[netip.AddrPort]struct{}, len(servers))
	for _, s := range servers {
		set[netip.AddrPortFrom(s.Addr().Unmap(), s.Port())] = struct{}{}
	}
	r.servers.Store(&set)
}

// has reports whether src is one of the servers.
func (r *relays) has(src netip.AddrPort) bool {
	set := r.servers.Load()
	if set == nil {
		return false
	}
	_, ok := (*set)[src]
	return ok
}

// at reports whether an address is that of one of the servers, from which also what a peer has relayed by it may come.
func (r *relays) at(addr netip.Addr) bool {
	set := r.servers.Load()
	if set == nil {
		return false
	}
	for server := range *set {
		if server.Addr() == addr {
			return true
		}
	}
	return false
}
