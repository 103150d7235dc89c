package crypto_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/cryptotest"
)

// third is the width of the retry jitter (kernel messages.h, REKEY_TIMEOUT_JITTER_MAX_JIFFIES).
const third = time.Second / 3

// deaf makes a pair whose initiator hears nothing.
func deaf(seed uint64, cfg crypto.PeerConfig) (*cryptotest.Net, *cryptotest.Remote, *cryptotest.Remote) {
	return cryptotest.Pair(seed, cryptotest.Link{Loss: 1}, cfg)
}

// Section 6.4: an initiation every 5 s plus jitter, for 90 s; then it ends, to the nanosecond.
func TestSeriesPaper(t *testing.T) {
	for seed := range uint64(20) {
		n, a, _ := deaf(seed, anyPeer)
		start := n.Now()
		a.Send([]byte("x"))
		n.Run(time.Hour)
		sent := a.Initiations()
		if len(sent) < 17 || len(sent) > 18 || sent[0] != start {
			t.Fatalf("%d initiations, the first at %v", len(sent), sent[0]-start)
		}
		for i := range sent[1:] {
			if gap := sent[i+1] - sent[i]; gap < 5*time.Second || gap >= 5*time.Second+third {
				t.Fatalf("retry after %v", gap)
			}
		}
		if last := sent[len(sent)-1]; last >= start+90*time.Second {
			t.Fatalf("an initiation at %v", last-start)
		}
		if got := a.Times(crypto.SeriesExpired); !slices.Equal(got, []time.Duration{start + 90*time.Second}) {
			t.Fatalf("expired at %v after %v", got, start)
		}
		gone(t, n, a)
	}
}

// gone checks that a failed series left nothing.
func gone(t *testing.T, n *cryptotest.Net, a *cryptotest.Remote) {
	t.Helper()
	if at, why := a.Peer.NextTimeout(a.Activity); at != 0 {
		t.Fatalf("%v is due at %v", why, at)
	}
	ephemeral, chain := a.Peer.HandshakeSecrets()
	if ephemeral != [32]byte{} || chain != [32]byte{} {
		t.Fatal("the handshake's secrets are still there")
	}
	if used := a.Node().Local.UsedIndices(); used != 0 {
		t.Fatalf("%d indices in use", used)
	}
	if _, _, running := a.Peer.Series(); running || a.Staged() != 0 {
		t.Fatalf("running %v, %d packets staged", running, a.Staged())
	}
}

// With a lifetime of 15 s and FastRetry: initiations at 0, 1, 3, 6, 10 s plus jitter, none from 15 s on, and the end at
// exactly 15 s; neither retries nor packets move it.
func TestSeriesFast(t *testing.T) {
	for seed := range uint64(50) {
		n, a, _ := deaf(seed, fastPeer)
		start := n.Now()
		a.Want()
		for range 149 {
			a.Send([]byte("more"))
			n.Run(100 * time.Millisecond)
		}
		if since, attempts, running := a.Peer.Series(); since != start || attempts != 5 || !running {
			t.Fatalf("series %v %v %v", since-start, attempts, running)
		}
		if a.Staged() != crypto.MaxStagedPackets {
			t.Fatalf("%d packets staged", a.Staged())
		}
		n.Run(time.Hour)
		want := []time.Duration{0, 1, 3, 6, 10}
		sent := a.Initiations()
		if len(sent) != len(want) {
			t.Fatalf("%d initiations", len(sent))
		}
		for i, at := range sent {
			if late := at - start - want[i]*time.Second; late < 0 || late >= third || i == 0 && late != 0 {
				t.Fatalf("initiation %d is %v late", i, late)
			}
		}
		if got := a.Times(crypto.SeriesExpired); !slices.Equal(got, []time.Duration{start + 15*time.Second}) {
			t.Fatalf("expired at %v after %v", got, start)
		}
		report := a.Events[len(a.Events)-1].Expired
		if report.Initiations != 5 || report.Quiet || report.Since != start {
			t.Fatalf("%+v", report)
		}
		gone(t, n, a)
	}
}

// A lifetime of 15 s without FastRetry is a deadline as well: three initiations, and the end at 15 s, not at 25.
func TestSeriesShortWithoutFastRetry(t *testing.T) {
	n, a, _ := deaf(1, crypto.PeerConfig{HandshakeLifetime: 15 * time.Second})
	start := n.Now()
	a.Want()
	n.Run(time.Hour)
	if len(a.Initiations()) != 3 || a.Times(crypto.SeriesExpired)[0] != start+15*time.Second {
		t.Fatal(a.Initiations(), a.Times(crypto.SeriesExpired))
	}
}

// A wake-up that comes after the deadline ends the series and sends nothing, also when a retry was due before it.
func TestSeriesLateWake(t *testing.T) {
	n, a, _ := deaf(1, fastPeer)
	a.Want()
	sent := len(a.Initiations())
	a.Peer.HandleTimeout(n.Now()+15*time.Second, a.Activity)
	a.Drain()
	if len(a.Initiations()) != sent || len(a.Times(crypto.SeriesExpired)) != 1 {
		t.Fatal("a late wake-up sent an initiation")
	}
	// A wake-up just before it may still send; one before its time does nothing.
	n, a, _ = deaf(1, fastPeer)
	a.Want()
	a.Peer.HandleTimeout(n.Now()+time.Second-1, a.Activity)
	a.Drain()
	if len(a.Initiations()) != 1 {
		t.Fatal("a retry before its time")
	}
}

// After a late wake-up the fast retries do not come in a burst.
func TestSeriesNoBurst(t *testing.T) {
	n, a, _ := deaf(1, fastPeer)
	a.Want()
	now := n.Now() + 9*time.Second
	for range 100 {
		a.Peer.HandleTimeout(now, a.Activity)
	}
	a.Drain()
	if got := len(a.Initiations()); got != 2 {
		t.Fatalf("%d initiations after a late wake-up", got)
	}
	if at, why := a.Peer.NextTimeout(a.Activity); why != crypto.WhyRetry || at < now+time.Second {
		t.Fatalf("%v at %v", why, at-now)
	}
}

// Kernel timers.c: each retry forgets the cached source address, the first initiation does not.
func TestRetryClearsSource(t *testing.T) {
	n, a, _ := deaf(1, anyPeer)
	a.Want()
	n.Run(12 * time.Second)
	var clears []bool
	for _, e := range a.Events {
		clears = append(clears, e.ClearSource)
	}
	if !slices.Equal(clears, []bool{false, true, true}) {
		t.Fatal(clears)
	}
}

// Section 6.4: after the end of a series the next packet begins another one, never less than 5 s after the last initiation.
func TestSeriesRestarts(t *testing.T) {
	n, a, _ := deaf(1, anyPeer)
	a.Want()
	n.Run(90*time.Second + 1)
	before := a.Initiations()
	a.Send([]byte("again"))
	a.Send([]byte("and again"))
	n.Run(6 * time.Second)
	after := a.Initiations()
	if len(after) <= len(before) || after[len(before)]-before[len(before)-1] < 5*time.Second {
		t.Fatal(before, after)
	}
	n.Run(200 * time.Second)
	if got := a.Times(crypto.SeriesExpired); len(got) != 2 || got[1] != after[len(before)]+90*time.Second {
		t.Fatal(got)
	}
}

// Section 6.1: at most one initiation in 5 s, however often a session is wanted; kernel send.c: a response counts too.
func TestInitiationsAreRare(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{Latency: time.Millisecond}, anyPeer)
	start := n.Now()
	connect(t, n, a, b)
	b.Want()
	if at, why := b.Peer.NextTimeout(b.Activity); why != crypto.WhyWanted || at != start+time.Millisecond+5*time.Second {
		t.Fatalf("%v at %v", why, at-start)
	}
	for i := range 300 {
		if i > 100 {
			a.Want()
		}
		b.Want()
		n.Run(100 * time.Millisecond)
	}
	if got := b.Initiations(); len(got) == 0 || got[0] < start+5*time.Second {
		t.Fatal("the responder's initiation came too soon", got)
	}
	for _, r := range []*cryptotest.Remote{a, b} {
		var last time.Duration
		for _, e := range r.Events {
			if e.Kind != crypto.SendMessage {
				continue
			}
			if e.Message[0] == 1 && last != 0 && e.At-last < 5*time.Second {
				t.Fatalf("an initiation %v after a handshake message", e.At-last)
			}
			last = e.At
		}
	}
}

// With FastRetry and no session the least time is 1 s; with a session it is the paper's again.
func TestFastRetryIsForNoSession(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, fastPeer)
	connect(t, n, a, b)
	n.Run(130 * time.Second)
	n.Link.Loss = 1
	from := n.Now()
	a.Send([]byte("rekey"))
	n.Run(40 * time.Second)
	var sent []time.Duration
	for _, at := range a.Initiations() {
		if at >= from {
			sent = append(sent, at-from)
		}
	}
	if len(sent) < 3 || sent[0] != 0 || sent[1] < 5*time.Second || sent[2] < 10*time.Second {
		t.Fatal(sent)
	}
	if got := a.Times(crypto.SeriesExpired); got[0] != from+15*time.Second {
		t.Fatal(got)
	}
}

// A rekey that fails while the session it should replace still works ends quietly, and the session goes on to be used.
func TestQuietEnd(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, fastPeer)
	connect(t, n, a, b)
	k := a.Peer.Sending()
	n.Run(125 * time.Second)
	n.Tap = func(d cryptotest.Datagram) bool { return d.Bytes[0] != byte(crypto.MessageTransport) }
	from := n.Now()
	for n.Now() < from+16*time.Second {
		a.Send([]byte("ping"))
		b.Send([]byte("pong"))
		n.Run(500 * time.Millisecond)
	}
	var reports []crypto.HandshakeExpired
	for _, e := range a.Events {
		if e.Kind == crypto.SeriesExpired {
			reports = append(reports, e.Expired)
			if e.At != from+15*time.Second {
				t.Fatal(e.At - from)
			}
		}
	}
	if len(reports) != 1 || !reports[0].Quiet || a.Peer.Sending() != k || !k.Usable(n.Now()) {
		t.Fatalf("%+v", reports)
	}
	// When the session carries nothing back, the end is not quiet.
	n.Tap = func(cryptotest.Datagram) bool { return true }
	n.Run(15 * time.Second) // the next series, which still began with traffic
	a.Send([]byte("ping"))
	n.RunUntil(n.Now()+16*time.Second, func() bool { return len(a.Times(crypto.SeriesExpired)) == 3 })
	if !k.Usable(n.Now()) {
		t.Fatal("the session is too old to tell")
	}
	if last := a.Events[len(a.Events)-1]; last.Kind != crypto.SeriesExpired || last.Expired.Quiet {
		t.Fatalf("%+v", last)
	}
}

// An initiation of the peer that we accept proves nothing about the session we have.
func TestQuietNeedsTheSession(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, fastPeer)
	connect(t, n, a, b)
	n.Run(125 * time.Second)
	n.Tap = func(d cryptotest.Datagram) bool {
		return d.Bytes[0] != byte(crypto.MessageInitiation) || d.From != b.Node().Addr
	}
	a.Send([]byte("ping"))
	n.Run(time.Second)
	b.Want()
	n.Run(20 * time.Second)
	if a.Node().Verdicts[crypto.Accepted] < 2 {
		t.Fatal("no initiation was accepted", a.Node().Verdicts)
	}
	for _, e := range a.Events {
		if e.Kind == crypto.SeriesExpired && e.Expired.Quiet {
			t.Fatal("quiet without a working session")
		}
	}
	if len(a.Times(crypto.SeriesExpired)) == 0 {
		t.Fatal("the series did not end")
	}
}

// Section 6.2: the initiator rekeys when it sends with a session of 120 s; the responder never does by age.
func TestRekeyOnSend(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	start := n.Now()
	connect(t, n, a, b)
	for n.Now() < start+109*time.Second {
		a.Send([]byte("a"))
		b.Send([]byte("b"))
		n.Run(500 * time.Millisecond)
	}
	if len(a.Initiations()) != 1 {
		t.Fatal("a rekey before its time")
	}
	n.Run(15 * time.Second) // a's keepalive for b's last packet has gone, before 120 s
	if len(a.Initiations()) != 1 {
		t.Fatal("a rekey without sending")
	}
	b.Send([]byte("b"))
	n.Run(time.Second)
	if len(a.Initiations())+len(b.Initiations()) != 1 {
		t.Fatal("the responder rekeyed by age")
	}
	a.Send([]byte("a"))
	n.Run(time.Second)
	if got := a.Initiations(); len(got) != 2 || len(b.Received) < 200 {
		t.Fatal(got)
	}
}

// Section 6.2: an initiator that only receives rekeys when 165 s have passed, once.
func TestRekeyOnReceive(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	start := n.Now()
	connect(t, n, a, b)
	n.RunUntil(start+165*time.Second-1, nil)
	b.Send([]byte("too soon"))
	n.RunUntil(start+165*time.Second, nil)
	if len(a.Initiations()) != 1 {
		t.Fatal("a rekey before its time")
	}
	n.Link.Loss = 1
	k := a.Peer.Sending()
	if !k.RekeyOnReceive(n.Now()) || k.RekeyOnReceive(n.Now()) || b.Peer.Sending().RekeyOnReceive(n.Now()) {
		t.Fatal("the initiator's session asks once, the responder's never")
	}

	n, a, b = cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	connect(t, n, a, b)
	n.RunUntil(start+166*time.Second, nil)
	b.Send([]byte("b"))
	n.Run(time.Second)
	if got := a.Initiations(); len(got) != 2 || got[1] != start+166*time.Second {
		t.Fatal(got)
	}
}

// Section 6.5: data sent and nothing heard for 15 s plus jitter begins a handshake, which forgets the source address.
func TestUnanswered(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	connect(t, n, a, b)
	n.Run(11 * time.Second) // b's keepalive has come
	n.Link.Loss = 1
	from := n.Now()
	a.Send([]byte("lost"))
	if at, why := a.Peer.NextTimeout(a.Activity); why != crypto.WhyUnanswered || at < from+15*time.Second || at >= from+15*time.Second+third {
		t.Fatalf("%v after %v", why, at-from)
	}
	n.Run(16 * time.Second)
	last := a.Events[len(a.Events)-1]
	if last.Kind != crypto.SendMessage || !last.ClearSource || last.At < from+15*time.Second {
		t.Fatalf("%+v", last)
	}
	// The peer being gone for good, one packet costs one series, not an endless one.
	n.Run(time.Hour)
	if got := a.Times(crypto.SeriesExpired); len(got) != 1 {
		t.Fatalf("%d series", len(got))
	}
	// Answered data begins none.
	n, a, b = cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	connect(t, n, a, b)
	n.Run(100 * time.Second)
	if len(a.Initiations()) != 1 {
		t.Fatal("a handshake although everything was answered")
	}
}

// Section 6.5: data received and nothing sent for 10 s makes one keepalive; a keepalive never makes a keepalive.
func TestPassiveKeepalive(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	start := n.Now()
	connect(t, n, a, b)
	n.Run(170 * time.Second)
	if got := b.Times(crypto.SendKeepalive); !slices.Equal(got, []time.Duration{start + 10*time.Second}) {
		t.Fatal("the receiver's keepalives", got)
	}
	if got := a.Times(crypto.SendKeepalive); len(got) != 0 {
		t.Fatal("a keepalive was answered by a keepalive", got)
	}
	if a.Keepalives != 1 {
		t.Fatal(a.Keepalives)
	}
}

// Steady one-way data makes a keepalive every 10 s; anything sent in between puts it off.
func TestPassiveKeepaliveUnderTraffic(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	connect(t, n, a, b)
	start := n.Now()
	for n.Now() < start+60*time.Second {
		a.Send([]byte("data"))
		n.Run(time.Second)
	}
	if got := len(b.Times(crypto.SendKeepalive)); got < 5 || got > 6 {
		t.Fatalf("%d keepalives in 60 s", got)
	}
	before := len(b.Times(crypto.SendKeepalive))
	for range 30 {
		a.Send([]byte("data"))
		n.Run(500 * time.Millisecond)
		b.Send([]byte("data"))
		n.Run(500 * time.Millisecond)
	}
	if len(b.Times(crypto.SendKeepalive)) != before {
		t.Fatal("a keepalive on a busy tunnel")
	}
}

// Kernel timers.c, timer_need_another_keepalive: data whose stamp was lost to a packet sent beside it is still answered.
func TestAnotherKeepalive(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	connect(t, n, a, b)
	now := n.Now()
	raced := crypto.Activity{LastDataReceived: now + 5*time.Second, LastReceived: now + 5*time.Second, LastSent: now + 4*time.Second}
	if at, why := b.Peer.NextTimeout(raced); why != crypto.WhyKeepalive || at != now+15*time.Second {
		t.Fatalf("%v after %v", why, at-now)
	}
	b.Peer.HandleTimeout(now+15*time.Second, raced)
	if out, ok := b.Peer.Poll(); !ok || out.Kind != crypto.SendKeepalive {
		t.Fatal("no keepalive")
	}
	b.Peer.HandleTimeout(now+15*time.Second, raced)
	if _, ok := b.Peer.Poll(); ok {
		t.Fatal("two keepalives")
	}
}

// Section 6.5 and kernel timers.c: the first at once, then one whenever nothing authenticated passed for the interval,
// either way; none on a busy tunnel; 0 is off.
func TestPersistentKeepalive(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	start := n.Now()
	a.Peer.SetPersistentKeepalive(n.Now(), 25*time.Second)
	if at, why := a.Peer.NextTimeout(a.Activity); at != start || why != crypto.WhyPersistentKeepalive {
		t.Fatal(at-start, why)
	}
	n.Run(time.Second)
	if b.Peer.Sending() == nil {
		t.Fatal("switching on makes no session")
	}
	n.Run(99 * time.Second)
	want := []time.Duration{start + 25*time.Second, start + 50*time.Second, start + 75*time.Second, start + 100*time.Second}
	if got := a.Times(crypto.SendKeepalive); !slices.Equal(got, want) {
		t.Fatal(got, want)
	}
	before := len(a.Times(crypto.SendKeepalive))
	for range 15 { // either direction counts
		b.Send([]byte("b"))
		n.Run(5 * time.Second)
		a.Send([]byte("a"))
		n.Run(5 * time.Second)
	}
	if len(a.Times(crypto.SendKeepalive)) != before {
		t.Fatal("a keepalive on a busy tunnel")
	}
	a.Peer.SetPersistentKeepalive(n.Now(), 0)
	n.Run(600 * time.Second)
	if len(a.Times(crypto.SendKeepalive)) != before || a.Peer.PersistentKeepalive() != 0 {
		t.Fatal("switched off, and still a keepalive")
	}
}

// A tunnel with persistent keepalives lives on its own, for hours.
func TestPersistentKeepaliveRenews(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{Latency: 20 * time.Millisecond}, anyPeer)
	a.Peer.SetPersistentKeepalive(n.Now(), 25*time.Second)
	n.Run(time.Hour)
	b.Send([]byte("still there"))
	n.Run(time.Second)
	if len(a.Received) != 1 {
		t.Fatal("the packet did not arrive at once")
	}
	if ups := len(a.Times(crypto.SessionUp)); ups < 20 || ups > 31 {
		t.Fatalf("%d sessions in an hour", ups)
	}
}

// Device down and up: Clear forgets sessions, Up sends the persistent keepalive at once.
func TestClearAndUp(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	a.Peer.SetPersistentKeepalive(n.Now(), 25*time.Second)
	connect(t, n, a, b)
	k := a.Peer.Sending()
	a.Peer.Clear(n.Now())
	a.Drain()
	if a.Peer.Sending() != nil || k.Usable(n.Now()) || k.Acceptable(n.Now()) || !k.Sealer().(*cryptotest.Cipher).Wiped() {
		t.Fatal("the session is still there")
	}
	if at, why := a.Peer.NextTimeout(a.Activity); at != 0 || a.Node().Local.UsedIndices() != 0 {
		t.Fatal(why, a.Node().Local.UsedIndices())
	}
	n.Run(time.Minute)
	sent := len(a.Initiations())
	a.Peer.Up(n.Now())
	n.Run(time.Second)
	if len(a.Initiations()) != sent+1 || a.Peer.Sending() == nil {
		t.Fatal("no session after Up")
	}
}

// Section 6.3: 540 s after the last new session everything is forgotten, to the nanosecond.
func TestZeroKeys(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	start := n.Now()
	connect(t, n, a, b)
	ka, kb := a.Peer.Sending(), b.Peer.Sending()
	n.Run(time.Hour)
	for _, r := range []*cryptotest.Remote{a, b} {
		if got := r.Times(crypto.Retired); !slices.Equal(got, []time.Duration{start + 540*time.Second}) {
			t.Fatal(got)
		}
		gone(t, n, r)
	}
	for _, k := range []*crypto.Keypair{ka, kb} {
		if !k.Sealer().(*cryptotest.Cipher).Wiped() || !k.Opener().(*cryptotest.Cipher).Wiped() {
			t.Fatal("a key was not wiped")
		}
	}
}

// A removed peer gives back its sessions and does nothing any more.
func TestRemovePeer(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, crypto.PeerConfig{PresharedKey: crypto.PresharedKey{1}})
	connect(t, n, a, b)
	k := a.Peer.Sending()
	local := a.Node().Local
	a.Peer.SetPersistentKeepalive(n.Now(), time.Second)
	local.RemovePeer(n.Now(), a.Peer)
	local.RemovePeer(n.Now(), a.Peer)
	a.Drain()
	if len(a.Times(crypto.Retired)) != 1 || !k.Sealer().(*cryptotest.Cipher).Wiped() {
		t.Fatal("the session was not retired")
	}
	if local.UsedIndices() != 0 || local.Peer(a.Peer.PublicKey()) != nil || local.Table().Lookup(k.LocalIndex) != nil {
		t.Fatal("the peer left something")
	}
	if !a.Peer.PresharedKey().IsZero() {
		t.Fatal("the preshared key is still there")
	}
	before := len(a.Events)
	a.Want()
	a.Peer.Up(n.Now())
	a.Peer.HandleTimeout(n.Now()+time.Hour, a.Activity)
	a.Drain()
	if at, _ := a.Peer.NextTimeout(a.Activity); at != 0 || len(a.Events) != before {
		t.Fatal("a removed peer does things")
	}
}

// Section 6.2; kernel receive.c, keep_key_fresh: only the current session asks to be replaced. A late packet of one that
// has been replaced must not.
func TestRekeyOnReceiveOfPrevious(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	connect(t, n, a, b)
	old := a.Peer.Sending()
	n.RunUntil(old.Created+130*time.Second, nil)
	a.Send([]byte("rekeys"))
	n.Run(time.Second)
	if previous, current, _ := a.Peer.Slots(); previous != old || current == old {
		t.Fatal("no rekey")
	}
	if old.RekeyOnReceive(old.Created + 170*time.Second) {
		t.Fatal("the previous session asks for another one")
	}
}

// Kernel device.c, wg_open: what a peer with persistent keepalive was configured for before the interface is up leaves
// when it is up, and not at the second try of a series whose first went nowhere.
func TestUpAfterConfiguration(t *testing.T) {
	cfg := anyPeer
	cfg.PersistentKeepalive = 25 * time.Second
	n, a, _ := cryptotest.Pair(1, cryptotest.Link{}, cfg)
	n.Link.Loss = 1 // the interface is down: nothing leaves
	n.Run(100 * time.Millisecond)
	n.Link.Loss = 0
	before := len(a.Initiations())
	a.Peer.Up(n.Now())
	n.Run(time.Second)
	if before == 0 || len(a.Initiations()) != before+1 || a.Peer.Sending() == nil {
		t.Fatalf("%d initiations, then %d, session %v", before, len(a.Initiations())-before, a.Peer.Sending())
	}
}

// Times that no clock reaches are never due; wrapped round they would be due for ever.
func TestTimesDoNotWrap(t *testing.T) {
	const never = time.Duration(1<<63 - 1)
	cfg := anyPeer
	cfg.HandshakeLifetime = never
	n, a, _ := deaf(1, cfg)
	a.Want()
	if at, why := a.Peer.NextTimeout(a.Activity); at <= n.Now() {
		t.Errorf("%v is due at %v", why, at)
	}
	cfg.HandshakeLifetime, cfg.PersistentKeepalive = 0, never
	for _, activity := range []crypto.Activity{
		{FirstUnanswered: never - 1}, {FirstUnkept: never - 1}, {LastSent: never - 1}, {LastReceived: never},
		{LastDataReceived: never},
	} {
		n, a, b := cryptotest.Pair(1, cryptotest.Link{}, cfg)
		connect(t, n, a, b)
		a.Peer.HandleTimeout(n.Now(), activity)
		if at, why := a.Peer.NextTimeout(activity); at <= n.Now() {
			t.Errorf("%+v: %v is due at %v", activity, why, at)
		}
	}
}

// No stamp, however wrong, makes a timeout that does not pass: each is acted upon at most once a moment.
func TestTimeoutsPass(t *testing.T) {
	for seed := range uint64(60) {
		dice := rand.New(rand.NewPCG(seed, 1))
		cfg := []crypto.PeerConfig{anyPeer, fastPeer}[seed%2]
		cfg.PersistentKeepalive = []time.Duration{0, time.Second, 25 * time.Second}[dice.IntN(3)]
		n, a, b := cryptotest.Pair(seed, cryptotest.Link{Latency: time.Millisecond}, cfg)
		if seed%3 > 0 {
			connect(t, n, a, b)
		}
		if seed%5 == 0 {
			a.Node().Local.SetPrivateKey(n.Now(), &crypto.PrivateKey{})
		}
		peer, now := []*cryptotest.Remote{a, b}[dice.IntN(2)].Peer, n.Now()
		stamp := func() time.Duration {
			return []time.Duration{0, 1, -1, now, now - time.Second, now + time.Minute, now - time.Duration(dice.Int64N(int64(time.Hour))), 1<<63 - 1, -1 << 63}[dice.IntN(9)]
		}
		for range 50 {
			activity := crypto.Activity{
				FirstUnanswered: stamp(), FirstUnkept: stamp(), LastDataReceived: stamp(), LastSent: stamp(), LastReceived: stamp(),
			}
			now += time.Duration(dice.Int64N(int64(20 * time.Second)))
			peer.HandleTimeout(now, activity)
			if at, why := peer.NextTimeout(activity); at != 0 && at <= now {
				t.Fatalf("seed %d: %v is due at %v, now %v, %+v", seed, why, at, now, activity)
			}
		}
	}
}
