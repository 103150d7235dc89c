package edge

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

// What may go wrong in a world.

// move gives the node another address on the network, which it notices.
func (n *node) move(place uint16) {
	old := n.outer()
	n.host.AddAddress(outer(place))
	n.place.Store(uint32(place))
	n.host.RemoveAddress(old)
	n.w.lay()
	n.edge.NetworkChanged()
}

// crash ends the node without a word to anybody.
func (n *node) crash() {
	_ = n.memory.Close()
	n.close()
}

// line is a node's Signaler as long as it is not cut off. Of what world.lose says nothing arrives, and Send waits in vain for as
// long as a Bus does.
type line struct {
	*signal.Memory
	node *node
}

// cutOff cuts a node off from the portal or connects it again.
func (w *world) cutOff(name string, off bool) { w.off.Store(name, off) }

func (w *world) isOff(name string) bool {
	off, _ := w.off.Load(name)
	return off == true
}

// Send fails as it does at a real portal.
func (l line) Send(ctx context.Context, to string, msg signal.Message) error {
	switch {
	case l.node.w.isOff(l.node.name):
		return fmt.Errorf("cut off: %w", signal.ErrDown)
	case l.node.w.isOff(to):
		return fmt.Errorf("%s is cut off: %w", to, signal.ErrAbsent)
	case l.node.w.lose != nil && l.node.w.lose(to, msg):
		select {
		case <-time.After(5 * time.Second):
			return signal.ErrUnanswered
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return l.Memory.Send(ctx, to, msg)
}

// direct says whether nodes reach one another without a relay.
func (w *world) direct(may bool) {
	w.relayOnly = !may
	w.lay()
}

// cut cuts a node's cable or joins it again.
func (w *world) cut(n *node, off bool) {
	if w.severed == nil {
		w.severed = make(map[*node]bool)
	}
	w.severed[n] = off
	w.lay()
}

// lay makes the network what direct and cut say.
func (w *world) lay() {
	direct, severed, relayless := !w.relayOnly, make(map[netip.Addr]bool), netip.Addr{}
	for n, off := range w.severed {
		severed[n.outer()] = severed[n.outer()] || off
	}
	if w.relayless != nil {
		relayless = w.relayless.outer()
	}
	between := func(a netip.AddrPort) bool { return a.Addr().As4()[0] == 198 }
	w.network.Hook(func(d *udptest.Datagram) bool {
		return (direct || !between(d.Src) || !between(d.Dst)) && !severed[d.Src.Addr()] && !severed[d.Dst.Addr()] &&
			(d.Src.Addr() != relayless || d.Dst.Port() != 3478)
	})
}
