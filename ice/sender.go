package ice

import (
	"net/netip"

	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// Sender is all that ICE needs of the UDP sockets: one shard's, since all shards share the port. Its methods may be called
// by any goroutine. A single-family [udp.Socket] is one; [PairSender] makes one of a pair.
type Sender interface {
	// SendOne sends Data, borrowed until it returns, from Src to Dst. It may block for some milliseconds.
	SendOne(r udp.Run) error
	// LocalPort is the bound port, of both families.
	LocalPort() uint16
}

// PairSender sends each datagram from the socket of its family.
type PairSender struct{ Pair udp.Pair }

// SendOne fails with [udp.ErrNoFamily] for a family without socket.
func (p PairSender) SendOne(r udp.Run) error {
	s := p.Pair.V6
	if r.Dst.Addr().Is4() {
		s = p.Pair.V4
	}
	if s == nil {
		return udp.ErrNoFamily
	}
	return s.SendOne(r)
}

// LocalPort is the bound port.
func (p PairSender) LocalPort() uint16 { return p.Pair.LocalPort() }

// send sends one STUN message now. No lock may be held.
func (m *Mux) send(from netip.Addr, to netip.AddrPort, b []byte) {
	if err := m.sender.SendOne(udp.Run{Data: b, SegmentSize: len(b), Src: from, Dst: to}); err != nil {
		m.counters.drop(dropSendFailed)
	}
}
