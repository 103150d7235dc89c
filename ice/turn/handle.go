package turn

import (
	"net/netip"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// Payload is what a peer sent through the server.
type Payload struct {
	Peer netip.AddrPort
	// Channel that it came over, or 0 if it came in a Data indication.
	Channel uint16
	// Data aliases the datagram given to Handle.
	Data []byte
}

// Handle takes a datagram that came from src; data is borrowed until the call returns. If a peer's payload was inside, it is
// returned and ok is true. Datagrams that are not from the server, not well-formed, not expected or not authentic are dropped and
// counted (Dropped).
//
// The lanes of the pipeline strip ChannelData by themselves; Handle does the same for who has no lanes.
func (c *Client) Handle(now time.Duration, src netip.AddrPort, data []byte) (p Payload, ok bool) {
	var drop Drop
	switch {
	case src != c.server:
		drop = DropStranger
	case frame.IsChannelData(data, LastChannel):
		p, drop = c.channelData(data)
	default:
		if drop = dropOf[c.message.Parse(data, stun.Client)]; drop == DropNone {
			p, drop = c.stun(now)
		}
	}
	if drop != DropNone {
		c.drops[drop].Add(1)
		return Payload{}, false
	}
	return p, p.Peer.IsValid()
}

// dropOf names what the strict check has found.
var dropOf = [stun.DropCount]Drop{
	stun.DropNotSTUN: DropNotSTUN, stun.DropLength: DropLength, stun.DropRequest: DropRequest, stun.DropIndication: DropIndication,
	stun.DropAttribute: DropAttribute, stun.DropOrder: DropOrder, stun.DropUnknown: DropUnknown, stun.DropAddress: DropAddress,
	stun.DropValue: DropValue, stun.DropFingerprint: DropFingerprint,
}

func (c *Client) channelData(data []byte) (Payload, Drop) {
	number, payload, ok := frame.ParseChannelData(data, LastChannel)
	if !ok {
		return Payload{}, DropChannelLength
	}
	b := c.numbers[number]
	if b == nil || b.held == 0 || !b.bound {
		return Payload{}, DropChannel
	}
	return Payload{Peer: b.peer, Channel: number, Data: payload}, DropNone
}

// stun takes what has passed the check: an answer or a Data indication.
func (c *Client) stun(now time.Duration) (Payload, Drop) {
	if c.message.Class == stun.Indication {
		return c.indication()
	}
	return Payload{}, c.response(now)
}

// indication takes a Data indication (RFC 8656, section 11.4): "the client checks that the XOR-PEER-ADDRESS attribute value
// contains an IP address with which the client believes there is an active permission. If not, the client SHOULD silently
// discard the Data indication".
func (c *Client) indication() (Payload, Drop) {
	peer, ok := addressOf(&c.message, stun.XORPeerAddress)
	payload := c.message.Get(stun.Data)
	if !ok || payload == nil {
		return Payload{}, DropIncomplete
	}
	if c.permitted[peer.Addr()] == 0 {
		return Payload{}, DropPermission
	}
	return Payload{Peer: peer, Data: payload}, DropNone
}

// response takes an answer to one of our requests.
func (c *Client) response(now time.Duration) Drop {
	op := c.transactions[c.message.ID]
	if op == nil || op.method != c.message.Method {
		return DropTransaction
	}
	code, isError := c.message.Code(), c.message.Class == stun.Error
	if isError && code == 0 {
		return DropIncomplete
	}
	if !c.authentic(op, code) {
		return DropIntegrity
	}
	if !isError && !c.complete(op) {
		return DropIncomplete
	}
	c.settle(op)
	c.unschedule(op)
	c.heard(now)
	if !isError {
		c.succeeded(now, op)
	} else {
		c.failed(now, op, code)
	}
	c.pump(now)
	return DropNone
}

// authentic tells whether a response may be believed. A success response to a signed request must be signed with the same key.
// Errors must be signed rightly if they are signed at all: RFC 8489, section 9.2.5, has unsigned ones discarded, 401 and 438
// excepted, but pion/turn signs no error. The transaction ID, 96 random bits, shows that the sender sees our requests, and who
// does can stop them as well.
func (c *Client) authentic(op *operation, code int) bool {
	signed := c.message.Has(stun.Integrity)
	switch {
	case code == stun.CodeUnauthorized || code == stun.CodeStaleNonce:
		return true
	case !op.signed:
		return op.method == stun.Binding || code != 0
	case !signed:
		return code != 0
	}
	return op.key.Authentic(&c.message)
}

// complete tells whether a success response has what it must.
func (c *Client) complete(op *operation) bool {
	switch op.method {
	case stun.Allocate:
		relayed, ok := addressOf(&c.message, stun.XORRelayedAddress)
		_, mapped := addressOf(&c.message, stun.XORMappedAddress)
		lifetime, has := lifetimeOf(&c.message)
		return ok && mapped && has && lifetime > 0 && c.familyFits(relayed.Addr())
	case stun.Refresh:
		_, has := lifetimeOf(&c.message)
		return has || c.state == stateReleasing || c.state == stateDeleting
	case stun.Binding:
		_, ok := addressOf(&c.message, stun.XORMappedAddress)
		return ok
	}
	return true
}

func (c *Client) familyFits(a netip.Addr) bool {
	return c.family == FamilyAny || c.family == FamilyIPv4 == a.Is4()
}

func (c *Client) succeeded(now time.Duration, op *operation) {
	op.begin()
	switch op {
	case &c.allocation:
		c.allocationAnswered(now)
	case &c.keepalive:
		c.keepaliveAnswered(now)
	default:
		c.bindingAnswered(op.binding)
	}
}

func (c *Client) failed(now time.Duration, op *operation, code int) {
	if op == &c.keepalive {
		c.schedule(op, now+KeepaliveEvery, WhyKeepalive) // it lives, and that is what we wanted to know
		return
	}
	if c.state == stateReleasing && op.method == stun.Allocate {
		c.released() // there is nothing to give back
		return
	}
	if (code == stun.CodeUnauthorized || code == stun.CodeStaleNonce) && c.authenticate(now, op, code) {
		return
	}
	if op == &c.allocation {
		c.allocationRefused(now, code)
	} else {
		c.bindingRefused(now, op.binding, code)
	}
}
