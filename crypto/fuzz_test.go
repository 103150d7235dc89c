package crypto_test

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/cryptotest"
)

// target is a node in a state that every kind of message could hit: a session, a handshake under way, a mac1 outstanding.
// Messages are ones that it would accept.
func target() (n *cryptotest.Net, r *cryptotest.Remote, messages [][]byte) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, crypto.PeerConfig{})
	b.Endpoint = a.Node().Addr
	a.Want()
	n.Run(6 * time.Second)
	n.Tap = func(d cryptotest.Datagram) bool {
		messages = append(messages, slices.Clone(d.Bytes))
		return true
	}
	b.Peer.Want(n.Now())
	mine, _ := b.Peer.Poll() // b's initiation, for the response and the cookie reply below
	response, cookie := answers(n, a, mine.Message)
	a.Peer.Want(n.Now() + 2*crypto.RekeyTimeout)
	a.Drain()
	n.Tap = nil
	return n, b, [][]byte{messages[0], response, cookie}
}

// answers has a answer the initiation twice: with a cookie reply, and with a response.
func answers(n *cryptotest.Net, a *cryptotest.Remote, initiation []byte) (response, cookie []byte) {
	a.Node().Local.NoteQueue(n.Now(), 1, 1)
	cookie = slices.Clone(a.Node().Local.Handle(n.Now(), crypto.Source{Addr: stranger}, slices.Clone(initiation), nil).Reply)
	v := a.Node().Local.Handle(n.Now()+time.Second, crypto.Source{Addr: stranger}, slices.Clone(initiation), nil)
	if v.Peer == nil {
		panic(v.Reason)
	}
	out, _ := v.Peer.Poll()
	for out.Kind != crypto.SendMessage {
		out, _ = v.Peer.Poll()
	}
	return slices.Clone(out.Message), cookie
}

// FuzzHandle gives Handle mutated messages, with mac1 made right if fix says so. It must not panic, and whatever it does
// not accept must change nothing.
func FuzzHandle(f *testing.F) {
	_, _, messages := target()
	for _, m := range messages {
		f.Add(m, uint16(0), byte(0), false)
		f.Add(m, uint16(9), byte(1), true)
		f.Add(m[:len(m)-1], uint16(0), byte(0), true)
	}
	f.Add([]byte{}, uint16(0), byte(0), false)
	f.Add([]byte{4, 0, 0, 0}, uint16(0), byte(0), false)
	n, r, _ := target()
	local := r.Node().Local
	to := local.PublicKey()
	f.Fuzz(func(t *testing.T, msg []byte, at uint16, flip byte, fix bool) {
		if len(msg) > 0 {
			msg[int(at)%len(msg)] ^= flip
		}
		if fix && len(msg) >= 64 {
			putMac1(to, msg)
		}
		before := local.Fingerprint()
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(at)}), at)
		v := local.Handle(n.Now(), crypto.Source{Addr: src}, msg, nil)
		if v.Reason == crypto.Accepted { // an unharmed message: go back to the state before
			n, r, _ = target()
			local, to = r.Node().Local, r.Node().Local.PublicKey()
			return
		}
		if after := local.Fingerprint(); after != before || v.Roam {
			t.Fatalf("%v changed the state:\n%s%s", v.Reason, before, after)
		}
		if v.Reply != nil {
			t.Fatal("a reply although there is no load")
		}
	})
}

// FuzzTransport gives the header parser and Classify anything: they agree, and never panic.
func FuzzTransport(f *testing.F) {
	f.Add([]byte{})
	b := make([]byte, 48)
	crypto.PutTransportHeader(b, 7, 9)
	f.Add(b)
	f.Add(b[:31])
	f.Fuzz(func(t *testing.T, b []byte) {
		index, counter, ok := crypto.ParseTransport(b)
		kind, known := crypto.Classify(b)
		if ok != (known && kind == crypto.MessageTransport) {
			t.Fatal("Classify and ParseTransport differ")
		}
		if ok {
			c := slices.Clone(b)
			crypto.PutTransportHeader(c, index, counter)
			if !slices.Equal(b, c) || binary.LittleEndian.Uint32(b) != 4 {
				t.Fatal("the header does not read back")
			}
		}
	})
}

// The messages that the fuzzer starts from would be accepted, each by a target of its own.
func TestFuzzTargetIsHittable(t *testing.T) {
	for i := range 3 {
		n, r, messages := target()
		if v := r.Node().Local.Handle(n.Now(), crypto.Source{Addr: stranger}, messages[i], nil); v.Reason != crypto.Accepted {
			t.Errorf("message %d: %v", i, v.Reason)
		}
	}
}
