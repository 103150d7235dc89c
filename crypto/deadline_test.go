package crypto_test

import (
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/aead"
	"github.com/sluice-vpn/sluice/crypto/cryptotest"
)

// These tests call the peer directly, with stamps that a data plane has not reset or that came late.

// A data plane that forgets to reset FirstUnanswered and FirstUnkept does not make a lost peer an endless series.
func TestStaleStamps(t *testing.T) {
	for _, wanted := range []bool{false, true} {
		n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
		connect(t, n, a, b)
		n.Run(5 * time.Second)
		staleStamps(t, n.Now(), a, wanted)
	}
}

// staleStamps lets hours pass with the same stamps. If wanted, the series begins by a wish and not by the stamps.
func staleStamps(t *testing.T, from time.Duration, a *cryptotest.Remote, wanted bool) {
	if wanted {
		a.Peer.Want(from)
	}
	stale := crypto.Activity{FirstUnanswered: from, FirstUnkept: from, LastDataReceived: from, LastSent: from - 1}
	series := 0
	for now := from; ; {
		at, why := a.Peer.NextTimeout(stale)
		if at == 0 || at > from+10*time.Hour {
			break
		}
		if at < now && why != crypto.WhyKeepalive {
			t.Fatalf("%v was due %v ago", why, now-at)
		}
		now = max(now, at)
		a.Peer.HandleTimeout(now, stale)
		for out, ok := a.Peer.Poll(); ok; out, ok = a.Peer.Poll() {
			if out.Kind == crypto.SeriesExpired {
				series++
			}
		}
	}
	if series != 1 {
		t.Fatalf("%d series", series)
	}
}

// Data sent before an accepted handshake message counts as answered by it, also if only control saw that.
func TestHandshakeMessageIsAnAnswer(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	connect(t, n, a, b)
	up := a.Peer.Sending().Created
	if at, why := a.Peer.NextTimeout(crypto.Activity{FirstUnanswered: up - 1}); why != crypto.WhyZero {
		t.Fatal(why, at-up)
	}
	if at, why := a.Peer.NextTimeout(crypto.Activity{FirstUnanswered: up}); why != crypto.WhyUnanswered {
		t.Fatal(why, at-up)
	}
}

// A session that ended while the series ran is not a reason to end quietly, whatever it carried.
func TestQuietNeedsAUsableSession(t *testing.T) {
	for _, c := range []struct {
		begin time.Duration // age of the session as the series begins
		quiet bool
	}{{150 * time.Second, true}, {165*time.Second - 1, true}, {165 * time.Second, false}} {
		n, a, b := cryptotest.Pair(1, cryptotest.Link{}, fastPeer)
		connect(t, n, a, b)
		begin := a.Peer.Sending().Created + c.begin
		a.Peer.Want(begin)
		end := begin + 15*time.Second
		a.Peer.HandleTimeout(end, crypto.Activity{LastDataReceived: begin + time.Second, LastSent: end})
		var report crypto.Output
		for out, ok := a.Peer.Poll(); ok; out, ok = a.Peer.Poll() {
			report = out
		}
		if report.Kind != crypto.SeriesExpired || report.Expired.Quiet != c.quiet {
			t.Errorf("begun at %v: %v, quiet %v", c.begin, report.Kind, report.Expired.Quiet)
		}
	}
}

// Kernel timers.c, any_authenticated_packet_sent: a handshake message is something sent, also if only control stamped it.
func TestHandshakeMessageIsAKeepalive(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	connect(t, n, a, b)
	n.Run(20 * time.Second)
	now := n.Now()
	activity := crypto.Activity{FirstUnkept: now, LastDataReceived: now, LastSent: now - time.Second}
	if at, why := a.Peer.NextTimeout(activity); why != crypto.WhyKeepalive || at != now+10*time.Second {
		t.Fatal(why, at-now)
	}
	a.Peer.Want(now + time.Second)
	if at, why := a.Peer.NextTimeout(activity); why != crypto.WhyRetry || at < now+6*time.Second {
		t.Fatal(why, at-now)
	}
	a.Peer.HandleTimeout(now+10*time.Second, activity)
	for out, ok := a.Peer.Poll(); ok; out, ok = a.Peer.Poll() {
		if out.Kind == crypto.SendKeepalive {
			t.Fatal("a keepalive although an initiation was sent")
		}
	}
}

// Section 6.3: the transport keys that were given to the ciphers are not left in memory of ours, nor the ephemeral key.
func TestSecretsAreWiped(t *testing.T) {
	n := cryptotest.NewNet(1, cryptotest.Link{})
	var given []*[aead.KeySize]byte
	zeroWhenGiven := false
	n.NewCipher = func(key *[aead.KeySize]byte) aead.Cipher {
		zeroWhenGiven = zeroWhenGiven || *key == [aead.KeySize]byte{}
		given = append(given, key)
		return cryptotest.NewCipher(key)
	}
	left, right := n.Join("a", stranger), n.Join("b", anyAddr)
	a, b := left.Add(right, anyPeer), right.Add(left, anyPeer)
	connect(t, n, a, b)
	if len(given) != 4 || zeroWhenGiven {
		t.Fatalf("%d keys", len(given))
	}
	for _, key := range given {
		if *key != [aead.KeySize]byte{} {
			t.Fatal("a transport key was not wiped")
		}
	}
	for _, r := range []*cryptotest.Remote{a, b} {
		if ephemeral, chain := r.Peer.HandshakeSecrets(); ephemeral != [32]byte{} || chain != [32]byte{} {
			t.Fatal("the handshake was not wiped")
		}
	}
}
