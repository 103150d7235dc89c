package netstack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// TestForward: connections and datagrams for other addresses than the stack's own are handed over with where they are to go, or refused, and echo
// requests to others are not answered.
func TestForward(t *testing.T) {
	c := newCable(t, Config{}, Config{})
	good := netip.MustParseAddrPort("10.9.0.7:80")
	err := c.b.Forward(Forwarder{
		TCP: func(to netip.AddrPort, accept func() (Conn, error)) {
			if to != good {
				return
			}
			conn, err := accept()
			if err != nil {
				t.Error(err)
				return
			}
			go func() { io.Copy(conn, conn); conn.Close() }()
		},
		UDP: func(from netip.Addr, to netip.AddrPort) func(net.Conn) {
			if from != client4.Addr() {
				t.Errorf("a datagram is from %v, want %v", from, client4.Addr())
			}
			if to != good {
				return nil
			}
			return func(conn net.Conn) { io.Copy(conn, conn) }
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := c.a.DialTCP(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, "hello")
	conn.CloseWrite()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("TCP: %q, %v", got, err)
	}
	if _, err := c.a.DialTCP(t.Context(), netip.MustParseAddrPort("10.9.0.8:80")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a connection that nobody takes: %v, want %v", err, syscall.ECONNREFUSED)
	}
	for to, want := range map[netip.AddrPort]bool{good: true, netip.MustParseAddrPort("10.9.0.8:80"): false} {
		u, err := c.a.DialUDP(to)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		u.SetDeadline(time.Now().Add(10 * time.Second))
		if !want {
			u.SetDeadline(time.Now().Add(100 * time.Millisecond))
		}
		u.Write([]byte("hello"))
		answer := make([]byte, 10)
		if n, err := u.Read(answer); (err == nil && string(answer[:n]) == "hello") != want {
			t.Errorf("UDP to %v: %q, %v; answered: want %v", to, answer[:n], err, want)
		}
	}
	for to, want := range map[netip.Addr]bool{server4.Addr(): true, server6.Addr(): true, good.Addr(): false} {
		limit := 10 * time.Second
		if !want {
			limit = 100 * time.Millisecond
		}
		ctx, stop := context.WithTimeout(t.Context(), limit)
		if _, err := c.a.Echo(ctx, to, 1); (err == nil) != want {
			t.Errorf("echo to %v: %v; answered: want %v", to, err, want)
		}
		stop()
	}
}
