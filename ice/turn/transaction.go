package turn

import (
	"container/heap"
	"io"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// operation is one thing that is kept up at the server: the allocation, the NAT's mapping, one channel. It has one deadline and
// at most one request in flight, so all that a client has in flight is bounded by what it keeps up.
type operation struct {
	binding *binding // nil: the client's own

	// deadline
	at    time.Duration
	why   Why
	index int // in deadlines, or unscheduled

	// the request in flight
	running bool
	method  stun.Method
	id      stun.ID
	raw     []byte // frozen: retransmissions are the same bytes
	sends   int
	signed  bool
	login   Credentials // that it was signed with, if it was signed
	key     *stun.Key   // likewise
	nonce   string      // likewise

	stale, denied int // 438 and 401 in a row
}

// begin forgets the failed tries of what the operation did before.
func (op *operation) begin() { op.stale, op.denied = 0, 0 }

const unscheduled = -1

// deadlines is a heap of operations, the earliest first.
type deadlines []*operation

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].at < d[j].at }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].index, d[j].index = i, j
}

// Push is for container/heap.
func (d *deadlines) Push(x any) {
	op := x.(*operation)
	op.index = len(*d)
	*d = append(*d, op)
}

// Pop is for container/heap.
func (d *deadlines) Pop() any {
	last := len(*d) - 1
	op := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	op.index = unscheduled
	return op
}

func (c *Client) schedule(op *operation, at time.Duration, why Why) {
	op.at, op.why = at, why
	if op.index == unscheduled {
		heap.Push(&c.deadlines, op)
		return
	}
	heap.Fix(&c.deadlines, op.index)
}

func (c *Client) unschedule(op *operation) {
	if op.index != unscheduled {
		heap.Remove(&c.deadlines, op.index)
	}
}

// stop ends an operation's deadline and request.
func (c *Client) stop(op *operation) {
	c.unschedule(op)
	c.settle(op)
}

// settle ends an operation's request.
func (c *Client) settle(op *operation) {
	if !op.running {
		return
	}
	delete(c.transactions, op.id)
	op.running, op.raw, op.key = false, nil, nil
	if op.binding != nil {
		c.inFlight--
	}
}

// read fills b with random bytes. A source that fails cannot be lived with.
func (c *Client) read(b []byte) {
	if _, err := io.ReadFull(c.random, b); err != nil {
		panic("turn: no randomness: " + err.Error())
	}
}

// request sends a new request of the operation.
func (c *Client) request(now time.Duration, op *operation, method stun.Method) {
	c.settle(op)
	c.read(op.id[:])
	w := stun.Build(make([]byte, 0, 256), stun.Request, method, op.id)
	c.fill(&w, op, method)
	op.login, op.key = c.login(method)
	op.nonce = c.nonce
	op.signed = op.key != nil && method != stun.Binding
	if op.signed {
		w.Text(stun.Username, op.login.Username)
		w.Text(stun.Realm, c.realm)
		w.Text(stun.Nonce, op.nonce)
		w.Sign(op.key)
	}
	w.Fingerprint()
	op.running, op.method, op.raw, op.sends = true, method, w.Bytes(), 0
	c.transactions[op.id] = op
	if op.binding != nil {
		c.inFlight++
	}
	c.transmit(now, op)
}

// fill adds the attributes that make the request.
func (c *Client) fill(w *stun.Builder, op *operation, method stun.Method) {
	switch method {
	case stun.Allocate:
		w.Uint32(stun.RequestedTransport, udpProtocol<<24)
		if c.family != FamilyAny {
			w.Uint32(stun.RequestedFamily, uint32(c.family)<<24)
		}
		if c.lifetime > 0 {
			w.Uint32(stun.Lifetime, seconds(c.lifetime))
		}
	case stun.Refresh:
		if c.state == stateReleasing || c.state == stateDeleting {
			w.Uint32(stun.Lifetime, 0)
		} else if c.lifetime > 0 {
			w.Uint32(stun.Lifetime, seconds(c.lifetime))
		}
	case stun.ChannelBind:
		w.Uint32(stun.ChannelNumber, uint32(op.binding.number)<<16)
		w.XORAddress(stun.XORPeerAddress, op.binding.peer)
	case stun.CreatePermission:
		w.XORAddress(stun.XORPeerAddress, op.binding.peer)
	}
}

// transmit sends the request, for the first time or again, and sets the time of the next. "For example, assuming an RTO of
// 500 ms, requests would be sent at times 0 ms, 500 ms, 1500 ms, 3500 ms, 7500 ms, 15500 ms, and 31500 ms. If the client
// has not received a response after 39500 ms, the client will consider the transaction to have timed out" (RFC 8489, 6.2.1).
func (c *Client) transmit(now time.Duration, op *operation) {
	op.sends++
	wait := initialRTO << (op.sends - 1)
	if op.sends == maxSends {
		wait = lastWaitRTOs * initialRTO
	}
	c.schedule(op, now+wait, WhyRetransmit)
	c.emit(Output{Kind: SendDatagram, Datagram: op.raw})
	if op.binding != nil {
		op.binding.asked = now
		if op.sends == 1 {
			op.binding.first = now
		}
	}
	c.listen(now)
}

// retransmit sends the request once more, or gives it up.
func (c *Client) retransmit(now time.Duration, op *operation) {
	limit := maxSends
	if c.state == stateReleasing {
		limit = releaseSends
	}
	if op.sends < limit {
		c.transmit(now, op)
		return
	}
	c.settle(op)
	switch op {
	case &c.allocation:
		c.allocationTimeout(now)
	case &c.keepalive:
		c.schedule(op, now+KeepaliveEvery, WhyKeepalive)
	default:
		c.bindingFailed(op.binding, ReasonSilent, 0)
	}
}

// authenticate answers a 401 or 438 with the same request, made anew. It returns false if that has no sense: "if the client's
// request already had credentials, it SHOULD NOT retry with the same ones" (after RFC 8489, section 9.2.5). A server that was
// restarted may say 401 to an old nonce, so one with a new nonce is believed once.
func (c *Client) authenticate(now time.Duration, op *operation, code int) bool {
	realm, nonce := c.realm, string(c.message.Get(stun.Nonce))
	if offered := string(c.message.Get(stun.Realm)); offered != "" {
		realm = offered
	}
	if nonce == "" || realm == "" {
		return false
	}
	if code == stun.CodeStaleNonce {
		op.stale++
	} else if op.signed {
		op.denied++
	}
	if op.stale > maxStale || op.denied > 1 || op.signed && code == stun.CodeUnauthorized && nonce == op.nonce {
		return false
	}
	if realm != c.realm || c.key == nil {
		c.key = stun.LongTerm(c.inUse.Username, realm, c.inUse.Password)
	}
	c.realm, c.nonce = realm, nonce
	c.request(now, op, op.method)
	return true
}
