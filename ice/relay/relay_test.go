package relay

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// TestData sends through an allocation in both ways and both forms, over both families.
func TestData(t *testing.T) {
	s := start(t, nil)
	for gate, local := range []netip.Addr{loopback4, loopback6} {
		t.Run(local.String(), func(t *testing.T) {
			c := dial(t, s, gate, "data")
			var relayed netip.AddrPort
			if local.Is4() {
				relayed = c.allocate()
			} else {
				relayed = c.allocate6()
			}
			if relayed.Addr() != local || relayed.Port() < 49152 {
				t.Fatalf("relayed address %v", relayed)
			}
			conn, peer := peer(t, local)
			if code := c.permit(peer); code != 0 {
				t.Fatalf("CreatePermission: %d", code)
			}
			for _, size := range []int{1, 2, 3, 4, 999, 1400} {
				c.indicate(peer, bytes.Repeat([]byte{7}, size))
				if b, src := readPeer(conn, patience); len(b) != size || src != relayed {
					t.Fatalf("peer got %d bytes from %v, want %d from %v", len(b), src, size, relayed)
				}
				conn.WriteToUDPAddrPort(bytes.Repeat([]byte{8}, size), relayed)
				b := c.read(patience)
				c.sound(b)
				if from, _, ok := frame.ParseDataIndication(b); !ok || from != peer {
					t.Fatalf("client got %x", b)
				}
			}
			if code := c.bind(0x4001, peer); code != 0 {
				t.Fatalf("ChannelBind: %d", code)
			}
			for _, size := range []int{0, 1, 2, 3, 4, 999, 1400, 9000, 60000} {
				data := bytes.Repeat([]byte{9}, size)
				c.send(append(channelData(0x4001, data), 1, 2, 3)) // padding is ignored
				if b, src := readPeer(conn, patience); !bytes.Equal(b, data) || src != relayed {
					t.Fatalf("peer got %d bytes from %v, want %d from %v", len(b), src, size, relayed)
				}
				conn.WriteToUDPAddrPort(data, relayed)
				if b := c.read(patience); !bytes.Equal(b, channelData(0x4001, data)) {
					t.Fatalf("client got %d bytes, want %d of ChannelData and no padding", len(b), size+4)
				}
			}
		})
	}
}

// TestRuns sends many datagrams at once with odd tails and mixed channels; each must arrive whole, in order, once.
func TestRuns(t *testing.T) {
	s := start(t, nil)
	c := dial(t, s, 0, "runs")
	relayed := c.allocate()
	conn1, peer1 := peer(t, loopback4)
	conn2, peer2 := peer(t, loopback4)
	if c.bind(0x4001, peer1) != 0 || c.bind(0x4002, peer2) != 0 {
		t.Fatal("ChannelBind")
	}
	for round := range 20 {
		var want1, want2 [][]byte
		for i := range 40 {
			data := bytes.Repeat([]byte{byte(i)}, []int{1200, 1200, 1200, 37, 1200, 1}[(i+round)%6])
			if (i/7)%2 == 0 {
				c.send(channelData(0x4001, data))
				want1 = append(want1, data)
			} else {
				c.send(channelData(0x4002, data))
				want2 = append(want2, data)
			}
		}
		for i, want := range want1 {
			if b, _ := readPeer(conn1, patience); !bytes.Equal(b, want) {
				t.Fatalf("round %d: datagram %d of the first peer: %d bytes, want %d", round, i, len(b), len(want))
			}
		}
		for i, want := range want2 {
			if b, _ := readPeer(conn2, patience); !bytes.Equal(b, want) {
				t.Fatalf("round %d: datagram %d of the second peer: %d bytes, want %d", round, i, len(b), len(want))
			}
		}
		for _, data := range want1 {
			conn1.WriteToUDPAddrPort(data, relayed)
		}
		for i, want := range want1 {
			if b := c.read(patience); !bytes.Equal(b, channelData(0x4001, want)) {
				t.Fatalf("round %d: datagram %d back: %d bytes, want %d", round, i, len(b), len(want)+4)
			}
		}
	}
}

// TestBoundMeanwhile: a datagram of a peer that reached pion before its channel was bound, and leaves pion as ChannelData
// after, arrives whatever its length and its channel number.
func TestBoundMeanwhile(t *testing.T) {
	s := start(t, nil)
	c := dial(t, s, 0, "meanwhile")
	client := net.UDPAddrFromAddrPort(c.addr())
	for _, number := range []uint16{0x4000, 0x4010, 0x4100, 0x4110, 0x4FFF} { // with the bits of each class
		for size := range 20 {
			want := channelData(number, bytes.Repeat([]byte{9}, size))
			padded := append(bytes.Clone(want), make([]byte, -len(want)&3)...) // as pion encodes it
			if n, err := s.gates[0].WriteTo(padded, client); n != len(padded) || err != nil {
				t.Fatalf("WriteTo returns %d, %v", n, err)
			}
			if b := c.read(patience); !bytes.Equal(b, want) {
				t.Fatalf("channel %#x, %d bytes: the client got %x", number, size, b)
			}
		}
	}
}

// TestBinding: RFC 8489 section 6.3.1.
func TestBinding(t *testing.T) {
	s := start(t, nil)
	for gate := range 2 {
		c := dial(t, s, gate, "binding")
		r := c.exchange(plain(stun.Binding, stun.Request, newID()), patience)
		if r == nil {
			t.Fatal("no answer")
		}
		if mapped := frame.Address(stun.Find(r, stun.XORMappedAddress), r); mapped != c.addr() {
			t.Fatalf("mapped address %v, want %v", mapped, c.addr())
		}
	}
}

// TestRefusals: each wrong request has the code that RFC 8656 gives it, and is signed where the client is known.
func TestRefusals(t *testing.T) {
	s := start(t, nil)
	family6 := attr{stun.RequestedFamily, []byte{familyIPv6, 0, 0, 0}}
	c := dial(t, s, 0, "refusals")
	if _, code := c.call(stun.Allocate, attr{stun.RequestedTransport, []byte{6, 0, 0, 0}}); code != stun.CodeTransport {
		t.Errorf("TCP allocation: %d, want 442", code)
	}
	if _, code := c.call(stun.Allocate); code != 400 {
		t.Errorf("Allocate without transport: %d, want 400", code)
	}
	if _, code := c.call(stun.Allocate, udpTransport, attr{stun.EvenPort, []byte{0x80}}); code != stun.CodeInsufficient {
		t.Errorf("EVEN-PORT with reservation: %d, want 508", code)
	}
	if _, code := c.call(stun.Allocate, udpTransport, attr{stun.ReservationToken, make([]byte, 8)}); code != stun.CodeInsufficient {
		t.Errorf("RESERVATION-TOKEN: %d, want 508", code)
	}
	if _, code := c.call(stun.Allocate, udpTransport, attr{stun.RequestedFamily, []byte{9, 0, 0, 0}}); code != stun.CodeFamily {
		t.Errorf("unknown family: %d, want 440", code)
	}
	if _, code := c.call(stun.Allocate, udpTransport, attr{stun.DontFragment, nil}); code != 420 {
		t.Errorf("DONT-FRAGMENT: %d, want 420", code)
	}
	// RFC 8489 section 6.3.1: "an UNKNOWN-ATTRIBUTES attribute in the response that lists the unknown comprehension-required attributes"
	for _, request := range [][]byte{
		c.signed(stun.Allocate, newID(), attr{0x7abc, nil}), plain(stun.Binding, stun.Request, newID(), attr{0x7abc, nil}),
	} {
		r := c.exchange(request, patience)
		if list := stun.Find(r, stun.UnknownAttributes); stun.CodeOf(r) != stun.CodeUnknownAttribute || string(list) != "\x7a\xbc" {
			t.Errorf("unknown attribute: %d and %x, want 420 and 7abc", stun.CodeOf(r), list)
		}
	}
	even := dial(t, s, 0, "even")
	r, code := even.call(stun.Allocate, udpTransport, attr{stun.EvenPort, []byte{0}})
	if code != 0 || stun.Find(r, stun.ReservationToken) != nil {
		t.Errorf("EVEN-PORT without reservation: %d, %x", code, r)
	} else if a := s.gates[0].find(even.addr()); a.relayed.Port()%2 != 0 {
		t.Errorf("EVEN-PORT: %v", a.relayed)
	}
	// RFC 8656 sections 7.3, 10.2, 12.2: no allocation is a 437
	if _, code := c.call(stun.Refresh); code != stun.CodeMismatch {
		t.Errorf("Refresh without allocation: %d, want 437", code)
	}
	if code := c.permit(netip.MustParseAddrPort("127.0.0.1:9")); code != stun.CodeMismatch {
		t.Errorf("CreatePermission without allocation: %d, want 437", code)
	}
	if code := c.bind(0x4000, netip.MustParseAddrPort("127.0.0.1:9")); code != stun.CodeMismatch {
		t.Errorf("ChannelBind without allocation: %d, want 437", code)
	}
	c.allocate()
	if _, code := c.call(stun.Allocate, udpTransport); code != stun.CodeMismatch {
		t.Errorf("second Allocate: %d, want 437", code)
	}
	if _, code := c.call(stun.Refresh, family6); code != stun.CodePeerFamily {
		t.Errorf("Refresh of another family: %d, want 443", code)
	}
	if code := c.bind(0x8000, netip.MustParseAddrPort("127.0.0.1:9")); code != 400 {
		t.Errorf("ChannelBind of 0x8000: %d, want 400", code)
	}
	if code := c.permit(netip.MustParseAddrPort("[::1]:9")); code != stun.CodePeerFamily {
		t.Errorf("IPv6 peer of an IPv4 allocation: %d, want 443", code)
	}
	if code := c.bind(0x4000, netip.MustParseAddrPort("[::1]:9")); code != stun.CodePeerFamily {
		t.Errorf("ChannelBind of an IPv6 peer: %d, want 443", code)
	}
	if _, code := c.call(stun.Refresh, attr{stun.Lifetime, make([]byte, 4)}); code != 0 {
		t.Errorf("Refresh with lifetime 0: %d", code)
	}
	if _, code := c.call(stun.Refresh); code != stun.CodeMismatch {
		t.Errorf("Refresh after the end: %d, want 437", code)
	}
}

// TestLifetimes: nobody keeps an allocation for longer than an hour without a word.
func TestLifetimes(t *testing.T) {
	s := start(t, nil)
	c := dial(t, s, 0, "x")
	seconds := func(r []byte) uint32 { return binary.BigEndian.Uint32(stun.Find(r, stun.Lifetime)) }
	for i, asked := range []uint32{600, 60, 3599, 3600, 1<<31 - 1, 1 << 31, 1<<32 - 1} {
		want := asked
		if want >= 3600 {
			want = 600
		}
		method, attrs := stun.Refresh, []attr{{stun.Lifetime, binary.BigEndian.AppendUint32(nil, asked)}}
		if i == 0 {
			method, attrs = stun.Allocate, append(attrs, udpTransport)
		}
		r, code := c.call(method, attrs...)
		if code != 0 || seconds(r) != want {
			t.Errorf("%d s: granted %d s, error %d", asked, seconds(r), code)
		}
	}
}

// TestOneFamily: a relay without an IPv6 address answers 440 (RFC 8656 section 7.2).
func TestOneFamily(t *testing.T) {
	s := start(t, func(c *Config) { c.Listen = c.Listen[:1] })
	c := dial(t, s, 0, "family")
	if _, code := c.call(stun.Allocate, udpTransport, attr{stun.RequestedFamily, []byte{familyIPv6, 0, 0, 0}}); code != stun.CodeFamily {
		t.Fatalf("error %d, want 440", code)
	}
}

// TestOtherUser: RFC 8656 section 5: "the request MUST be rejected with a 441 (Wrong Credentials) error".
func TestOtherUser(t *testing.T) {
	s := start(t, nil)
	c := dial(t, s, 0, "first")
	relayed := c.allocate()
	other := dial(t, s, 0, "second")
	other.conn.Close()
	other.conn = c.conn // the same 5-tuple
	conn, at := peer(t, loopback4)
	if _, code := other.call(stun.Refresh, attr{stun.Lifetime, make([]byte, 4)}); code != stun.CodeWrongCredentials {
		t.Errorf("Refresh: %d, want 441", code)
	}
	if code := other.permit(at); code != stun.CodeWrongCredentials {
		t.Errorf("CreatePermission: %d, want 441", code)
	}
	if code := other.bind(0x4000, at); code != stun.CodeWrongCredentials {
		t.Errorf("ChannelBind: %d, want 441", code)
	}
	if _, code := other.call(stun.Allocate, udpTransport); code != stun.CodeMismatch {
		t.Errorf("Allocate: %d, want 437", code)
	}
	conn.WriteToUDPAddrPort([]byte("x"), relayed)
	if b := c.read(50 * time.Millisecond); b != nil {
		t.Errorf("a refused permission lets data through: %x", b)
	}
	if code := c.permit(at); code != 0 { // the owner's allocation lives on
		t.Errorf("the owner's CreatePermission: %d", code)
	}
}

// TestCredentials: what is expired, malformed or made with another secret is refused with 401, a made-up nonce with 438.
func TestCredentials(t *testing.T) {
	s := start(t, nil)
	hour := time.Now().Add(time.Hour)
	forged, password := Credential("some other secret of the tests", hour, "x")
	expired, expiredPassword := s.Credential(time.Now().Add(-time.Second), "x")
	for name, credential := range map[string][2]string{
		"other secret":   {forged, password},
		"wrong password": {forged, "password"},
		"expired":        {expired, expiredPassword},
		"no salt":        {"99999999999:", passwordOf(testSecret, "99999999999:")},
		"no colon":       {"99999999999", passwordOf(testSecret, "99999999999")},
		"no expiry":      {":x", passwordOf(testSecret, ":x")},
		"signed expiry":  {"+99999999999:x", passwordOf(testSecret, "+99999999999:x")},
		"huge expiry":    {"99999999999999999999:x", passwordOf(testSecret, "99999999999999999999:x")},
		"empty":          {"", passwordOf(testSecret, "")},
	} {
		c := dial(t, s, 0, "x")
		c.user, c.password = credential[0], credential[1]
		if _, code := c.call(stun.Allocate, udpTransport); code != stun.CodeUnauthorized {
			t.Errorf("%s: %d, want 401", name, code)
		}
	}
	c := dial(t, s, 0, "x")
	c.challenge()
	c.nonce = []byte("0123456789")
	r, code := c.call(stun.Allocate, udpTransport)
	if code != stun.CodeStaleNonce {
		t.Fatalf("made-up nonce: %d, want 438", code)
	}
	c.learn(r)
	c.allocate()
	c.realm = []byte("elsewhere")
	if _, code := c.call(stun.Refresh); code != stun.CodeUnauthorized {
		t.Errorf("another realm: %d, want 401", code)
	}
	if n, _ := s.quota.count(); n != 1 {
		t.Errorf("%d allocations, want 1", n)
	}
}

// TestExpiryEndsAllocation: an expired credential cannot refresh what it made while it was valid.
func TestExpiryEndsAllocation(t *testing.T) {
	s, ahead := startAhead(t)
	c := dial(t, s, 0, "x")
	c.allocate()
	if _, code := c.call(stun.Refresh); code != 0 {
		t.Fatalf("Refresh: %d", code)
	}
	ahead.Store(int64(2 * time.Hour))
	if _, code := c.call(stun.Refresh); code != stun.CodeUnauthorized {
		t.Errorf("Refresh with the expired credential: %d, want 401", code)
	}
}

// TestRenewedCredential: a later credential of the same user goes on with what an earlier one has made, also when that has
// expired.
func TestRenewedCredential(t *testing.T) {
	s, ahead := startAhead(t)
	c := dial(t, s, 0, "x")
	relayed := c.allocate()
	if _, code := c.call(stun.Refresh); code != 0 {
		t.Fatalf("Refresh: %d", code)
	}
	ahead.Store(int64(2 * time.Hour))
	if _, code := c.call(stun.Refresh); code != stun.CodeUnauthorized {
		t.Errorf("Refresh with the expired credential: %d, want 401", code)
	}
	c.user, c.password = s.Credential(time.Now().Add(3*time.Hour), "x")
	if _, code := c.call(stun.Refresh); code != 0 {
		t.Fatalf("Refresh with the renewed credential: %d", code)
	}
	_, at := peer(t, loopback4)
	if code := c.bind(0x4001, at); code != 0 || c.find(t, s).relayed != relayed {
		t.Errorf("ChannelBind with the renewed credential: %d", code)
	}
}

// TestForgottenUser: who is not known any more gets nothing more out of a credential that is good for an hour.
func TestForgottenUser(t *testing.T) {
	var forgotten atomic.Bool
	s := start(t, func(c *Config) {
		c.Knows = func(user string) bool { return user == "other" || user == "x" && !forgotten.Load() }
	})
	_, at := peer(t, loopback4)
	c, other := dial(t, s, 0, "x"), dial(t, s, 0, "other")
	c.allocate()
	other.allocate()
	forgotten.Store(true)
	if _, code := c.call(stun.Refresh); code != stun.CodeUnauthorized {
		t.Errorf("Refresh: %d, want 401", code)
	}
	if code := c.bind(0x4001, at); code != stun.CodeUnauthorized {
		t.Errorf("ChannelBind: %d, want 401", code)
	}
	if _, code := dial(t, s, 0, "x").call(stun.Allocate, udpTransport); code != stun.CodeUnauthorized {
		t.Errorf("Allocate: %d, want 401", code)
	}
	if code := other.bind(0x4001, at); code != 0 {
		t.Errorf("another user's ChannelBind: %d", code)
	}
}

// TestCoturnVector: the credential is what coturn computes: made with
// printf %s 1700000000:alice | openssl dgst -sha1 -hmac north -binary | base64
func TestCoturnVector(t *testing.T) {
	user, password := Credential("north", time.Unix(1700000000, 0), "alice")
	if user != "1700000000:alice" || password != "Cd/49soE35ICqcJF/bCTn8Z4OyE=" {
		t.Fatalf("%s %s", user, password)
	}
}

func TestQuotas(t *testing.T) {
	s := start(t, func(c *Config) { c.AllocationsPerUser, c.Allocations, c.PeersPerAllocation = 2, 3, 2 })
	a := []*client{dial(t, s, 0, "a"), dial(t, s, 0, "a"), dial(t, s, 0, "a")}
	for i, c := range a { // credentials of one user
		c.user, c.password = s.Credential(time.Now().Add(time.Duration(i+1)*time.Hour), "a")
	}
	a[0].allocate()
	a[1].allocate()
	if _, code := a[2].call(stun.Allocate, udpTransport); code != stun.CodeQuota {
		t.Fatalf("third of one user: %d, want 486", code)
	}
	dial(t, s, 0, "b").allocate()
	if _, code := dial(t, s, 0, "c").call(stun.Allocate, udpTransport); code != stun.CodeQuota {
		t.Fatalf("fourth of all: %d, want 486", code)
	}
	if _, code := a[0].call(stun.Refresh, attr{stun.Lifetime, make([]byte, 4)}); code != 0 {
		t.Fatalf("Refresh: %d", code)
	}
	a[2].allocate()
	for i, want := range []int{0, 0, stun.CodeInsufficient, 0} {
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(i % 3)}), 9)
		if code := a[1].permit(at); code != want {
			t.Errorf("permission %d: %d, want %d", i, code, want)
		}
	}
	for i, want := range []int{0, 0, stun.CodeInsufficient} {
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, 1}), uint16(9+i))
		if code := a[1].bind(0x4000+uint16(i), at); code != want {
			t.Errorf("channel %d: %d, want %d", i, code, want)
		}
	}
}
