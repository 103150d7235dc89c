package ice

import (
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

func TestConnect(t *testing.T) {
	world(t, func(t *testing.T, _ *udptest.Network, a, b *node) {
		l := newLink(a, b)
		start := time.Now()
		l.restart(1)
		if !signal(a, b, l.peers(), 5*time.Second, l.connected) {
			t.Fatalf("not connected: %v %v\n%v", l.a.Path(), l.b.Path(), a.mux.Counters())
		}
		if took := time.Since(start); took > 400*time.Millisecond {
			t.Errorf("connecting took %v at 50 ms round trip", took)
		}
		pa, pb := l.a.Path(), l.b.Path()
		want := pipeline.Path{Src: pa.Src, Dst: netip.AddrPortFrom(pb.Src, b.pair.V4.LocalPort()), Fixed: true, Number: pa.Number}
		if *pa != want || pb.Dst != netip.AddrPortFrom(pa.Src, a.pair.V4.LocalPort()) || pa.Number == 0 {
			t.Errorf("paths %+v, %+v", *pa, *pb)
		}
		synctest.Wait()
		for e, ok := a.mailbox.Poll(); ok; e, ok = a.mailbox.Poll() { // the path may be there before it is told
			a.events = append(a.events, e)
		}
		last := a.events[len(a.events)-1]
		if last.State != StateConnected || last.Path != pa || last.Local != "host" || last.Remote == "" {
			t.Errorf("last event %+v", last)
		}
		if _, rtt := l.a.LastSeen(); rtt < 50*time.Millisecond || rtt > 60*time.Millisecond {
			t.Errorf("round trip %v", rtt)
		}
		// Keepalives hold it.
		signal(a, b, l.peers(), 30*time.Second, func() bool { return false })
		if last := a.events[len(a.events)-1]; !l.connected() || last.State != StateConnected {
			t.Errorf("lost without a reason: %+v", last)
		}
		if at, _ := l.a.LastSeen(); time.Since(at) > 5*time.Second {
			t.Errorf("last seen %v ago", time.Since(at))
		}
		l.close()
		if _, ok := a.mailbox.Poll(); ok {
			t.Error("an event after Close")
		}
		if a.mux.remembered()+b.mux.remembered() != 0 {
			t.Error("the mux remembers a closed connection")
		}
	})
}

// TestRelayTakenForPeer: a pair with a peer-reflexive candidate that turns out to be the peer's relay is a relayed one, whether
// that is known before the pair is selected or after.
func TestRelayTakenForPeer(t *testing.T) {
	const relay = "1 1 udp 16777215 203.0.113.9 5000 typ relay raddr 0.0.0.0 rport 0"
	at := netip.MustParseAddrPort("203.0.113.9:5000")
	for _, before := range []bool{true, false} {
		world(t, func(t *testing.T, _ *udptest.Network, a, b *node) {
			l := newLink(a, b)
			defer l.close()
			if _, err := l.a.Restart(1); err != nil {
				t.Fatal(err)
			}
			add := func() {
				if err := l.a.AddCandidate(1, relay); err != nil {
					t.Fatal(err)
				}
			}
			if before {
				add()
			}
			l.a.next.selected(pipeline.Path{Dst: at, Fixed: true}, "host", "prflx")
			first := *l.a.Path()
			if first.Relayed != before {
				t.Errorf("known before %v: %+v", before, first)
			}
			if !before {
				add()
			}
			path := l.a.Path()
			if !path.Relayed || path.Dst != at || (path.Number > first.Number) == before || l.a.current.remoteType != "relay" {
				t.Errorf("known before %v: %+v, %s", before, path, l.a.current.remoteType)
			}
		})
	}
}

// TestRestartBeside: the second agent takes over while the first holds the path all the time.
func TestRestartBeside(t *testing.T) {
	world(t, func(t *testing.T, network *udptest.Network, a, b *node) {
		l := newLink(a, b)
		l.restart(1)
		if !signal(a, b, l.peers(), 5*time.Second, l.connected) {
			t.Fatal("not connected")
		}
		for generation := uint32(2); generation < 5; generation++ {
			l.restart(generation)
			moved := func() bool {
				if !l.connected() {
					t.Fatal("the path was cleared while a second agent connected")
				}
				return l.a.inUse() == generation && l.b.inUse() == generation
			}
			if !signal(a, b, l.peers(), 5*time.Second, moved) {
				t.Fatalf("generation %d did not take over", generation)
			}
			synctest.Wait()
			if n, k := a.mux.agents(), b.mux.agents(); n != 1 || k != 1 {
				t.Fatalf("%d and %d agents after the move", n, k)
			}
		}
		l.close()
	})
}

// TestSecondFails: the first agent stays when the second finds nothing, and an agent that is replaced leaves nothing.
func TestSecondFails(t *testing.T) {
	world(t, func(t *testing.T, network *udptest.Network, a, b *node) {
		l := newLink(a, b)
		l.restart(1)
		signal(a, b, l.peers(), 5*time.Second, l.connected)
		before := l.a.Path()
		remote := Credentials{"abcdefgh", "abcdefghijklmnopqrstuvwxyz"}
		for generation := uint32(2); generation < 4; generation++ {
			if _, err := l.a.Restart(generation); err != nil {
				t.Fatal(err)
			}
			if err := l.a.Connect(generation, remote); err != nil {
				t.Fatal(err)
			}
		}
		failed := func() bool {
			e := a.events[len(a.events)-1]
			_, number := ownerOf(e)
			return number == 3 && e.State == StateFailed
		}
		if !signal(a, b, l.peers(), 20*time.Second, failed) {
			t.Fatal("the second agent did not fail")
		}
		if l.a.Path() != before || !l.connected() {
			t.Error("the path went with the second agent")
		}
		l.close()
	})
}

// TestFailed: a silent network ends the agent and clears the path, before the handshake lifetime is over.
func TestFailed(t *testing.T) {
	if Timeout >= 15*time.Second {
		t.Fatalf("ICE takes %v to give up, which is no shorter than the handshake lifetime", Timeout)
	}
	world(t, func(t *testing.T, network *udptest.Network, a, b *node) {
		l := newLink(a, b)
		l.restart(1)
		signal(a, b, l.peers(), 5*time.Second, l.connected)
		network.Hook(func(*udptest.Datagram) bool { return false })
		start := time.Now()
		states := map[State]bool{}
		cleared := func() bool {
			for _, e := range append(a.events, b.events...) {
				states[e.State] = true
			}
			return l.a.Path() == nil && l.b.Path() == nil
		}
		if !signal(a, b, l.peers(), 20*time.Second, cleared) {
			t.Fatal("the path was not cleared")
		}
		if took := time.Since(start); took > Timeout+keepaliveInterval {
			t.Errorf("took %v", took)
		}
		signal(a, b, l.peers(), time.Second, cleared)
		if !states[StateDisconnected] || a.events[len(a.events)-1].State != StateFailed || a.events[len(a.events)-1].Path != nil {
			t.Errorf("states %v, last %+v", states, a.events[len(a.events)-1])
		}
		// A new generation begins where the old one ended.
		network.Hook(nil)
		l.restart(2)
		if !signal(a, b, l.peers(), 5*time.Second, l.connected) {
			t.Error("no new connection")
		}
		l.close()
	})
}

// TestRest: the path outlives the agents, and a new one begins beside it.
func TestRest(t *testing.T) {
	world(t, func(t *testing.T, _ *udptest.Network, a, b *node) {
		l := newLink(a, b)
		l.restart(1)
		signal(a, b, l.peers(), 5*time.Second, l.connected)
		path := l.a.Path()
		l.a.CloseAgent(1)
		l.b.CloseAgent(1)
		synctest.Wait()
		sent := a.counter("ice_checks_sent")
		time.Sleep(time.Minute)
		if l.a.Path() != path || a.mux.agents() != 0 || a.counter("ice_checks_sent") != sent {
			t.Error("at rest the path must stay and no check be sent")
		}
		l.restart(2)
		if !signal(a, b, l.peers(), 5*time.Second, func() bool { return l.a.Path() != path && l.b.inUse() != 0 }) {
			t.Error("no agent after the rest")
		}
		l.close()
	})
}

// TestLatePeer: a peer that comes ten seconds late is still met, although silent addresses get few checks.
func TestLatePeer(t *testing.T) {
	world(t, func(t *testing.T, network *udptest.Network, a, b *node) {
		l := newLink(a, b)
		start := time.Now()
		network.Hook(func(*udptest.Datagram) bool { return time.Since(start) > 9*time.Second })
		l.restart(1)
		if !signal(a, b, l.peers(), 12*time.Second, l.connected) {
			t.Fatalf("not connected, counters %v", a.mux.Counters())
		}
		l.close()
	})
}

// TestLoss: a third of all datagrams lost delays, and does not prevent.
func TestLoss(t *testing.T) {
	world(t, func(t *testing.T, network *udptest.Network, a, b *node) {
		network.Impair(func(_, _ netip.AddrPort) udptest.Impairment {
			return udptest.Impairment{Delay: 25 * time.Millisecond, Loss: 0.3, Duplicate: 0.1, Reorder: 0.1}
		})
		for range 10 {
			l := newLink(a, b)
			l.restart(1)
			if !signal(a, b, l.peers(), 10*time.Second, l.connected) {
				t.Fatalf("not connected, counters %v", a.mux.Counters())
			}
			l.close()
		}
	})
}

func TestMisuse(t *testing.T) {
	world(t, func(t *testing.T, _ *udptest.Network, a, b *node) {
		cfg := AgentConfig{Mux: a.mux, Mailbox: a.mailbox, Controlling: true}
		agent, err := NewAgent(cfg)
		if err != nil {
			t.Fatal(err)
		}
		own := agent.Credentials()
		for _, bad := range []Credentials{{}, {"abc", own.Password}, {own.Ufrag, "short"}, {"ab:cd", own.Password}, {"ab\x00cd", own.Password}} {
			if err := agent.Connect(bad); !errors.Is(err, ErrCredentials) {
				t.Errorf("%+v: %v, want ErrCredentials", bad, err)
			}
		}
		if err := agent.Connect(own); err != nil {
			t.Error(err)
		}
		if err := agent.Connect(own); !errors.Is(err, ErrCredentials) {
			t.Errorf("a second Connect: %v, want ErrCredentials", err)
		}
		for i := range MaxCandidates + 1 {
			err := agent.AddCandidate("1 1 udp 2130706431 192.0.2.1 " + string(rune('1'+i%9)) + "000 typ host")
			if want := i == MaxCandidates; errors.Is(err, ErrCandidate) != want {
				t.Errorf("candidate %d: %v, refused: want %v", i, err, want)
			}
		}
		agent.Close()
		if err := agent.Connect(own); !errors.Is(err, ErrClosed) {
			t.Errorf("Connect after Close: %v, want ErrClosed", err)
		}
		if err := agent.AddCandidate("1 1 udp 2130706431 192.0.2.1 1 typ host"); !errors.Is(err, ErrClosed) {
			t.Errorf("AddCandidate after Close: %v, want ErrClosed", err)
		}
		a.mux.Close()
		if _, err := NewAgent(cfg); !errors.Is(err, ErrClosed) {
			t.Errorf("NewAgent on a closed mux: %v, want ErrClosed", err)
		}
	})
}
