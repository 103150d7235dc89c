package crypto_test

import (
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/cryptotest"
)

// A changed path has the next initiation of a series leave at once, but not sooner than a second after the one before, and
// also when no more were planned. The end of the series stays.
func TestRetry(t *testing.T) {
	for _, c := range []struct {
		name        string
		cfg         crypto.PeerConfig
		at, expects time.Duration
	}{
		{"between two initiations", fastPeer, 4500 * time.Millisecond, 4500 * time.Millisecond},
		{"within the gap", fastPeer, 300 * time.Millisecond, time.Second},
		{"after the last one", fastPeer, 12 * time.Second, 12 * time.Second},
		{"after the last one, within the gap", fastPeer, 10400 * time.Millisecond, 0},
		{"without FastRetry", crypto.PeerConfig{HandshakeLifetime: 15 * time.Second}, 2 * time.Second, 5 * time.Second},
		{"when the series is over", fastPeer, 15 * time.Second, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			for seed := range uint64(20) {
				n, a, _ := deaf(seed, c.cfg)
				start := n.Now()
				a.Want()
				n.Run(c.at)
				before := a.Initiations()
				a.Peer.Retry(n.Now())
				a.Drain()
				n.Run(time.Hour)
				sent, expects := a.Initiations(), start+c.expects
				if c.name == "after the last one, within the gap" {
					expects = before[len(before)-1] + time.Second
				}
				switch {
				case c.name == "when the series is over":
					if len(sent) != len(before) {
						t.Fatalf("%d initiations, %d before", len(sent), len(before))
					}
				case len(sent) <= len(before) || sent[len(before)] != expects:
					t.Fatalf("%v, want one at %v", sent, expects)
				}
				for i := range sent[1:] {
					if sent[i+1]-sent[i] < time.Second {
						t.Fatalf("two initiations %v apart", sent[i+1]-sent[i])
					}
				}
				if got := a.Times(crypto.SeriesExpired); len(got) != 1 || got[0] != start+15*time.Second {
					t.Fatalf("the series ended at %v, not after 15 s", got)
				}
				gone(t, n, a)
			}
		})
	}
}

// Many changes of the path do not make it a flood: one initiation a second is the most.
func TestRetryOften(t *testing.T) {
	n, a, _ := deaf(1, fastPeer)
	a.Want()
	for range 1500 {
		n.Run(10 * time.Millisecond)
		a.Peer.Retry(n.Now())
		a.Drain()
	}
	if sent := a.Initiations(); len(sent) != 15 {
		t.Errorf("%d initiations in 15 s", len(sent))
	}
	gone(t, n, a)
}

// Where nothing is wanted or a session exists, a changed path asks for no initiation.
func TestRetryWithoutNeed(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, fastPeer)
	a.Peer.Retry(n.Now())
	a.Drain()
	if sent := a.Initiations(); len(sent) != 0 {
		t.Fatal("an initiation that nobody wanted")
	}
	a.Send([]byte("x"))
	n.Run(time.Second)
	if len(b.Received) != 1 {
		t.Fatal("no session")
	}
	a.Peer.Retry(n.Now())
	a.Drain()
	n.Run(time.Second)
	if sent := a.Initiations(); len(sent) != 1 {
		t.Errorf("%d initiations with a session", len(sent))
	}
}
