package pipeline

import (
	"net/netip"

	"github.com/sluice-vpn/sluice/pipeline/frame"
	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// Path is where a peer's datagrams go. A Path is frozen: every change publishes a new one, or one that was left before;
// lanes load it once a batch. It is a plain peer's endpoint as roaming left it, or where the link of a named one leads.
type Path struct {
	// Dst is the peer's address, or the relay's when Channel is not 0.
	Dst netip.AddrPort
	// Src and IfIndex are the local address and interface the peer last wrote to ("sticky source"); unset leaves the choice
	// to the routing table, and so does a source that is forgotten.
	Src     netip.Addr
	IfIndex int
	source  sourceState
	// Channel is the TURN channel number (RFC 8656, section 12) that leads to the peer through the relay at Dst, or 0.
	Channel uint16
	// Peer is set only where something came from, and there only if the relay at Dst has passed it on in a Data indication (RFC 8656,
	// section 11.4), since no channel is bound to the peer's address: which that is, as the relay sees it. Nothing is sent this way.
	Peer netip.AddrPort
	// Relayed: a TURN relay is in between, ours or the peer's. For logs and status.
	Relayed bool
	// Fixed: authenticated datagrams from elsewhere do not move the path (the selected pair owns the endpoint).
	Fixed bool
	// Number counts the paths of a connection, so that what was decided for an older one can be told apart. 0 for a plain peer.
	Number PathNumber
}

// sourceState is what control knows of a path's Src.
type sourceState uint8

const (
	sourceUnchecked sourceState = iota // used, until control has looked
	sourceHeld                         // its route leads to IfIndex
	sourceForgotten                    // it leads elsewhere, or nowhere
)

// origin is the way back to where a datagram came from, over a relay's channel or 0.
func origin(m *udp.Datagrams, channel uint16) Path {
	return Path{Dst: m.Src, Src: m.Dst, IfIndex: m.IfIndex, Channel: channel, Relayed: channel != 0}
}

// sameEndpoint tells whether what came from the origin from came over p.
func (p *Path) sameEndpoint(from *Path) bool {
	return p.Dst == from.Dst && p.Src == from.Src && p.IfIndex == from.IfIndex && p.Channel == from.Channel && p.Peer == from.Peer
}

// overhead is how many bytes stand before each message on the path.
func (p *Path) overhead() int {
	if p.Channel != 0 {
		return frame.ChannelHeaderSize
	}
	return 0
}

// pathKey is where a path leads, without where it begins.
type pathKey struct {
	dst     netip.AddrPort
	channel uint16
}

func (p *Path) key() pathKey { return pathKey{p.Dst, p.Channel} }

// Stray is a datagram that is not WireGuard, given to Config.Stray. Data is borrowed until the call returns.
type Stray struct {
	Data []byte
	Src  netip.AddrPort
	// Channel is the TURN channel that Data came over, its ChannelData header stripped; Src is the relay then. 0: none.
	Channel uint16
	Dst     netip.Addr
	IfIndex int
}

// PathNumber numbers the paths of a connection, from 1.
type PathNumber uint32
