package crypto_test

import (
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/cryptotest"
)

func TestHandshakeSmoke(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{Latency: 10 * time.Millisecond}, crypto.PeerConfig{})
	a.Send([]byte("hello"))
	n.Run(time.Second)
	if len(b.Received) != 1 || string(b.Received[0][:5]) != "hello" {
		t.Fatal(b.Received, b.Node().Verdicts, a.Node().Verdicts)
	}
	b.Send([]byte("there"))
	n.Run(time.Second)
	if len(a.Received) != 1 {
		t.Fatal("no answer")
	}
}
