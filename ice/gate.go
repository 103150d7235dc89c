package ice

import (
	"net/netip"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// Gate joins what one agent exchanges over relays to the mux, which does with it what it does with datagrams of its own
// sockets: the strict check before pion sees a message, the test of who sent it, the pacing of checks, and the note of when
// the peer was last seen. A Relay is given it.
type Gate struct {
	mux    *Mux
	member *member
}

// Open makes the way through the gate for one relayed address. send sends what may go to a peer, data borrowed until it
// returns; bind is told that the pair with a peer's address is about to be the selected one, maybe more than once, and that Relayed.Bound is
// to be called when there is a channel to it. Both are called by any goroutine, under locks and later than Relayed.Send too, and must
// not block. There is nothing to close.
func (g *Gate) Open(relayed netip.AddrPort, send func(to netip.AddrPort, data []byte), bind func(to netip.AddrPort)) *Relayed {
	c := &conn{mux: g.mux, member: g.member, local: relayed, over: send, bind: bind}
	g.mux.mu.Lock()
	defer g.mux.mu.Unlock()
	g.member.relayed[relayed] = c
	return &Relayed{c}
}

// Share is that of the agent's peer.
func (g *Gate) Share() *Share { return g.member.share }

// Relayed is an agent at one relayed address. Its methods may be called by any goroutine.
type Relayed struct{ conn *conn }

// Send takes a datagram from the agent to a peer, borrowed: an answer is sent at once, a check when its turn comes, unless
// that is never. What is not STUN, or goes where no check may go, is dropped.
func (r *Relayed) Send(to netip.AddrPort, data []byte) {
	h, ok := stun.ParseHeader(data)
	if !ok || h.Method != stun.Binding {
		r.conn.mux.counters.drop(dropNotSTUN)
		return
	}
	r.conn.write(to, h.Class, data)
}

// Bound notes that there is a channel to an address for which bind was called. No lock may be held.
func (r *Relayed) Bound() {
	r.conn.member.bound()
	r.conn.mux.channelBound(r.conn.member)
}

// Receive tells whether pion may see a message that came from a peer over the relay: an authentic check for this agent, or the answer
// to one that it sent this way. known is the address that pion knows the peer by. Of what may be for another agent nothing is counted;
// msg, which has passed its check as one to a peer, is borrowed until it returns.
func (r *Relayed) Receive(from netip.AddrPort, msg *stun.Message) (known netip.AddrPort, ok bool) {
	known, why := r.judge(from, msg)
	if why == dropUnknownAttribute {
		r.conn.refuse(known, msg)
	}
	if why != dropNone && why != dropTaken && why != dropUnknownUsername && why != dropTransaction {
		r.conn.mux.counters.drop(why)
	}
	return known, why == dropNone
}

// Refused counts what came from a peer over the relay and has not passed its check.
func (r *Relayed) Refused(why stun.Drop) { r.conn.mux.counters.drop(dropOf[why]) }

func (r *Relayed) judge(from netip.AddrPort, msg *stun.Message) (known netip.AddrPort, _ dropReason) {
	if impossible(from) {
		return known, dropSource
	}
	m, a := r.conn.mux, r.conn.member
	if msg.Class == stun.Request {
		if string(msg.Recipient()) != a.ufrag {
			return known, dropUnknownUsername
		}
		if !a.key.Authentic(msg) {
			return known, dropUnauthentic
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.removed {
		return known, dropUnknownUsername
	}
	if msg.Class == stun.Request {
		return m.requested(r.conn, from, msg)
	}
	t := m.transactions[msg.ID]
	if t == nil || t.conn != r.conn {
		return known, dropTransaction
	}
	if t.trial != nil {
		if why := m.answerTrial(t, msg, from); why != dropNone {
			return known, why
		}
		return known, dropTaken
	}
	return a.known(r.conn, from), m.settle(t, msg)
}
