package crypto_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/aead"
	"github.com/sluice-vpn/sluice/crypto/cryptotest"
)

// slots names the keypairs of r's slots by what the caller calls them; "-" is an empty slot.
func slots(r *cryptotest.Remote, names map[*crypto.Keypair]string) string {
	previous, current, next := r.Peer.Slots()
	name := func(k *crypto.Keypair) string {
		if k == nil {
			return "-"
		}
		if names[k] == "" {
			names[k] = fmt.Sprint(len(names) + 1)
		}
		return names[k]
	}
	return name(previous) + name(current) + name(next)
}

// Section 6.3 and kernel noise.c, add_new_keypair and received_with_keypair: previous, current and next after each step.
func TestRotation(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	b.Endpoint = a.Node().Addr
	names := make(map[*crypto.Keypair]string)
	hold := false // the confirming data of a
	n.Tap = func(d cryptotest.Datagram) bool { return hold && d.Bytes[0] == 4 && d.From == a.Node().Addr }
	handshake := func(from *cryptotest.Remote) {
		n.Run(5 * time.Second)
		from.Want()
		n.Run(time.Second)
	}
	step := func(what, want string) {
		t.Helper()
		if got := slots(b, names); got != want {
			t.Fatalf("%s: slots %s, want %s", what, got, want)
		}
	}
	step("at first", "---")
	hold = true
	handshake(a)
	step("responder, not confirmed", "--1")
	if b.Peer.Sending() != nil {
		t.Fatal("next is published for sending")
	}
	handshake(a)
	step("again: next is replaced", "--2")
	hold = false
	a.Send([]byte("confirm"))
	n.Run(time.Second)
	step("confirmed", "-2-")
	handshake(a)
	step("rekey, confirmed", "23-")
	hold = true
	handshake(a)
	step("rekey, not confirmed: previous goes", "-34")
	handshake(b)
	step("initiator with a next: it becomes previous, current goes", "45-")
	handshake(b)
	step("initiator: current becomes previous", "56-")

	retired := make(map[*crypto.Keypair]int)
	for _, e := range b.Events {
		if e.Kind == crypto.Retired {
			retired[e.Keypair]++
		}
	}
	for k, name := range names {
		want := 1
		if name == "5" || name == "6" {
			want = 0
		}
		if retired[k] != want || k.Acceptable(n.Now()) != (want == 0) {
			t.Errorf("keypair %s was retired %d times", name, retired[k])
		}
		if got := b.Node().Local.Table().Lookup(k.LocalIndex); (got == k) != (want == 0) {
			t.Errorf("keypair %s: the table has %p", name, got)
		}
	}
	if used := b.Node().Local.UsedIndices(); used != 2 {
		t.Errorf("%d indices in use", used)
	}
	before := b.Node().Local.Fingerprint()
	b.Peer.Confirm(n.Now(), a.Peer.Sending())
	b.Peer.Confirm(n.Now(), nil)
	if b.Node().Local.Fingerprint() != before {
		t.Error("confirming what is not next changed something")
	}
}

// Should the lane's word of the confirmation be lost on its way to control, the next wish or timeout finds it.
func TestConfirmLost(t *testing.T) {
	for name, call := range map[string]func(n *cryptotest.Net, b *cryptotest.Remote){
		"want":    func(n *cryptotest.Net, b *cryptotest.Remote) { b.Peer.Want(n.Now()) },
		"timeout": func(n *cryptotest.Net, b *cryptotest.Remote) { b.Peer.HandleTimeout(n.Now(), b.Activity) },
	} {
		n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
		n.Tap = func(d cryptotest.Datagram) bool { return d.Bytes[0] == byte(crypto.MessageTransport) }
		a.Want()
		n.Run(time.Millisecond)
		_, _, next := b.Peer.Slots()
		if !next.MarkConfirmed() {
			t.Fatal("no session waits")
		}
		call(n, b)
		b.Drain()
		if b.Peer.Sending() != next || len(b.Times(crypto.SessionUp)) != 1 || len(b.Initiations()) != 0 {
			t.Errorf("%s: the session is not current", name)
		}
	}
}

// Section 6.2: a session receives in every slot until it is 180 s old, and sends until then; not one moment longer.
func TestRejectAfterTime(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	start := n.Now()
	connect(t, n, a, b)
	for _, r := range []*cryptotest.Remote{a, b} {
		k := r.Peer.Sending()
		last := start + crypto.RejectAfterTime - 1
		if !k.Usable(last) || !k.Acceptable(last) || k.Usable(last+1) || k.Acceptable(last+1) {
			t.Fatal("the end is not at 180 s")
		}
	}
	n.RunUntil(start+crypto.RejectAfterTime, nil)
	n.Tap = func(d cryptotest.Datagram) bool { return d.Bytes[0] == byte(crypto.MessageInitiation) }
	b.Send([]byte("too old"))
	n.Run(time.Millisecond)
	if len(a.Received) != 0 || b.Staged() != 1 || len(b.Initiations()) != 1 {
		t.Fatal("sent with a session of 180 s")
	}
}

// What was sent just before a rekey arrives just after it.
func TestLatePacketsOfPreviousSession(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{Latency: 50 * time.Millisecond, Jitter: 200 * time.Millisecond}, anyPeer)
	n.Link.Duplicate = 0.2
	connect(t, n, a, b)
	sent := 0
	for range 400 {
		for range 5 {
			a.Send([]byte("a"))
			b.Send([]byte("b"))
			sent++
		}
		n.Run(time.Second)
	}
	n.Run(time.Second)
	if len(a.Received) != sent || len(b.Received) != sent+1 {
		t.Fatalf("%d and %d of %d packets came", len(a.Received), len(b.Received), sent)
	}
	if len(a.Times(crypto.SessionUp)) < 4 {
		t.Fatal("no rekey happened")
	}
}

// Whatever the link does, sessions come up, packets come at most once, and no counter is sent twice (the link panics).
func TestHostileLink(t *testing.T) {
	for seed := range uint64(20 / slowdown) {
		for _, cfg := range []crypto.PeerConfig{anyPeer, fastPeer} {
			link := cryptotest.Link{Latency: 30 * time.Millisecond, Jitter: 300 * time.Millisecond, Loss: 0.3, Duplicate: 0.3}
			n, a, b := cryptotest.Pair(seed, link, cfg)
			b.Endpoint = a.Node().Addr
			for i := range 600 {
				a.Send([]byte{byte(i), byte(i >> 8), 'a'})
				b.Send([]byte{byte(i), byte(i >> 8), 'b'})
				n.Run(time.Second)
			}
			for _, r := range []*cryptotest.Remote{a, b} {
				seen := make(map[string]bool)
				for _, p := range r.Received {
					if seen[string(p)] {
						t.Fatal("a packet came twice")
					}
					seen[string(p)] = true
				}
				if len(seen) < 300 {
					t.Fatalf("seed %d: %d of 600 packets came", seed, len(seen))
				}
				if used := r.Node().Local.UsedIndices(); used > 4 {
					t.Fatalf("%d indices in use", used)
				}
			}
			if n.InFlight() > 100 {
				t.Fatal("the link fills up")
			}
		}
	}
}

// The counter's limits: a rekey after 2^60 packets by either side, and the end at 2^64 - 2^13 - 1, with what waits kept.
func TestMessageLimits(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	connect(t, n, a, b)
	n.Run(6 * time.Second)
	k := b.Peer.Sending() // the responder's: it rekeys for the number of packets only
	k.SetCounter(crypto.RekeyAfterMessages - 1)
	b.Send([]byte("one"))
	if k.RekeyOnSend(n.Now()) || len(b.Initiations()) != 0 {
		t.Fatal("a rekey before its time")
	}
	b.Send([]byte("two"))
	n.Run(time.Second)
	if len(b.Initiations()) != 1 || b.Peer.Sending() == k || len(a.Received) != 2 {
		t.Fatal("no rekey after 2^60 packets")
	}

	n.Run(6 * time.Second)
	k = a.Peer.Sending()
	k.SetCounter(crypto.RejectAfterMessages - 1)
	n.Link.Latency = time.Millisecond
	before := len(b.Received)
	for range 5 {
		a.Send([]byte("x"))
	}
	if k.Usable(n.Now()) || a.Staged() != 4 {
		t.Fatalf("usable %v, %d staged", k.Usable(n.Now()), a.Staged())
	}
	n.Run(time.Second)
	if len(b.Received) != before+5 || a.Peer.Sending() == k {
		t.Fatal("the staged packets did not come by the next session")
	}
}

// The replay window works on sessions: a packet that is sent twice comes once, and a forged one moves nothing.
func TestReplayOfData(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	connect(t, n, a, b)
	var packet []byte
	n.Tap = func(d cryptotest.Datagram) bool { packet = d.Bytes; return false }
	a.Send([]byte("once"))
	n.Run(time.Millisecond)
	got := len(b.Received)
	for range 3 {
		b.Node().Receive(a.Node().Addr, append([]byte(nil), packet...))
	}
	forged := append([]byte(nil), packet...)
	forged[15] = 0x40 // a counter far ahead
	b.Node().Receive(a.Node().Addr, forged)
	a.Send([]byte("next"))
	n.Run(time.Millisecond)
	if len(b.Received) != got+1 || b.Node().Dropped != 4 {
		t.Fatalf("%d came, %d dropped", len(b.Received)-got, b.Node().Dropped)
	}
}

// A run of several packets goes through in one call each way, without an allocation of ours.
func TestRuns(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	connect(t, n, a, b)
	ka, kb := a.Peer.Sending(), b.Peer.Sending()
	first, ok := ka.Reserve(3)
	if !ok {
		t.Fatal("no counters")
	}
	run := make([]aead.Packet, 3)
	for i := range run {
		run[i] = aead.Packet{Dst: make([]byte, 32), Src: []byte("0123456789abcdef"), Counter: first + uint64(i)}
	}
	ka.SealRun(run)
	for i := range run {
		run[i].Src = run[i].Dst
	}
	run[1].Src[0] ^= 1
	if kb.OpenRun(run) != 2 || !run[0].OK || run[1].OK || !run[2].OK {
		t.Fatal("a forged packet must not harm the others")
	}
}

// A session that a lane has confirmed is the current one also when the next initiation is handled before control hears of
// it; else it would be thrown away with its slot, while the initiator goes on to use it.
func TestConfirmOvertaken(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	n.Tap = func(d cryptotest.Datagram) bool { return d.Bytes[0] == byte(crypto.MessageTransport) }
	a.Want()
	n.Run(time.Second)
	_, _, first := b.Peer.Slots()
	if !first.MarkConfirmed() {
		t.Fatal("no session waits")
	}
	n.Run(5 * time.Second)
	a.Want()
	n.Run(time.Second)
	_, current, next := b.Peer.Slots()
	if current != first || next == nil || next == first || !first.Usable(n.Now()) {
		t.Fatalf("current %p, next %p, want current %p", current, next, first)
	}
}

// What lanes sent between the first packet of a session and control's word of it still waits for an answer.
func TestConfirmLate(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	connect(t, n, a, b)
	n.Run(time.Minute)
	n.Tap = func(d cryptotest.Datagram) bool { return d.Bytes[0] == byte(crypto.MessageTransport) }
	a.Want()
	n.Run(time.Second)
	_, _, next := b.Peer.Slots()
	next.MarkConfirmed()
	sent := n.Now()
	activity := crypto.Activity{LastReceived: sent - time.Millisecond, LastSent: sent, FirstUnanswered: sent}
	b.Peer.Confirm(sent+time.Millisecond, next)
	if at, why := b.Peer.NextTimeout(activity); why != crypto.WhyUnanswered || at < sent+15*time.Second || at > sent+16*time.Second {
		t.Fatalf("%v at %v, want an unanswered packet's", why, at-sent)
	}
}
