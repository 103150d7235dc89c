package ice

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// errNotSTUN is what pion gets if it sends anything else.
var errNotSTUN = errors.New("ice: only STUN goes this way")

// conn is an agent at one local address: the net.PacketConn that pion reads and writes.
type conn struct {
	mux    *Mux
	member *member
	local  netip.AddrPort
	inbox  chan received
	closed chan struct{}
	once   sync.Once
	over   func(to netip.AddrPort, data []byte) // sends over a relay, see Gate; nil: the mux's sockets
	bind   func(to netip.AddrPort)              // has the relay bind a channel; nil with over
}

// received is a message for pion, in memory of its own.
type received struct {
	data []byte
	src  netip.AddrPort
}

func newConn(m *Mux, a *member, local netip.AddrPort) *conn {
	return &conn{mux: m, member: a, local: local, inbox: make(chan received, inboxSlots), closed: make(chan struct{})}
}

// deliver queues a copy of the datagram.
func (c *conn) deliver(data []byte, from netip.AddrPort) dropReason {
	select {
	case c.inbox <- received{bytes.Clone(data), from}:
		return dropNone
	default:
		return dropInboxFull
	}
}

// ReadFrom waits for a message that passed the mux.
func (c *conn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case <-c.closed:
		return 0, nil, net.ErrClosed
	default:
	}
	select {
	case r := <-c.inbox:
		if len(b) < len(r.data) {
			return 0, nil, io.ErrShortBuffer
		}
		return copy(b, r.data), net.UDPAddrFromAddrPort(r.src), nil
	case <-c.closed:
		return 0, nil, net.ErrClosed
	}
}

// WriteTo sends an answer at once and gives a check to the pacing, which may send it later or not at all; that is no
// error, as a lost datagram is none.
func (c *conn) WriteTo(b []byte, addr net.Addr) (int, error) {
	to, ok := unmapped(addr)
	h, isSTUN := stun.ParseHeader(b)
	if !ok || !isSTUN || h.Method != stun.Binding {
		return 0, errNotSTUN
	}
	select {
	case <-c.closed:
		return 0, io.ErrClosedPipe
	default:
	}
	c.write(to, h.Class, b)
	return len(b), nil
}

// write sends or queues one STUN message of the agent. No lock may be held.
func (c *conn) write(to netip.AddrPort, class stun.Class, b []byte) {
	switch {
	case !c.mux.rules.allow(to.Addr()) || to.Port() == 0 || to.Addr().Is4() != c.local.Addr().Is4():
		c.mux.counters.drop(dropDestination)
	case class != stun.Request:
		c.mux.counters.AnswersSent.Add(1)
		c.send(to, b)
	case !c.leads(to):
		c.mux.counters.drop(dropInterface)
	default:
		if c.over != nil && nominates(b) {
			c.bind(c.mux.actual(c, to)) // so that there is a channel by the time that the pair is selected
		}
		c.mux.check(c, to, b)
	}
}

// refuse answers an authentic check that has attributes which must be understood and are not, as nobody does who speaks ICE: "the server
// replies with an error response with an error code of 420 (Unknown Attribute)" (RFC 8489, section 6.3.1). No lock may be held.
func (c *conn) refuse(to netip.AddrPort, msg *stun.Message) {
	w := stun.Build(nil, stun.Error, stun.Binding, msg.ID)
	w.Unknown(msg)
	w.Sign(c.member.key)
	w.Fingerprint()
	c.write(to, stun.Error, w.Bytes())
}

// leads tells whether a check may leave: one whose way is through another interface than its address is of would open a mapping of
// the NAT there for a pair that cannot work. Whoever has reached us at this address may be checked in return.
func (c *conn) leads(to netip.AddrPort) bool {
	return c.over != nil || c.mux.met(c, to) || c.mux.leads(c.local.Addr(), to.Addr())
}

// send sends one STUN message of pion's now, to where the peer is. No lock may be held.
func (c *conn) send(to netip.AddrPort, b []byte) { c.emit(c.mux.actual(c, to), b) }

// emit sends one STUN message now. No lock may be held.
func (c *conn) emit(to netip.AddrPort, b []byte) {
	if c.over != nil {
		c.over(to, b)
		return
	}
	c.mux.send(c.local.Addr(), to, b)
}

func (c *conn) shut() { c.once.Do(func() { close(c.closed) }) }

// Close ends ReadFrom. Only this agent has the conn, so nothing else ends with it.
func (c *conn) Close() error {
	c.shut()
	return nil
}

// LocalAddr is the local address with the sockets' port.
func (c *conn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.local) }

// SetDeadline does nothing: pion uses it to end ReadFrom before Close, which does that.
func (c *conn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing, see SetDeadline.
func (c *conn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing, see SetDeadline.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }
