package pipeline

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// peer is one peer as control and the lanes share it.
//
// Frozen: key, core, outbound. Owned by control: allowedIPs, deadline, keepalive. Atomic: path, title, stamps, drops, signals.
type peer struct {
	key  crypto.PublicKey
	core *crypto.Peer // owned by control, but for Sending

	// outbound has one lane per shard, each owned by its shard.
	outbound []outboundLane
	// inbound is the lane of the other direction, shared by the shards.
	inbound inboundLane

	// path is frozen after publish; nil without endpoint. Control decides; lanes only move it by roam, which loses to control.
	path atomic.Pointer[Path]
	// reach says what lanes do with packets while there is no path.
	reach atomic.Uint32
	stamps
	title atomic.Pointer[string] // the name of link, for lanes; nil: none

	// signals are what lanes tell control; see notify.
	signals      atomic.Uint32
	nextNotified *peer
	confirmed    atomic.Pointer[crypto.Keypair] // has carried its first packet; nil once control has made it the current one
	looped       atomic.Int64                   // when control was last told of a routing loop, 0: never

	strayed   atomic.Pointer[Path] // where data last came from that did not come from where the selected pair leads; frozen
	strayedAt atomic.Int64         // when control was last told

	// Owned by control.
	allowedIPs map[netip.Prefix]struct{}
	keepalive  uint16 // seconds
	link       Link   // of a named peer, else nil
	deadline   deadline

	drops peerDrops // last, since it is seldom touched
}

// sending returns the keypair to send with now, nil if there is none. That is a responder's new one from its first valid
// data on, before control has made it the current one: the answer to that data must not leave under a session that the
// peer may have lost (kernel noise.c, wg_noise_received_with_keypair). A retired keypair is not usable, so whoever gets one
// here is in a batch that control waits for before the keys are overwritten.
func (p *peer) sending(now time.Duration) *crypto.Keypair {
	if kp := p.confirmed.Load(); kp != nil && kp.Usable(now) {
		return kp
	}
	if kp := p.core.Sending(); kp != nil && kp.Usable(now) {
		return kp
	}
	return nil
}

// way returns where to send now and with which keypair; nil where there is none. The path is loaded last: a message that gives
// a new keypair moves the path first (kernel receive.c), so that whoever sees the one sees the other.
func (p *peer) way(now time.Duration) (*Path, *crypto.Keypair) {
	kp := p.sending(now)
	return p.path.Load(), kp
}

// inboundLane orders what several shards receive from one peer: its mutex guards the replay windows of the peer's
// keypairs and is taken once for each run of packets, by one shard at a time unless the peer's datagrams move between
// sockets. It is a leaf: no other lock is taken under it.
type inboundLane struct {
	mu      sync.Mutex
	visited visited // guarded by mu
}

// Signals from lanes to control.
const (
	signalWant      uint32 = 1 << iota // traffic wants a session or a rekey is due
	signalConfirmed                    // peer.confirmed has carried its first packet
	signalStray                        // peer.strayed is where the peer may have moved
	signalActivity                     // a stamp went from none to some while no deadline watched it
	signalLoop                         // our own datagrams for the peer came in at the TUN
	signalSource                       // a source that control has not checked is in use
)

// stamps are what lanes note of a peer's traffic, once a batch, for control's timers and for status. Durations are on the
// pipeline's clock, 0 is none. They are written by any lane and by control; a lost race moves a timer by one batch.
type stamps struct {
	firstUnanswered  atomic.Int64 // first data sent since anything authenticated came
	firstUnkept      atomic.Int64 // first data received since anything authenticated was sent
	lastDataReceived atomic.Int64
	lastDataSent     atomic.Int64
	lastSent         atomic.Int64
	lastReceived     atomic.Int64
	// watched: control will look at the stamps within watchInterval. A lane that sets a first while it is not, signals.
	watched atomic.Bool

	rxBytes, txBytes atomic.Uint64
}

// watchInterval is how often control looks at a peer that has traffic: the shortest time in which a first falls due, so that
// lanes need not signal each one.
const watchInterval = crypto.KeepaliveTimeout

// sent notes that authenticated packets left at now; data tells whether any was not a keepalive. It returns true if
// control must be signalled because nothing watches what it set.
func (s *stamps) sent(now time.Duration, data bool) (signal bool) {
	s.lastSent.Store(int64(now))
	if s.firstUnkept.Load() != 0 {
		s.firstUnkept.Store(0)
	}
	if !data {
		return false
	}
	s.lastDataSent.Store(int64(now))
	if s.firstUnanswered.Load() == 0 {
		s.firstUnanswered.Store(int64(now))
		return !s.watched.Load()
	}
	return false
}

// refused notes that data which sent was told of at now has not left: who was never asked owes no answer (kernel send.c,
// wg_packet_create_data_done). What else left in that moment is forgotten with it, until the next packet.
func (s *stamps) refused(now time.Duration) { s.firstUnanswered.CompareAndSwap(int64(now), 0) }

// lastData is when data last went or came.
func (s *stamps) lastData() time.Duration {
	return time.Duration(max(s.lastDataSent.Load(), s.lastDataReceived.Load()))
}

// received notes that authenticated packets came at now, as sent does for the other direction.
func (s *stamps) received(now time.Duration, data bool) (signal bool) {
	s.lastReceived.Store(int64(now))
	if s.firstUnanswered.Load() != 0 {
		s.firstUnanswered.Store(0)
	}
	if !data {
		return false
	}
	s.lastDataReceived.Store(int64(now))
	if s.firstUnkept.Load() == 0 {
		s.firstUnkept.Store(int64(now))
		return !s.watched.Load()
	}
	return false
}

// activity is what control's timers read.
func (s *stamps) activity() crypto.Activity {
	return crypto.Activity{
		FirstUnanswered:  time.Duration(s.firstUnanswered.Load()),
		FirstUnkept:      time.Duration(s.firstUnkept.Load()),
		LastDataReceived: time.Duration(s.lastDataReceived.Load()),
		LastSent:         time.Duration(s.lastSent.Load()),
		LastReceived:     time.Duration(s.lastReceived.Load()),
	}
}

// watch reads the stamps for a deadline that is about to be set. While there is something to watch lanes do not signal, and
// control must look again within watchInterval.
func (s *stamps) watch() (a crypto.Activity, watched bool) {
	for {
		a = s.activity()
		s.watched.Store(a.FirstUnanswered != 0 || a.FirstUnkept != 0)
		if s.watched.Load() {
			return a, true
		}
		// A lane that set a first just before the store saw that it was watched.
		if a = s.activity(); a.FirstUnanswered == 0 && a.FirstUnkept == 0 {
			return a, false
		}
	}
}

// reset forgets the traffic, not the byte counts.
func (s *stamps) reset() {
	s.firstUnanswered.Store(0)
	s.firstUnkept.Store(0)
	s.lastDataReceived.Store(0)
	s.lastDataSent.Store(0)
	s.lastSent.Store(0)
	s.lastReceived.Store(0)
}

// run makes a run of one datagram to the path.
func (p *Path) run(data []byte, tos uint8) udp.Run {
	r := udp.Run{Data: data, SegmentSize: len(data), Dst: p.Dst, TOS: tos}
	if p.source != sourceForgotten {
		r.Src, r.IfIndex = p.Src, p.IfIndex
	}
	return r
}

// notified is the stack of peers that have a signal for control. Lanes push without lock or allocation; a peer is on it
// at most once.
type notified struct {
	head atomic.Pointer[peer]
	wake chan struct{} // one slot
}

// notify tells control about p. Any goroutine.
func (n *notified) notify(p *peer, signal uint32) {
	if p.signals.Or(signal) != 0 {
		return // already on the stack
	}
	for {
		head := n.head.Load()
		p.nextNotified = head
		if n.head.CompareAndSwap(head, p) {
			break
		}
	}
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// drain calls f for each notified peer with its signals, oldest first. Control only.
func (n *notified) drain(f func(*peer, uint32)) {
	var oldest *peer
	for p := n.head.Swap(nil); p != nil; {
		next := p.nextNotified
		p.nextNotified = oldest
		oldest, p = p, next
	}
	for p := oldest; p != nil; {
		next := p.nextNotified // before the signals are cleared: from then on lanes may push p again
		f(p, p.signals.Swap(0))
		p = next
	}
}
