package turn

import (
	"errors"
	"net/netip"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

var (
	// ErrPeer: nothing can be sent to this address, or not from a relayed address of this family.
	ErrPeer = errors.New("turn: no address for a peer of this allocation")
	// ErrFull: all channel numbers are in use or waiting out their quarantine, or there are too many permissions.
	ErrFull = errors.New("turn: no channel is free")
)

// binding is a channel to one peer, or a permission for one address. It is held by who asked for it, and once nobody holds it it
// stays until its number may serve another peer.
type binding struct {
	operation
	peer      netip.AddrPort
	number    uint16 // 0: permission only
	place     int    // in Client.list
	held      int
	bound     bool // reported
	used      bool // since the last request
	refused   bool // by the server; not asked again before the next Bind or allocation
	forbidden bool // because the address is none that it lets anybody reach
	queued    bool // in Client.waiting

	first     time.Duration // when the last request was sent first
	asked     time.Duration // when it was sent last; 0: never
	confirmed time.Duration // first of the last one that succeeded: the server's clock began then or later
}

func (b *binding) method() stun.Method {
	if b.number == 0 {
		return stun.CreatePermission
	}
	return stun.ChannelBind
}

// Bind asks for a channel to the peer (RFC 8656, section 12), Unmap()ed, or holds the one that there is. ChannelBound follows once
// for each call, as soon as it may be used, and again after each new allocation; ChannelLost if there is none (any more). Each
// successful Bind needs its Unbind. Errors are ErrPeer and ErrFull.
func (c *Client) Bind(now time.Duration, peer netip.AddrPort) error {
	if peer.Port() == 0 {
		return ErrPeer
	}
	return c.hold(now, peer)
}

// Permit asks for a permission for an address without a channel (RFC 8656, section 10), so that Send and Data indications
// pass. Permitted and PermitLost follow as with Bind. Each successful Permit needs its Forbid.
func (c *Client) Permit(now time.Duration, peer netip.Addr) error {
	return c.hold(now, netip.AddrPortFrom(peer, 0))
}

// Unbind takes back one Bind. When the last is gone the channel is not refreshed any more and what comes over it is dropped.
func (c *Client) Unbind(now time.Duration, peer netip.AddrPort) { c.letGo(now, peer) }

// Forbid takes back one Permit.
func (c *Client) Forbid(now time.Duration, peer netip.Addr) {
	c.letGo(now, netip.AddrPortFrom(peer, 0))
}

// MarkUsed says that datagrams went to or came from the peer by its channel since the last call, port 0 by its permission. Only
// what was used is refreshed, so call it once every four minutes at least. One that ran out for want of use is bound again.
func (c *Client) MarkUsed(now time.Duration, peer netip.AddrPort) {
	b := c.bindings[peer]
	if b == nil || b.held == 0 {
		return
	}
	b.used = true
	if !b.refused && (!b.bound || now >= b.confirmed+BindingRefresh) {
		c.enqueue(b)
		c.pump(now)
	}
}

// Send frames data, which is borrowed, as ChannelData for a peer and leaves it to Poll. It is for the few datagrams of control; lanes
// frame theirs in place. It returns false if the peer has no channel or data is longer than MaxPayload.
func (c *Client) Send(now time.Duration, peer netip.AddrPort, data []byte) bool {
	number, ok := c.Channel(peer)
	if !ok || len(data) > MaxPayload {
		return false
	}
	b := make([]byte, frame.ChannelHeaderSize, frame.ChannelHeaderSize+len(data))
	frame.PutChannelHeader(b, number, uint16(len(data)))
	c.emit(Output{Kind: SendDatagram, Datagram: append(b, data...)})
	c.MarkUsed(now, peer)
	return true
}

// SendIndication leaves data, which is borrowed, for a peer without a channel to Poll, in a Send indication (RFC 8656, section 11.1). It
// returns false if the peer's address is not permitted (Permit) or data is too long.
func (c *Client) SendIndication(now time.Duration, peer netip.AddrPort, data []byte) bool {
	permission := netip.AddrPortFrom(peer.Addr(), 0)
	if b := c.bindings[permission]; b == nil || b.held == 0 || !b.bound {
		return false
	}
	var id stun.ID
	c.read(id[:])
	datagram := indication(stun.Send, id, peer, data)
	if datagram == nil {
		return false
	}
	c.emit(Output{Kind: SendDatagram, Datagram: datagram})
	c.MarkUsed(now, permission)
	return true
}

// Channel returns the number of the peer's channel. ok is false if none is bound.
func (c *Client) Channel(peer netip.AddrPort) (number uint16, ok bool) {
	b := c.bindings[peer]
	if b == nil || !b.bound || b.held == 0 || b.number == 0 {
		return 0, false
	}
	return b.number, true
}

// Peer returns who is at the other end of a channel. ok is false if none is bound.
func (c *Client) Peer(number uint16) (peer netip.AddrPort, ok bool) {
	b := c.numbers[number]
	if b == nil || !b.bound || b.held == 0 {
		return netip.AddrPort{}, false
	}
	return b.peer, true
}

func (c *Client) hold(now time.Duration, peer netip.AddrPort) error {
	if !sendable(peer.Addr()) || peer.Addr().Is4In6() || !c.reaches(peer.Addr()) {
		return ErrPeer
	}
	b := c.bindings[peer]
	if b == nil {
		if b = c.newBinding(peer); b == nil {
			return ErrFull
		}
	}
	if b.held++; b.held == 1 {
		c.permitted[peer.Addr()]++
	}
	b.used = true
	if b.forbidden && b.number == 0 && b.held == 1 && now < b.asked+PermissionLife {
		return nil // as it was a moment ago
	}
	b.refused, b.forbidden = false, false
	c.revive(now, b)
	c.pump(now)
	return nil
}

// revive brings one that may have lingered back to use.
func (c *Client) revive(now time.Duration, b *binding) {
	b.bound = b.bound && now < b.confirmed+PermissionLife
	if b.bound {
		c.report(b)
	}
	switch {
	case b.running:
	case b.bound && now < b.confirmed+BindingRefresh:
		c.schedule(&b.operation, b.confirmed+BindingRefresh, WhyBinding)
	default:
		c.unschedule(&b.operation)
		c.enqueue(b)
	}
}

// reaches: a relayed address sends to its own family only (443; RFC 8656, section 12.1).
func (c *Client) reaches(a netip.Addr) bool {
	if c.state == stateAllocated {
		return c.relayed.Addr().Is4() == a.Is4()
	}
	return c.familyFits(a)
}

// newBinding makes one, with a free number unless it is a permission. nil: there is no room.
func (c *Client) newBinding(peer netip.AddrPort) *binding {
	b := &binding{peer: peer, place: len(c.list)}
	b.index, b.binding = unscheduled, b
	if peer.Port() == 0 {
		if c.permissions == maxPermissions {
			return nil
		}
		c.permissions++
	} else {
		if len(c.numbers) == maxBindings {
			return nil
		}
		b.number = c.freeNumber()
		c.numbers[b.number] = b
	}
	c.bindings[peer] = b
	c.list = append(c.list, b)
	return b
}

// freeNumber goes round, so that a number rests as long as possible. There is a free one.
func (c *Client) freeNumber() uint16 {
	for {
		number := FirstChannel + c.nextNumber
		c.nextNumber = (c.nextNumber + 1) % maxBindings
		if c.numbers[number] == nil {
			return number
		}
	}
}

func (c *Client) letGo(now time.Duration, peer netip.AddrPort) {
	b := c.bindings[peer]
	if b == nil || b.held == 0 {
		return
	}
	if b.held--; b.held > 0 {
		return
	}
	if c.permitted[peer.Addr()]--; c.permitted[peer.Addr()] == 0 {
		delete(c.permitted, peer.Addr())
	}
	c.stop(&b.operation)
	c.linger(now, b)
	c.pump(now)
}

// linger keeps one that nobody holds, for as long as its number may not serve another peer.
func (c *Client) linger(now time.Duration, b *binding) {
	life := ChannelQuarantine
	if b.number == 0 {
		life = PermissionLife // the server keeps it as long, granted or refused
	}
	if b.asked == 0 || now >= b.asked+life {
		c.forget(b)
		return
	}
	c.schedule(&b.operation, b.asked+life, WhyBinding)
}

// forget takes it out of all tables.
func (c *Client) forget(b *binding) {
	c.stop(&b.operation)
	c.dequeue(b)
	delete(c.bindings, b.peer)
	if b.number != 0 {
		delete(c.numbers, b.number)
	} else {
		c.permissions--
	}
	last := len(c.list) - 1
	c.list[b.place] = c.list[last]
	c.list[b.place].place = b.place
	c.list[last] = nil
	c.list = c.list[:last]
}

// forgetBindings forgets all at once. After a release there is no allocation that a number could be bound in.
func (c *Client) forgetBindings() {
	for _, b := range c.list {
		c.stop(&b.operation)
	}
	clear(c.bindings)
	clear(c.numbers)
	clear(c.permitted)
	c.list, c.waiting, c.permissions = nil, nil, 0
}

// unbindAll: the allocation is lost, and no channel is bound.
func (c *Client) unbindAll() {
	for _, b := range c.list {
		b.bound = false
		if b.held > 0 {
			c.stop(&b.operation)
		}
		b.queued = false
	}
	c.waiting = nil
}

// enqueue asks for it as soon as there is an allocation and a place among the requests in flight.
func (c *Client) enqueue(b *binding) {
	if c.state == stateAllocated && !b.queued && !b.running {
		b.queued = true
		c.waiting = append(c.waiting, b)
	}
}

func (c *Client) dequeue(b *binding) {
	if !b.queued {
		return
	}
	b.queued = false
	for i, w := range c.waiting {
		if w == b {
			c.waiting = append(c.waiting[:i], c.waiting[i+1:]...)
			return
		}
	}
}

// pump sends the requests that wait. Relays have small socket buffers, so only so many are in flight.
func (c *Client) pump(now time.Duration) {
	for len(c.waiting) > 0 && c.inFlight < maxInFlight && c.state == stateAllocated {
		b := c.waiting[0]
		c.waiting[0] = nil
		c.waiting = c.waiting[1:]
		b.queued = false
		if b.held == 0 {
			continue
		}
		b.used = false
		b.begin()
		c.request(now, &b.operation, b.method())
	}
	if len(c.waiting) == 0 {
		c.waiting = nil
	}
}

// report tells that it may be used.
func (c *Client) report(b *binding) {
	out := Output{Kind: ChannelBound, Peer: b.peer, Channel: b.number}
	if b.number == 0 {
		out.Kind = Permitted
	}
	c.emit(out)
}

// bindingAnswered: the server has bound it, when it got the request or later.
func (c *Client) bindingAnswered(b *binding) {
	b.confirmed = b.first
	if !b.bound {
		b.bound = true
		c.report(b)
	}
	c.schedule(&b.operation, b.confirmed+BindingRefresh, WhyBinding)
}

// bindingRefused: the server does not want it.
func (c *Client) bindingRefused(now time.Duration, b *binding, code int) {
	if code == stun.CodeMismatch {
		c.lose(now, ReasonMismatch, code)
		return
	}
	b.refused, b.forbidden = true, code == stun.CodeForbidden
	c.bindingFailed(b, reasonOf(code), code)
}

// bindingFailed tells that it may not be used. Who holds it still has to let go of it.
func (c *Client) bindingFailed(b *binding, reason Reason, code int) {
	b.bound = false
	out := Output{Kind: ChannelLost, Peer: b.peer, Channel: b.number, Reason: reason, Code: code}
	if b.number == 0 {
		out.Kind = PermitLost
	}
	c.emit(out)
}

// bindingDue: it is time for a refresh, or it ran out, or its number is free again.
func (c *Client) bindingDue(now time.Duration, b *binding) {
	end := b.confirmed + PermissionLife
	switch {
	case b.held == 0:
		c.linger(now, b)
	case b.used:
		c.enqueue(b)
	case now >= end:
		c.bindingFailed(b, ReasonIdle, 0)
	default:
		c.schedule(&b.operation, end, WhyBinding)
	}
}
