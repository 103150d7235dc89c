package relay

import (
	"crypto/rand"
	"net/netip"
	"sync"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// neighbours are the allocations of all gates by relayed address. What one sends to another stays inside the process: our own
// public address leads back to us only where it is one of this machine's, or a NAT is so kind (RFC 4787 section 6 calls it
// hairpinning; the 1:1 NATs of clouds are not).
type neighbours struct {
	mu    sync.RWMutex
	table map[netip.AddrPort]*allocation
}

func (n *neighbours) add(a *allocation) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.table == nil {
		n.table = map[netip.AddrPort]*allocation{}
	}
	n.table[a.relayed] = a
}

func (n *neighbours) remove(a *allocation) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.table[a.relayed] == a {
		delete(n.table, a.relayed)
	}
}

// find returns the allocation with that relayed address, or nil.
func (n *neighbours) find(relayed netip.AddrPort) *allocation {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.table[relayed]
}

// pass sends datagrams of segment bytes each, the last may be shorter, to a peer: to the allocation that has this address, or by
// the socket. It returns how many the kernel did not take. The peer is permitted; data and oob are borrowed.
func (a *allocation) pass(peer netip.AddrPort, data []byte, segment int, oob []byte) (failed int) {
	if other := a.gate.server.inside.find(peer); other != nil {
		other.accept(received{data: data, segment: max(segment, 1), src: a.relayed})
		return 0
	}
	if len(data) == 0 {
		return countError(a.sock.sendOne(nil, peer, netip.Addr{}))
	}
	return a.sock.send(data, segment, peer, netip.Addr{}, oob)
}

// accept takes what another allocation of this server sends, and treats it like what comes by the wire. Any goroutine; r.data is
// borrowed.
func (a *allocation) accept(r received) {
	work := scratches.Get().(*scratch)
	defer scratches.Put(work)
	if a.fromPeer(r, work) {
		a.indicate(r, work)
	}
}

// indicate sends each datagram to the client as a Data indication (RFC 8656 section 11.3), which pion makes of what comes by the
// wire.
func (a *allocation) indicate(r received, work *scratch) {
	for len(r.data) > 0 {
		one := r.data[:min(r.segment, len(r.data))]
		r.data = r.data[len(one):]
		if frame.HeaderSize+maxPeerAttr+4+len(one)+3 > maxMessage {
			a.gate.server.stats.drop(dropOversized)
			continue
		}
		var id stun.ID
		rand.Read(id[:]) // never fails: it ends the program rather than return an error
		w := stun.Build(work.out[:0], stun.Indication, stun.DataMethod, id)
		w.XORAddress(stun.XORPeerAddress, r.src)
		w.Add(stun.Data, one)
		a.gate.server.stats.relayed(toClient, 1, len(one))
		a.gate.send(w.Bytes(), a.client, a.local)
	}
}

// maxPeerAttr is the size of an XOR-PEER-ADDRESS of IPv6 with its head.
const maxPeerAttr = 4 + 20
