package crypto_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/cryptotest"
)

// These tests run our core against wireguard-go, in one program, joined by channels. Our side lives in virtual time,
// theirs in real time; whatever waits, waits for a message and not for the clock.

// wgEndpoint is a conn.Endpoint that is an address and nothing else.
type wgEndpoint netip.AddrPort

func (e wgEndpoint) ClearSrc()           {}
func (e wgEndpoint) SrcToString() string { return "" }
func (e wgEndpoint) DstToString() string { return netip.AddrPort(e).String() }
func (e wgEndpoint) DstIP() netip.Addr   { return netip.AddrPort(e).Addr() }
func (e wgEndpoint) SrcIP() netip.Addr   { return netip.Addr{} }
func (e wgEndpoint) DstToBytes() []byte {
	b, _ := netip.AddrPort(e).MarshalBinary() // never fails
	return b
}

// wgBind is a conn.Bind of two channels.
type wgBind struct {
	in, out chan cryptotest.Datagram
	mu      sync.Mutex
	closed  chan struct{}
}

func (b *wgBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	closed := make(chan struct{})
	b.closed = closed
	return []conn.ReceiveFunc{func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case d := <-b.in:
			sizes[0], eps[0] = copy(packets[0], d.Bytes), wgEndpoint(d.From)
			return 1, nil
		case <-closed:
			return 0, net.ErrClosed
		}
	}}, port, nil
}

func (b *wgBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		close(b.closed)
		b.closed = nil
	}
	return nil
}

func (b *wgBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	for _, buf := range bufs {
		b.out <- cryptotest.Datagram{To: netip.AddrPort(ep.(wgEndpoint)), Bytes: bytes.Clone(buf)}
	}
	return nil
}

func (b *wgBind) SetMark(uint32) error { return nil }
func (b *wgBind) BatchSize() int       { return 1 }

func (b *wgBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	return wgEndpoint(a), err
}

// lab is our node and a wireguard-go device.
type lab struct {
	t      *testing.T
	net    *cryptotest.Net
	ours   *cryptotest.Remote
	theirs *device.Device
	tun    *tuntest.ChannelTUN
	bind   *wgBind
	public crypto.PublicKey // theirs
	got    [][]byte         // what came out of their TUN
}

var (
	ourIP   = netip.MustParseAddr("10.9.0.1")
	theirIP = netip.MustParseAddr("10.9.0.2")
)

func newLab(t *testing.T, ourAddr, theirAddr string, psk crypto.PresharedKey) *lab {
	n := cryptotest.NewNet(7, cryptotest.Link{})
	node := n.Join("ours", netip.MustParseAddrPort(ourAddr))
	private, err := crypto.GeneratePrivateKey(n)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{
		t: t, net: n, tun: tuntest.NewChannelTUN(), public: private.Public(),
		bind: &wgBind{in: make(chan cryptotest.Datagram, 4096), out: make(chan cryptotest.Datagram, 8192)},
	}
	endpoint := netip.MustParseAddrPort(theirAddr)
	n.Tap = func(d cryptotest.Datagram) bool {
		l.bind.in <- d
		return true
	}
	l.ours = node.AddKey(endpoint, crypto.PeerConfig{PublicKey: l.public, PresharedKey: psk})
	l.theirs = device.NewDevice(l.tun.TUN(), l.bind, device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(l.theirs.Close)
	ourPublic := node.Local.PublicKey()
	config := fmt.Sprintf("private_key=%x\npublic_key=%x\npreshared_key=%x\nendpoint=%s\nallowed_ip=%s/32\n",
		[32]byte(private), [32]byte(ourPublic), [32]byte(psk), ourAddr, ourIP)
	if err := l.theirs.IpcSet(config); err != nil {
		t.Fatal(err)
	}
	if err := l.theirs.Up(); err != nil {
		t.Fatal(err)
	}
	return l
}

// pump passes messages until done.
func (l *lab) pump(what string, done func() bool) {
	l.t.Helper()
	timeout := time.NewTimer(20 * time.Second)
	defer timeout.Stop()
	for !done() {
		select {
		case d := <-l.bind.out:
			l.ours.Node().Receive(l.ours.Endpoint, d.Bytes)
		case p := <-l.tun.Inbound:
			l.got = append(l.got, p)
		case <-timeout.C:
			l.t.Fatalf("%s: nothing came; verdicts %v, dropped %d", what, l.ours.Node().Verdicts, l.ours.Node().Dropped)
		}
	}
}

// sendOurs sends a packet of ours and waits for it to come out of their TUN.
func (l *lab) sendOurs(what string) {
	l.t.Helper()
	before := len(l.got)
	packet := tuntest.Ping(theirIP, ourIP)
	l.ours.Send(packet)
	l.pump(what, func() bool { return len(l.got) > before })
	if !bytes.Equal(l.got[before], packet) {
		l.t.Fatalf("%s: %x came out, want %x", what, l.got[before], packet)
	}
}

// sendTheirs puts a packet into their TUN and waits for it to come to us.
func (l *lab) sendTheirs(what string) {
	l.t.Helper()
	before := len(l.ours.Received)
	packet := tuntest.Ping(ourIP, theirIP)
	l.tun.Outbound <- packet
	l.pump(what, func() bool { return len(l.ours.Received) > before })
	if got := l.ours.Received[before]; !bytes.HasPrefix(got, packet) {
		l.t.Fatalf("%s: %x came, want %x", what, got, packet)
	}
}

// forceTheirs has wireguard-go start a handshake now. It forgets what it sends with first, since it otherwise keeps to
// one initiation in five seconds.
func (l *lab) forceTheirs() {
	time.Sleep(30 * time.Millisecond) // two stamps are at least 16.8 ms apart, and accepted 20 ms apart
	l.net.Run(30 * time.Millisecond)
	ourPublic := l.ours.Node().Local.PublicKey()
	peer := l.theirs.LookupPeer(device.NoisePublicKey(ourPublic))
	peer.ExpireCurrentKeypairs()
	if err := peer.SendHandshakeInitiation(false); err != nil {
		l.t.Fatal(err)
	}
}

// sessions returns the sessions that came up on our side.
func (l *lab) sessions() (up []*crypto.Keypair) {
	for _, e := range l.ours.Events {
		if e.Kind == crypto.SessionUp {
			up = append(up, e.Keypair)
		}
	}
	return up
}

// Both roles, with and without a preshared key, over IPv4 and IPv6: data both ways, then a rekey by either side.
func TestInteropWireguardGo(t *testing.T) {
	for _, psk := range []crypto.PresharedKey{{}, {1, 2, 3}} {
		for _, addrs := range [][2]string{{"192.0.2.1:1111", "192.0.2.2:2222"}, {"[2001:db8::1]:1111", "[2001:db8::2]:2222"}} {
			for _, weInitiate := range []bool{true, false} {
				name := fmt.Sprintf("psk=%v/%s/initiator=%v", !psk.IsZero(), addrs[0], weInitiate)
				t.Run(name, func(t *testing.T) { interop(newLab(t, addrs[0], addrs[1], psk), weInitiate) })
			}
		}
	}
}

func interop(l *lab, weInitiate bool) {
	if weInitiate {
		l.sendOurs("first packet")
		l.sendTheirs("first answer")
	} else {
		l.sendTheirs("first packet")
		l.sendOurs("first answer")
	}
	if up := l.sessions(); len(up) != 1 || up[0].Initiator != weInitiate {
		l.t.Fatalf("%d sessions came up", len(up))
	}
	l.forceTheirs()
	l.pump("their rekey", func() bool { return len(l.sessions()) == 2 })
	l.sendOurs("after their rekey")
	l.sendTheirs("after their rekey")

	time.Sleep(30 * time.Millisecond)
	l.net.Run(crypto.RekeyTimeout)
	l.ours.Want()
	l.pump("our rekey", func() bool { return len(l.sessions()) == 3 })
	l.sendOurs("after our rekey")
	l.sendTheirs("after our rekey")
	up := l.sessions()
	if up[1].Initiator || !up[2].Initiator {
		l.t.Fatal("the rekeys did not go both ways")
	}
	if l.ours.Node().Dropped != 0 {
		l.t.Fatalf("%d packets dropped", l.ours.Node().Dropped)
	}
}

// A different preshared key: we see their responses rejected, and nothing else.
func TestInteropPresharedKeyDiffers(t *testing.T) {
	l := newLab(t, "192.0.2.1:1", "192.0.2.2:2", crypto.PresharedKey{1})
	l.ours.Peer.SetPresharedKey(&crypto.PresharedKey{2})
	l.ours.Send(tuntest.Ping(theirIP, ourIP))
	l.pump("the response", func() bool { return l.ours.Node().Verdicts[crypto.BadAEAD] == 1 })
	tally := l.ours.Peer.Tally()
	if tally.ResponsesRejected[crypto.BadAEAD] != 1 || l.ours.Peer.Sending() != nil {
		t.Fatalf("tally %+v", tally)
	}
}

// Section 5.3, we under load: their initiation is answered by a cookie reply; their next one carries mac2 and is accepted.
func TestInteropWeAreUnderLoad(t *testing.T) {
	for _, addr := range []string{"192.0.2.1:1111", "[2001:db8::1]:1111"} {
		l := newLab(t, addr, "[2001:db8::2]:2222", crypto.PresharedKey{})
		node := l.ours.Node()
		node.Local.NoteQueue(l.net.Now(), 512, 4096)
		l.forceTheirs()
		l.pump("the first initiation", func() bool { return node.Verdicts[crypto.CookieSent] == 1 })
		if l.ours.Peer.Tally().ResponsesSent != 0 {
			t.Fatal("answered without a cookie")
		}
		// They read the cookie in their own time; until then their initiations are answered by cookies again.
		for range 100 {
			node.Local.NoteQueue(l.net.Now(), 512, 4096)
			l.forceTheirs()
			before := node.Verdicts[crypto.CookieSent]
			l.pump("a later initiation", func() bool {
				return len(l.sessions()) == 1 || node.Verdicts[crypto.CookieSent] > before
			})
			if len(l.sessions()) == 1 {
				break
			}
		}
		if len(l.sessions()) != 1 {
			t.Fatal("no session with mac2")
		}
		l.sendOurs("under load")
	}
}

// Section 5.3, they under load: they answer with a cookie reply, which waits for the retry, whose mac2 they accept.
func TestInteropTheyAreUnderLoad(t *testing.T) {
	l := newLab(t, "192.0.2.1:1111", "192.0.2.2:2222", crypto.PresharedKey{})
	garbage := fakeInitiation(l.public)
	flood := func() {
		for range 1500 {
			l.bind.in <- cryptotest.Datagram{From: netip.MustParseAddrPort("198.51.100.7:7"), Bytes: garbage}
		}
	}
	next := func() crypto.Output { // our next initiation
		sent := len(l.ours.Initiations())
		l.net.RunUntil(l.net.Now()+6*time.Second, func() bool { return len(l.ours.Initiations()) > sent })
		return l.ours.Events[len(l.ours.Events)-1].Output
	}
	l.ours.Peer.SetHandshakeLifetime(time.Hour, false)
	l.ours.Want()
	for try := 0; l.ours.Peer.Tally().CookieReplies == 0; try++ {
		if try == 50 {
			t.Skip("wireguard-go never came under load on this machine")
		}
		flood()
		next()
		l.drainFor(100 * time.Millisecond)
		if len(l.sessions()) > 0 {
			t.Skip("wireguard-go answered before it came under load")
		}
	}
	if out := next(); out.Kind != crypto.SendMessage || bytes.Equal(out.Message[132:], make([]byte, 16)) {
		t.Fatal("the retry carries no mac2")
	}
	for range 50 { // their queue may have been too full for one of them
		l.drainFor(50 * time.Millisecond)
		if len(l.sessions()) > 0 {
			break
		}
		next()
	}
	if len(l.sessions()) != 1 {
		t.Fatal("no session with mac2")
	}
	l.sendOurs("after the load")
}

// drainFor passes messages for a while of real time.
func (l *lab) drainFor(d time.Duration) {
	timeout := time.NewTimer(d)
	defer timeout.Stop()
	for {
		select {
		case m := <-l.bind.out:
			if index := binary.LittleEndian.Uint32(m.Bytes[4:]); m.To != l.ours.Node().Addr || index == 0xfeedface {
				continue // an answer to the flood
			}
			l.ours.Node().Receive(l.ours.Endpoint, m.Bytes)
		case <-timeout.C:
			return
		}
	}
}

// fakeInitiation is an initiation to whoever has that public key, of which only mac1 is right.
func fakeInitiation(to crypto.PublicKey) []byte {
	msg := make([]byte, crypto.SizeInitiation)
	binary.LittleEndian.PutUint32(msg, 1)
	binary.LittleEndian.PutUint32(msg[4:], 0xfeedface)
	for i := 8; i < 116; i++ {
		msg[i] = byte(i)
	}
	putMac1(to, msg)
	return msg
}

// putMac1 writes the mac1 that whoever knows the receiver's public key can make (section 5.4.4).
func putMac1(to crypto.PublicKey, msg []byte) {
	key := blake2s.Sum256(append([]byte("mac1----"), to[:]...))
	h, err := blake2s.New128(key[:])
	if err != nil {
		panic(err)
	}
	h.Write(msg[:len(msg)-32])
	h.Sum(msg[:len(msg)-32])
}

// What wireguard-go reports about the session is what we did.
func TestInteropStatus(t *testing.T) {
	l := newLab(t, "192.0.2.1:1111", "192.0.2.2:2222", crypto.PresharedKey{})
	l.sendOurs("a packet")
	status, err := l.theirs.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	public := l.ours.Node().Local.PublicKey()
	for _, want := range []string{"public_key=" + hex.EncodeToString(public[:]), "endpoint=192.0.2.1:1111"} {
		if !strings.Contains(status, want) {
			t.Fatalf("status lacks %q:\n%s", want, status)
		}
	}
}
