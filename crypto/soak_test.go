//go:build soak

package crypto_test

import (
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/cryptotest"
)

// A million failed handshakes, ten thousand of them up to the Diffie-Hellman.
func TestSoakFailedHandshakes(t *testing.T) { failedHandshakes(t, 1000000, 10000) }

// RFC 7748, section 5.2: the vector of a million iterations.
func TestSoakX25519(t *testing.T) {
	const want = "7c3911e0ab2586fd864497297e575e6f3bc601c0883c30df5f4dd2d24f665424"
	if got := crypto.IterateX25519(1000000); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A day of traffic over a bad link: the session is renewed all day and no state piles up.
func TestSoakDay(t *testing.T) {
	n, a, b := cryptotest.Pair(3, cryptotest.Link{Latency: 40 * time.Millisecond, Jitter: 100 * time.Millisecond, Loss: 0.1, Duplicate: 0.1}, fastPeer)
	b.Endpoint = a.Node().Addr
	for range 24 * 3600 / 5 {
		a.Send([]byte("a"))
		b.Send([]byte("b"))
		n.Run(5 * time.Second)
		if used := a.Node().Local.UsedIndices() + b.Node().Local.UsedIndices(); used > 8 || n.InFlight() > 20 {
			t.Fatalf("%d indices in use, %d datagrams in flight", used, n.InFlight())
		}
	}
	if got := len(b.Received); got < 24*3600/5*8/10 {
		t.Fatalf("%d packets came", got)
	}
}
