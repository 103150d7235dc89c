package turn

import (
	"bytes"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// FuzzHandle: whatever the server's address sends, before and after there is an allocation, the client keeps its tables in order,
// answers with a few outputs at most, and gives out no bytes but those of the datagram.
func FuzzHandle(f *testing.F) {
	f.Add(dataIndication(peerA, []byte("payload")))
	f.Add(channelData(FirstChannel, []byte("payload")))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := up(t)
		bindBoth(w)
		for range 2 {
			p, ok := w.c.Handle(w.now, testServer, b)
			if ok && (!p.Peer.IsValid() || len(p.Data) > len(b) || !bytes.Contains(b, p.Data)) {
				t.Fatalf("%+v of %x", p, b)
			}
			if len(w.c.outputs) > 4 { // Allocated and two channels, or Lost and a request
				t.Fatalf("%d outputs", len(w.c.outputs))
			}
			w.invariants()
			w.c.Probe(w.now)
			w.drain()
			if n := len(b); n >= frame.HeaderSize { // as if the transaction ID had been guessed
				copy(b[8:], w.c.allocation.id[:])
			}
		}
		w.run(time.Minute)
	})
}
