package broker_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/ice/signal/broker"
)

// startTLS starts a broker with a certificate.
func startTLS(t *testing.T, cfg broker.Config) (*broker.Broker, signal.Fingerprint) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cfg.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13}
	return start(t, cfg), signal.FingerprintOf(der)
}

// dialFrom makes connections that come from addr.
func dialFrom(addr string) func(ctx context.Context, network, address string) (net.Conn, error) {
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if network == "udp" {
			return net.Dial(network, address)
		}
		return d.DialContext(ctx, network, address)
	}
}

// busFrom is node a at addr.
func busFrom(t *testing.T, b *broker.Broker, f signal.Fingerprint, addr string) *signal.Bus {
	t.Helper()
	bus, err := signal.Connect(signal.Config{
		Self: "a", Token: "a", URLs: []string{"tls://" + b.Addr().String()}, TLS: f.TLSConfig(), Dialer: dialFrom(addr),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bus.Close() })
	return bus
}

// await waits for a state of the bus.
func await(t *testing.T, bus *signal.Bus, what string, ok func(signal.State) bool) {
	t.Helper()
	for deadline := time.After(time.Minute); ; {
		changed, state := bus.Changed(), bus.State()
		if ok(state) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("not in time: %s; the state is %+v", what, state)
		}
	}
}

// TestIdleConnections: connections of one network that say nothing keep nobody of another one out. A node of theirs is told that the
// portal is busy, and gets in when they have been ended.
func TestIdleConnections(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has all of 127.0.0.0/8 without being told")
	}
	b, f := startTLS(t, broker.Config{MaxConnections: 512})
	dial := dialFrom("127.0.5.1")
	begin, last := time.Now(), net.Conn(nil)
	for range 600 { // more than there may be in all
		conn, err := dial(t.Context(), "tcp", b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		last = conn
	}
	if err := last.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := last.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) { // all are in then, and it is one too many
		t.Fatal("the 600th connection was not refused")
	}
	crowded := busFrom(t, b, f, "127.0.5.1")
	elsewhere, failed := time.Now(), error(nil)
	other := busFrom(t, b, f, "127.0.6.1")
	await(t, other, "another network signs in", func(s signal.State) bool {
		if s.Attempts > 0 {
			failed = s.Why
		}
		return s.Up
	})
	if failed != nil {
		t.Errorf("another network signed in after %v and %v, want at the first attempt", time.Since(elsewhere), failed)
	}
	await(t, crowded, "the crowded network is told why, or gets in", func(s signal.State) bool { return s.Up || errors.Is(s.Why, signal.ErrBusy) })
	if early := time.Since(begin) < 2*time.Second; crowded.State().Up && early {
		t.Error("a 601st connection was taken")
	} else if crowded.State().Up {
		t.Log("the machine is slow: the first idle connections were ended before the crowded network came")
	}
	await(t, crowded, "it gets in", func(s signal.State) bool { return s.Up })
}

// TestSilence: a connection that says nothing, or no TLS, is ended soon, and the others of its share get in.
func TestSilence(t *testing.T) {
	b, f := startTLS(t, broker.Config{MaxConnections: 64}) // a share of one
	silent, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if err := silent.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, silent); n != 0 || err != nil {
		t.Errorf("a silent connection: %d bytes, %v, want its end", n, err)
	}
	bus := busFrom(t, b, f, "127.0.0.1")
	await(t, bus, "the share is free again", func(s signal.State) bool { return s.Up })
}

// TestSignedInShares: connections that have signed in use up no share, and their address is known.
func TestSignedInShares(t *testing.T) {
	b, f := startTLS(t, broker.Config{MaxConnections: 64}) // a share of one
	for range 3 {
		await(t, busFrom(t, b, f, "127.0.0.1"), "a node signs in", func(s signal.State) bool { return s.Up })
	}
	clients := b.Clients("a")
	if len(clients) != 3 {
		t.Errorf("%d connections, want 3", len(clients))
	}
	for _, c := range clients {
		if at, err := netip.ParseAddrPort(c.Addr); err != nil || at.Addr() != netip.MustParseAddr("127.0.0.1") {
			t.Errorf("a node comes from %q, want 127.0.0.1", c.Addr)
		}
	}
}
