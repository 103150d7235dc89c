package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// TestClose: after Close no goroutine and no socket of the server is left, whatever its clients had.
func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	s := start(t, nil)
	var relayed []netip.AddrPort
	for i := range 10 {
		c := dial(t, s, i%2, "x")
		if i%2 == 0 {
			relayed = append(relayed, c.allocate())
			c.bind(0x4000, netip.MustParseAddrPort("127.0.0.1:9"))
		} else {
			relayed = append(relayed, c.allocate6())
			c.permit(netip.MustParseAddrPort("[::1]:9"))
		}
	}
	addrs := append(s.Addrs(), relayed...)
	if n, _ := s.quota.count(); n != 10 {
		t.Fatalf("%d allocations, want 10", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n, users := s.quota.count(); n != 0 || users != 0 {
		t.Errorf("%d allocations of %d users after Close", n, users)
	}
	for _, a := range addrs { // every port can be bound again
		sock, err := openSocket(a, socketConfig{})
		if err != nil {
			t.Errorf("%v after Close: %v", a, err)
			continue
		}
		sock.conn.Close()
	}
	eventually(t, "the goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
	if s.Ready() || s.Addrs() != nil {
		t.Error("ready after Close")
	}
}

// TestRunOnce: Run ends with its context, cannot be called again, and not after Close.
func TestRunOnce(t *testing.T) {
	cfg := Config{Listen: []netip.AddrPort{netip.AddrPortFrom(loopback4, 0)}}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	eventually(t, "the server to be ready", s.Ready)
	if err := s.Run(ctx); !errors.Is(err, errRunTwice) {
		t.Errorf("second Run: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	s.Close()
	if s, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := s.Run(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("Run after Close: %v", err)
	}
}

// TestTakenPort: a port that is taken is one clear error, and readiness never lies.
func TestTakenPort(t *testing.T) {
	first := start(t, nil)
	free := netip.AddrPortFrom(loopback4, 0)
	s, err := New(Config{Listen: []netip.AddrPort{free, first.Addrs()[0]}})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Run(context.Background())
	if err == nil || !strings.Contains(err.Error(), first.Addrs()[0].String()) {
		t.Errorf("Run: %v", err)
	}
	if s.Ready() {
		t.Error("ready without its sockets")
	}
	if s.gates[0].sock.conn.Close() == nil {
		t.Error("the first socket was left open")
	}
}

// TestSocketLost: a listening socket that goes away under the server ends Run with an error.
func TestSocketLost(t *testing.T) {
	s, err := New(Config{Listen: []netip.AddrPort{netip.AddrPortFrom(loopback4, 0)}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- s.Run(context.Background()) }()
	eventually(t, "the server to be ready", s.Ready)
	s.gates[0].sock.conn.Close()
	if err := <-done; err == nil {
		t.Error("Run returned nil")
	}
	if s.Ready() {
		t.Error("ready without a socket")
	}
}

func TestConfig(t *testing.T) {
	for field, cfg := range map[string]Config{
		"MinPort":            {MinPort: 2, MaxPort: 1},
		"MaxPort":            {MaxPort: 1},
		"Realm":              {Realm: strings.Repeat("x", 21)},
		"Secret":             {Secret: "short"},
		"Listen":             {Listen: []netip.AddrPort{{}}},
		"PublicAddrs":        {PublicAddrs: []netip.Addr{netip.IPv4Unspecified()}},
		"two":                {PublicAddrs: []netip.Addr{loopback4, netip.MustParseAddr("127.0.0.2")}},
		"DeniedPeers":        {DeniedPeers: []netip.Prefix{{}}},
		"Allocations":        {Allocations: -1},
		"AllocationsPerUser": {AllocationsPerUser: -1},
		"RefusalsPerSecond":  {RefusalsPerSecond: -1},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	a, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	b, _ := New(Config{})
	if len(a.cfg.Secret) < 32 || a.cfg.Secret == b.cfg.Secret {
		t.Error("secrets of the zero Config")
	}
}

// TestPorts: relayed ports lie in the range and are all used.
func TestPorts(t *testing.T) {
	seen := map[uint16]bool{}
	for range 1000 {
		p := randomPort(50000, 50007)
		if p < 50000 || p > 50007 {
			t.Fatalf("port %d", p)
		}
		seen[p] = true
	}
	if len(seen) != 8 || randomPort(65535, 65535) != 65535 {
		t.Errorf("ports %v", seen)
	}
}

// TestFullRange: when no port is left it is a 508, and the quota is given back.
func TestFullRange(t *testing.T) {
	s := start(t, nil)
	taken, at := peer(t, loopback4)
	defer taken.Close()
	full := start(t, func(c *Config) { c.MinPort, c.MaxPort = at.Port(), at.Port() })
	c := dial(t, full, 0, "x")
	if _, code := c.call(stun.Allocate, udpTransport); code != stun.CodeInsufficient {
		t.Errorf("error %d, want 508", code)
	}
	if n, _ := full.quota.count(); n != 0 {
		t.Errorf("%d of the quota used", n)
	}
	dial(t, s, 0, "x").allocate()
}

func TestCounters(t *testing.T) {
	fresh, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if got := counted(fresh, "sluice_relay_ready"); got != 0 {
		t.Errorf("ready %d before Run, want 0", got)
	}
	s := start(t, nil)
	c := dial(t, s, 0, "x")
	c.allocate()
	c.send([]byte{0xff})
	conn, at := peer(t, loopback4)
	c.bind(0x4000, at)
	c.send(channelData(0x4000, make([]byte, 100)))
	if b, _ := readPeer(conn, patience); len(b) != 100 {
		t.Fatal("nothing relayed")
	}
	for series, want := range map[string]uint64{
		"sluice_relay_drops_total reason not_stun": 1, "sluice_relay_drops_total reason peer_denied": 0,
		"sluice_relay_answers_total answer 401": 1, "sluice_relay_answers_total answer success": 2,
		"sluice_relay_datagrams_total direction to_peer": 1, "sluice_relay_bytes_total direction to_peer": 100,
		"sluice_relay_allocations": 1, "sluice_relay_ready": 1,
	} {
		eventually(t, fmt.Sprint(series, " is ", want), func() bool { return counted(s, series) == want })
	}
	s.Close()
	if got := counted(s, "sluice_relay_ready"); got != 0 {
		t.Errorf("ready %d after Close, want 0", got)
	}
}

// counted is the value of a series, named with its labels; 1 << 63 if there is none.
func counted(s *Server, series string) uint64 {
	for _, c := range s.Counters() {
		if strings.Join(append([]string{c.Series}, c.Labels...), " ") == series {
			return c.Value
		}
	}
	return 1 << 63
}

// TestAllocationEnds: when an allocation ends its port is closed and its quota given back.
func TestAllocationEnds(t *testing.T) {
	s := start(t, nil)
	c := dial(t, s, 0, "x")
	relayed := c.allocate(attr{stun.Lifetime, []byte{0, 0, 0, 1}})
	id := newID() // too late for a permission, see lastSecond
	if r := c.exchange(c.signed(stun.CreatePermission, id, peerAttr(c.addr(), &id)), 50*time.Millisecond); r != nil {
		t.Errorf("a permission in the last second: %x", r)
	}
	if n := s.stats.drops[dropExpiring].Load(); n != 1 {
		t.Errorf("%d counted as expiring, want 1", n)
	}
	eventually(t, "the allocation to expire", func() bool { n, _ := s.quota.count(); return n == 0 })
	eventually(t, "the port to be free", func() bool {
		sock, err := openSocket(relayed, socketConfig{})
		if err == nil {
			sock.conn.Close()
		}
		return err == nil
	})
	c.allocate()
}

// TestAllocationRemade: an allocation that is made while the one before it on the same 5-tuple comes to its end is not ended
// with it.
func TestAllocationRemade(t *testing.T) {
	s := start(t, nil)
	c := dial(t, s, 0, "x")
	c.challenge()
	zero := attr{stun.Lifetime, make([]byte, 4)}
	for i := range 300 {
		c.send(c.signed(stun.Allocate, newID(), udpTransport))
		c.send(c.signed(stun.Refresh, newID(), zero))
		c.allocate()
		if i%10 == 0 { // else the next request gives the end its time
			time.Sleep(2 * time.Millisecond)
		}
		if _, code := c.call(stun.Refresh); code != 0 {
			t.Fatalf("the %dth allocation is gone: %d", i, code)
		}
		if _, code := c.call(stun.Refresh, zero); code != 0 {
			t.Fatalf("Refresh with lifetime 0: %d", code)
		}
	}
}

// TestRepeatedAllocate: an Allocate that is repeated has the same answer and prolongs nothing, also not in our books: by them
// a permission in the last second of an allocation is refused.
func TestRepeatedAllocate(t *testing.T) {
	s := start(t, nil)
	c := dial(t, s, 0, "x")
	c.challenge()
	id := newID()
	two := attr{stun.Lifetime, []byte{0, 0, 0, 2}}
	first, _ := c.callID(stun.Allocate, id, udpTransport, two)
	a := c.find(t, s)
	time.Sleep(1100 * time.Millisecond)
	if again, _ := c.callID(stun.Allocate, id, udpTransport, two); !bytes.Equal(first, again) {
		t.Errorf("the answers differ:\n%x\n%x", first, again)
	}
	if late := newID(); c.exchange(c.signed(stun.CreatePermission, late, peerAttr(c.addr(), &late)), 50*time.Millisecond) != nil {
		t.Error("a permission in the last second")
	}
	eventually(t, "the allocation to expire", func() bool { return c.find(t, s) == nil })
	if count, _ := a.permissionCount(c.addr().Addr()); count != 0 {
		t.Errorf("%d permissions", count)
	}
}
