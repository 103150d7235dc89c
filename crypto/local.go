package crypto

import (
	cryptorand "crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"github.com/sluice-vpn/sluice/crypto/aead"
	"github.com/sluice-vpn/sluice/crypto/secret"
)

// What AddPeer refuses.
var (
	ErrSelf      = errors.New("crypto: the peer's public key is our own")
	ErrDuplicate = errors.New("crypto: the peer exists")
)

// Config is what the protocol core needs from outside.
type Config struct {
	// Rand is the source of keys, indices, cookies and jitter. nil: crypto/rand.Reader, which waits until it is seeded.
	Rand io.Reader
	// Wall is the wall clock, for the timestamps of initiations and for LastHandshake. Required. Everything else is timed
	// by the now that calls are given.
	Wall func() time.Time
	// NewCipher makes the ciphers of sessions; it copies the key. nil: aead.New. Handshakes have their own.
	NewCipher func(key *[aead.KeySize]byte) aead.Cipher
}

// Local is our side of every handshake: the static key, the peers, the indices, the cookies. It belongs to the control
// goroutine; only what Table returns may be used by others.
type Local struct {
	rand      io.Reader
	wall      func() time.Time
	newCipher func(*[aead.KeySize]byte) aead.Cipher
	table     *IndexTable

	private PrivateKey // clamped; zero: none
	public  PublicKey
	cookies cookieChecker

	peers map[PublicKey]*Peer
	order []*Peer // the same, so that walking them is deterministic
}

// NewLocal makes a Local with no key and no peers. The error names the missing field.
func NewLocal(cfg Config) (*Local, error) {
	if cfg.Wall == nil {
		return nil, errors.New("crypto: Config.Wall is required")
	}
	if cfg.Rand == nil {
		cfg.Rand = cryptorand.Reader
	}
	if cfg.NewCipher == nil {
		cfg.NewCipher = aead.New
	}
	return &Local{
		rand: cfg.Rand, wall: cfg.Wall, newCipher: cfg.NewCipher,
		table: newIndexTable(), peers: make(map[PublicKey]*Peer),
	}, nil
}

// PrivateKey returns our private key, clamped; zero: none. Call it under secret.Do: it is a copy.
func (l *Local) PrivateKey() PrivateKey { return l.private }

// static is the private key where it is.
func (l *Local) static() *[keySize]byte { return (*[keySize]byte)(&l.private) }

// PublicKey returns our public key; zero: none.
func (l *Local) PublicKey() PublicKey { return l.public }

// Table returns the index table, whose Lookup any goroutine may call.
func (l *Local) Table() *IndexTable { return l.table }

// SetPrivateKey changes our key; zero clears it; the key we have is a no-op. k is the caller's. Handshakes under way are dropped and the
// sessions there are may not be sent with any more, so that the next packets make new ones. A peer whose key is the new
// public key is removed and returned, its outputs still to be polled (kernel netlink.c and noise.c).
func (l *Local) SetPrivateKey(now time.Duration, k *PrivateKey) (removed []*Peer) {
	changed := false
	secret.Do(func() { changed = l.replacePrivate(k) })
	if !changed {
		return nil
	}
	if p := l.peers[l.public]; p != nil && l.hasPrivate() {
		l.RemovePeer(now, p)
		removed = append(removed, p)
	}
	l.cookies.rekey(&l.public)
	for _, p := range l.order {
		secret.Do(p.precompute)
		p.expireKeys()
	}
	return removed
}

// replacePrivate sets the key pair; false: it is the one we have. Call it under secret.Do.
func (l *Local) replacePrivate(k *PrivateKey) bool {
	next := *k
	if !next.IsZero() {
		next.clamp()
	}
	if next.Equal(l.private) {
		return false
	}
	l.private = next
	l.public = publicOf(l.static())
	return true
}

// hasPrivate reports whether we have a key, without a copy of it.
func (l *Local) hasPrivate() bool { return !isZero(l.static()) }

// Peer returns the peer of that key, nil if there is none.
func (l *Local) Peer(k PublicKey) *Peer { return l.peers[k] }

// AddPeer makes a peer. A persistent keepalive is due at once. The errors are ErrSelf and ErrDuplicate.
func (l *Local) AddPeer(now time.Duration, cfg PeerConfig) (*Peer, error) {
	if l.hasPrivate() && cfg.PublicKey.Equal(l.public) {
		return nil, ErrSelf
	}
	if l.peers[cfg.PublicKey] != nil {
		return nil, ErrDuplicate
	}
	p := &Peer{
		local: l, public: cfg.PublicKey, owner: cfg.Owner, preshared: cfg.PresharedKey,
		cookie: newLatestCookie(&cfg.PublicKey), tally: Tally{Since: now},
		unansweredJitter: l.jitter(), place: len(l.order),
	}
	p.SetHandshakeLifetime(cfg.HandshakeLifetime, cfg.FastRetry)
	p.SetPersistentKeepalive(now, cfg.PersistentKeepalive)
	secret.Do(p.precompute)
	l.peers[cfg.PublicKey] = p
	l.order = append(l.order, p)
	return p, nil
}

// RemovePeer forgets a peer. Its sessions come out of Poll as Retired; no call on it has any other effect. Removing it
// again does nothing.
func (l *Local) RemovePeer(now time.Duration, p *Peer) {
	if p.place < 0 {
		return
	}
	p.Clear(now)
	last := l.order[len(l.order)-1]
	l.order[p.place], last.place = last, p.place
	l.order[len(l.order)-1] = nil
	l.order = l.order[:len(l.order)-1]
	delete(l.peers, p.public)
	p.place = -1
	clear(p.preshared[:])
	clear(p.staticStatic[:])
	clear(p.cookie.cookie[:])
}

// precompute sets the static-static secret, zero if the peer's key is of low order (kernel noise.c,
// wg_noise_precompute_static_static). Call it under secret.Do.
func (p *Peer) precompute() {
	clear(p.staticStatic[:])
	if p.local.hasPrivate() {
		x25519(&p.staticStatic, p.local.static(), p.public[:])
	}
}

// jitter draws a time below retryJitter.
func (l *Local) jitter() time.Duration {
	var b [4]byte
	if _, err := io.ReadFull(l.rand, b[:]); err != nil {
		return 0
	}
	return time.Duration(uint64(binary.LittleEndian.Uint32(b[:])) * uint64(retryJitter) >> 32)
}

// NoteQueue is told, before each Handle, how many handshake messages wait and how many could. If an eighth of the queue is taken by
// messages with the right mac1, as far as the latest ones tell, then for a second we are under load: initiations and responses must
// carry a cookie (section 5.3; kernel receive.c, which counts the others too).
func (l *Local) NoteQueue(now time.Duration, waiting, capacity int) {
	l.cookies.noteQueue(now, waiting, capacity)
}

// Verdict is what became of a handshake message.
type Verdict struct {
	// Reason is Accepted or the name of the drop.
	Reason Reason
	// Peer is whom the message authenticated as; of a dropped initiation, whom it claims to be of as far as that could
	// be opened; of a dropped response or cookie reply, whose index it named. nil: unknown.
	Peer *Peer
	// Reply is a cookie reply to send to where the message came from, mostly nil. Borrowed until the next call.
	Reply []byte
	// Roam: where the message came from is an authenticated new endpoint of Peer.
	Roam bool
	// Stamp and NewestStamp are set with ReplayedTimestamp: the wall-clock times of this initiation and of the newest
	// accepted one. A peer whose clock once ran ahead is refused until it catches up, which only these show.
	Stamp, NewestStamp time.Time
}

// Handle takes one handshake message: an initiation, a response or a cookie reply, in the buffer it came in, which is
// borrowed. After it, drain Verdict.Peer's outputs. A message that is not accepted changes nothing but counters; nobody
// we do not know can make us keep anything.
//
// roam is called where Verdict.Roam is set, before the message's session may be sent with, so that no packet of it leaves to
// where the peer was before (kernel receive.c, wg_receive_handshake_packet: wg_socket_set_peer_endpoint_from_skb comes before
// wg_noise_handshake_begin_session). It must not call the Local or the Peer; nil: nobody wants to know.
func (l *Local) Handle(now time.Duration, src Source, msg []byte, roam func(*Peer)) Verdict {
	kind, reason := classify(msg)
	if reason == Accepted && kind == MessageTransport {
		reason = BadType
	}
	if reason != Accepted {
		return Verdict{Reason: reason}
	}
	switch kind {
	case MessageInitiation:
		return l.handleInitiation(now, src, msg, roam)
	case MessageResponse:
		return l.handleResponse(now, src, msg, roam)
	default:
		return l.handleCookieReply(now, msg)
	}
}

func (l *Local) handleInitiation(now time.Duration, src Source, msg []byte, roam func(*Peer)) (v Verdict) {
	if reason, reply := l.admit(now, src, msg); reason != Accepted {
		return Verdict{Reason: reason, Reply: reply}
	}
	secret.Do(func() { v = l.consumeInitiation(now, msg) })
	if v.Roam && roam != nil {
		roam(v.Peer) // the session waits for the peer's confirmation, the response for Poll
	}
	return v
}

func (l *Local) handleResponse(now time.Duration, src Source, msg []byte, roam func(*Peer)) (v Verdict) {
	e := l.table.find(binary.LittleEndian.Uint32(msg[responseReceiver:]))
	if e != nil {
		v.Peer = e.peer
	}
	var k *Keypair
	if v.Reason, v.Reply = l.admit(now, src, msg); v.Reason == Accepted {
		secret.Do(func() { k, v.Reason = l.consumeResponse(now, e, msg) })
	}
	if v.Reason != Accepted {
		if v.Peer != nil {
			v.Peer.tally.ResponsesRejected[v.Reason]++
		}
		return v
	}
	v.Roam = true
	if roam != nil {
		roam(v.Peer)
	}
	v.Peer.beginSession(now, k)
	return v
}

// handleCookieReply never moves the endpoint, since anyone on the path could have made us ask for it.
func (l *Local) handleCookieReply(now time.Duration, msg []byte) Verdict {
	e := l.table.find(binary.LittleEndian.Uint32(msg[offsetReceiver:]))
	if e == nil {
		l.cookies.noteMessage(false)
		return Verdict{Reason: UnknownIndex}
	}
	right := e.peer.cookie.consume(now, msg)
	l.cookies.noteMessage(right)
	if !right {
		return Verdict{Reason: BadCookie, Peer: e.peer}
	}
	e.peer.tally.CookieReplies++
	return Verdict{Reason: Accepted, Peer: e.peer}
}

// admit decides whether msg is worth a Diffie-Hellman (section 5.3; kernel receive.c, wg_receive_handshake_packet): mac1
// always; under load a cookie as well, and not more than the source's share. Not under load mac2 is not looked at.
func (l *Local) admit(now time.Duration, src Source, msg []byte) (reason Reason, reply []byte) {
	if !l.hasPrivate() {
		return NoPrivateKey, nil
	}
	right := l.cookies.checkMac1(msg)
	l.cookies.noteMessage(right)
	switch {
	case !right:
		return Mac1Mismatch, nil
	case !l.cookies.underLoad(now):
		return Accepted, nil
	case !l.cookies.checkMac2(now, l.rand, src, msg):
		return CookieSent, l.cookies.makeReply(now, l.rand, src, msg)
	case !l.cookies.limiter.allow(now, src):
		return RateLimited, nil
	}
	return Accepted, nil
}
