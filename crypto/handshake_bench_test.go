package crypto_test

import (
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto/cryptotest"
)

// BenchmarkHandshake is a handshake with both sides in one goroutine.
func BenchmarkHandshake(b *testing.B) {
	n, x, y := cryptotest.Pair(1, cryptotest.Link{}, fastPeer)
	y.Endpoint = x.Node().Addr
	for b.Loop() {
		n.Run(121 * time.Second)
		x.Send([]byte("a"))
		n.Run(time.Second)
	}
	if len(y.Received) == 0 {
		b.Fatal("nothing arrived")
	}
}
