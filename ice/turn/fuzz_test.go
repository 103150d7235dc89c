package turn

import (
	"bytes"
	"testing"
	"time"

	witness "github.com/pion/stun/v4"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// FuzzPion: what passes the check is decoded by pion to the same attributes, and reading them neither fails nor panics.
func FuzzPion(f *testing.F) {
	f.Add(dataIndication(peerA, []byte("payload")))
	f.Add(newRequest(witness.MethodAllocate, stun.ID{7}).Raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		var ours stun.Message
		if ours.Parse(b, stun.Client) != stun.DropNone && ours.Parse(b, stun.Server) != stun.DropNone {
			return
		}
		m := &witness.Message{}
		if err := witness.Decode(b, m); err != nil {
			t.Fatalf("%x passes, but pion: %v", b, err)
		}
		for _, kind := range []witness.AttrType{
			witness.AttrXORMappedAddress, witness.AttrXORPeerAddress, witness.AttrXORRelayedAddress,
		} {
			a, ok := addressOf(&ours, stun.Attr(kind))
			var pion witness.XORMappedAddress
			if err := pion.GetFromAs(m, kind); ok && (err != nil || pion.Port != int(a.Port())) {
				t.Fatalf("%v: %v, but pion: %v %v", kind, a, pion, err)
			}
		}
		if m.Contains(witness.AttrFingerprint) {
			if err := witness.Fingerprint.Check(m); err != nil {
				t.Fatal(err)
			}
		}
		var pion witness.ErrorCodeAttribute
		if err := pion.GetFrom(m); ours.Has(stun.ErrorCode) != (err == nil) || err == nil && int(pion.Code) != ours.Code() {
			t.Fatalf("%d, but pion: %v %v", ours.Code(), pion, err)
		}
		if signed := witness.MessageIntegrity("key").Check(m) == nil; signed != stun.ShortTerm("key").Authentic(&ours) {
			t.Fatalf("pion takes the integrity for %v", signed)
		}
		if v := ours.Get(stun.Data); v != nil {
			if w, err := m.Get(witness.AttrData); err != nil || !bytes.Equal(v, w) {
				t.Fatalf("%x, but pion: %x %v", v, w, err)
			}
		}
	})
}

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
