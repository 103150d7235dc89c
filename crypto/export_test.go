package crypto

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"time"
)

// Fingerprint is all protocol state but the counters of drops: two equal ones mean that nothing happened between them.
func (l *Local) Fingerprint() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %d/%d peers %d sources %d load %v\n",
		l.table.used, len(l.table.slots.Load().entry), len(l.peers), len(l.cookies.limiter.buckets), l.cookies.loadAt)
	for _, p := range l.order {
		fmt.Fprintf(&b, "%v stamps %x %x at %v handshake %v %d %x slots %p %p %p series %v %v %v %v %v %v %v %v cookie %v %v out %d\n",
			p.public, p.stampSent, p.stampSeen, p.initiationAt, p.handshake.active, p.handshake.index, p.handshake.state.hash,
			p.previous, p.current.load(), p.next, p.series, p.handshakeSent, p.handshakeReceived, p.lastSent, p.lastReceived,
			p.wantedAt, p.zeroAt, p.lastHandshake, p.cookie.receivedAt, p.cookie.outstanding, len(p.outputs))
	}
	return b.String()
}

// UsedIndices returns how many indices are in use.
func (l *Local) UsedIndices() int { return l.table.used }

// Sources returns how many sources the rate limiter remembers.
func (l *Local) Sources() int { return len(l.cookies.limiter.buckets) }

// Slots returns the three keypairs.
func (p *Peer) Slots() (previous, current, next *Keypair) {
	return p.previous, p.current.load(), p.next
}

// HandshakeIndex returns the index of the handshake under way.
func (p *Peer) HandshakeIndex() (index uint32, active bool) {
	return p.handshake.index, p.handshake.active
}

// HandshakeSecrets returns what must be zero when no handshake is under way.
func (p *Peer) HandshakeSecrets() (ephemeral, chain [32]byte) {
	return p.handshake.ephemeral, p.handshake.state.chain
}

// SetCounter presets the send counter.
func (k *Keypair) SetCounter(c uint64) { k.counter.Store(c) }

// Sealer returns the cipher of the sending direction, and Opener the other one.
func (k *Keypair) Sealer() any { return k.sealer }
func (k *Keypair) Opener() any { return k.opener }

// StampOf returns the timestamp field for t.
func StampOf(t time.Time) [12]byte { return stampOf(t) }

// ForgeInitiation makes an initiation the way whoever holds static would, with any timestamp.
func ForgeInitiation(rand io.Reader, static PrivateKey, to PublicKey, stamp [12]byte, index uint32) []byte {
	var shared, key, private [32]byte
	l := &Local{rand: rand}
	public := static.Public()
	msg := make([]byte, SizeInitiation)
	var s symmetric
	e := msg[initiationEphemeral:initiationStatic]
	l.drawEphemeral(&private, e)
	s.begin(&to)
	s.mixEphemeral(e)
	x25519(&shared, &private, to[:])
	s.mixDH(&shared, &key)
	s.seal(msg[initiationStatic:initiationTimestamp], &key, public[:])
	x25519(&shared, (*[32]byte)(&static), to[:])
	s.mixDH(&shared, &key)
	s.seal(msg[initiationTimestamp:initiationMac1], &key, stamp[:])
	binary.LittleEndian.PutUint32(msg, uint32(MessageInitiation))
	binary.LittleEndian.PutUint32(msg[offsetSender:], index)
	c := newLatestCookie(&to)
	c.addMacs(1, msg)
	return msg
}
