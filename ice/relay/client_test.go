package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

const testSecret = "a secret of the tests only"

var (
	loopback4 = netip.MustParseAddr("127.0.0.1")
	loopback6 = netip.MustParseAddr("::1")
)

// start runs a server on loopback, IPv4 first and IPv6 second, whose peers on loopback are allowed.
func start(t testing.TB, edit func(*Config)) *Server {
	t.Helper()
	cfg := testConfig()
	if edit != nil {
		edit(&cfg)
	}
	return run(t, cfg)
}

func testConfig() Config {
	return Config{
		Listen:       []netip.AddrPort{netip.AddrPortFrom(loopback4, 0), netip.AddrPortFrom(loopback6, 0)},
		Secret:       testSecret,
		AllowedPeers: prefixes("127.0.0.0/8", "::1/128"),
		// The tests of limits set their own.
		RefusalsPerSecond: 1e6, BindingsPerSecond: 1e6,
	}
}

func run(t testing.TB, cfg Config) *Server {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s)
	return s
}

// startAhead is start with a clock for credentials that runs ahead by what the returned atomic holds, in ns.
func startAhead(t testing.TB) (*Server, *atomic.Int64) {
	t.Helper()
	s, err := New(testConfig())
	if err != nil {
		t.Fatal(err)
	}
	var ahead atomic.Int64
	s.clock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	serve(t, s)
	return s, &ahead
}

// serve runs s until the test ends.
func serve(t testing.TB, s *Server) {
	t.Helper()
	failed := make(chan error, 1)
	go func() { failed <- s.Run(context.Background()) }()
	for !s.Ready() {
		select {
		case err := <-failed:
			t.Skipf("SKIP: no relay on this machine: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	t.Cleanup(func() { s.Close() })
}

// patience is how long what must come is waited for, on a machine that may be busy.
const patience = 10 * time.Second

// client is a TURN client that can say anything.
type client struct {
	t              testing.TB
	conn           *net.UDPConn
	server         netip.AddrPort
	user, password string
	realm, nonce   []byte
	queue          [][]byte // data that came while an answer was waited for
}

// dial makes a client with a fresh credential of the given salt.
func dial(t testing.TB, s *Server, gate int, salt string) *client {
	t.Helper()
	server := s.Addrs()[gate]
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(server.Addr(), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &client{t: t, conn: conn, server: server}
	c.user, c.password = s.Credential(time.Now().Add(time.Hour), salt)
	return c
}

func (c *client) addr() netip.AddrPort { return c.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

func newID() (id stun.ID) {
	rand.Read(id[:])
	return id
}

func (c *client) send(b []byte) {
	c.t.Helper()
	if _, err := c.conn.WriteToUDPAddrPort(b, c.server); err != nil {
		c.t.Fatal(err)
	}
}

// read returns the next datagram, or nil if there is none within wait.
func (c *client) read(wait time.Duration) []byte {
	if len(c.queue) > 0 {
		b := c.queue[0]
		c.queue = c.queue[1:]
		return b
	}
	return c.readNew(wait)
}

func (c *client) readNew(wait time.Duration) []byte {
	var b [65536]byte
	c.conn.SetReadDeadline(time.Now().Add(wait))
	n, _, err := c.conn.ReadFromUDPAddrPort(b[:])
	if err != nil {
		return nil
	}
	return append([]byte{}, b[:n]...)
}

// exchange sends a request and returns the answer with the same transaction id, which must pass the strict check, with zero
// padding; nil if there is none.
func (c *client) exchange(b []byte, wait time.Duration) []byte {
	c.t.Helper()
	c.send(b)
	for end := time.Now().Add(wait); time.Now().Before(end); {
		r := c.readNew(time.Until(end))
		if r == nil || isChannelData(r) || string(r[8:20]) != string(b[8:20]) {
			if r != nil {
				c.queue = append(c.queue, r)
			}
			continue
		}
		c.sound(r)
		return r
	}
	return nil
}

// sound fails the test if a message of the server is not well formed or its padding not zero.
func (c *client) sound(b []byte) {
	c.t.Helper()
	if why := new(stun.Message).Parse(b, stun.Client); why != stun.DropNone {
		c.t.Fatalf("the server sent a message that a client drops (%d): %x", why, b)
	}
	clean := bytes.Clone(b)
	if zeroPadding(clean); !bytes.Equal(clean, b) {
		c.t.Fatalf("padding is not zero: %x", b)
	}
}

// attr is one attribute of a request.
type attr struct {
	kind  stun.Attr
	value []byte
}

var udpTransport = attr{stun.RequestedTransport, []byte{transportUDP, 0, 0, 0}}

func peerAttr(p netip.AddrPort, id *stun.ID) attr {
	w := stun.Build(nil, stun.Request, 0, *id)
	w.XORAddress(stun.XORPeerAddress, p)
	return attr{stun.XORPeerAddress, stun.Find(w.Bytes(), stun.XORPeerAddress)}
}

// plain is a message without credentials.
func plain(method stun.Method, class stun.Class, id stun.ID, attrs ...attr) []byte {
	w := stun.Build(nil, class, method, id)
	for _, a := range attrs {
		w.Add(a.kind, a.value)
	}
	return w.Bytes()
}

// signed is a request with the client's credential and the nonce it has.
func (c *client) signed(method stun.Method, id stun.ID, attrs ...attr) []byte {
	attrs = append(slices.Clip(attrs), attr{stun.Username, []byte(c.user)}, attr{stun.Realm, c.realm}, attr{stun.Nonce, c.nonce})
	return sign(plain(method, stun.Request, id, attrs...), c.key())
}

func (c *client) key() *stun.Key { return stun.LongTerm(c.user, string(c.realm), c.password) }

// challenge takes realm and nonce from a 401 or 438.
func (c *client) challenge() {
	c.t.Helper()
	r := c.exchange(plain(stun.Allocate, stun.Request, newID(), udpTransport), patience)
	if r == nil || stun.CodeOf(r) != stun.CodeUnauthorized {
		c.t.Fatalf("no 401 for a request without credentials: %x", r)
	}
	c.learn(r)
}

func (c *client) learn(r []byte) {
	if v := stun.Find(r, stun.Realm); v != nil {
		c.realm = bytes.Clone(v)
	}
	if v := stun.Find(r, stun.Nonce); v != nil {
		c.nonce = bytes.Clone(v)
	}
}

// call makes an authenticated request and returns the answer and its error code, 0 for a success. Every answer but 401
// and 438 must be signed.
func (c *client) call(method stun.Method, attrs ...attr) (answer []byte, code int) {
	c.t.Helper()
	return c.callID(method, newID(), attrs...)
}

func (c *client) callID(method stun.Method, id stun.ID, attrs ...attr) (answer []byte, code int) {
	c.t.Helper()
	if c.nonce == nil {
		c.challenge()
	}
	r := c.exchange(c.signed(method, id, attrs...), patience)
	if r == nil {
		c.t.Fatalf("no answer to method %#x", method)
	}
	code = stun.CodeOf(r)
	if code != stun.CodeUnauthorized && code != stun.CodeStaleNonce {
		c.verify(r)
	}
	return r, code
}

// verify checks MESSAGE-INTEGRITY of an answer.
func (c *client) verify(r []byte) {
	c.t.Helper()
	var m stun.Message
	if why := m.Parse(r, stun.Client); why != stun.DropNone || !c.key().Authentic(&m) {
		c.t.Fatalf("MESSAGE-INTEGRITY is missing or wrong: %x", r)
	}
}

// allocate makes an allocation and returns the relayed address.
func (c *client) allocate(attrs ...attr) netip.AddrPort {
	c.t.Helper()
	r, code := c.call(stun.Allocate, append([]attr{udpTransport}, attrs...)...)
	if code != 0 {
		c.t.Fatalf("Allocate: error %d", code)
	}
	return frame.Address(stun.Find(r, stun.XORRelayedAddress), r)
}

// allocate6 asks for an IPv6 relayed address.
func (c *client) allocate6() netip.AddrPort {
	return c.allocate(attr{stun.RequestedFamily, []byte{familyIPv6, 0, 0, 0}})
}

// permit asks for a permission and returns the error code.
func (c *client) permit(peer netip.AddrPort) int {
	c.t.Helper()
	id := newID()
	_, code := c.callID(stun.CreatePermission, id, peerAttr(peer, &id))
	return code
}

// bind asks for a channel and returns the error code.
func (c *client) bind(number uint16, peer netip.AddrPort) int {
	c.t.Helper()
	id := newID()
	_, code := c.callID(stun.ChannelBind, id, channelAttr(number), peerAttr(peer, &id))
	return code
}

// channelAttr is a CHANNEL-NUMBER: two bytes, and two reserved ones (RFC 8656 section 18.1).
func channelAttr(number uint16) attr {
	return attr{stun.ChannelNumber, append(binary.BigEndian.AppendUint16(nil, number), 0, 0)}
}

// indicate sends a Send indication.
func (c *client) indicate(peer netip.AddrPort, data []byte, attrs ...attr) {
	c.t.Helper()
	id := newID()
	c.send(plain(stun.Send, stun.Indication, id, append([]attr{peerAttr(peer, &id), {stun.Data, data}}, attrs...)...))
}

func channelData(number uint16, data []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, number)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(data))), data...)
}

// peer is a plain UDP socket on loopback.
func peer(t testing.TB, a netip.Addr) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func readPeer(conn *net.UDPConn, wait time.Duration) ([]byte, netip.AddrPort) {
	var b [65536]byte
	conn.SetReadDeadline(time.Now().Add(wait))
	n, src, err := conn.ReadFromUDPAddrPort(b[:])
	if err != nil {
		return nil, src
	}
	return append([]byte{}, b[:n]...), src
}

// eventually waits for a condition that other goroutines bring about.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}
