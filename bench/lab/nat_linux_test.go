package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// patience is how long what must come is waited for, on a machine that may be busy.
const patience = 20 * time.Second

// calls tells the datagrams of one call of exchange from those of others, which may come late.
var calls atomic.Uint64

// exchange sends a datagram again and again until it arrives, no longer than limit, and returns its source, invalid if it did not.
func exchange(t *testing.T, from *net.UDPConn, to netip.AddrPort, at *net.UDPConn, limit time.Duration) netip.AddrPort {
	t.Helper()
	want, b := fmt.Sprint("call ", calls.Add(1)), make([]byte, 64)
	for end := time.Now().Add(limit); time.Now().Before(end); {
		if _, err := from.WriteToUDPAddrPort([]byte(want), to); err != nil {
			t.Fatal(err)
		}
		for at.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); ; {
			n, src, err := at.ReadFromUDPAddrPort(b)
			if err != nil {
				break
			}
			if string(b[:n]) == want {
				return netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
			}
		}
	}
	return netip.AddrPort{}
}

// probe sends from a node's socket to a place of the hub and returns the address that the hub saw, invalid if nothing came.
func probe(t *testing.T, from, at *net.UDPConn) netip.AddrPort {
	t.Helper()
	return exchange(t, from, at.LocalAddr().(*net.UDPAddr).AddrPort(), at, patience)
}

// comes tells whether a datagram gets from one socket to another, as it must.
func comes(t *testing.T, from *net.UDPConn, to netip.AddrPort, at *net.UDPConn) bool {
	t.Helper()
	return exchange(t, from, to, at, patience).IsValid()
}

// isLost tells whether none of three datagrams arrives.
func isLost(t *testing.T, from *net.UDPConn, to netip.AddrPort, at *net.UDPConn) bool {
	t.Helper()
	return !exchange(t, from, to, at, 600*time.Millisecond).IsValid()
}

func listen(t *testing.T, ns *Namespace, addr string) (conn *net.UDPConn) {
	t.Helper()
	err := ns.Run(func() (err error) {
		at, err := net.ResolveUDPAddr("udp4", addr)
		if err == nil {
			conn, err = net.ListenUDP("udp4", at)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Each kind of NAT maps and filters as RFC 4787 calls it.
func TestNATs(t *testing.T) {
	Need(t)
	internet, err := NewInternet()
	if err != nil {
		t.Fatal(err)
	}
	defer internet.Close()
	one, two := listen(t, internet.Hub, "198.18.0.1:7001"), listen(t, internet.Hub, "198.18.0.2:7002")
	stranger := listen(t, internet.Hub, "198.18.0.2:7003")
	for kind, want := range map[NAT]struct{ samePort, open bool }{
		NoNAT: {true, true}, Cone: {true, true}, Restricted: {true, false}, Symmetric: {false, false},
	} {
		site, err := internet.AddSite(kind.String(), kind, Cable{})
		if err != nil {
			t.Fatal(err)
		}
		node := listen(t, site.Node, ":0")
		first, second := probe(t, node, one), probe(t, node, two)
		if !first.IsValid() || !second.IsValid() {
			t.Fatalf("%s: nothing arrives: %v, %v", kind, first, second)
		}
		if public := site.Public; kind != NoNAT && first.Addr() != public || kind == NoNAT && first.Addr() != site.Addr {
			t.Errorf("%s: seen as %v", kind, first)
		}
		if same := first == second; same != want.samePort {
			t.Errorf("%s: mapped to %v and %v", kind, first, second)
		}
		if !comes(t, one, first, node) {
			t.Errorf("%s: an answer does not arrive", kind)
		}
		through := comes
		if !want.open {
			through = isLost
		}
		if !through(t, stranger, first, node) {
			t.Errorf("%s: a stranger gets through: want %v", kind, want.open)
		}
		if kind == Symmetric {
			if err := site.Router.ForgetMappings(); err != nil {
				t.Fatal(err)
			}
			if again := probe(t, node, one); again == first {
				t.Errorf("the mapping %v was not forgotten", first)
			}
		}
	}
}

// What is dropped comes again when the rule is gone.
func TestDrop(t *testing.T) {
	Need(t)
	internet, err := NewInternet()
	if err != nil {
		t.Fatal(err)
	}
	defer internet.Close()
	a, err := internet.AddSite("a", NoNAT, Cable{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := internet.AddSite("b", NoNAT, Cable{})
	if err != nil {
		t.Fatal(err)
	}
	from, at := listen(t, a.Node, ":0"), listen(t, b.Node, ":7001")
	to := netip.AddrPortFrom(b.Addr, 7001)
	if !comes(t, from, to, at) {
		t.Fatal("nothing arrives")
	}
	restore, err := internet.Hub.Drop(a.Port, b.Port, true)
	if err != nil {
		t.Fatal(err)
	}
	if !isLost(t, from, to, at) {
		t.Error("nothing is dropped")
	}
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	if !comes(t, from, to, at) {
		t.Error("nothing arrives any more")
	}
	if restore, err = internet.Hub.Lose(100); err != nil {
		t.Fatal(err)
	}
	if !isLost(t, from, to, at) {
		t.Error("nothing is lost")
	}
	if err := restore(); err != nil || !comes(t, from, to, at) {
		t.Error("nothing arrives after the loss", err)
	}
}

// A node moves to another uplink and back, gets another address, and its router another public one: each time it is seen where
// it is now.
func TestRoam(t *testing.T) {
	Need(t)
	internet, err := NewInternet()
	if err != nil {
		t.Fatal(err)
	}
	defer internet.Close()
	home, err := internet.AddSite("home", Restricted, Cable{})
	if err != nil {
		t.Fatal(err)
	}
	away, err := internet.AddUplink(home, "away", Symmetric)
	if err != nil {
		t.Fatal(err)
	}
	at := listen(t, internet.Hub, "198.18.0.1:7001")
	seen := func(what string, want netip.Addr) {
		t.Helper()
		if got := probe(t, listen(t, home.Node, ":0"), at).Addr(); got != want {
			t.Errorf("%s: seen as %v, want %v", what, got, want)
		}
	}
	seen("at home", home.Public)
	for _, step := range []struct {
		what string
		f    func() error
		at   *Site
	}{
		{"another lease", home.Readdress, home},
		{"another public address", home.Renumber, home},
		{"away", func() error { return errors.Join(home.Leave(), away.Join()) }, away},
		{"back", func() error { return errors.Join(away.Leave(), home.Join()) }, home},
	} {
		if err := step.f(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		seen(step.what, step.at.Public)
	}
}
