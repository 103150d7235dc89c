package crypto_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/cryptotest"
)

var (
	stranger = netip.MustParseAddrPort("198.51.100.9:9")
	anyAddr  = netip.MustParseAddrPort("192.0.2.44:44")
	anyPeer  = crypto.PeerConfig{}
	fastPeer = crypto.PeerConfig{HandshakeLifetime: 15 * time.Second, FastRetry: true}
)

// capture has the link drop messages of that type and returns the list they go to.
func capture(n *cryptotest.Net, kind crypto.MessageType) *[][]byte {
	list := new([][]byte)
	n.Tap = func(d cryptotest.Datagram) bool {
		got, _ := crypto.Classify(d.Bytes)
		if got == kind {
			*list = append(*list, d.Bytes)
		}
		return got == kind
	}
	return list
}

// connect makes a session between a and b, a the initiator.
func connect(t *testing.T, n *cryptotest.Net, a, b *cryptotest.Remote) {
	t.Helper()
	a.Send([]byte("first"))
	n.Run(time.Second)
	if a.Peer.Sending() == nil || b.Peer.Sending() == nil || len(b.Received) == 0 {
		t.Fatalf("no session: %v %v", a.Node().Verdicts, b.Node().Verdicts)
	}
}

// handle gives msg to r's node and checks that a drop changes nothing.
func handle(t *testing.T, n *cryptotest.Net, r *cryptotest.Remote, msg []byte, want crypto.Reason) crypto.Verdict {
	t.Helper()
	before := r.Node().Local.Fingerprint()
	v := r.Node().Local.Handle(n.Now(), crypto.Source{Addr: stranger}, slices.Clone(msg), nil)
	if v.Reason != want {
		t.Fatalf("%v, want %v", v.Reason, want)
	}
	after := r.Node().Local.Fingerprint()
	if want != crypto.Accepted && (after != before || v.Roam) {
		t.Fatalf("%v changed the state:\n%s%s", v.Reason, before, after)
	}
	return v
}

// Sections 5.4.2 to 5.4.6: initiation, response, confirming data, data back. All messages have their sizes, and macs.
func TestHandshake(t *testing.T) {
	for _, psk := range []crypto.PresharedKey{{}, {1}} {
		n, a, b := cryptotest.Pair(1, cryptotest.Link{Latency: 10 * time.Millisecond}, crypto.PeerConfig{PresharedKey: psk})
		var sizes []int
		n.Tap = func(d cryptotest.Datagram) bool { sizes = append(sizes, len(d.Bytes)); return false }
		start := n.Now()
		a.Send([]byte("hello"))
		n.RunUntil(start+time.Second, func() bool { return a.Peer.Sending() != nil })
		if b.Peer.Sending() != nil {
			t.Fatal("the responder may send before it was confirmed")
		}
		if _, _, next := b.Peer.Slots(); next == nil || !next.NeedsConfirm() {
			t.Fatal("the responder's session is not in the next slot")
		}
		if !b.Peer.LastHandshake().IsZero() || !a.Peer.LastHandshake().Equal(n.Wall()) {
			t.Fatal("last handshake: the initiator's is the response, the responder's is not yet")
		}
		n.Run(time.Second)
		if !b.Peer.LastHandshake().Equal(cryptotest.Epoch.Add(start + 30*time.Millisecond)) {
			t.Fatal("last handshake: the responder's is the confirmation", b.Peer.LastHandshake())
		}
		b.Send([]byte("there"))
		n.Run(time.Second)
		if !slices.Equal(sizes, []int{148, 92, 48, 48}) || string(a.Received[0][:5]) != "there" {
			t.Fatal(sizes, a.Received)
		}
		ka, kb := a.Peer.Sending(), b.Peer.Sending()
		if ka.LocalIndex != kb.RemoteIndex || ka.RemoteIndex != kb.LocalIndex || !ka.Initiator || kb.Initiator {
			t.Fatal("the two ends are not the two ends of one session")
		}
		if ka.Peer() != a.Peer || ka.Owner() != any(a) {
			t.Fatal("owner")
		}
	}
}

// Kernel receive.c: the initiator with nothing staged confirms by a keepalive of 32 bytes.
func TestInitiatorConfirmsAtOnce(t *testing.T) {
	n, a, b := cryptotest.Pair(2, cryptotest.Link{}, anyPeer)
	var last []byte
	n.Tap = func(d cryptotest.Datagram) bool { last = d.Bytes; return false }
	a.Want()
	n.Run(time.Millisecond)
	if b.Keepalives != 1 || len(last) != crypto.SizeKeepalive || b.Peer.Sending() == nil {
		t.Fatalf("%d keepalives, last message %d bytes", b.Keepalives, len(last))
	}
}

// initiation makes one initiation of a that has not been seen by anyone.
func initiation(n *cryptotest.Net, a *cryptotest.Remote) []byte {
	a.Peer.Clear(n.Now()) // so that the next may be sent at once
	list := capture(n, crypto.MessageInitiation)
	a.Want()
	n.Tap = nil
	a.Peer.Clear(n.Now())
	return (*list)[0]
}

// Section 5.1, silence: what is wrong with an initiation is counted and changes nothing.
func TestInitiationDrops(t *testing.T) {
	n, a, b := cryptotest.Pair(3, cryptotest.Link{}, anyPeer)
	good := initiation(n, a)
	to := b.Node().Local.PublicKey()

	for i := range good { // each byte by itself
		msg := slices.Clone(good)
		msg[i] ^= 0x40
		switch {
		case i < 4:
			handle(t, n, b, msg, crypto.BadType)
		case i < 132:
			handle(t, n, b, msg, crypto.Mac1Mismatch)
		}
		if i >= 8 && i < 116 { // whoever knows our public key can make mac1
			putMac1(to, msg)
			v := handle(t, n, b, msg, crypto.BadAEAD)
			if known := v.Peer != nil; known != (i >= 88) {
				t.Fatalf("byte %d: peer %v", i, v.Peer)
			}
		}
	}
	for size := range good {
		want := crypto.BadLength
		handle(t, n, b, good[:size], want)
	}
	handle(t, n, b, append(slices.Clone(good), 0), crypto.BadLength)
	data := make([]byte, 64)
	data[0] = 4
	handle(t, n, b, data, crypto.BadType)

	low := slices.Clone(good)
	clear(low[8:40])
	putMac1(to, low)
	handle(t, n, b, low, crypto.LowOrder)

	other, _ := crypto.GeneratePrivateKey(n)
	v := handle(t, n, b, crypto.ForgeInitiation(n, other, to, crypto.StampOf(n.Wall()), 5), crypto.UnknownStatic)
	if v.Peer != nil {
		t.Fatal("an unknown peer has a name")
	}
	forged := crypto.StampOf(n.Wall())
	binary.BigEndian.PutUint32(forged[8:], 1e9)
	key := a.Node().Local.PrivateKey()
	handle(t, n, b, crypto.ForgeInitiation(n, key, to, forged, 5), crypto.BadTimestamp)

	tally := b.Peer.Tally()
	if tally.Rejected(crypto.BadAEAD) != 28 || tally.Rejected(crypto.BadTimestamp) != 1 || tally.RejectedResponses() != 0 {
		t.Fatalf("%+v", tally)
	}
	handle(t, n, b, good, crypto.Accepted)
}

// Section 5.1: an initiation must be newer than the newest, however often and whenever it is repeated; kernel messages.h,
// INITIATIONS_PER_SECOND: and 20 ms after it.
func TestReplayAndFlood(t *testing.T) {
	n, a, b := cryptotest.Pair(4, cryptotest.Link{}, anyPeer)
	first, second, third := initiation(n, a), initiation(n, a), initiation(n, a)
	handle(t, n, b, second, crypto.Accepted)
	b.Drain()
	for _, wait := range []time.Duration{0, time.Second, time.Hour} {
		n.Run(wait)
		v := handle(t, n, b, second, crypto.ReplayedTimestamp)
		if v.Peer != b.Peer || v.Stamp.IsZero() || !v.Stamp.Equal(v.NewestStamp) {
			t.Fatalf("%+v", v)
		}
		v = handle(t, n, b, first, crypto.ReplayedTimestamp)
		if !v.Stamp.Before(v.NewestStamp) {
			t.Fatalf("%+v", v)
		}
	}
	handle(t, n, b, third, crypto.Accepted)
	b.Drain()
	fourth := initiation(n, a)
	n.Run(20*time.Millisecond - 1)
	handle(t, n, b, fourth, crypto.Flood)
	n.Run(1)
	handle(t, n, b, fourth, crypto.Accepted)
}

// A wall clock that is set back, or stands still, does not lock us out: our stamps always grow.
func TestStampsGrow(t *testing.T) {
	wall := cryptotest.Epoch
	n, _, b := cryptotest.Pair(5, cryptotest.Link{}, anyPeer)
	local, err := crypto.NewLocal(crypto.Config{Rand: n, Wall: func() time.Time { return wall }, NewCipher: cryptotest.NewCipher})
	if err != nil {
		t.Fatal(err)
	}
	key, _ := crypto.GeneratePrivateKey(n)
	local.SetPrivateKey(1, &key)
	us, _ := b.Node().Local.AddPeer(n.Now(), crypto.PeerConfig{PublicKey: local.PublicKey(), Owner: b})
	p, _ := local.AddPeer(1, crypto.PeerConfig{PublicKey: b.Node().Local.PublicKey()})
	for range 5 {
		p.Clear(n.Now())
		p.Want(n.Now())
		out, ok := p.Poll()
		if !ok {
			t.Fatal("no initiation")
		}
		if v := b.Node().Local.Handle(n.Now(), crypto.Source{Addr: stranger}, out.Message, nil); v.Reason != crypto.Accepted || v.Peer != us {
			t.Fatal(v.Reason)
		}
		n.Run(time.Second)
		wall = wall.Add(-time.Hour)
	}
}

// Kernel noise.c, consume_response: only the right response, to the handshake that is under way, and once.
func TestResponseDrops(t *testing.T) {
	n, a, b := cryptotest.Pair(6, cryptotest.Link{}, anyPeer)
	responses := capture(n, crypto.MessageResponse)
	a.Want()
	n.Run(time.Millisecond)
	good := (*responses)[0]
	to := a.Node().Local.PublicKey()
	for i := range good {
		msg := slices.Clone(good)
		msg[i] ^= 0x40
		switch {
		case i < 4:
			handle(t, n, a, msg, crypto.BadType)
		case i < 76:
			if v := handle(t, n, a, msg, crypto.Mac1Mismatch); (v.Peer != nil) != (i < 8 || i >= 12) {
				t.Fatalf("byte %d: peer %v", i, v.Peer)
			}
		}
		putMac1(to, msg)
		switch {
		case i >= 8 && i < 12:
			handle(t, n, a, msg, crypto.UnknownIndex)
		case i >= 12 && i < 60:
			if v := handle(t, n, a, msg, crypto.BadAEAD); v.Peer != a.Peer {
				t.Fatal("the peer is not named")
			}
		}
	}
	for size := range good {
		handle(t, n, a, good[:size], crypto.BadLength)
	}
	low := slices.Clone(good)
	clear(low[12:44])
	putMac1(to, low)
	handle(t, n, a, low, crypto.LowOrder)
	if tally := a.Peer.Tally(); tally.ResponsesRejected[crypto.BadAEAD] != 48 || tally.RejectedResponses() < 100 {
		t.Fatalf("%+v", tally)
	}
	handle(t, n, a, good, crypto.Accepted)
	a.Drain()
	handle(t, n, a, good, crypto.WrongState) // its index is the session's now
	if b.Peer.Tally().ResponsesSent != 1 {
		t.Fatal("responses sent")
	}
}

// Kernel peerlookup.c: the index of an initiation dies with the next initiation.
func TestOldIndexDies(t *testing.T) {
	n, a, _ := cryptotest.Pair(7, cryptotest.Link{}, anyPeer)
	responses := capture(n, crypto.MessageResponse)
	a.Want()
	n.Run(6 * time.Second) // and a retry
	if len(*responses) != 2 {
		t.Fatalf("%d responses", len(*responses))
	}
	if used := a.Node().Local.UsedIndices(); used != 1 {
		t.Fatalf("%d indices in use", used)
	}
	handle(t, n, a, (*responses)[0], crypto.UnknownIndex)
	handle(t, n, a, (*responses)[1], crypto.Accepted)
}

// An index that is a session's, or a responder's, takes no response.
func TestResponseWrongState(t *testing.T) {
	n, a, b := cryptotest.Pair(8, cryptotest.Link{}, anyPeer)
	connect(t, n, a, b)
	msg := make([]byte, crypto.SizeResponse)
	msg[0] = 2
	binary.LittleEndian.PutUint32(msg[8:], b.Peer.Sending().LocalIndex)
	putMac1(b.Node().Local.PublicKey(), msg)
	if v := handle(t, n, b, msg, crypto.WrongState); v.Peer != b.Peer {
		t.Fatal("the peer is not named")
	}
}

// Two initiations that cross make one session, without a retry, however long the way is: the kernel's rule (noise.c,
// CONSUMED_INITIATION), by which both sides forget theirs, has the retries of a long way cross again and again.
func TestSimultaneousInitiations(t *testing.T) {
	for name, cfg := range map[string]crypto.PeerConfig{"paper": anyPeer, "fast": fastPeer} {
		for _, latency := range []time.Duration{5 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond} {
			for seed := range uint64(30 / slowdown) {
				n, a, b := cryptotest.Pair(seed, cryptotest.Link{Latency: latency}, cfg)
				b.Endpoint = a.Node().Addr
				a.Send([]byte("from a"))
				b.Send([]byte("from b"))
				n.Run(4 * latency) // initiation, response, confirmation, packet
				if len(a.Received) != 1 || len(b.Received) != 1 {
					t.Fatalf("%s, %v, seed %d: %d and %d packets came", name, latency, seed, len(a.Received), len(b.Received))
				}
				ka, kb := a.Peer.Sending(), b.Peer.Sending()
				if ka.LocalIndex != kb.RemoteIndex || ka.Initiator == kb.Initiator {
					t.Fatalf("%s, %v, seed %d: not the same session", name, latency, seed)
				}
				if len(a.Initiations()) != 1 || len(b.Initiations()) != 1 {
					t.Fatalf("%s, %v, seed %d: a retry was needed", name, latency, seed)
				}
			}
		}
	}
}

// Who insists on its own initiation still takes the session of the peer's, if its own was lost; then it forgets its own.
func TestInsistedInitiationLost(t *testing.T) {
	for seed := range uint64(10) {
		n, a, b := cryptotest.Pair(seed, cryptotest.Link{Latency: 50 * time.Millisecond}, anyPeer)
		b.Endpoint = a.Node().Addr
		keeper, other := a, b
		if bytes.Compare(keyOf(a), keyOf(b)) < 0 {
			keeper, other = b, a
		}
		n.Tap = func(d cryptotest.Datagram) bool { return d.From == keeper.Node().Addr }
		keeper.Send([]byte("lost"))
		n.Tap = nil
		other.Send([]byte("arrives"))
		n.Run(time.Second)
		if len(keeper.Received) != 1 || len(other.Received) != 1 {
			t.Fatalf("seed %d: %d and %d packets came", seed, len(keeper.Received), len(other.Received))
		}
		ephemeral, chain := keeper.Peer.HandshakeSecrets()
		if _, active := keeper.Peer.HandshakeIndex(); active || ephemeral != [32]byte{} || chain != [32]byte{} {
			t.Fatalf("seed %d: the handshake is still there", seed)
		}
	}
}

// keyOf is the public key of the node that r is on.
func keyOf(r *cryptotest.Remote) []byte {
	k := r.Node().Local.PublicKey()
	return k[:]
}

// Section 5.2: without the same preshared key there is no session, and each side can tell why.
func TestPresharedKeyDiffers(t *testing.T) {
	n, a, b := cryptotest.Pair(9, cryptotest.Link{Latency: time.Millisecond}, fastPeer)
	a.Peer.SetPresharedKey(&crypto.PresharedKey{1})
	a.Want()
	n.Run(20 * time.Second)
	report := a.Events[len(a.Events)-1].Expired
	if report.Initiations != 5 || report.ResponsesRejected[crypto.BadAEAD] != 5 || report.RejectedResponses() != 5 || report.Quiet {
		t.Fatalf("%+v", report)
	}
	if got := b.Peer.Tally(); got.ResponsesSent != 5 || b.Peer.Sending() != nil || !b.Peer.LastHandshake().IsZero() {
		t.Fatalf("%+v", got)
	}
}

// A preshared key that changes is for the next handshake; the session stays as it is.
func TestPresharedKeyChanges(t *testing.T) {
	n, a, b := cryptotest.Pair(10, cryptotest.Link{}, anyPeer)
	connect(t, n, a, b)
	k := a.Peer.Sending()
	a.Peer.SetPresharedKey(&crypto.PresharedKey{7})
	b.Peer.SetPresharedKey(&crypto.PresharedKey{7})
	a.Send([]byte("second"))
	n.Run(time.Second)
	if len(b.Received) != 2 || a.Peer.Sending() != k {
		t.Fatal("the session did not stay")
	}
	n.Run(crypto.RekeyTimeout)
	a.Want()
	n.Run(time.Second)
	if a.Peer.Sending() == k || a.Peer.Sending() == nil || a.Peer.PresharedKey() != (crypto.PresharedKey{7}) {
		t.Fatal("no handshake with the new key")
	}
}

// When static keys are out of step the responder can tell which: its own (mac1) or the initiator's.
func TestStaticKeysOutOfStep(t *testing.T) {
	n, a, b := cryptotest.Pair(11, cryptotest.Link{}, anyPeer)
	key, _ := crypto.GeneratePrivateKey(n)
	b.Node().Local.SetPrivateKey(n.Now(), &key)
	a.Want()
	n.Run(time.Millisecond)
	if b.Node().Verdicts[crypto.Mac1Mismatch] != 1 {
		t.Fatal(b.Node().Verdicts)
	}
	n, a, b = cryptotest.Pair(12, cryptotest.Link{}, anyPeer)
	a.Node().Local.SetPrivateKey(n.Now(), &key)
	a.Want()
	n.Run(time.Millisecond)
	if b.Node().Verdicts[crypto.UnknownStatic] != 1 {
		t.Fatal(b.Node().Verdicts)
	}
}

// Kernel netlink.c and noise.c: a new static key ends sending, drops handshakes, and drops the peer that has it.
func TestSetPrivateKey(t *testing.T) {
	n, a, b := cryptotest.Pair(13, cryptotest.Link{Latency: time.Millisecond}, anyPeer)
	local := a.Node().Local
	connect(t, n, a, b)
	k := a.Peer.Sending()
	same := local.PrivateKey()
	if removed := local.SetPrivateKey(n.Now(), &same); removed != nil || !k.Usable(n.Now()) {
		t.Fatal("the same key is no change")
	}
	unclamped := local.PrivateKey()
	unclamped[0] |= 7
	if local.SetPrivateKey(n.Now(), &unclamped); !k.Usable(n.Now()) {
		t.Fatal("the same key, not clamped, is no change")
	}
	n.Run(crypto.RekeyTimeout)
	a.Want()
	key, _ := crypto.GeneratePrivateKey(n)
	other, err := local.AddPeer(n.Now(), crypto.PeerConfig{PublicKey: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	if _, active := a.Peer.HandshakeIndex(); !active {
		t.Fatal("no handshake under way")
	}
	removed := local.SetPrivateKey(n.Now(), &key)
	if len(removed) != 1 || removed[0] != other || local.Peer(key.Public()) != nil {
		t.Fatalf("removed %v", removed)
	}
	if k.Usable(n.Now()) || !k.Acceptable(n.Now()) {
		t.Fatal("the session must receive but not send")
	}
	if _, active := a.Peer.HandshakeIndex(); active {
		t.Fatal("the handshake is still under way")
	}
	if _, err := local.AddPeer(n.Now(), crypto.PeerConfig{PublicKey: local.PublicKey()}); !errors.Is(err, crypto.ErrSelf) {
		t.Fatal(err)
	}
	if _, err := local.AddPeer(n.Now(), crypto.PeerConfig{PublicKey: a.Peer.PublicKey()}); !errors.Is(err, crypto.ErrDuplicate) {
		t.Fatal(err)
	}
	// With the key known at the other end a session follows at once, within the 5 s.
	b.Node().Local.RemovePeer(n.Now(), b.Peer)
	fresh := b.Node().Add(a.Node(), anyPeer)
	n.Run(7 * time.Second)
	if fresh.Peer.Sending() == nil || !a.Peer.Sending().Usable(n.Now()) {
		t.Fatal("no session with the new key")
	}
}

// Without a private key nothing is sent and nothing accepted; with the zero key it is gone again.
func TestNoPrivateKey(t *testing.T) {
	n, a, b := cryptotest.Pair(14, cryptotest.Link{}, anyPeer)
	msg := initiation(n, a)
	b.Node().Local.SetPrivateKey(n.Now(), &crypto.PrivateKey{})
	handle(t, n, b, msg, crypto.NoPrivateKey)
	b.Endpoint = a.Node().Addr
	b.Want()
	n.Run(time.Second)
	if len(b.Initiations()) != 0 || b.Peer.Tally().NotSent != crypto.NoPrivateKey {
		t.Fatal("sent without a key")
	}
	if !b.Node().Local.PublicKey().IsZero() {
		t.Fatal("a public key without a private one")
	}
}

// Selftest netns.sh, low_order_points: a peer whose key is of low order never makes us send anything.
func TestLowOrderPeers(t *testing.T) {
	n := cryptotest.NewNet(15, cryptotest.Link{})
	node := n.Join("us", netip.MustParseAddrPort("192.0.2.1:1"))
	sent := 0
	n.Tap = func(cryptotest.Datagram) bool { sent++; return true }
	for _, key := range []crypto.PublicKey{{}, {1}, {0xec, 31: 0x7f}, {0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3,
		0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0}} {
		if key == (crypto.PublicKey{0xec, 31: 0x7f}) {
			copy(key[1:31], bytes.Repeat([]byte{0xff}, 30))
		}
		r := node.AddKey(stranger, crypto.PeerConfig{PublicKey: key, PersistentKeepalive: time.Second})
		r.Send([]byte("x"))
		n.Run(10 * time.Second)
		if r.Peer.Tally().NotSent != crypto.LowOrder {
			t.Fatalf("%v: %v", key, r.Peer.Tally().NotSent)
		}
	}
	if sent != 0 || node.Local.UsedIndices() != 0 {
		t.Fatalf("%d messages sent, %d indices used", sent, node.Local.UsedIndices())
	}
}

// Config.NewCipher nil is aead.New, which understands what the plainest cipher seals, and the other way round.
func TestDefaultCipher(t *testing.T) {
	n := cryptotest.NewNet(1, cryptotest.Link{})
	left := n.Join("a", netip.MustParseAddrPort("192.0.2.1:1"))
	n.NewCipher = nil
	right := n.Join("b", netip.MustParseAddrPort("192.0.2.2:2"))
	a, b := left.Add(right, anyPeer), right.Add(left, anyPeer)
	connect(t, n, a, b)
	b.Send([]byte("and back"))
	n.Run(time.Second)
	if len(a.Received) != 1 || !bytes.HasPrefix(a.Received[0], []byte("and back")) {
		t.Fatal("no answer")
	}
}

func TestNewLocalNeedsWall(t *testing.T) {
	if _, err := crypto.NewLocal(crypto.Config{}); err == nil {
		t.Fatal("no wall clock, no error")
	}
	local, err := crypto.NewLocal(crypto.Config{Wall: time.Now}) // all defaults
	if err != nil {
		t.Fatal(err)
	}
	key, _ := crypto.GeneratePrivateKey(cryptotest.NewNet(1, cryptotest.Link{}))
	local.SetPrivateKey(1, &key)
	p, err := local.AddPeer(1, crypto.PeerConfig{PublicKey: crypto.PublicKey{9}})
	if err != nil || local.Peer(crypto.PublicKey{9}) != p {
		t.Fatal(err)
	}
	p.Want(1)
	if out, ok := p.Poll(); !ok || len(out.Message) != crypto.SizeInitiation {
		t.Fatal("no initiation")
	}
}

// A random source that fails or repeats itself ends in silence, never in a loop or a panic.
func TestBrokenRandomness(t *testing.T) {
	for name, source := range map[string]func([]byte) (int, error){
		"fails":   func([]byte) (int, error) { return 0, errors.New("broken") },
		"repeats": func(b []byte) (int, error) { clear(b); return len(b), nil },
	} {
		n, a, b := cryptotest.Pair(16, cryptotest.Link{}, anyPeer)
		msg := initiation(n, a)
		local, err := crypto.NewLocal(crypto.Config{Rand: reader(source), Wall: n.Wall, NewCipher: cryptotest.NewCipher})
		if err != nil {
			t.Fatal(err)
		}
		own := b.Node().Local.PrivateKey()
		local.SetPrivateKey(1, &own)
		p, _ := local.AddPeer(1, crypto.PeerConfig{PublicKey: a.Node().Local.PublicKey()})
		q, _ := local.AddPeer(1, crypto.PeerConfig{PublicKey: crypto.PublicKey{9}})
		q.Want(1)
		v := local.Handle(2, crypto.Source{Addr: stranger}, msg, nil)
		if v.Reason != crypto.NoRandomness || v.Peer != p || p.Sending() != nil {
			t.Errorf("%s: %v", name, v.Reason)
		}
	}
}

type reader func([]byte) (int, error)

func (r reader) Read(b []byte) (int, error) { return r(b) }
