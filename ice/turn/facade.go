package turn

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/ice"
	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// What an agent is told to use as its TURN server. The address is one for documentation (RFC 5737) and never sent to: a Facade
// answers in its place. It is IPv4 whatever the real server is, since pion/ice v2 resolves its servers as IPv4 only. Where
// there are several servers, each has a port of its own, from FacadePort on.
const (
	FacadeHost     = "192.0.2.1"
	FacadePort     = 3478
	FacadeUsername = "facade"
	FacadePassword = "facade" // not a secret: nobody but the agent can reach a Facade
)

const (
	facadeQueue    = 64 // datagrams each way
	facadeChannels = 64 // as the agent's client counts them
	facadeLifetime = 10 * time.Minute
)

// facadeAddr is where a Facade answers that stands for one server only.
var facadeAddr = netip.AddrPortFrom(netip.MustParseAddr(FacadeHost), FacadePort)

// errNoAllocation is what an agent gets whose allocation is gone before it wrote a word.
var errNoAllocation = errors.New("turn: the server has no allocation for us")

// Facade plays TURN server to one ICE agent, within the process, on behalf of the allocation that all agents share. It is the
// net.PacketConn that the agent's TURN client believes to be its socket: requests are answered on the spot, so the agent never waits
// for a server, not even when it is closed. What the agent sends to peers waits in a queue for Serve; what peers send comes in
// by Deliver. Both queues are bounded, and what does not fit is dropped and counted.
//
// The methods of net.PacketConn may be called by any goroutine; Serve, Deliver and Drop by the one that owns the Client.
type Facade struct {
	// frozen
	wake   func()
	choose func(at netip.AddrPort) (relayed, mapped netip.AddrPort, ok bool)
	gate   *ice.Gate // nil in tests: nothing stands between the agent and its peers
	down   chan []byte
	up     chan facadeDatagram
	closed chan struct{}

	// owned by the Client's goroutine
	permitted []netip.Addr
	held      []netip.AddrPort // whose channels

	// atomic
	lost atomic.Uint64

	mu              sync.Mutex // before Relays.mu; never held when the gate is called
	shut            bool
	at              netip.AddrPort // what the agent takes it for; invalid: its first datagram will tell
	relayed, mapped netip.AddrPort
	checks          *ice.Relayed              // of the gate; nil before relayed is known
	channels        map[uint16]netip.AddrPort // the agent's numbers, which are not those of the Client
}

// facadeDatagram is a payload on its way to a peer. data is owned; nil: a channel to the peer is wanted.
type facadeDatagram struct {
	peer netip.AddrPort
	data []byte
}

// newFacade makes one that learns its allocation from choose, once the agent has written to the address of a server; the
// agent's lock stands behind the gate.
func newFacade(gate *ice.Gate, wake func(), choose func(at netip.AddrPort) (relayed, mapped netip.AddrPort, ok bool)) *Facade {
	return &Facade{
		gate: gate, wake: wake, choose: choose, down: make(chan []byte, facadeQueue), up: make(chan facadeDatagram, facadeQueue),
		closed: make(chan struct{}), channels: make(map[uint16]netip.AddrPort),
	}
}

// Serve sends what the agent has queued. Each peer's address gets a permission first, and what is sent before that is there is dropped,
// as ICE asks again soon; a channel only the peer whose pair the agent is about to select, or one that names addresses would fill the
// allocation. bound is called if that is there already. Once the agent has closed its side both are let go of, and Serve returns false.
func (f *Facade) Serve(now time.Duration, c *Client, bound func()) bool {
	for range facadeQueue + 1 {
		select {
		case <-f.closed:
			f.Drop(now, c)
			return false
		default:
		}
		select {
		case d := <-f.up:
			switch {
			case !f.permit(now, c, d.peer.Addr()):
				f.lost.Add(1)
			case d.data != nil:
				if !c.Send(now, d.peer, d.data) && !c.SendIndication(now, d.peer, d.data) {
					f.lost.Add(1)
				}
			case f.hold(now, c, d.peer):
				if _, ok := c.Channel(d.peer); ok {
					bound()
				}
			}
		default:
			return true
		}
	}
	return true
}

// share is what the agent's peer may have.
func (f *Facade) share() *ice.Share {
	if f.gate == nil {
		return new(ice.Share)
	}
	return f.gate.Share()
}

// permit gets a permission for the address for as long as the agent lives.
func (f *Facade) permit(now time.Duration, c *Client, peer netip.Addr) bool {
	if slices.Contains(f.permitted, peer) {
		return true
	}
	if !f.share().Permit(now, peer) || c.Permit(now, peer) != nil {
		return false
	}
	f.permitted = append(f.permitted, peer)
	return true
}

// hold binds a channel to the peer for as long as the agent lives.
func (f *Facade) hold(now time.Duration, c *Client, peer netip.AddrPort) bool {
	if slices.Contains(f.held, peer) {
		return true
	}
	if !f.share().Bind(now, peer, len(c.numbers) >= scarce) || c.Bind(now, peer) != nil {
		return false
	}
	f.held = append(f.held, peer)
	return true
}

// Drop lets go of what the agent has. It serves on if somebody else holds it.
func (f *Facade) Drop(now time.Duration, c *Client) {
	for _, p := range f.held {
		c.Unbind(now, p)
	}
	for _, a := range f.permitted {
		c.Forbid(now, a)
	}
	f.held, f.permitted = nil, nil
}

// gateway is where checks of the agent's peers pass; nil before it has written to a server.
func (f *Facade) gateway() *ice.Relayed {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.checks
}

// Deliver gives the agent what a peer sent; data is borrowed until it returns.
func (f *Facade) Deliver(peer netip.AddrPort, data []byte) {
	b := indication(stun.DataMethod, stun.ID{}, peer, data)
	if b == nil {
		f.lost.Add(1)
		return
	}
	f.push(b)
}

// Lost returns how many datagrams were dropped, either way, because a queue was full, a peer had no channel yet, or there was no
// sense in them. Any goroutine may call it.
func (f *Facade) Lost() uint64 { return f.lost.Load() }

func (f *Facade) push(b []byte) {
	select {
	case f.down <- b:
	default:
		f.lost.Add(1)
	}
}

// ReadFrom gives the agent the next datagram.
func (f *Facade) ReadFrom(p []byte) (int, net.Addr, error) {
	select {
	case <-f.closed:
		return 0, nil, net.ErrClosed
	default:
	}
	select {
	case b := <-f.down:
		f.mu.Lock()
		defer f.mu.Unlock()
		return copy(p, b), net.UDPAddrFromAddrPort(f.at), nil
	case <-f.closed:
		return 0, nil, net.ErrClosed
	}
}

// WriteTo takes a datagram of the agent's TURN client. The first one's address says which server the Facade stands for.
func (f *Facade) WriteTo(p []byte, to net.Addr) (int, error) {
	peer, payload, checks, err := f.take(p, to)
	switch {
	case err != nil:
		return 0, err
	case !peer.IsValid(): // not for a peer
	case f.gate == nil:
		f.queue(peer, payload)
	default:
		checks.Send(peer, payload)
	}
	return len(p), nil
}

// take reads a datagram of the agent, and does what is to be done under the lock.
func (f *Facade) take(p []byte, to net.Addr) (peer netip.AddrPort, payload []byte, checks *ice.Relayed, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shut {
		return peer, nil, nil, net.ErrClosed
	}
	if err := f.settle(to); err != nil {
		return peer, nil, nil, err
	}
	m, ok := new(stun.Message), false
	switch {
	case frame.IsChannelData(p, LastChannel):
		var number uint16
		number, payload, ok = frame.ParseChannelData(p, LastChannel)
		peer = f.channels[number]
	case m.Parse(p, stun.Server) != stun.DropNone:
	case m.Class == stun.Request:
		f.answer(m)
		return netip.AddrPort{}, nil, nil, nil
	case m.Method == stun.Send:
		peer, ok = addressOf(m, stun.XORPeerAddress)
		payload = m.Get(stun.Data)
		ok = ok && payload != nil
	}
	if !ok || !peer.IsValid() {
		f.lost.Add(1)
		return netip.AddrPort{}, nil, nil, nil
	}
	return peer, payload, f.checks, nil
}

// settle finds the allocation that the Facade stands for. mu is held.
func (f *Facade) settle(to net.Addr) error {
	if f.at.IsValid() {
		return nil
	}
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return errNoAllocation
	}
	at := netip.AddrPortFrom(u.AddrPort().Addr().Unmap(), u.AddrPort().Port())
	if f.relayed, f.mapped, ok = f.choose(at); !ok {
		return errNoAllocation
	}
	f.at, f.checks = at, f.gate.Open(f.relayed, f.queue, f.bind)
	return nil
}

// queue leaves a payload, borrowed, to Serve.
func (f *Facade) queue(peer netip.AddrPort, payload []byte) {
	select {
	case f.up <- facadeDatagram{peer, append([]byte{}, payload...)}:
		f.wake()
	default:
		f.lost.Add(1)
	}
}

// bind leaves to Serve that a channel is wanted. That it found no room shows when it is wanted again.
func (f *Facade) bind(peer netip.AddrPort) {
	select {
	case f.up <- facadeDatagram{peer: peer}:
		f.wake()
	default:
		f.lost.Add(1)
	}
}

// bound tells the agent that there is a channel that it wanted. No lock may be held.
func (f *Facade) bound() {
	if checks := f.gateway(); checks != nil {
		checks.Bound()
	}
}

// answer answers a request. The agent's client wants to be refused once, to learn a realm and a nonce. mu is held.
func (f *Facade) answer(m *stun.Message) {
	class, code := stun.Success, f.judge(m)
	if code != 0 {
		class = stun.Error
	}
	w := stun.Build(nil, class, m.Method, m.ID)
	switch {
	case code == stun.CodeUnknownAttribute:
		w.Unknown(m)
	case code != 0:
		w.Code(code, "")
		w.Text(stun.Realm, FacadeUsername)
		w.Text(stun.Nonce, FacadeUsername)
	case m.Method == stun.Allocate:
		w.XORAddress(stun.XORRelayedAddress, f.relayed)
		w.XORAddress(stun.XORMappedAddress, f.mapped)
		w.Uint32(stun.Lifetime, seconds(facadeLifetime))
	case m.Method == stun.Refresh:
		w.Uint32(stun.Lifetime, seconds(facadeLifetime))
	case m.Method == stun.Binding:
		w.XORAddress(stun.XORMappedAddress, f.mapped)
	}
	f.push(w.Bytes())
}

// judge decides on a request, and notes the number of a channel. 0: success.
func (f *Facade) judge(m *stun.Message) (code int) {
	switch {
	case m.Unknown():
		return stun.CodeUnknownAttribute
	case m.Method == stun.Allocate && !m.Has(stun.Integrity):
		return stun.CodeUnauthorized
	case m.Method != stun.ChannelBind:
		return 0
	}
	number, has := m.Uint32(stun.ChannelNumber)
	peer, ok := addressOf(m, stun.XORPeerAddress)
	if !has || !ok {
		return stun.CodeBadRequest
	}
	if _, known := f.channels[uint16(number>>16)]; !known && len(f.channels) == facadeChannels {
		return stun.CodeInsufficient
	}
	f.channels[uint16(number>>16)] = peer
	return 0
}

// Close ends the agent's side. The channels are let go of by the next Serve.
func (f *Facade) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shut {
		return net.ErrClosed
	}
	f.shut = true
	close(f.closed)
	f.wake()
	return nil
}

// LocalAddr is the mapped address of the allocation, as far as it is known: the agent makes it the related address of its relayed
// candidate (RFC 8445, section 5.3).
func (f *Facade) LocalAddr() net.Addr {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.mapped.IsValid() {
		return &net.UDPAddr{IP: net.IPv4zero}
	}
	return net.UDPAddrFromAddrPort(f.mapped)
}

// SetDeadline returns os.ErrNoDeadline, as nothing of the agent's TURN client needs one.
func (f *Facade) SetDeadline(time.Time) error { return os.ErrNoDeadline }

// SetReadDeadline is like SetDeadline.
func (f *Facade) SetReadDeadline(time.Time) error { return os.ErrNoDeadline }

// SetWriteDeadline is like SetDeadline.
func (f *Facade) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
