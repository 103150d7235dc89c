package turn

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/pion/stun/v3"

	"github.com/sluice-vpn/sluice/pipeline"
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
	case len(data) > 0 && data[0]&0xF0 == 0x40:
		p, drop = c.channelData(data)
	default:
		if drop = check(data); drop == DropNone {
			p, drop = c.stun(now, data)
		}
	}
	if drop != DropNone {
		c.drops[drop].Add(1)
		return Payload{}, false
	}
	return p, p.Peer.IsValid()
}

func (c *Client) channelData(data []byte) (Payload, Drop) {
	number, payload, ok := pipeline.ParseChannelData(data)
	if !ok {
		return Payload{}, DropChannelLength
	}
	b := c.numbers[number]
	if b == nil || b.held == 0 || !b.bound {
		return Payload{}, DropChannel
	}
	return Payload{Peer: b.peer, Channel: number, Data: payload}, DropNone
}

// stun takes a STUN message that has passed check.
func (c *Client) stun(now time.Duration, data []byte) (Payload, Drop) {
	if stun.Decode(data, &c.message) != nil {
		return Payload{}, DropAttribute // check is stricter, so this is unreachable until pion changes
	}
	switch c.message.Type.Class {
	case stun.ClassRequest:
		return Payload{}, DropRequest
	case stun.ClassIndication:
		return c.indication(data)
	}
	return Payload{}, c.response(now)
}

// indication takes a Data indication (RFC 8656, section 11.4): "the client checks that the XOR-PEER-ADDRESS attribute value
// contains an IP address with which the client believes there is an active permission. If not, the client SHOULD silently
// discard the Data indication".
func (c *Client) indication(data []byte) (Payload, Drop) {
	if c.message.Type.Method != stun.MethodData {
		return Payload{}, DropIndication
	}
	peer, ok := xorAddressOf(&c.message, stun.AttrXORPeerAddress)
	payload, has := valueOf(data, stun.AttrData) // in the caller's bytes, not in the decoder's copy
	if !ok || !has {
		return Payload{}, DropIncomplete
	}
	if c.permitted[peer.Addr()] == 0 {
		return Payload{}, DropPermission
	}
	return Payload{Peer: peer, Data: payload}, DropNone
}

// valueOf finds the first attribute of a kind in a message that has passed check. The value aliases b.
func valueOf(b []byte, kind stun.AttrType) (v []byte, ok bool) {
	for at := stunHeaderSize; at < len(b); {
		size := int(binary.BigEndian.Uint16(b[at+2:]))
		if binary.BigEndian.Uint16(b[at:]) == uint16(kind) {
			return b[at+4 : at+4+size : at+4+size], true
		}
		at += 4 + (size+3)&^3
	}
	return nil, false
}

// response takes an answer to one of our requests.
func (c *Client) response(now time.Duration) Drop {
	op := c.transactions[c.message.TransactionID]
	if op == nil || op.method != c.message.Type.Method {
		return DropTransaction
	}
	code, isError := stun.ErrorCode(0), c.message.Type.Class == stun.ClassErrorResponse
	if isError {
		var ok bool
		if code, ok = codeOf(&c.message); !ok {
			return DropIncomplete
		}
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
func (c *Client) authentic(op *operation, code stun.ErrorCode) bool {
	signed := c.message.Contains(stun.AttrMessageIntegrity)
	switch {
	case code == stun.CodeUnauthorized || code == stun.CodeStaleNonce:
		return true
	case !op.signed:
		return op.method == stun.MethodBinding || code != 0
	case !signed:
		return code != 0
	}
	return op.key.Check(&c.message) == nil
}

// complete tells whether a success response has what it must.
func (c *Client) complete(op *operation) bool {
	switch op.method {
	case stun.MethodAllocate:
		relayed, ok := xorAddressOf(&c.message, stun.AttrXORRelayedAddress)
		_, mapped := xorAddressOf(&c.message, stun.AttrXORMappedAddress)
		lifetime, has := lifetimeOf(&c.message)
		return ok && mapped && has && lifetime > 0 && c.familyFits(relayed.Addr())
	case stun.MethodRefresh:
		_, has := lifetimeOf(&c.message)
		return has || c.state == stateReleasing || c.state == stateDeleting
	case stun.MethodBinding:
		_, ok := xorAddressOf(&c.message, stun.AttrXORMappedAddress)
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

func (c *Client) failed(now time.Duration, op *operation, code stun.ErrorCode) {
	if op == &c.keepalive {
		c.schedule(op, now+KeepaliveEvery, WhyKeepalive) // it lives, and that is what we wanted to know
		return
	}
	if c.state == stateReleasing && op.method == stun.MethodAllocate {
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
