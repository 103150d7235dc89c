package crypto

import (
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/crypto/aead"
	"github.com/sluice-vpn/sluice/crypto/replay"
)

// Keypair is one session: a key to send with, a key to receive with, and the counters of both directions. Any goroutine
// may call its methods, but for Window (the receiving lane's) and Wipe (the owner's, when no other call can run).
//
// A keypair lives in one of its peer's three slots. Control retires it (Output.Kind Retired); lanes may still hold it for
// the batch they are in, then Usable and Acceptable say no.
type Keypair struct {
	// LocalIndex is the receiver index of packets to us, RemoteIndex of packets to the peer. Frozen.
	LocalIndex, RemoteIndex uint32
	// Created is when the session was derived; its age counts from here. Frozen.
	Created time.Duration
	// Initiator is whether we made the initiation: only then we rekey by age. Frozen.
	Initiator bool

	peer           *Peer
	owner          any
	sealer, opener aead.Cipher

	window replay.Window // owned by the receiving lane

	counter     atomic.Uint64 // the next counter to send with
	expired     atomic.Bool   // not to be sent with any more, whatever its age
	retired     atomic.Bool   // in no slot any more
	unconfirmed atomic.Bool   // responder's, before the first valid data (paper, section 5.4.6)
	lastMinute  atomic.Bool   // RekeyOnReceive said yes
}

// Owner returns PeerConfig.Owner of the peer. Frozen.
func (k *Keypair) Owner() any { return k.owner }

// Peer returns the peer of the session. Frozen.
func (k *Keypair) Peer() *Peer { return k.peer }

// Reserve takes n consecutive counters, the first of which it returns. Not ok: n is not positive, or they would reach
// RejectAfterMessages; then none is taken. No counter is ever given twice, whoever calls (section 5.4.6: "the nonce must
// never be reused").
func (k *Keypair) Reserve(n int) (first uint64, ok bool) {
	if n <= 0 {
		return 0, false
	}
	for {
		first = k.counter.Load()
		if first >= RejectAfterMessages || uint64(n) > RejectAfterMessages-first {
			return 0, false
		}
		if k.counter.CompareAndSwap(first, first+uint64(n)) {
			return first, true
		}
	}
}

// Usable reports whether packets may be sent: the session is younger than RejectAfterTime, was not expired, and has
// counters left (section 6.2).
func (k *Keypair) Usable(now time.Duration) bool {
	return !k.expired.Load() && k.Acceptable(now) && k.counter.Load() < RejectAfterMessages
}

// Acceptable reports whether packets may be received: the session is younger than RejectAfterTime and in a slot.
func (k *Keypair) Acceptable(now time.Duration) bool {
	return now-k.Created < RejectAfterTime && !k.retired.Load()
}

// RekeyOnSend reports whether sending asks for a new session: the initiator's after RekeyAfterTime, either side's after
// RekeyAfterMessages (section 6.2; kernel send.c, keep_key_fresh).
func (k *Keypair) RekeyOnSend(now time.Duration) bool {
	return k.Initiator && now-k.Created >= RekeyAfterTime || k.counter.Load() > RekeyAfterMessages
}

// RekeyOnReceive reports whether receiving asks for a new session: the initiator's when the current session will soon be
// rejected (section 6.2; kernel receive.c, keep_key_fresh). It says yes once in a session's life. Late packets of a
// previous session ask for nothing: it has its successor.
func (k *Keypair) RekeyOnReceive(now time.Duration) bool {
	return k.Initiator && now-k.Created >= rekeyOnReceiveAfter && k.peer.Sending() == k && k.lastMinute.CompareAndSwap(false, true)
}

// NeedsConfirm reports whether this is a responder's session that no valid data has come by yet. It must not be sent with.
func (k *Keypair) NeedsConfirm() bool { return k.unconfirmed.Load() }

// MarkConfirmed is called by the lane that received the first valid data. It returns true to one caller, once, who then
// has control call Peer.Confirm.
func (k *Keypair) MarkConfirmed() bool { return k.unconfirmed.CompareAndSwap(true, false) }

// SealRun encrypts the run with the sending key. The counters are the caller's, from Reserve.
func (k *Keypair) SealRun(run []aead.Packet) { k.sealer.Seal(run) }

// OpenRun authenticates and decrypts the run with the receiving key and returns how many packets are OK. The caller then
// asks Window about the counter of each.
func (k *Keypair) OpenRun(run []aead.Packet) int { return k.opener.Open(run) }

// Window returns the replay window, which belongs to the lane that receives this session's packets.
func (k *Keypair) Window() *replay.Window { return &k.window }

// Wipe overwrites the keys. The owner calls it once, after Retired, when no lane holds the keypair any more.
func (k *Keypair) Wipe() {
	k.sealer.Wipe()
	k.opener.Wipe()
}

// expire ends sending; what is under way may still be received (kernel noise.c, wg_noise_expire_current_peer_keypairs).
func (k *Keypair) expire() { k.expired.Store(true) }

// retire marks k as in no slot.
func (k *Keypair) retire() { k.retired.Store(true) }

// published is a keypair that control sets and any goroutine reads.
type published struct{ p atomic.Pointer[Keypair] }

func (p *published) load() *Keypair   { return p.p.Load() }
func (p *published) store(k *Keypair) { p.p.Store(k) }
