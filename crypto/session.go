package crypto

import "time"

// A peer has up to three sessions, each in a slot (paper, section 6.3; kernel noise.c, add_new_keypair):
//
//	current   what we send with; published to the lanes
//	previous  the one before, for packets that are still under way
//	next      a responder's new one, until the first valid packet proves that the initiator has it too
//
// All three receive. Every session that leaves the slots is retired: out of the index table, and given to the data plane
// to wipe once no lane holds it.

// addKeypair puts a new session into its slot.
func (p *Peer) addKeypair(now time.Duration, k *Keypair) {
	p.local.table.attach(k)
	p.zeroAt = now + ZeroAfterTime
	if !k.Initiator {
		p.settle(now) // a next session that lanes already use must not be lost with the slot
		p.retire(&p.next)
		p.retire(&p.previous)
		p.next = k
		return
	}
	old := p.current.load()
	p.current.store(k)
	p.sessionUp(k)
	if p.next != nil {
		p.retire(&old)
		old, p.next = p.next, nil
	}
	p.retire(&p.previous)
	p.previous = old
}

// Confirm is called when a lane received the first valid data on a responder's next keypair (Keypair.MarkConfirmed): it
// becomes the current one, which now may be sent with. A keypair that is not the next one any more changes nothing.
func (p *Peer) Confirm(now time.Duration, k *Keypair) {
	if k == nil || k != p.next {
		return
	}
	k.MarkConfirmed()
	p.next = nil
	p.retire(&p.previous)
	p.previous = p.current.load()
	p.current.store(k)
	// lastReceived stays: the lane stamped the packet when it came. Now is later, and would hide data sent in between.
	p.sessionUp(k)
}

// settle makes up for a Confirm that did not reach control: a lane has marked the next keypair, nobody said so.
func (p *Peer) settle(now time.Duration) bool {
	k := p.next
	if k == nil || k.NeedsConfirm() {
		return false
	}
	p.Confirm(now, k)
	return true
}

// sessionUp is the end of a handshake, for the initiator when the response came, for the responder at confirmation.
func (p *Peer) sessionUp(k *Keypair) {
	p.dropHandshake() // a response to it would only replace the session there is now
	p.series = series{}
	p.wantedAt = 0
	p.tally = Tally{Since: k.Created}
	p.lastHandshake = p.local.wall()
	p.emit(Output{Kind: SessionUp, Keypair: k, Initiator: k.Initiator})
}

// retire empties a slot.
func (p *Peer) retire(slot **Keypair) {
	k := *slot
	if k == nil {
		return
	}
	*slot = nil
	k.retire()
	p.local.table.release(k.LocalIndex)
	p.emit(Output{Kind: Retired, Keypair: k})
}

// dropHandshake forgets the handshake under way and its index.
func (p *Peer) dropHandshake() {
	if p.handshake.active {
		p.local.table.release(p.handshake.index)
	}
	p.handshake.wipe()
}

// dropKeys retires all sessions and forgets the handshake.
func (p *Peer) dropKeys() {
	p.dropHandshake()
	p.retire(&p.next)
	p.retire(&p.previous)
	k := p.current.load()
	p.current.store(nil)
	p.retire(&k)
	p.zeroAt = 0
}

// expireKeys ends sending with the sessions there are, and forgets the handshake: our static key changed (kernel noise.c,
// wg_noise_expire_current_peer_keypairs).
func (p *Peer) expireKeys() {
	p.dropHandshake()
	p.handshakeSent = 0
	for _, k := range []*Keypair{p.current.load(), p.next} {
		if k != nil {
			k.expire()
		}
	}
}

// usable reports whether there is a session to send with.
func (p *Peer) usable(now time.Duration) bool {
	k := p.current.load()
	return k != nil && k.Usable(now)
}
