package turn

import (
	"net/netip"
	"time"

	"github.com/pion/stun"
	"github.com/pion/transport/v2"

	"github.com/sluice-vpn/sluice/pipeline"
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
	// Changed is called when Status has changed in a way that matters: an allocation came up or is gone. It must not block.
	Changed func()
	// Lost is called with the server of an allocation that is gone: paths over it are dead. It must not block.
	Lost func(server netip.AddrPort)
}

// RelayStatus is what has become of one server.
type RelayStatus struct {
	Name    string         `json:"name"`
	Server  netip.AddrPort `json:"server"`
	State   string         `json:"state"` // Client.State
	Relayed netip.AddrPort `json:"relayed,omitzero"`
	Mapped  netip.AddrPort `json:"mapped,omitzero"`
	// RoundTrip of the latest answer, 0 before the first.
	RoundTrip time.Duration `json:"round_trip_ns,omitempty"`
	Reason    string        `json:"reason,omitempty"` // why there is no allocation
}

// Relays keeps an allocation on each of several TURN servers over the pipeline's sockets, and gives every ICE agent of the
// process relayed candidates of them (it is an ice.Relay). It owns one goroutine. Its methods may be called by any goroutine.
type Relays struct{}

// NewRelays starts without servers.
func NewRelays(cfg RelaysConfig) *Relays { return &Relays{} }

// SetServers says which servers to use, at most 8: new ones are asked for an allocation, those that are gone are released,
// of the others the credentials are renewed. IPv4 and IPv6 servers alike.
func (r *Relays) SetServers(servers []RelayServer) {}

// Servers are the addresses of the present servers, for Pipeline.SetRelays.
func (r *Relays) Servers() []netip.AddrPort { return nil }

// Receive takes a datagram that came from one of the servers: an answer, a Data indication, or the payload of ChannelData
// (Stray.Channel is not 0). It returns false if Src is none of them. It never blocks; Data is borrowed.
func (r *Relays) Receive(s pipeline.Stray) bool { return false }

// URLs, Net and Path make it an ice.Relay. URLs are of the two nearest servers whose allocation is up.
func (r *Relays) URLs() []*stun.URI { return nil }

// Net is what pion's TURN client runs in.
func (r *Relays) Net() transport.Net { return nil }

// Path is how a peer's address is reached from a relayed address: over the channel that was bound to it.
func (r *Relays) Path(relayed, remote netip.AddrPort) (p pipeline.Path, ok bool) { return p, false }

// Hold keeps the channel of a path bound and refreshed until release is called, whatever becomes of the agent that found it.
// A path without channel needs no holding; then release does nothing.
func (r *Relays) Hold(path pipeline.Path) (release func()) { return func() {} }

// Probe asks every server for a sign of life now: a path is in doubt, or the network has changed.
func (r *Relays) Probe() {}

// Status describes the servers, in the order of SetServers.
func (r *Relays) Status() []RelayStatus { return nil }

// Counters returns what was counted, by name: drops as drop_turn_REASON, the rest with the prefix turn_.
func (r *Relays) Counters() []pipeline.Counter { return nil }

// Close releases the allocations without waiting for the servers, and ends the goroutine.
func (r *Relays) Close() error { return nil }
