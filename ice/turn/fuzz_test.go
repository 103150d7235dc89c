package turn

import (
	"bytes"
	"testing"
	"time"

	"github.com/pion/stun/v3"

	"github.com/sluice-vpn/sluice/pipeline"
)

// FuzzCheck: what passes is decoded by pion to the same attributes, and reading them neither fails nor panics.
func FuzzCheck(f *testing.F) {
	f.Add(dataIndication(peerA, []byte("payload")))
	f.Add(newRequest(stun.MethodBinding, transactionID{7}).Raw)
	f.Fuzz(func(t *testing.T, b []byte) {
		if check(b) != DropNone {
			return
		}
		m := &stun.Message{}
		if err := stun.Decode(b, m); err != nil {
			t.Fatalf("%x passes, but pion: %v", b, err)
		}
		if len(m.Attributes) > maxAttributes {
			t.Fatalf("%d attributes", len(m.Attributes))
		}
		for _, kind := range []stun.AttrType{
			stun.AttrXORMappedAddress, stun.AttrXORPeerAddress, stun.AttrXORRelayedAddress,
		} {
			a, ok := xorAddressOf(m, kind)
			var pion stun.XORMappedAddress
			if err := pion.GetFromAs(m, kind); ok && (err != nil || pion.Port != int(a.Port())) {
				t.Fatalf("%v: %v, but pion: %v %v", kind, a, pion, err)
			}
		}
		if m.Contains(stun.AttrFingerprint) {
			if err := stun.Fingerprint.Check(m); err != nil {
				t.Fatal(err)
			}
		}
		code, ok := codeOf(m)
		var pion stun.ErrorCodeAttribute
		if err := pion.GetFrom(m); ok != (err == nil) || ok && pion.Code != code {
			t.Fatalf("%d, but pion: %v %v", code, pion, err)
		}
		lifetimeOf(m)
		_ = stun.MessageIntegrity("key").Check(m)
		if v, ok := valueOf(b, stun.AttrData); ok {
			if w, err := m.Get(stun.AttrData); err != nil || !bytes.Equal(v, w) {
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
			if n := len(b); n >= stunHeaderSize { // as if the transaction ID had been guessed
				copy(b[8:], w.c.allocation.id[:])
			}
		}
		w.run(time.Minute)
	})
}

// FuzzChannelData: what is parsed is what was framed.
func FuzzChannelData(f *testing.F) {
	f.Add([]byte{0x40, 0, 0, 1, 0xAA})
	f.Fuzz(func(t *testing.T, b []byte) {
		number, payload, ok := pipeline.ParseChannelData(b)
		if !ok {
			return
		}
		again := channelData(number, payload)
		if number < FirstChannel || number > LastChannel || !bytes.HasPrefix(b, again) {
			t.Fatalf("%x became %#x and %x", b, number, payload)
		}
	})
}
