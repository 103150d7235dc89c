package crypto_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/cryptotest"
)

// Who does not know our public key cannot keep us under load, however many messages wait; who does can, and soon after it.
func TestGarbageIsNoLoad(t *testing.T) {
	for _, kind := range []string{"initiations", "cookie replies"} {
		t.Run(kind, func(t *testing.T) {
			n, a, b := cryptotest.Pair(7, cryptotest.Link{}, anyPeer)
			local := b.Node().Local
			good := initiation(n, a)
			garbage, why := slices.Clone(good), crypto.Mac1Mismatch
			garbage[8] ^= 1
			if kind == "cookie replies" {
				garbage, why = make([]byte, crypto.SizeCookieReply), crypto.UnknownIndex
				garbage[0] = 3
			}
			for range 1000 {
				local.NoteQueue(n.Now(), 1024, 1024)
				handle(t, n, b, garbage, why)
			}
			n.Run(time.Second) // the first ones count, until we know what they are
			local.NoteQueue(n.Now(), 1024, 1024)
			handle(t, n, b, good, crypto.Accepted)
			sent := 0
			for ; sent < 100; sent++ {
				local.NoteQueue(n.Now(), 1024, 1024)
				if local.Handle(n.Now(), crypto.Source{Addr: stranger}, slices.Clone(good), nil).Reason == crypto.CookieSent {
					break
				}
			}
			if sent == 100 {
				t.Errorf("no load after %d messages with the right mac1 and a full queue", sent)
			}
		})
	}
}

// Section 5.3 and kernel receive.c: under load an initiation without a cookie costs us a cookie reply and nothing else;
// the reply waits for the retry (section 6.6), which is accepted. Not under load mac2 is not looked at.
func TestUnderLoadInitiation(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	local := b.Node().Local
	local.NoteQueue(n.Now(), 512, 4096)
	a.Want()
	n.Run(time.Millisecond)
	if b.Node().Verdicts[crypto.CookieSent] != 1 || a.Node().Verdicts[crypto.Accepted] != 1 || b.Peer.Tally().ResponsesSent != 0 {
		t.Fatal(a.Node().Verdicts, b.Node().Verdicts)
	}
	if len(a.Initiations()) != 1 || a.Peer.Tally().CookieReplies != 1 {
		t.Fatal("the cookie reply must not trigger a resend")
	}
	if used := local.UsedIndices(); used != 0 || local.Sources() != 0 {
		t.Fatal("an initiation without a cookie left something")
	}
	n.RunUntil(n.Now()+10*time.Second, func() bool {
		local.NoteQueue(n.Now(), 512, 4096)
		return a.Peer.Sending() != nil
	})
	if len(a.Initiations()) != 2 || a.Peer.Sending() == nil {
		t.Fatal("the retry with mac2 was not accepted")
	}
}

// Under load a response needs a cookie as well.
func TestUnderLoadResponse(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	a.Node().Local.NoteQueue(n.Now(), 1, 1)
	a.Want()
	n.Run(time.Millisecond)
	if a.Node().Verdicts[crypto.CookieSent] != 1 || a.Peer.Sending() != nil || b.Peer.Tally().CookieReplies != 1 {
		t.Fatal(a.Node().Verdicts, b.Node().Verdicts)
	}
	n.RunUntil(n.Now()+10*time.Second, func() bool {
		a.Node().Local.NoteQueue(n.Now(), 1, 1)
		return a.Peer.Sending() != nil
	})
	if a.Peer.Sending() == nil {
		t.Fatal("the response with mac2 was not accepted")
	}
}

// After a second without a full queue nobody needs a cookie.
func TestLoadPasses(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	b.Node().Local.NoteQueue(n.Now(), 512, 4096)
	n.Run(time.Second)
	connect(t, n, a, b)
}

// A wrong mac2 is as good as none under load, and not looked at otherwise.
func TestWrongMac2(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	msg := initiation(n, a)
	msg[140] ^= 1
	b.Node().Local.NoteQueue(n.Now(), 512, 4096)
	if v := handle(t, n, b, msg, crypto.CookieSent); len(v.Reply) != crypto.SizeCookieReply || v.Peer != nil {
		t.Fatalf("%+v", v)
	}
	n.Run(time.Second)
	handle(t, n, b, msg, crypto.Accepted)
}

// Under load who has a cookie may send 20 messages a second, in bursts of 5.
func TestUnderLoadRateLimit(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	local := b.Node().Local
	local.NoteQueue(n.Now(), 512, 4096)
	b.Endpoint = a.Node().Addr
	a.Want()
	n.Run(time.Millisecond) // a has a cookie
	verdicts := make(map[crypto.Reason]int)
	for range 10 {
		msg := initiation(n, a)
		verdicts[local.Handle(n.Now(), crypto.Source{Addr: a.Node().Addr}, msg, nil).Reason]++
	}
	if verdicts[crypto.RateLimited] != 5 || verdicts[crypto.Accepted] != 1 || verdicts[crypto.Flood] != 4 {
		t.Fatal(verdicts)
	}
	if local.Sources() != 1 {
		t.Fatal("sources", local.Sources())
	}
}

// Kernel cookie.c: a cookie reply is for an index that we have and a mac1 that is outstanding, and never moves the endpoint.
func TestCookieReplyDrops(t *testing.T) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	b.Node().Local.NoteQueue(n.Now(), 512, 4096)
	replies := capture(n, crypto.MessageCookieReply)
	a.Want()
	n.Run(time.Millisecond)
	good := (*replies)[0]
	unknown := slices.Clone(good)
	unknown[4] ^= 1
	handle(t, n, a, unknown, crypto.UnknownIndex)
	for i := 8; i < len(good); i++ {
		bad := slices.Clone(good)
		bad[i] ^= 1
		if v := handle(t, n, a, bad, crypto.BadCookie); v.Peer != a.Peer {
			t.Fatal("the peer is not named")
		}
	}
	for size := range good {
		handle(t, n, a, good[:size], crypto.BadLength)
	}
	if v := handle(t, n, a, good, crypto.Accepted); v.Roam {
		t.Fatal("a cookie reply moves the endpoint")
	}
	handle(t, n, a, good, crypto.BadCookie)
}

// failedHandshakes sends total messages of every kind that must fail, a share of them costing us a Diffie-Hellman.
func failedHandshakes(t *testing.T, total, deep int) {
	n, a, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	connect(t, n, a, b)
	local := b.Node().Local
	to := local.PublicKey()
	source := rand.NewChaCha8([32]byte{5})
	dice := rand.New(source)
	before := local.Fingerprint()
	stranger, _ := crypto.GeneratePrivateKey(n)
	mem := heap()
	for i := range total {
		msg := make([]byte, []int{148, 92, 64}[i%3])
		source.Read(msg)
		binary.LittleEndian.PutUint32(msg, uint32(i%3+1))
		if i < deep {
			msg = crypto.ForgeInitiation(source, stranger, to, crypto.StampOf(n.Wall()), dice.Uint32())
		} else if i%3 < 2 && i%5 == 0 && i%50 != 0 {
			binary.LittleEndian.PutUint32(msg[8:], b.Peer.Sending().LocalIndex)
			if i%3 == 1 {
				putMac1(to, msg)
			}
		}
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), uint16(i))
		if v := local.Handle(n.Now(), crypto.Source{Addr: src}, msg, nil); v.Reason == crypto.Accepted {
			t.Fatal("a failed handshake was accepted")
		}
	}
	if after := local.Fingerprint(); after != before {
		t.Fatalf("state changed:\n%s%s", before, after)
	}
	if grown := int64(heap()) - int64(mem); grown > 4<<20 {
		t.Fatalf("the heap grew by %d bytes", grown)
	}
	for range 1000 { // and all of it once more, under load, which garbage alone is not
		local.NoteQueue(n.Now(), 1024, 1024)
		local.Handle(n.Now(), crypto.Source{Addr: netip.AddrPort{}}, fakeInitiation(to), nil)
	}
	for i := range total / 10 {
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1)
		if v := local.Handle(n.Now(), crypto.Source{Addr: src}, fakeInitiation(to), nil); v.Reason != crypto.CookieSent {
			t.Fatal(v.Reason)
		}
	}
	if local.Sources() != 0 || local.UsedIndices() != 1 {
		t.Fatalf("%d sources, %d indices", local.Sources(), local.UsedIndices())
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Failed handshakes of unknown parties leave nothing.
func TestFailedHandshakesLeaveNothing(t *testing.T) {
	failedHandshakes(t, 100000/slowdown, 1000/slowdown)
}

// Peers that come and go leave nothing.
func TestPeersComeAndGo(t *testing.T) {
	n, _, b := cryptotest.Pair(1, cryptotest.Link{}, anyPeer)
	local := b.Node().Local
	before := local.Fingerprint()
	for i := range 500 / slowdown {
		var key crypto.PublicKey
		binary.LittleEndian.PutUint64(key[:], uint64(i)+9)
		p, err := local.AddPeer(n.Now(), crypto.PeerConfig{PublicKey: key})
		if err != nil {
			t.Fatal(err)
		}
		p.Want(n.Now())
		local.RemovePeer(n.Now(), p)
	}
	if after := local.Fingerprint(); after != before {
		t.Fatalf("state changed:\n%s%s", before, after)
	}
}
