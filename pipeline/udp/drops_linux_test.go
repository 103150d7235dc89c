package udp

import (
	"net/netip"
	"testing"
)

// What a full socket drops is counted to the datagram, and goes on counting from call to call.
func TestReceiveDropped(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1"} {
		pairs, err := Listen(Config{ReceiveBuffer: 1 << 14, NoGRO: true})
		if err != nil {
			t.Fatal(err)
		}
		pair := pairs[0]
		defer closePair(pair)
		to := netip.AddrPortFrom(netip.MustParseAddr(address), pair.LocalPort())
		socket := pair.V4
		if to.Addr().Is6() {
			socket = pair.V6
		}
		if socket == nil {
			t.Logf("no socket for %s", address)
			continue
		}
		batch := make([]Datagrams, 16)
		for i := range batch {
			batch[i].Buf = make([]byte, BufferSize)
		}
		sent, received := uint64(0), uint64(0)
		for round := range 2 {
			for range 200 {
				if err := socket.SendOne(Run{Data: make([]byte, 1000), Dst: to}); err != nil {
					t.Fatal(err)
				}
				sent++
			}
			for {
				n, err := socket.Receive(batch)
				if err != nil {
					t.Fatal(err)
				}
				if n == 0 {
					break
				}
				received += uint64(n)
			}
			if got := socket.Stats().ReceiveDropped.Load(); got == 0 || got != sent-received {
				t.Errorf("%s, round %d: %d dropped, want %d (%d sent, %d received)", address, round, got, sent-received, sent, received)
			}
		}
	}
}

func closePair(p Pair) {
	for _, s := range [2]Socket{p.V4, p.V6} {
		if s != nil {
			s.Close()
		}
	}
}
