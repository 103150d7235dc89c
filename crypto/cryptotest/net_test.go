package cryptotest

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
)

// story runs a pair over a bad link and writes down all that happened.
func story(seed uint64) string {
	n, a, b := Pair(seed, Link{Latency: time.Millisecond, Jitter: 50 * time.Millisecond, Loss: 0.2, Duplicate: 0.2}, crypto.PeerConfig{})
	text := ""
	n.Tap = func(d Datagram) bool {
		text += fmt.Sprintf("%v %v %x\n", n.Now(), d.To, d.Bytes)
		return false
	}
	for range 50 {
		a.Send([]byte("a"))
		b.Send([]byte("b"))
		n.Run(100 * time.Millisecond)
	}
	return fmt.Sprint(text, len(a.Received), len(b.Received))
}

func TestSameSeedSameStory(t *testing.T) {
	first := story(1)
	if first != story(1) {
		t.Fatal("the same seed told two stories")
	}
	if first == story(2) {
		t.Fatal("two seeds told one story")
	}
}

// fates sends 1000 datagrams and returns in which order they arrived.
func fates(link Link) (order []byte) {
	n := NewNet(1, link)
	from := netip.MustParseAddrPort("192.0.2.1:1")
	for i := range 1000 {
		n.Send(from, from, []byte{0, byte(i / 4)})
	}
	for _, a := range n.flight {
		order = append(order, a.Bytes[1])
	}
	return order
}

func TestLinkFates(t *testing.T) {
	if got := len(fates(Link{Loss: 1})); got != 0 {
		t.Errorf("%d survive a loss of all", got)
	}
	if got := len(fates(Link{Loss: 0.3})); got < 600 || got > 800 {
		t.Errorf("%d of 1000 survive a loss of 0.3", got)
	}
	if got := len(fates(Link{Duplicate: 0.5})); got < 1400 || got > 1600 {
		t.Errorf("%d arrive where half are sent twice", got)
	}
	sorted := func(b []byte) bool {
		for i := range b[1:] {
			if b[i+1] < b[i] {
				return false
			}
		}
		return true
	}
	if !sorted(fates(Link{Latency: time.Second})) {
		t.Error("a link without jitter reorders")
	}
	if sorted(fates(Link{Jitter: time.Second})) {
		t.Error("a link with jitter does not reorder")
	}
}

func TestLinkWatchesCounters(t *testing.T) {
	n := NewNet(1, Link{})
	b := make([]byte, crypto.SizeKeepalive)
	crypto.PutTransportHeader(b, 1, 1)
	to := netip.MustParseAddrPort("192.0.2.1:1")
	n.Send(to, to, b)
	defer func() {
		if recover() == nil {
			t.Fatal("a counter was sent twice and nobody said so")
		}
	}()
	n.Send(to, to, b)
}
