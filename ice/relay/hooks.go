package relay

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"

	"github.com/pion/logging"
	"github.com/pion/turn/v5"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// The hooks are what pion calls while it handles a request, on the gate's reading goroutine, except where it is said
// otherwise.

// familyIPv6 is the family of REQUESTED-ADDRESS-FAMILY (RFC 8656 section 18.6) that is not the default.
const familyIPv6 = 2

// portTries is how many random ports are tried for one allocation.
const portTries = 64

// serve starts pion on the gate. From then on its goroutine reads.
func (g *gate) serve() (err error) {
	g.turn, err = turn.NewServer(turn.ServerConfig{
		Realm:       g.server.cfg.Realm,
		AuthHandler: g.authenticate,
		QuotaHandler: func(user, _ string, _ net.Addr) bool {
			return g.server.quota.room(user)
		},
		EventHandler: turn.EventHandler{
			OnAuth:              g.onAuth,
			OnAllocationCreated: g.onAllocation,
			OnPermissionCreated: g.onPermission,
			OnPermissionDeleted: g.onPermissionEnd,
			OnChannelCreated:    g.onChannel,
			OnChannelDeleted:    g.onChannelEnd,
		},
		PacketConnConfigs: []turn.PacketConnConfig{{
			PacketConn: g, RelayAddressGenerator: generator{g}, PermissionHandler: g.admitPeer,
		}},
		InboundMTU: maxMessage + 1, // pion drops what fills its buffer
		// RFC 8656 section 7.2: without REQUESTED-ADDRESS-FAMILY the relayed address is an IPv4 one.
		StrictAddressFamily: true,
		// Whatever pion has to say is caused by a datagram, and datagrams are counted, not logged.
		LoggerFactory: silence{},
	})
	return err
}

// authenticate returns the key that a request must have been signed with. All requests for an allocation have to come from
// the user who made it (RFC 8656 section 5), but a user whose credential was renewed goes on with the new one: an allocation
// may live longer than the credential it was made with.
func (g *gate) authenticate(ra *turn.RequestAttributes) (user string, key []byte, ok bool) {
	cfg := &g.server.cfg
	g.now.judged = true
	if user, ok = userOf(ra.Username, g.server.clock()); !ok || ra.Realm != cfg.Realm || cfg.Knows != nil && !cfg.Knows(user) {
		return "", nil, false
	}
	g.now.user = user
	g.now.key = stun.LongTerm(ra.Username, cfg.Realm, passwordOf(cfg.Secret, ra.Username))
	return g.now.user, g.now.key.Secret(), true
}

// onAuth hears whether the key fitted, before pion acts on the request.
func (g *gate) onAuth(_, _ net.Addr, _, _, _, _ string, verdict bool) {
	r := &g.now
	if !verdict {
		return
	}
	r.authenticated = true
	if r.Method != stun.Allocate {
		return
	}
	transport, _ := r.Uint32(stun.RequestedTransport) // the first byte is the protocol, that of the next the family
	family, _ := r.Uint32(stun.RequestedFamily)
	even := r.Get(stun.EvenPort) // the first bit asks for the next port too
	switch {
	case transport>>24 != 0 && transport>>24 != transportUDP:
		// RFC 8656 section 7.2: a transport that is not supported is a 442. pion would take TCP.
		r.code = stun.CodeTransport
	case r.Has(stun.ReservationToken) || even != nil && (even[0]&0x80 != 0 || !g.server.refusals.allow(r.src.Addr(), g.server.since())):
		// pion remembers a reservation for 30 s for each EVEN-PORT, asked for or not; the limit bounds that list.
		r.code = stun.CodeInsufficient
	case !g.server.reach.Load().public[family>>24 != familyIPv6].IsValid():
		r.code = stun.CodeFamily
	}
	if g.find(r.src) != nil {
		r.code = 0 // then it is a 437 in any case, or a repetition
	}
}

// admitPeer is asked for the peers of CreatePermission and ChannelBind.
func (g *gate) admitPeer(_ net.Addr, ip net.IP) bool {
	peer, _ := netip.AddrFromSlice(ip) // 4 or 16 bytes, as in the message: a mapped address stays one
	r := &g.now
	a := g.find(r.src)
	policy, limit := &g.server.reach.Load().peerPolicy, g.server.cfg.PeersPerAllocation
	if a == nil || !policy.admitsAddr(peer) {
		r.code = stun.CodeForbidden
		return false
	}
	if r.Method == stun.ChannelBind {
		number, _ := r.Uint32(stun.ChannelNumber)
		to := r.Address(stun.XORPeerAddress)
		if number>>30 != frame.FirstChannel>>14 { // what isChannelData knows
			r.code = stun.CodeBadRequest
			return false
		}
		if !policy.admits(to) {
			r.code = stun.CodeForbidden
			return false
		}
		if n, known := a.channelCount(to); n >= limit && !known {
			r.code = stun.CodeInsufficient
			return false
		}
	}
	if n, known := a.permissionCount(peer); n >= limit && !known {
		r.code = stun.CodeInsufficient
		return false
	}
	return true
}

// onAllocation tells the new allocation its client, before it reads.
func (g *gate) onAllocation(_, _ net.Addr, _, _, _ string, _ net.Addr, _ int) {
	a := g.now.opened
	g.now.opened = nil
	a.client, a.local = g.now.src, g.now.local
	g.mu.Lock()
	g.allocations[a.client] = a
	g.mu.Unlock()
	g.server.inside.add(a)
	g.server.allocations.Add(1) // until nobody reads from it
	g.server.stats.created.Add(1)
}

func (g *gate) onPermission(src, _ net.Addr, _, _, _ string, relayed net.Addr, peer net.IP) {
	if a := g.named(src, relayed); a != nil {
		a.permit(addrOf(peer))
	}
}

// onPermissionEnd is called by pion's timers too.
func (g *gate) onPermissionEnd(src, _ net.Addr, _, _, _ string, relayed net.Addr, peer net.IP) {
	if a := g.named(src, relayed); a != nil {
		a.forbid(addrOf(peer))
	}
}

func (g *gate) onChannel(src, _ net.Addr, _, _, _ string, relayed, peer net.Addr, number uint16) {
	if a := g.named(src, relayed); a != nil {
		a.bind(number, stun.Unmap(peer.(*net.UDPAddr).AddrPort()))
	}
}

// onChannelEnd is called by pion's timers too.
func (g *gate) onChannelEnd(src, _ net.Addr, _, _, _ string, relayed, _ net.Addr, number uint16) {
	if a := g.named(src, relayed); a != nil {
		a.unbind(number)
	}
}

// named finds an allocation by both of its ends: a timer of pion's may fire for one that is gone, when its client has another.
func (g *gate) named(src, relayed net.Addr) *allocation {
	a := g.find(stun.Unmap(src.(*net.UDPAddr).AddrPort()))
	if a == nil || a.relayed != relayed.(*net.UDPAddr).AddrPort() {
		return nil
	}
	return a
}

// addrOf is the peer of an event. A mapped address has not come this far.
func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// generator makes relayed addresses for pion.
type generator struct{ gate *gate }

func (generator) Validate() error { return nil }

// errNoRelay makes pion answer with 508 (Insufficient Capacity), unless the gate puts another code in its place.
var errNoRelay = errors.New("relay: no relayed address")

// AllocatePacketConn makes an allocation. For EVEN-PORT pion calls it first without a user, to see which even port is free,
// and with that port then. Such a trial opens nothing: an even port is looked for when the allocation is made.
func (m generator) AllocatePacketConn(want turn.AllocateListenerConfig) (net.PacketConn, net.Addr, error) {
	g := m.gate
	switch {
	case g.now.code != 0:
		return nil, nil, errNoRelay
	case want.UserID == "":
		return trial{}, &net.UDPAddr{}, nil
	}
	meter := g.server.quota.take(want.UserID)
	if meter == nil {
		g.now.code = stun.CodeQuota
		return nil, nil, errNoRelay
	}
	sock, relayed, err := g.server.openRelayed(want.Network == "udp4", g.now.Has(stun.EvenPort))
	if err != nil {
		g.server.quota.release(want.UserID)
		return nil, nil, err
	}
	a := newAllocation(g, sock, want.UserID, meter, relayed)
	g.server.allocations.Add(1) // until it is closed
	g.now.opened = a
	return a, net.UDPAddrFromAddrPort(relayed), nil
}

// trial is a net.PacketConn that is only closed.
type trial struct{ net.PacketConn }

func (trial) Close() error { return nil }

// openRelayed opens a socket on a random port of the range, an even one if even is set. RFC 8656 section 7.2 asks for ports that cannot be guessed.
func (s *Server) openRelayed(v4, even bool) (*socket, netip.AddrPort, error) {
	reach := s.reach.Load()
	public, bind := reach.public[v4], reach.bind[v4]
	if !public.IsValid() {
		return nil, netip.AddrPort{}, errNoRelay
	}
	for range portTries {
		port := randomPort(s.cfg.MinPort, s.cfg.MaxPort)
		if reach.ports[port] || even && port%2 != 0 {
			continue
		}
		sock, err := openSocket(netip.AddrPortFrom(bind, port), s.socketConfig(false))
		if err == nil {
			return sock, netip.AddrPortFrom(public, port), nil
		}
	}
	return nil, netip.AddrPort{}, errNoRelay
}

// randomPort is uniform over low to high, both included.
func randomPort(low, high uint16) uint16 {
	span := uint64(high-low) + 1
	var b [8]byte
	rand.Read(b[:]) // never fails: it ends the program rather than return an error
	return low + uint16(binary.LittleEndian.Uint64(b[:])%span)
}

// AllocateListener and AllocateConn would serve RFC 6062.
func (generator) AllocateListener(turn.AllocateListenerConfig) (net.Listener, net.Addr, error) {
	return nil, nil, errNoRelay
}

func (generator) AllocateConn(turn.AllocateConnConfig) (net.Conn, error) { return nil, errNoRelay }

// silence is a logger factory whose loggers say nothing.
type silence struct{}

func (silence) NewLogger(scope string) logging.LeveledLogger {
	return logging.NewDefaultLeveledLoggerForScope(scope, logging.LogLevelDisabled, io.Discard)
}
