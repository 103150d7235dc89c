package crypto

import "time"

// PeerConfig is what a peer begins with. The zero value of each field but PublicKey is its default.
type PeerConfig struct {
	PublicKey    PublicKey
	PresharedKey PresharedKey // zero: none
	// HandshakeLifetime is how long a series of initiations may last, from the first one. At its end HandshakeExpired
	// is reported; no initiation is sent from then on. 0 means RekeyAttemptTime, 90 s.
	HandshakeLifetime time.Duration
	// FastRetry sends the initiations of a series at 0, 1, 3, 6 and 10 s (plus jitter) while there is no session. It is
	// for paths that are known to work. Without it they are RekeyTimeout (plus jitter) apart, which the paper demands.
	FastRetry bool
	// PersistentKeepalive is how long nothing authenticated may pass before a keepalive is sent. 0 means never.
	PersistentKeepalive time.Duration
	// Owner is given back by Peer.Owner and Keypair.Owner, so that the data plane finds its own side. Frozen.
	Owner any
}

// Peer is the protocol state of one peer. It belongs to the control goroutine, but for Sending, which any goroutine may
// call. After each call that may change something, drain Poll, then look at NextTimeout.
type Peer struct {
	// frozen
	local  *Local
	public PublicKey
	owner  any

	// configuration
	preshared  PresharedKey
	lifetime   time.Duration
	fastRetry  bool
	persistent time.Duration

	// what we know of the peer
	staticStatic [keySize]byte // zero: the peer's key is of low order, or we have none
	cookie       latestCookie
	stampSent    timestamp     // of our newest initiation
	stampSeen    timestamp     // of the newest accepted one of the peer
	initiationAt time.Duration // when that was accepted

	// handshake and sessions
	handshake      handshake
	previous, next *Keypair
	current        published
	series         series
	tally          Tally
	lastHandshake  time.Time

	// deadlines and what they count from; 0 is none
	handshakeSent     time.Duration // our last initiation or response
	handshakeReceived time.Duration // the last accepted initiation or response
	lastSent          time.Duration // handshakeSent too, but not forgotten with the static key
	lastReceived      time.Duration // authenticated, as far as control saw it
	wantedAt          time.Duration // a series may begin then, and is wanted
	unansweredDone    time.Duration // the Activity.FirstUnanswered that was acted upon
	unansweredJitter  time.Duration
	unkeptDone        time.Duration // the Activity.FirstUnkept that was acted upon
	keepaliveAt       time.Duration // a persistent keepalive is due then, whatever passed
	keepaliveFrom     time.Duration // the last persistent keepalive
	clearedAt         time.Duration // activity before this does not count
	zeroAt            time.Duration

	outputs []Output
	place   int // in Local.order; -1: removed
}

// OutputKind says what an Output asks of the data plane, or tells it.
type OutputKind uint8

// The outputs of a peer.
const (
	SendMessage   OutputKind = iota // send Message to the peer's endpoint
	SendKeepalive                   // send an empty transport data packet with the current keypair
	SessionUp                       // Keypair is the new current one, see Output
	Retired                         // Keypair is published nowhere any more
	SeriesExpired                   // the handshake lifetime ended without a session: see Expired, drop staged packets
)

var outputNames = [...]string{
	SendMessage: "send_message", SendKeepalive: "send_keepalive", SessionUp: "session_up", Retired: "retired", SeriesExpired: "handshake_expired",
}

// String returns the kind's name as logs show it.
func (k OutputKind) String() string {
	if int(k) >= len(outputNames) {
		return "unknown"
	}
	return outputNames[k]
}

// Output is one thing a peer wants done. Which fields are set depends on Kind.
type Output struct {
	Kind OutputKind
	// Message of SendMessage is an initiation or response, borrowed until the next call on the Peer. It travels with
	// DSCP AF41, a traffic class of 0x88 (kernel messages.h, HANDSHAKE_DSCP).
	Message []byte
	// ClearSource of SendMessage: the one before was not answered, so forget the cached source address first.
	ClearSource bool
	// Keypair of SessionUp and Retired. The owner of a retired one wipes it after its lanes have let go of it.
	Keypair *Keypair
	// Initiator of SessionUp: we must confirm at once, with the staged packets or else a keepalive (kernel receive.c).
	Initiator bool
	// Expired of SeriesExpired.
	Expired HandshakeExpired
}

// Tally counts what became of a peer's handshake messages since its last session came up, its last series began or
// ended, or it was added.
type Tally struct {
	Since               time.Duration
	Initiations         int // sent
	ResponsesSent       int // each answers an accepted initiation
	CookieReplies       int // accepted
	InitiationsRejected [ReasonCount]uint32
	ResponsesRejected   [ReasonCount]uint32 // those whose receiver index named this peer
	// NotSent is why the last initiation could not be made (no private key, low order), or Accepted.
	NotSent Reason
}

// Rejected returns how many messages of either kind were dropped for reason r.
func (t *Tally) Rejected(r Reason) int {
	return int(t.InitiationsRejected[r]) + int(t.ResponsesRejected[r])
}

// RejectedResponses returns how many responses were dropped, whatever the reason.
func (t *Tally) RejectedResponses() int {
	n := 0
	for _, c := range t.ResponsesRejected {
		n += int(c)
	}
	return n
}

// HandshakeExpired is the report of a series that ended without a session.
type HandshakeExpired struct {
	Tally
	// Quiet: the session that the series should have replaced still is usable and has carried authenticated traffic
	// since the series began. Nothing is lost yet; the next packet may begin another series.
	Quiet bool
}

// PublicKey names the peer. Frozen.
func (p *Peer) PublicKey() PublicKey { return p.public }

// Owner returns PeerConfig.Owner. Frozen.
func (p *Peer) Owner() any { return p.owner }

// PresharedKey returns the preshared key, zero if there is none. Call it under secret.Do: it is a copy.
func (p *Peer) PresharedKey() PresharedKey { return p.preshared }

// SetPresharedKey changes the preshared key for handshake messages from now on. The session there is stays. k is the caller's.
// Call it under secret.Do.
func (p *Peer) SetPresharedKey(k *PresharedKey) { p.preshared = *k }

// SetHandshakeLifetime changes the lifetime (0: RekeyAttemptTime) and the pace of series that begin from now on. The one
// that runs keeps its deadline.
func (p *Peer) SetHandshakeLifetime(d time.Duration, fast bool) {
	if d <= 0 {
		d = RekeyAttemptTime
	}
	p.lifetime, p.fastRetry = d, fast
}

// PersistentKeepalive returns the interval, 0 if switched off.
func (p *Peer) PersistentKeepalive() time.Duration { return p.persistent }

// SetPersistentKeepalive changes the interval; 0 switches it off. Switching on makes one due at once (kernel netlink.c).
func (p *Peer) SetPersistentKeepalive(now, d time.Duration) {
	if d > 0 && p.persistent == 0 {
		p.keepaliveAt = now
	}
	if d <= 0 {
		d, p.keepaliveAt = 0, 0
	}
	p.persistent = d
}

// Sending returns the current keypair, nil if there is none. Any goroutine may call it; it still checks Usable.
func (p *Peer) Sending() *Keypair { return p.current.load() }

// LastHandshake returns the wall-clock time at which the newest session was known to work both ways: for the initiator
// when the response came, for the responder at confirmation. Zero: never.
func (p *Peer) LastHandshake() time.Time { return p.lastHandshake }

// Series returns when the running series of initiations began and how many it has tried to send.
func (p *Peer) Series() (since time.Duration, attempts int, running bool) {
	return p.series.since, p.series.attempts, p.series.running
}

// Tally returns the counters.
func (p *Peer) Tally() Tally { return p.tally }

// Poll returns the next output, oldest first. Not ok: there is none.
func (p *Peer) Poll() (Output, bool) {
	if len(p.outputs) == 0 {
		p.outputs = nil
		return Output{}, false
	}
	out := p.outputs[0]
	p.outputs[0] = Output{}
	p.outputs = p.outputs[1:]
	return out, true
}

// emit appends an output. Of messages only the newest waits, so that a caller who does not drain piles up nothing.
func (p *Peer) emit(out Output) {
	if out.Kind == SendMessage || out.Kind == SendKeepalive {
		for i := range p.outputs {
			if p.outputs[i].Kind == out.Kind {
				out.ClearSource = out.ClearSource || p.outputs[i].ClearSource
				p.outputs = append(p.outputs[:i], p.outputs[i+1:]...)
				break
			}
		}
	}
	p.outputs = append(p.outputs, out)
}

// Clear forgets handshake, sessions and wishes, as when the device goes down: the sessions come out as Retired. What was
// configured, and what guards against replay, stays. Nothing happens by itself until the peer is wanted or Up is called.
func (p *Peer) Clear(now time.Duration) {
	p.dropKeys()
	p.series = series{}
	p.tally = Tally{Since: now}
	p.wantedAt, p.keepaliveAt, p.keepaliveFrom, p.handshakeSent = 0, 0, 0, 0
	p.clearedAt = now
}

// Up is told when the device comes up: a persistent keepalive is due at once (kernel device.c, wg_open). A series that was
// begun while it was down, by a keepalive or a new key, sent to nobody; it must not delay the first initiation.
func (p *Peer) Up(now time.Duration) {
	p.dropHandshake()
	p.series, p.tally = series{}, Tally{Since: now}
	p.wantedAt, p.handshakeSent = 0, 0
	if p.persistent > 0 {
		p.keepaliveAt = now
	}
}

// noteHandshakeSent stamps an initiation or a response (kernel send.c).
func (p *Peer) noteHandshakeSent(now time.Duration) {
	p.handshakeSent, p.lastSent = now, now
}
