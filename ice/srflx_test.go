package ice

import (
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	witness "github.com/pion/stun"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

var (
	outside = netip.MustParseAddrPort("203.0.113.9:777")
	server  = netip.MustParseAddrPort("203.0.113.1:3478")
)

// behindNAT runs f with a machine behind a NAT and a STUN server, that answers while it returns true.
func behindNAT(t *testing.T, f func(t *testing.T, a *node, probes *atomic.Int64, answers *atomic.Bool)) {
	synctest.Test(t, func(t *testing.T) {
		network := udptest.New(1)
		pairs, err := network.Listen(server.Addr(), netip.Addr{})(udp.Config{Port: server.Port()})
		if err != nil {
			t.Fatal(err)
		}
		a := newNode(t, network.Listen(aliceAddr, netip.Addr{}), udp.Config{}, MuxConfig{}, aliceAddr)
		network.Hook(func(d *udptest.Datagram) bool {
			if d.Src.Addr() == aliceAddr {
				d.Src = outside
			}
			if d.Dst == outside {
				d.Dst = a.at(aliceAddr)
			}
			return true
		})
		var probes atomic.Int64
		var answers atomic.Bool
		answers.Store(true)
		stop := make(chan struct{})
		go serveSTUN(pairs[0].V4, &probes, &answers, stop)
		a.prober = NewProber(a.mux, []netip.AddrPort{server})
		f(t, a, &probes, &answers)
		a.close()
		close(stop)
	})
}

func serveSTUN(s udp.Socket, probes *atomic.Int64, answers *atomic.Bool, stop chan struct{}) {
	batch := []udp.Datagrams{{Buf: make([]byte, udp.BufferSize)}}
	for {
		for n, _ := s.Receive(batch); n > 0; n, _ = s.Receive(batch) {
			m := witness.Message{Raw: batch[0].Data}
			if m.Decode() != nil {
				continue
			}
			if probes.Add(1); answers.Load() {
				reply := witness.MustBuild(witness.NewTransactionIDSetter(m.TransactionID), witness.BindingSuccess,
					&witness.XORMappedAddress{IP: batch[0].Src.Addr().AsSlice(), Port: int(batch[0].Src.Port())})
				_ = s.SendOne(udp.Run{Data: reply.Raw, SegmentSize: len(reply.Raw), Dst: batch[0].Src})
			}
		}
		select {
		case <-s.Ready():
		case <-stop:
			return
		}
	}
}

// offered collects what a new agent offers, until it is complete.
func offered(t *testing.T, n *node, c *Connection, generation uint32) []string {
	t.Helper()
	if _, err := c.Restart(generation); err != nil {
		t.Fatal(err)
	}
	var all []string
	for deadline := time.After(time.Minute); ; {
		for e, ok := n.mailbox.Poll(); ok; e, ok = n.mailbox.Poll() {
			all = append(all, e.Candidates...)
			if e.Gathered {
				return all
			}
		}
		select {
		case <-n.mailbox.Wake():
		case <-deadline:
			t.Fatal("gathering does not end")
		}
	}
}

// TestProber: the mapped address is asked for once for many agents, signaled, and asked for anew when it has aged or the
// network has changed.
func TestProber(t *testing.T) {
	behindNAT(t, func(t *testing.T, a *node, probes *atomic.Int64, _ *atomic.Bool) {
		for range 5 {
			c := a.connection(true)
			all := offered(t, a, c, 1)
			mapped := slices.ContainsFunc(all, func(s string) bool {
				return strings.Contains(s, "203.0.113.9 777 typ srflx raddr 10.0.0.1 rport ")
			})
			if len(all) != 2 || !mapped {
				t.Errorf("offered %q", all)
			}
			c.Close()
		}
		want := Mapping{Server: server, Mapped: outside, Base: a.at(aliceAddr)}
		if got := a.prober.Mappings(); probes.Load() != 1 || len(got) != 1 || got[0] != want {
			t.Errorf("%d probes, mappings %v", probes.Load(), got)
		}
		time.Sleep(mappingLife)
		c := a.connection(true)
		offered(t, a, c, 1)
		c.Close()
		a.prober.Reset()
		a.prober.Reset()
		synctest.Wait()
		if len(a.prober.Mappings()) != 1 || probes.Load() < 3 || len(a.prober.asked) != 0 {
			t.Errorf("%d probes, mappings %v", probes.Load(), a.prober.Mappings())
		}
	})
}

// TestProberDoubt: the mapped address is asked for anew when a path has gone silent, once for many.
func TestProberDoubt(t *testing.T) {
	behindNAT(t, func(t *testing.T, a *node, probes *atomic.Int64, _ *atomic.Bool) {
		c := a.connection(true)
		offered(t, a, c, 1)
		a.prober.Doubt() // what has just been answered
		synctest.Wait()
		if n := probes.Load(); n != 1 {
			t.Errorf("%d probes at once", n)
		}
		time.Sleep(doubtGap)
		for range 100 {
			a.prober.Doubt()
		}
		synctest.Wait()
		if n := probes.Load(); n != 2 || len(a.prober.Mappings()) != 1 {
			t.Errorf("%d probes, mappings %v", n, a.prober.Mappings())
		}
		c.Close()
	})
}

// TestProberSilence: a server that does not answer delays nothing but the end of the candidates, and not for long.
func TestProberSilence(t *testing.T) {
	behindNAT(t, func(t *testing.T, a *node, probes *atomic.Int64, answers *atomic.Bool) {
		answers.Store(false)
		c := a.connection(true)
		start := time.Now()
		if all := offered(t, a, c, 1); len(all) != 1 || time.Since(start) > 4*time.Second || probes.Load() != int64(len(probeWaits)) {
			t.Errorf("offered %q after %v and %d probes", all, time.Since(start), probes.Load())
		}
		// Forged answers are of no use: another source, another transaction.
		id := stun.ID{1}
		a.prober.mu.Lock()
		a.prober.asked[id] = server
		a.prober.mu.Unlock()
		probed := func(b []byte, from netip.AddrPort) bool { return a.mux.Probed(*stray(b, from)) }
		forged := pionAnswer(t, id, outside)
		if probed(forged, outside) {
			t.Error("an answer from elsewhere was taken")
		}
		if probed(pionAnswer(t, stun.ID{2}, outside), server) {
			t.Error("an answer to nothing was taken")
		}
		if cut := forged[:len(forged)-4]; !probed(cut, server) || drops(a.mux, dropMalformed) != 1 {
			t.Errorf("%d dropped as malformed, want 1", drops(a.mux, dropMalformed))
		}
		if !probed(pionAnswer(t, id, netip.MustParseAddrPort("127.0.0.1:1")), server) || len(a.prober.Mappings()) != 0 {
			t.Error("loopback is no mapped address")
		}
		// Close ends a round that is under way.
		a.prober.Reset()
		c.Close()
	})
}
