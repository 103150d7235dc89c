package turn

import (
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// server is one TURN server and who uses it.
type server struct {
	// frozen
	addr   netip.AddrPort
	port   uint16 // of its facades
	broken bool   // no client can work with its configuration

	// owned by the goroutine of Relays
	credentials Credentials
	client      *Client
	flights     flights
	interest    map[netip.Addr][]*tenant // who has a permission for this address of a peer
	holders     map[netip.AddrPort]int   // of channels, see Relays.Hold
	leaves      time.Duration            // at the latest, once it is released
	homeless    time.Duration            // until when the tenants wait for another allocation; 0: they have one, or there are none

	// guarded by Relays.mu, written by the goroutine only but for tenants
	status   RelayStatus
	tenants  map[*tenant]struct{}
	former   []netip.AddrPort          // relayed addresses of earlier allocations, by which tenants know the present one
	channels map[netip.AddrPort]uint16 // that are or were bound
	peers    map[uint16]netip.AddrPort // the same
}

// tenant is one agent that uses an allocation.
type tenant struct {
	facade *Facade
	server *server // set when the facade is settled, before it is queued as ready

	pending bool // in Relays.ready; guarded by Relays.mu

	// owned by the goroutine of Relays
	dead   bool
	listed []netip.Addr // where it stands in server.interest
}

// newServer makes one that has asked for nothing. A configuration that no client can work with shows in its status.
func newServer(w RelayServer, port uint16) *server {
	s := &server{
		addr: w.Addr, port: port, credentials: w.Credentials,
		interest: map[netip.Addr][]*tenant{}, holders: map[netip.AddrPort]int{}, tenants: map[*tenant]struct{}{},
		channels: map[netip.AddrPort]uint16{}, peers: map[uint16]netip.AddrPort{},
		status: RelayStatus{Name: w.Name, Server: w.Addr},
	}
	var err error
	if s.client, err = New(Config{Server: w.Addr, Credentials: w.Credentials, Family: relayFamily(w.Addr)}); err != nil {
		s.broken, s.status.Reason = true, err.Error()
		s.client = &Client{server: w.Addr, state: stateRefused}
		for _, op := range []*operation{&s.client.allocation, &s.client.keepalive, &s.client.silence} {
			op.index = unscheduled
		}
	}
	s.status.State = s.client.State()
	return s
}

// relayFamily is the family of relayed addresses to ask for: the one that we reach the server by.
func relayFamily(at netip.AddrPort) Family {
	if at.Addr().Is6() {
		return FamilyIPv6
	}
	return FamilyAny
}

// setCredentials renews the credentials.
func (s *server) setCredentials(now time.Duration, w RelayServer) {
	if err := s.client.SetCredentials(now, w.Credentials); err == nil {
		s.credentials = w.Credentials
	}
}

// note keeps what an output tells. Relays.mu is held.
func (s *server) note(out Output) {
	switch out.Kind {
	case Allocated:
		s.status.Relayed, s.status.Mapped, s.status.Reason = out.Relayed, out.Mapped, ""
	case Lost, Failed, Released:
		s.status.Relayed, s.status.Mapped = netip.AddrPort{}, netip.AddrPort{}
		clear(s.channels)
		clear(s.peers)
		if out.Reason != ReasonNone {
			s.status.Reason = out.Reason.String()
		}
	case ChannelBound:
		if before, ok := s.peers[out.Channel]; ok {
			delete(s.channels, before)
		}
		if before, ok := s.channels[out.Peer]; ok {
			delete(s.peers, before)
		}
		s.channels[out.Peer], s.peers[out.Channel] = out.Channel, out.Peer
	case ChannelLost:
		delete(s.channels, out.Peer)
		delete(s.peers, out.Channel)
	}
}

// serve sends what an agent has queued. It returns false if the agent is gone.
func (s *server) serve(now time.Duration, t *tenant, bound func()) bool {
	if !t.facade.Serve(now, s.client, bound) {
		t.dead = true
		s.unlist(t)
		return false
	}
	for _, a := range t.facade.permitted {
		if !slices.Contains(t.listed, a) {
			t.listed = append(t.listed, a)
			s.interest[a] = append(s.interest[a], t)
		}
	}
	return true
}

func (s *server) unlist(t *tenant) {
	for _, a := range t.listed {
		if i := slices.Index(s.interest[a], t); i >= 0 {
			s.interest[a] = slices.Delete(s.interest[a], i, i+1)
		}
		if len(s.interest[a]) == 0 {
			delete(s.interest, a)
		}
	}
	t.listed = nil
}

// adjust counts the holders of a channel, of which the client knows one.
func (s *server) adjust(now time.Duration, peer netip.AddrPort, by int) {
	before := s.holders[peer]
	after := max(0, before+by)
	switch {
	case before == 0 && after > 0:
		if s.client.state == stateReleasing || s.client.state == stateReleased || s.client.Bind(now, peer) != nil {
			return // whoever holds it has been told Lost, or will be
		}
	case before > 0 && after == 0:
		s.client.Unbind(now, peer)
		delete(s.holders, peer)
		return
	}
	if after > 0 {
		s.holders[peer] = after
	}
}

// mark keeps what is held from being taken for unused.
func (s *server) mark(now time.Duration) {
	for peer := range s.holders {
		s.client.MarkUsed(now, peer)
	}
}

// flights are the latest requests to a server, to measure how long it takes to answer.
type flights struct {
	list [8]flight
	next int
}

type flight struct {
	id    stun.ID
	at    time.Duration
	known bool
}

// left notes a request. What is sent again measures nothing, as nobody knows which of the two is answered.
func (f *flights) left(now time.Duration, b []byte) {
	h, ok := stun.ParseHeader(b)
	if !ok || h.Class != stun.Request { // ChannelData, indications
		return
	}
	id := h.ID
	for i := range f.list {
		if f.list[i].id == id {
			f.list[i].known = false
			return
		}
	}
	f.list[f.next] = flight{id, now, true}
	f.next = (f.next + 1) % len(f.list)
}

// landed tells how long the server took.
func (f *flights) landed(now time.Duration, b []byte) (took time.Duration, ok bool) {
	h, ok := stun.ParseHeader(b)
	if !ok || h.Class != stun.Success && h.Class != stun.Error {
		return 0, false
	}
	id := h.ID
	for i := range f.list {
		if f.list[i].known && f.list[i].id == id {
			f.list[i].known = false
			return now - f.list[i].at, true
		}
	}
	return 0, false
}
