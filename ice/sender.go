package ice

import (
	"net/netip"

	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// Sender is all that ICE needs of the UDP sockets: one shard's, since all shards share the port. Its methods may be called
// by any goroutine. A single-family [udp.Socket] is one.
type Sender interface {
	// SendOne sends Data, borrowed until it returns, from Src to Dst. It may block for some milliseconds.
	SendOne(r udp.Run) error
	// LocalPort is the bound port, of both families.
	LocalPort() uint16
}

// send sends one STUN message now. No lock may be held.
func (m *Mux) send(from netip.Addr, to netip.AddrPort, b []byte) {
	if err := m.sender.SendOne(udp.Run{Data: b, SegmentSize: len(b), Src: from, Dst: to}); err != nil {
		m.counters.drop(dropSendFailed)
	}
}
