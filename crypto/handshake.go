package crypto

import (
	"bytes"
	"encoding/binary"
	"io"
	"time"

	"github.com/sluice-vpn/sluice/crypto/aead"
	"github.com/sluice-vpn/sluice/crypto/secret"
)

// handshake is what the initiator remembers between its initiation and the response. The responder remembers nothing: it
// derives the session as it answers.
type handshake struct {
	active    bool
	index     uint32
	ephemeral [keySize]byte
	state     symmetric
}

func (h *handshake) wipe() {
	clear(h.ephemeral[:])
	h.state.wipe()
	h.active = false
}

// drawEphemeral makes an ephemeral key pair: private belongs to the caller, who wipes it, public goes into the message.
func (l *Local) drawEphemeral(private *[keySize]byte, public []byte) bool {
	if _, err := io.ReadFull(l.rand, private[:]); err != nil {
		return false
	}
	(*PrivateKey)(private).clamp()
	e := publicOf(private)
	copy(public, e[:])
	return true
}

// createInitiation makes the first message (paper, section 5.4.2), and the handshake that waits for its response. The
// one before, if any, is forgotten together with its index. What it returns is owned by the caller.
func (p *Peer) createInitiation(now time.Duration) (msg []byte, reason Reason) {
	if !p.local.hasPrivate() {
		return nil, NoPrivateKey
	}
	if isZero(&p.staticStatic) {
		return nil, LowOrder
	}
	p.dropHandshake()
	msg = make([]byte, SizeInitiation)
	secret.Do(func() { reason = p.fillInitiation(msg) })
	if reason != Accepted {
		p.handshake.wipe()
		return nil, reason
	}
	index, ok := p.local.table.draw(p.local.rand, p)
	if !ok {
		p.handshake.wipe()
		return nil, NoRandomness
	}
	p.handshake.index, p.handshake.active = index, true
	binary.LittleEndian.PutUint32(msg, uint32(MessageInitiation))
	binary.LittleEndian.PutUint32(msg[offsetSender:], index)
	p.cookie.addMacs(now, msg)
	return msg, Accepted
}

// fillInitiation writes the Noise fields e, es, s, ss and the timestamp.
func (p *Peer) fillInitiation(msg []byte) Reason {
	h := &p.handshake
	var shared, key [keySize]byte
	defer clear(shared[:])
	defer clear(key[:])

	e := msg[initiationEphemeral:initiationStatic]
	if !p.local.drawEphemeral(&h.ephemeral, e) {
		return NoRandomness
	}
	h.state.begin(&p.public)
	h.state.mixEphemeral(e)
	if !x25519(&shared, &h.ephemeral, p.public[:]) {
		return LowOrder
	}
	h.state.mixDH(&shared, &key)
	h.state.seal(msg[initiationStatic:initiationTimestamp], &key, p.local.public[:])
	h.state.mixDH(&p.staticStatic, &key)
	stamp := p.nextStamp()
	h.state.seal(msg[initiationTimestamp:initiationMac1], &key, stamp[:])
	return Accepted
}

// nextStamp returns the timestamp of the next initiation: the time, but always greater than the one before, also when
// the wall clock was set back.
func (p *Peer) nextStamp() timestamp {
	stamp := stampOf(p.local.wall())
	if !stamp.after(p.stampSent) {
		stamp = p.stampSent.next()
	}
	p.stampSent = stamp
	return stamp
}

// openInitiation authenticates an initiation. Until the timestamp opens, nobody has proved anything; so it changes
// nothing but s. A peer is returned as soon as the message claims to be of one.
func (l *Local) openInitiation(s *symmetric, msg []byte) (p *Peer, stamp timestamp, reason Reason) {
	var shared, key [keySize]byte
	var static PublicKey
	defer clear(shared[:])
	defer clear(key[:])

	e := msg[initiationEphemeral:initiationStatic]
	s.begin(&l.public)
	s.mixEphemeral(e)
	if !x25519(&shared, l.static(), e) {
		return nil, stamp, LowOrder
	}
	s.mixDH(&shared, &key)
	if !s.open(static[:], &key, msg[initiationStatic:initiationTimestamp]) {
		return nil, stamp, BadAEAD
	}
	if p = l.peers[static]; p == nil {
		return nil, stamp, UnknownStatic
	}
	if isZero(&p.staticStatic) {
		return p, stamp, LowOrder
	}
	s.mixDH(&p.staticStatic, &key)
	if !s.open(stamp[:], &key, msg[initiationTimestamp:initiationMac1]) {
		return p, stamp, BadAEAD
	}
	if !stamp.valid() {
		return p, stamp, BadTimestamp
	}
	return p, stamp, Accepted
}

// consumeInitiation answers an initiation with a response and derives the session, which waits in the next slot for its
// confirmation. A replay or any other drop leaves the peer as it was (section 5.1; kernel noise.c).
func (l *Local) consumeInitiation(now time.Duration, msg []byte) Verdict {
	var s symmetric
	defer s.wipe()
	p, stamp, reason := l.openInitiation(&s, msg)
	v := Verdict{Peer: p}
	if reason == Accepted {
		reason = p.checkInitiation(now, stamp)
		if reason == ReplayedTimestamp {
			v.Stamp, v.NewestStamp = stamp.time(), p.stampSeen.time()
		}
	}
	var response []byte
	var k *Keypair
	if reason == Accepted {
		response, k, reason = p.createResponse(now, &s, msg)
	}
	if reason != Accepted {
		if p != nil {
			p.tally.InitiationsRejected[reason]++
		}
		v.Reason = reason
		return v
	}
	p.stampSeen, p.initiationAt = stamp, now
	if !p.insists() {
		p.dropHandshake() // kernel: the state becomes CONSUMED_INITIATION
	}
	p.beginSession(now, k)
	p.noteHandshakeSent(now)
	p.tally.ResponsesSent++
	p.emit(Output{Kind: SendMessage, Message: response})
	v.Roam = true
	return v
}

// insists reports whether our initiation under way stays when one of the peer's is accepted. In the kernel both sides of
// two initiations that cross forget theirs, and so neither takes the other's response; when the way is longer than the
// jitter their retries cross as well, for ever. So the side with the greater public key goes on to wait for its response,
// which the other side, Sluice or kernel, has sent.
func (p *Peer) insists() bool {
	return p.handshake.active && bytes.Compare(p.local.public[:], p.public[:]) > 0
}

// checkInitiation refuses what is not newer than the newest, and what comes too fast.
func (p *Peer) checkInitiation(now time.Duration, stamp timestamp) Reason {
	if !stamp.after(p.stampSeen) {
		return ReplayedTimestamp
	}
	if p.initiationAt != 0 && now-p.initiationAt < minInitiationInterval {
		return Flood
	}
	return Accepted
}

// createResponse makes the second message (section 5.4.3) and the session. It changes nothing of p but the outstanding
// mac1, and that only when it succeeds. The message is owned by the caller.
func (p *Peer) createResponse(now time.Duration, s *symmetric, initiation []byte) ([]byte, *Keypair, Reason) {
	var shared, key, private [keySize]byte
	defer clear(shared[:])
	defer clear(key[:])
	defer clear(private[:])

	msg := make([]byte, SizeResponse)
	e := msg[responseEphemeral:responseEmpty]
	if !p.local.drawEphemeral(&private, e) {
		return nil, nil, NoRandomness
	}
	s.mixEphemeral(e)
	if !x25519(&shared, &private, initiation[initiationEphemeral:initiationStatic]) {
		return nil, nil, LowOrder
	}
	s.mixDH(&shared, nil)
	if !x25519(&shared, &private, p.public[:]) {
		return nil, nil, LowOrder
	}
	s.mixDH(&shared, nil)
	s.mixPSK(&p.preshared, &key)
	s.seal(msg[responseEmpty:responseMac1], &key, nil)

	index, ok := p.local.table.draw(p.local.rand, p)
	if !ok {
		return nil, nil, NoRandomness
	}
	binary.LittleEndian.PutUint32(msg, uint32(MessageResponse))
	binary.LittleEndian.PutUint32(msg[offsetSender:], index)
	copy(msg[responseReceiver:responseEphemeral], initiation[offsetSender:offsetSender+4])
	p.cookie.addMacs(now, msg)
	remote := binary.LittleEndian.Uint32(initiation[offsetSender:])
	return msg, p.newKeypair(now, s, index, remote, false), Accepted
}

// consumeResponse completes the handshake that the response's receiver index names; e is that index's entry. The session is
// the caller's to begin. A drop leaves the handshake waiting for the right response.
func (l *Local) consumeResponse(now time.Duration, e *indexEntry, msg []byte) (*Keypair, Reason) {
	if e == nil {
		return nil, UnknownIndex
	}
	p := e.peer
	h := &p.handshake
	if !h.active || h.index != e.index {
		return nil, WrongState
	}
	s := h.state
	defer s.wipe()
	if reason := p.openResponse(&s, msg); reason != Accepted {
		return nil, reason
	}
	k := p.newKeypair(now, &s, h.index, binary.LittleEndian.Uint32(msg[offsetSender:]), true)
	h.wipe() // its index lives on as the session's
	return k, Accepted
}

// beginSession is what an accepted handshake message changes beside the handshake: there is a session, and something was received.
func (p *Peer) beginSession(now time.Duration, k *Keypair) {
	p.addKeypair(now, k)
	p.lastReceived = now
	p.handshakeReceived = now
}

// openResponse authenticates a response: e, ee, se, psk and the empty plaintext.
func (p *Peer) openResponse(s *symmetric, msg []byte) Reason {
	var shared, key [keySize]byte
	defer clear(shared[:])
	defer clear(key[:])

	e := msg[responseEphemeral:responseEmpty]
	s.mixEphemeral(e)
	if !x25519(&shared, &p.handshake.ephemeral, e) {
		return LowOrder
	}
	s.mixDH(&shared, nil)
	if !x25519(&shared, p.local.static(), e) {
		return LowOrder
	}
	s.mixDH(&shared, nil)
	s.mixPSK(&p.preshared, &key)
	if !s.open(nil, &key, msg[responseEmpty:responseMac1]) {
		return BadAEAD
	}
	return Accepted
}

// newKeypair derives the transport keys (section 5.4.5).
func (p *Peer) newKeypair(now time.Duration, s *symmetric, local, remote uint32, initiator bool) *Keypair {
	var first, second [aead.KeySize]byte
	s.split(&first, &second)
	send, receive := &first, &second
	if !initiator {
		send, receive = receive, send
	}
	k := &Keypair{
		LocalIndex: local, RemoteIndex: remote, Created: now, Initiator: initiator,
		peer: p, owner: p.owner,
		sealer: p.local.newCipher(send), opener: p.local.newCipher(receive),
	}
	k.unconfirmed.Store(!initiator)
	clear(first[:])
	clear(second[:])
	return k
}
