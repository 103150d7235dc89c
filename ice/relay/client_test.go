package relay

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
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

func newID() (id [12]byte) {
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
		if r == nil || isChannelData(r) || [12]byte(r[8:20]) != [12]byte(b[8:20]) {
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
	if _, ok := checkMessage(b); !ok {
		c.t.Fatalf("the server sent a malformed message: %x", b)
	}
	eachAttr(b, func(kind uint16, _, padding []byte) {
		for _, p := range padding {
			if p != 0 {
				c.t.Fatalf("padding of attribute %#x is not zero: %x", kind, b)
			}
		}
	})
}

// attr is one attribute of a request.
type attr struct {
	kind  uint16
	value []byte
}

var udpTransport = attr{attrRequestedTransport, []byte{transportUDP, 0, 0, 0}}

func peerAttr(p netip.AddrPort, id *[12]byte) attr { return attr{attrXORPeer, xorValue(p, id)} }

// plain is a message without credentials.
func plain(method, class int, id [12]byte, attrs ...attr) []byte {
	b := appendHeader(nil, method, class, &id)
	for _, a := range attrs {
		b = appendAttr(b, a.kind, a.value)
	}
	return b
}

// signed is a request with the client's credential and the nonce it has.
func (c *client) signed(method int, id [12]byte, attrs ...attr) []byte {
	b := plain(method, classRequest, id, attrs...)
	b = appendAttr(b, attrUsername, []byte(c.user))
	b = appendAttr(b, attrRealm, c.realm)
	b = appendAttr(b, attrNonce, c.nonce)
	return appendIntegrity(b, longTermKey(c.user, string(c.realm), c.password))
}

// challenge takes realm and nonce from a 401 or 438.
func (c *client) challenge() {
	c.t.Helper()
	r := c.exchange(plain(methodAllocate, classRequest, newID(), udpTransport), patience)
	if r == nil || errorOf(r) != codeUnauthorized {
		c.t.Fatalf("no 401 for a request without credentials: %x", r)
	}
	c.learn(r)
}

func (c *client) learn(r []byte) {
	eachAttr(r, func(kind uint16, value, _ []byte) {
		switch kind {
		case attrRealm:
			c.realm = append([]byte{}, value...)
		case attrNonce:
			c.nonce = append([]byte{}, value...)
		}
	})
}

// call makes an authenticated request and returns the answer and its error code, 0 for a success. Every answer but 401
// and 438 must be signed.
func (c *client) call(method int, attrs ...attr) (answer []byte, code int) {
	c.t.Helper()
	return c.callID(method, newID(), attrs...)
}

func (c *client) callID(method int, id [12]byte, attrs ...attr) (answer []byte, code int) {
	c.t.Helper()
	if c.nonce == nil {
		c.challenge()
	}
	r := c.exchange(c.signed(method, id, attrs...), patience)
	if r == nil {
		c.t.Fatalf("no answer to method %#x", method)
	}
	code = errorOf(r)
	if code != codeUnauthorized && code != codeStaleNonce {
		c.verify(r)
	}
	return r, code
}

// verify checks MESSAGE-INTEGRITY of an answer.
func (c *client) verify(r []byte) {
	c.t.Helper()
	if len(r) < headerSize+24 {
		c.t.Fatalf("answer without MESSAGE-INTEGRITY: %x", r)
	}
	again := append([]byte{}, r[:len(r)-24]...)
	again = appendIntegrity(again, longTermKey(c.user, string(c.realm), c.password))
	if string(again) != string(r) {
		c.t.Fatalf("MESSAGE-INTEGRITY is missing or wrong: %x", r)
	}
}

// allocate makes an allocation and returns the relayed address.
func (c *client) allocate(attrs ...attr) netip.AddrPort {
	c.t.Helper()
	r, code := c.call(methodAllocate, append([]attr{udpTransport}, attrs...)...)
	if code != 0 {
		c.t.Fatalf("Allocate: error %d", code)
	}
	var relayed netip.AddrPort
	eachAttr(r, func(kind uint16, value, _ []byte) {
		if kind == attrXORRelayed {
			relayed = xorAddress(value, (*[12]byte)(r[8:20]))
		}
	})
	return relayed
}

// allocate6 asks for an IPv6 relayed address.
func (c *client) allocate6() netip.AddrPort {
	return c.allocate(attr{attrRequestedFamily, []byte{familyIPv6, 0, 0, 0}})
}

// permit asks for a permission and returns the error code.
func (c *client) permit(peer netip.AddrPort) int {
	c.t.Helper()
	id := newID()
	_, code := c.callID(methodCreatePermission, id, peerAttr(peer, &id))
	return code
}

// bind asks for a channel and returns the error code.
func (c *client) bind(number uint16, peer netip.AddrPort) int {
	c.t.Helper()
	id := newID()
	_, code := c.callID(methodChannelBind, id, channelAttr(number), peerAttr(peer, &id))
	return code
}

// channelAttr is a CHANNEL-NUMBER: two bytes, and two reserved ones (RFC 8656 section 18.1).
func channelAttr(number uint16) attr {
	return attr{attrChannelNumber, append(binary.BigEndian.AppendUint16(nil, number), 0, 0)}
}

// indicate sends a Send indication.
func (c *client) indicate(peer netip.AddrPort, data []byte, attrs ...attr) {
	c.t.Helper()
	id := newID()
	c.send(plain(methodSend, classIndication, id, append([]attr{peerAttr(peer, &id), {attrData, data}}, attrs...)...))
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
