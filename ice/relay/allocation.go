package relay

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// allocation is one relayed transport address and the permissions and channels of its client. To pion it is the
// net.PacketConn on the peer's side.
//
// It is made by the gate when pion asks for a relayed address, told its client when pion has accepted the allocation, and
// closed by pion when the allocation ends; the goroutine that reads is pion's and ends then. pion tells of permissions and
// channels as they come and go; those books are kept a second time here, so that each datagram is checked by us, whatever
// pion did.
type allocation struct {
	// frozen before the first datagram
	gate    *gate
	sock    *socket
	user    string         // see userOf
	meter   *meter         // of the user
	relayed netip.AddrPort // what the client is told
	client  netip.AddrPort
	local   netip.Addr // where the client reaches us; invalid if the system does not tell

	// owned by the gate's reading goroutine: when the allocation ends unless it is refreshed, ns since the server's start
	expires int64

	// owned by the goroutine that reads
	work  *scratch // nil while nothing is under way
	train received // datagrams of peers without channel that wait for pion, views into work

	mu          sync.RWMutex
	permissions map[netip.Addr]bool
	peers       map[uint16]netip.AddrPort // by channel number
	channels    map[netip.AddrPort]uint16
	closed      bool
}

func newAllocation(g *gate, s *socket, user string, m *meter, relayed netip.AddrPort) *allocation {
	return &allocation{
		gate: g, sock: s, user: user, meter: m, relayed: relayed,
		permissions: map[netip.Addr]bool{},
		peers:       map[uint16]netip.AddrPort{},
		channels:    map[netip.AddrPort]uint16{},
	}
}

// permit and the three below follow pion's books.
func (a *allocation) permit(peer netip.Addr) {
	a.mu.Lock()
	a.permissions[peer] = true
	a.mu.Unlock()
}

func (a *allocation) forbid(peer netip.Addr) {
	a.mu.Lock()
	delete(a.permissions, peer)
	a.mu.Unlock()
}

func (a *allocation) bind(number uint16, peer netip.AddrPort) {
	a.mu.Lock()
	a.peers[number], a.channels[peer] = peer, number
	a.mu.Unlock()
}

func (a *allocation) unbind(number uint16) {
	a.mu.Lock()
	delete(a.channels, a.peers[number])
	delete(a.peers, number)
	a.mu.Unlock()
}

// permissionCount and channelCount are what the quotas look at.
func (a *allocation) permissionCount(peer netip.Addr) (count int, known bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return len(a.permissions), a.permissions[peer]
}

func (a *allocation) channelCount(peer netip.AddrPort) (count int, known bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	_, known = a.channels[peer]
	return len(a.channels), known
}

// permitted reports whether datagrams may go to peer and come from it, and counts why not.
func (a *allocation) permitted(peer netip.AddrPort, datagrams int) bool {
	a.mu.RLock()
	ok := a.permissions[peer.Addr()]
	a.mu.RUnlock()
	return a.checked(ok, peer, datagrams)
}

// checked is the part of permitted that needs no lock.
func (a *allocation) checked(permission bool, peer netip.AddrPort, datagrams int) bool {
	stats := &a.gate.server.stats
	switch {
	case !permission:
		stats.dropN(dropNoPermission, datagrams)
	case !a.gate.server.reach.Load().admits(peer):
		stats.dropN(dropPeerDenied, datagrams)
	case peer.Addr().Is4() != a.relayed.Addr().Is4():
		stats.dropN(dropPeerFamily, datagrams)
	default:
		return true
	}
	return false
}

// metered reports whether so many bytes are within what the user may have relayed, and counts if not.
func (a *allocation) metered(bytes, datagrams int) bool {
	s := a.gate.server
	rate := s.cfg.BytesPerSecondPerUser
	if rate == 0 || a.meter.allow(bytes, rate, s.since()) {
		return true
	}
	s.stats.dropN(dropRate, datagrams)
	return false
}

// toChannel relays datagrams of segment bytes each, the last may be shorter, to the peer of a channel.
//
// A channel that outlives its permission (10 minutes against 5, RFC 8656 sections 9 and 12) relays nothing.
func (a *allocation) toChannel(number uint16, data []byte, segment int, oob []byte) {
	datagrams := segments(len(data), segment)
	a.mu.RLock()
	peer, bound := a.peers[number]
	permission := a.permissions[peer.Addr()]
	a.mu.RUnlock()
	if !bound {
		a.gate.server.stats.dropN(dropNoChannel, datagrams)
		return
	}
	if a.checked(permission, peer, datagrams) && a.metered(len(data), datagrams) {
		failed := a.pass(peer, data, segment, oob)
		a.gate.server.stats.sent(toPeer, datagrams, failed, len(data), segment)
	}
}

// WriteTo sends a datagram to a peer: what pion found in a Send indication. A datagram that is dropped is no error.
func (a *allocation) WriteTo(p []byte, addr net.Addr) (int, error) {
	udpAddr, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, net.InvalidAddrError("not a UDP address")
	}
	peer := udpAddr.AddrPort() // as in the message: a mapped address stays one, and has no permission
	if a.permitted(peer, 1) && a.metered(len(p), 1) {
		var oob [64]byte
		a.gate.server.stats.sent(toPeer, 1, a.pass(peer, p, max(len(p), 1), oob[:0]), len(p), len(p))
	}
	return len(p), nil
}

// ReadFrom relays what peers send. Datagrams of a peer with a channel go to the client at once; it returns those of a peer
// that has only a permission, for pion to make Data indications of them. p is longer than any datagram that is returned.
func (a *allocation) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		if len(a.train.data) > 0 {
			one := a.train.data[:min(a.train.segment, len(a.train.data))]
			a.train.data = a.train.data[len(one):]
			if len(one) > len(p) {
				a.gate.server.stats.drop(dropOversized)
				continue
			}
			a.gate.server.stats.relayed(toClient, 1, len(one))
			return copy(p, one), net.UDPAddrFromAddrPort(a.train.src), nil
		}
		a.rest()
		if err := a.sock.wait(); err != nil {
			return a.end(err)
		}
		a.work = scratches.Get().(*scratch)
		r, err := a.sock.receive(a.work.in[:])
		if a.gate.server.receiveFailed(err) {
			a.rest()
			return a.end(err)
		}
		if err == nil && a.fromPeer(r, a.work) {
			a.train = r
		}
	}
}

// end ends reading. Where pion has closed the allocation it ends pion's goroutine as well: that would delete the allocation
// of this 5-tuple once more, and by then the client may have made another there.
func (a *allocation) end(err error) (int, net.Addr, error) {
	a.gate.server.allocations.Done()
	if errors.Is(err, net.ErrClosed) {
		runtime.Goexit()
	}
	return 0, nil, err
}

// rest gives the working memory back.
func (a *allocation) rest() {
	a.train = received{}
	if a.work != nil {
		scratches.Put(a.work)
		a.work = nil
	}
}

// fromPeer relays datagrams of one peer to the client, or reports that they are for pion, since the peer has no channel.
func (a *allocation) fromPeer(r received, work *scratch) (forPion bool) {
	datagrams := segments(len(r.data), r.segment)
	a.mu.RLock()
	permission := a.permissions[r.src.Addr()]
	number, bound := a.channels[r.src]
	a.mu.RUnlock()
	switch {
	case !a.checked(permission, r.src, datagrams), !a.metered(len(r.data), datagrams):
		return false
	case bound:
		a.gate.server.stats.sent(toClient, datagrams, a.frame(number, r, work), len(r.data), r.segment)
		return false
	}
	return len(r.data) > 0 // pion's ReadFrom could not tell an empty datagram from none
}

// frame sends datagrams to the client as ChannelData, in runs that the kernel cuts.
func (a *allocation) frame(number uint16, r received, work *scratch) (failed int) {
	out, data := work.out[:0], r.data
	step := frame.ChannelHeaderSize + min(r.segment, max(len(data), 1))
	limit := max(1, maxRun/step) * step
	for first := true; first || len(data) > 0; first = false {
		one := data[:min(r.segment, len(data))]
		head := len(out)
		out = append(out, 0, 0, 0, 0)
		frame.PutChannelHeader(out[head:], number, uint16(len(one)))
		out = append(out, one...)
		if data = data[len(one):]; len(data) == 0 || len(out)+step > limit {
			failed += a.gate.sock.send(out, step, a.client, a.local, work.oob[:])
			out = out[:0]
		}
	}
	return failed
}

// LocalAddr is the relayed transport address.
func (a *allocation) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(a.relayed) }

// Close frees the port and the quota. pion calls it when the allocation ends; it may be called again.
func (a *allocation) Close() error {
	a.mu.Lock()
	closed := a.closed
	a.closed = true
	a.mu.Unlock()
	if !closed {
		a.gate.forget(a)
		a.sock.conn.Close()
		a.gate.server.allocations.Done()
	}
	return nil
}

// The deadlines of net.PacketConn are not used by pion on this side.
var errNoDeadline = errors.New("relay: deadlines are not supported")

func (a *allocation) SetDeadline(time.Time) error      { return errNoDeadline }
func (a *allocation) SetReadDeadline(time.Time) error  { return errNoDeadline }
func (a *allocation) SetWriteDeadline(time.Time) error { return errNoDeadline }

// segments is how many datagrams n bytes are; nothing is one empty datagram.
func segments(n, segment int) int { return max(1, (n+segment-1)/max(segment, 1)) }

func countError(err error) int {
	if err != nil {
		return 1
	}
	return 0
}
