package acceptance

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// beat is a datagram every 10 ms through the tunnel, each of which the other end sends back. Unlike a stream it does not wait for
// retransmissions, so what it misses is what the path missed.
type beat struct {
	conn *net.UDPConn
	mu   sync.Mutex
	last time.Time
	gap  time.Duration // the longest between two echoes, guarded by mu
	seen int           // echoes, guarded by mu
}

const beatEvery = 10 * time.Millisecond

// openBeat starts one from a namespace to an address in another.
func openBeat(t *testing.T, from, to *lab.Namespace, at netip.Addr) *beat {
	t.Helper()
	var echo *net.UDPConn
	err := to.Run(func() (err error) { echo, err = net.ListenUDP("udp", &net.UDPAddr{}); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
	go func() {
		for buffer := make([]byte, 64); ; {
			n, who, err := echo.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			_, _ = echo.WriteToUDPAddrPort(buffer[:n], who) // the tunnel may be away
		}
	}()
	b := &beat{last: time.Now()}
	port := netip.MustParseAddrPort(echo.LocalAddr().String()).Port()
	err = from.Run(func() (err error) { b.conn, err = net.ListenUDP("udp4", nil); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.conn.Close() })
	go func() {
		for n := uint64(0); ; n++ {
			if _, err := b.conn.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(nil, n), netip.AddrPortFrom(at, port)); err != nil {
				select {
				case <-t.Context().Done():
					return
				default: // unreachable, while the tunnel is away
				}
			}
			time.Sleep(beatEvery)
		}
	}()
	go b.receive()
	await(t, patience, "echoes through the tunnel", func() bool { return b.count() > 10 })
	return b
}

func (b *beat) receive() {
	for buffer := make([]byte, 64); ; {
		_, err := b.conn.Read(buffer)
		if err != nil && b.conn.SetReadDeadline(time.Time{}) != nil {
			return // closed
		}
		if err != nil {
			continue // what an ICMP error said
		}
		b.mu.Lock()
		b.gap, b.last, b.seen = max(b.gap, time.Since(b.last)), time.Now(), b.seen+1
		b.mu.Unlock()
	}
}

func (b *beat) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen
}

// longest is the longest gap since the last call, once echoes come again.
func (b *beat) longest(t *testing.T, what string) time.Duration {
	t.Helper()
	from := b.count()
	await(t, patience, "echoes again: "+what, func() bool { return b.count() > from+20 })
	b.mu.Lock()
	defer b.mu.Unlock()
	gap := b.gap
	b.gap = 0
	return gap
}

// longestUpgrade is how long a tunnel may be away while another binary takes over.
const longestUpgrade = time.Second

// TestAnotherBinary: a gateway and a client end by SIGTERM and another binary takes their place, as a package's upgrade does. Peers are
// told, and datagrams pass again within a second. A machine that is busy with other tests has three tries.
func TestAnotherBinary(t *testing.T) {
	v := newVPN(t)
	g, c := v.pair(lab.Restricted, lab.Cone)
	b := openBeat(t, c.site.Node, g.site.Node, g.overlay())
	v.under = []string{anotherBinary(v)}
	for _, m := range []struct {
		ends, tells *member
	}{{g, c}, {c, g}} {
		best := time.Hour
		for range 3 {
			m.tells.awaitConnection(patience, m.ends.name, "direct", isUp("direct"))
			b.longest(t, "before")
			v.restart(m.ends)
			gap := b.longest(t, m.ends.name+" is upgraded")
			t.Logf("%s: nothing arrived for %v", m.ends.name, gap.Round(time.Millisecond))
			if best = min(best, gap); best <= longestUpgrade {
				break
			}
		}
		if best > longestUpgrade && !race { // which makes everything several times slower
			t.Errorf("%s is upgraded: nothing arrived for %v, want at most %v", m.ends.name, best, longestUpgrade)
		}
		if last := m.tells.connection(m.ends.name).LastClose; last == nil || last.PeerReports == nil || last.PeerReports.Reason != "shutdown" {
			t.Errorf("%s was told %+v, want that %s ends (shutdown)", m.tells.name, last, m.ends.name)
		}
	}
}

// anotherBinary copies the program and returns what runs the copy in place of the program that it is given.
func anotherBinary(v *vpn) string {
	v.t.Helper()
	path, err := program()
	if err != nil {
		v.t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		v.t.Fatal(err)
	}
	upgraded, runs := filepath.Join(v.dir, "upgraded"), filepath.Join(v.dir, "runs")
	if err := errors.Join(os.WriteFile(upgraded, text, 0o755),
		os.WriteFile(runs, []byte("#!/bin/sh\nshift\nexec "+upgraded+" \"$@\"\n"), 0o755)); err != nil {
		v.t.Fatal(err)
	}
	return runs
}
