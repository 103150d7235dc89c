package stun

import (
	"net/netip"
	"testing"
)

var (
	benchID   = ID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	benchPeer = addr("192.0.2.9:7")
	benchKey  = ShortTerm("abcdefghijklmnopqrstuvwxyz")
)

// samples are what each reader sees most of.
func samples() (list [3][]byte) {
	w := Build(nil, Success, Refresh, benchID)
	w.Uint32(Lifetime, 600)
	w.Sign(benchKey)
	w.Fingerprint()
	list[Client] = w.Bytes()
	w = Build(nil, Request, Binding, benchID)
	w.Text(Username, "ufrag:peer")
	w.Uint64(ICEControlling, 7)
	w.Uint32(Priority, 9)
	w.Sign(benchKey)
	w.Fingerprint()
	list[Peer] = w.Bytes()
	w = Build(nil, Indication, Send, benchID)
	w.XORAddress(XORPeerAddress, benchPeer)
	w.Add(Data, list[Peer])
	list[Server] = w.Bytes()
	return list
}

var policyNames = [...]string{Client: "client", Peer: "peer", Server: "server"}

func BenchmarkParse(b *testing.B) {
	for p, data := range samples() {
		b.Run(policyNames[p], func(b *testing.B) {
			b.ReportAllocs()
			var m Message
			for b.Loop() {
				if m.Parse(data, Policy(p)) != DropNone {
					b.Fatal("dropped")
				}
			}
		})
	}
}

func BenchmarkAuthentic(b *testing.B) {
	data := samples()[Peer]
	b.ReportAllocs()
	var m Message
	for b.Loop() {
		if m.Parse(data, Peer) != DropNone || !benchKey.Authentic(&m) {
			b.Fatal("dropped")
		}
	}
}

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
