package turn

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/stun"
	"github.com/pion/transport/v2"

	"github.com/sluice-vpn/sluice/ice"
	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// RelayServer is one TURN server that may be used.
type RelayServer struct {
	Name        string // for status and logs
	Addr        netip.AddrPort
	Credentials Credentials
}

// RelaysConfig describes Relays. Sender is required.
type RelaysConfig struct {
	// Sender sends from the pipeline's sockets; any goroutine.
	Sender interface{ SendOne(udp.Run) error }
	// Changed is called when Status has changed in a way that matters: an allocation came up, is gone, or was not to be had. It must not block.
	Changed func()
	// Lost is called with the server of an allocation that is gone: paths over it are dead. It must not block.
	Lost func(server netip.AddrPort)
	// Moved is called with a server that has given another allocation in the place of one that was gone, since a NAT has mapped us
	// anew: paths over it lead on, and their peers see us at another relayed address. It must not block.
	Moved func(server netip.AddrPort)
	// Clock reads a monotonic clock with any origin before now, best one that runs in suspend, as allocations run out then too.
	// nil is the runtime's.
	Clock func() time.Duration
}

// RelayStatus is what has become of one server.
type RelayStatus struct {
	Name    string         `json:"name"`
	Server  netip.AddrPort `json:"server"`
	State   string         `json:"state"` // Client.State
	Relayed netip.AddrPort `json:"relayed,omitzero"`
	Mapped  netip.AddrPort `json:"mapped,omitzero"`
	// RoundTripS is that of the latest answer, 0 before the first.
	RoundTripS float64 `json:"round_trip_s,omitempty"`
	Reason     string  `json:"reason,omitempty"` // why there is no allocation
}

const (
	maxServers = 8
	maxURLs    = 2 // servers that an agent is given
	inboxSlots = 1024
	// inboxBytes is the longest datagram that is taken: a check with its ChannelData header or indication, and then some.
	inboxBytes = 2048
)

// Relays keeps an allocation on each of several TURN servers over the pipeline's sockets, and gives every ICE agent of the
// process relayed candidates of them (it is an ice.Relay). It owns one goroutine. Its methods may be called by any goroutine.
type Relays struct {
	// frozen
	config RelaysConfig
	inbox  chan *arrived
	wake   chan struct{}
	ended  chan struct{}

	known   atomic.Pointer[[]netip.AddrPort] // whose datagrams Receive takes
	buffers sync.Pool                        // of *arrived
	counts  relayCounts

	// owned by the goroutine
	leaving  []*server // released, and not answered yet
	nextMark time.Duration
	nextPort uint16
	lost     []netip.AddrPort // to be told
	moved    []netip.AddrPort // likewise
	bound    []*tenant        // likewise: they wait for a channel, and one is there
	changed  bool             // likewise

	mu      sync.Mutex // a leaf
	closed  bool
	wanted  []RelayServer
	news    bool // wanted is newer than servers
	probe   bool
	ready   []*tenant // whose facades have work
	deltas  map[hold]int
	servers []*server // written by the goroutine only
}

// arrived is a datagram on its way from a shard.
type arrived struct {
	src     netip.AddrPort
	channel uint16
	size    int
	data    [inboxBytes]byte
}

// hold is a channel that a path needs.
type hold struct {
	server *server
	peer   netip.AddrPort
}

// NewRelays starts without servers.
func NewRelays(cfg RelaysConfig) *Relays {
	if cfg.Clock == nil {
		origin := time.Now().Add(-time.Second) // so that now is positive
		cfg.Clock = func() time.Duration { return time.Since(origin) }
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.Lost == nil {
		cfg.Lost = func(netip.AddrPort) {}
	}
	if cfg.Moved == nil {
		cfg.Moved = func(netip.AddrPort) {}
	}
	r := &Relays{
		config: cfg, inbox: make(chan *arrived, inboxSlots), wake: make(chan struct{}, 1), ended: make(chan struct{}),
		deltas: map[hold]int{},
	}
	r.buffers.New = func() any { return new(arrived) }
	r.known.Store(new([]netip.AddrPort))
	go r.run()
	return r
}

// Format prints no more than the type, since Relays holds secrets.
func (r *Relays) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "turn.Relays") }

// rouse lets the goroutine look at what is under mu.
func (r *Relays) rouse() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// SetServers says which servers to use, at most 8: new ones are asked for an allocation, those that are gone are released,
// of the others the credentials are renewed. IPv4 and IPv6 servers alike; the relayed address is of the server's family. Of
// two with one address the first counts.
func (r *Relays) SetServers(servers []RelayServer) {
	var list []RelayServer
	for _, s := range servers {
		s.Addr = netip.AddrPortFrom(s.Addr.Addr().Unmap(), s.Addr.Port())
		twice := slices.ContainsFunc(list, func(l RelayServer) bool { return l.Addr == s.Addr })
		if !twice && len(list) < maxServers {
			list = append(list, s)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.wanted, r.news = list, true
		r.rouse()
	}
}

// Servers are the addresses of the present servers, for Pipeline.SetRelays.
func (r *Relays) Servers() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []netip.AddrPort
	for _, s := range r.wanted {
		list = append(list, s.Addr)
	}
	return list
}

// Receive takes a datagram that came from one of the servers: an answer, a Data indication, or the payload of ChannelData
// (channel is not 0). It returns false if src is none of them. It never blocks; data is borrowed.
func (r *Relays) Receive(src netip.AddrPort, channel uint16, data []byte) bool {
	if !slices.Contains(*r.known.Load(), src) {
		return false
	}
	if len(data) > inboxBytes {
		r.counts.TooLong.Add(1)
		return true
	}
	a := r.buffers.Get().(*arrived)
	a.src, a.channel, a.size = src, channel, copy(a.data[:], data)
	select {
	case r.inbox <- a:
	default:
		r.buffers.Put(a)
		r.counts.InboxFull.Add(1)
	}
	return true
}

// URLs, Net and Channel make it an ice.Relay. URLs are of the two nearest servers whose allocation is up, the nearest first. They
// name no server but a Facade, and carry no secret.
func (r *Relays) URLs() []*stun.URI {
	r.mu.Lock()
	defer r.mu.Unlock()
	var up []*server
	for _, s := range r.servers {
		if s.status.Relayed.IsValid() {
			up = append(up, s)
		}
	}
	slices.SortStableFunc(up, func(a, b *server) int { return cmp.Compare(a.status.RoundTripS, b.status.RoundTripS) })
	var list []*stun.URI
	for _, s := range up[:min(len(up), maxURLs)] {
		list = append(list, &stun.URI{
			Scheme: stun.SchemeTypeTURN, Proto: stun.ProtoTypeUDP, Host: FacadeHost, Port: int(s.port),
			Username: FacadeUsername, Password: FacadePassword,
		})
	}
	return list
}

// Net is what the TURN client of one agent runs in. Without a gate it has no sockets.
func (r *Relays) Net(gate *ice.Gate) transport.Net { return relayNet{relays: r, gate: gate} }

// Channel is how a peer's address is reached from a relayed address: over the channel of the server that was bound to it.
func (r *Relays) Channel(relayed, remote netip.AddrPort) (server netip.AddrPort, channel uint16, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.servers {
		if s.status.Relayed.IsValid() && (s.status.Relayed == relayed || slices.Contains(s.former, relayed)) {
			channel, ok = s.channels[remote]
			return s.addr, channel, ok
		}
	}
	return server, 0, false
}

// Peer is whose channel of ours it is on the server at that address. ok is false if it is bound to nobody.
func (r *Relays) Peer(server netip.AddrPort, channel uint16) (peer netip.AddrPort, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.servers {
		if s.addr == server {
			peer, ok = s.peers[channel]
		}
	}
	return peer, ok
}

// Hold keeps a channel of the server at that address bound and refreshed until release is called, whatever becomes of the agent that wanted it.
// Channel 0 is none, and needs no holding; then release does nothing.
func (r *Relays) Hold(at netip.AddrPort, channel uint16) (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.servers, func(s *server) bool { return s.addr == at })
	if channel == 0 || i < 0 || r.closed {
		return func() {}
	}
	h := hold{server: r.servers[i]}
	var ok bool
	if h.peer, ok = h.server.peers[channel]; !ok {
		return func() {}
	}
	r.adjust(h, 1)
	var once sync.Once
	return func() {
		once.Do(func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.adjust(h, -1)
		})
	}
}

// adjust counts the holders of a channel. mu is held.
func (r *Relays) adjust(h hold, by int) {
	if r.closed {
		return
	}
	if r.deltas[h] += by; r.deltas[h] == 0 {
		delete(r.deltas, h)
	}
	r.rouse()
}

// Probe asks every server for a sign of life now: a path is in doubt, or the network has changed.
func (r *Relays) Probe() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.probe = !r.closed
	r.rouse()
}

// Status describes the servers, in the order of SetServers.
func (r *Relays) Status() []RelayStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []RelayStatus
	for _, s := range r.servers {
		list = append(list, s.status)
	}
	return list
}

// Close releases the allocations without waiting for the servers, and ends the goroutine. It must not be called by Changed or
// Lost.
func (r *Relays) Close() error {
	r.mu.Lock()
	r.closed, r.wanted = true, nil
	r.deltas, r.probe, r.news = map[hold]int{}, false, false
	r.rouse()
	r.mu.Unlock()
	<-r.ended
	return nil
}

// publish makes known whose datagrams are taken.
func (r *Relays) publish() {
	known := map[netip.AddrPort]bool{}
	for _, s := range append(slices.Clone(r.servers), r.leaving...) {
		known[s.addr] = true
	}
	list := slices.Collect(maps.Keys(known))
	r.known.Store(&list)
}
