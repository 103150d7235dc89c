package ice

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp"
)

func udpAddr(s string) *net.UDPAddr { return net.UDPAddrFromAddrPort(netip.MustParseAddrPort(s)) }

// taken empties the sink: how many datagrams each destination got.
func (s *sink) taken() map[netip.AddrPort]int {
	got := map[netip.AddrPort]int{}
	for {
		select {
		case r := <-s.runs:
			got[r.Dst]++
		default:
			return got
		}
	}
}

func silentCandidate(i int) string {
	return fmt.Sprintf("%d 1 udp 2130706431 198.51.100.%d 7 typ host", i, i)
}

// TestPaceOfAnAgent: however many candidates a peer names, an agent sends one check per 10 ms and at most 50 to each.
func TestPaceOfAnAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var candidates []string
		for i := range MaxCandidates {
			candidates = append(candidates, silentCandidate(i+1))
		}
		m, out, c, _ := lone(t, candidates...)
		begin := time.Now()
		total, each := 0, map[netip.AddrPort]int{}
		for time.Since(begin) < 14*time.Second {
			time.Sleep(time.Second)
			second := 0
			for to, n := range out.taken() {
				second += n
				each[to] += n
			}
			if second > 101 {
				t.Errorf("%d checks in a second", second)
			}
			total += second
		}
		if len(each) != MaxCandidates {
			t.Errorf("%d of %d addresses were checked", len(each), MaxCandidates)
		}
		for to, n := range each {
			if n > maxUnanswered || n < 20 {
				t.Errorf("%v got %d checks", to, n)
			}
		}
		if total > MaxCandidates*maxUnanswered {
			t.Errorf("%d checks in all", total)
		}
		if e, ok := c.config.Mailbox.Poll(); !ok || e.State != StateFailed {
			t.Errorf("event %+v", e)
		}
		c.Close()
		m.Close()
	})
}

// TestTriggeredCheck: whoever has sent an authentic request is checked in return at the next turn, however many pairs wait.
func TestTriggeredCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var candidates []string
		for i := range MaxCandidates {
			candidates = append(candidates, silentCandidate(i+1))
		}
		m, out, c, own := lone(t, candidates...)
		checked := map[netip.AddrPort]bool{}
		for range MaxCandidates / 4 { // the rest of the first round waits
			checked[(<-out.runs).Dst] = true
		}
		synctest.Wait()
		for dst := range out.taken() {
			checked[dst] = true
		}
		// The last of those that wait still: pion has them in no order that is certain.
		var last netip.AddrPort
		for i := range MaxCandidates {
			if at := netip.MustParseAddrPort(fmt.Sprintf("198.51.100.%d:7", i+1)); !checked[at] {
				last = at
			}
		}
		m.Receive(pipeline.Stray{Data: pionCheck(t, own.Ufrag, own.Password), Src: last, Dst: aliceAddr})
		time.Sleep(2 * checkPace)
		checks := 0
		for len(out.runs) > 0 {
			if r := <-out.runs; r.Dst == last && binary.BigEndian.Uint16(r.Data) == 1 {
				checks++
			}
		}
		if checks == 0 {
			t.Errorf("no check within %v", 2*checkPace)
		}
		c.Close()
		m.Close()
	})
}

// TestPaceOfAnAddress: fifty checks spread over the whole time that ICE has, to each of our addresses' pairs alike.
func TestPaceOfAnAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newSink()
		locals := []netip.Addr{aliceAddr, netip.MustParseAddr("10.0.1.1"), netip.MustParseAddr("10.0.2.1")}
		m := NewMux(MuxConfig{Sender: out, Addresses: func() []netip.Addr { return locals }})
		c := NewConnection(AgentConfig{Mux: m, Mailbox: NewMailbox(), Controlling: true})
		start(t, c, 1, silentCandidate(1))
		begin := time.Now()
		total, late := map[netip.Addr]int{}, map[netip.Addr]int{}
		for time.Since(begin) < 11*time.Second {
			time.Sleep(100 * time.Millisecond)
			for len(out.runs) > 0 {
				r := <-out.runs
				total[r.Src]++
				if time.Since(begin) > 9*time.Second {
					late[r.Src]++
				}
			}
		}
		for _, local := range locals {
			if total[local] < 10 || late[local] == 0 {
				t.Errorf("from %v %d checks, %d of them late", local, total[local], late[local])
			}
		}
		c.Close()
		m.Close()
	})
}

// TestManyAgentsOneVictim: connections cannot be added up against one address.
func TestManyAgentsOneVictim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newSink()
		m := NewMux(MuxConfig{Sender: out, Addresses: func() []netip.Addr { return []netip.Addr{aliceAddr} }})
		var all []*Connection
		for range 8 {
			c := NewConnection(AgentConfig{Mux: m, Mailbox: NewMailbox(), Controlling: true})
			start(t, c, 1, silentCandidate(1))
			all = append(all, c)
		}
		time.Sleep(15 * time.Second)
		victim := netip.MustParseAddrPort("198.51.100.1:7")
		if n := out.taken()[victim]; n < maxUnanswered || n > maxUnanswered+addressRate*15 {
			t.Errorf("the address got %d checks", n)
		}
		if drops(m, dropAddressCap) == 0 {
			t.Error("nothing was held back")
		}
		for _, c := range all {
			c.Close()
		}
		m.Close()
	})
}

// TestStartsAreQueued: sixteen agents start at once, the others half a second later at the latest.
func TestStartsAreQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMux(MuxConfig{Sender: newSink(), Addresses: func() []netip.Addr { return []netip.Addr{aliceAddr} }})
		var all []*Connection
		for i := range 3 * maxStarting {
			c := NewConnection(AgentConfig{Mux: m, Mailbox: NewMailbox()})
			start(t, c, 1, silentCandidate(i+1))
			all = append(all, c)
		}
		for turn := 1; turn <= 3; turn++ {
			time.Sleep(candidateTime)
			synctest.Wait()
			if n := m.counters.AgentsStarted.Load(); n != uint64(turn*maxStarting) {
				t.Fatalf("%d agents have started in turn %d", n, turn)
			}
			time.Sleep(startTime)
		}
		for _, c := range all {
			c.Close()
		}
		synctest.Wait()
		if len(m.starts) != 0 {
			t.Error("a turn was not given back")
		}
		m.Close()
	})
}

func TestBuckets(t *testing.T) {
	var b buckets
	var one Share
	now := time.Now()
	address := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 7)
	}
	taken := 0
	for i := range 2 * globalBurst {
		if b.take(&one, address(i), now) == dropNone {
			taken++
		}
	}
	if taken != globalBurst {
		t.Errorf("%d checks to silent addresses at once", taken)
	}
	for i := 0; len(b.of) < maxBuckets; i++ {
		now = now.Add(time.Millisecond)
		for range 3 { // so that none is full again soon
			b.take(&one, address(i/3), now)
		}
		if i > 10*maxBuckets {
			t.Fatalf("%d addresses after %d checks", len(b.of), i)
		}
		if i%1000 == 0 {
			for _, entry := range b.of {
				for entry.Take(now, addressRate, maxUnanswered) {
				}
			}
		}
	}
	for _, entry := range b.of {
		for entry.Take(now, addressRate, maxUnanswered) {
		}
	}
	now = now.Add(time.Second)
	if why := b.take(&one, address(60000), now); why != dropAddressCap || len(b.of) != maxBuckets {
		t.Errorf("a full table took an address: %s", dropTable[why].reason)
	}
	now = now.Add(time.Hour)
	if why := b.take(&one, address(60000), now); why != dropNone || len(b.of) != 1 {
		t.Errorf("an old table has %d addresses: %s", len(b.of), dropTable[why].reason)
	}
	for range maxUnanswered {
		b.take(&one, address(60000), now)
	}
	if b.take(&one, address(60000), now) != dropAddressCap {
		t.Error("no bound for an address")
	}
	b.credit(address(60000))
	if b.take(&one, address(60000), now) != dropNone || b.take(&one, address(60000), now) != dropAddressCap {
		t.Error("a request is worth one check")
	}
	b.answered(address(60000))
	if b.take(&one, address(60000), now) != dropNone {
		t.Error("an address that answered is held back")
	}
}

// A peer that asks for no more than an equal share gets its checks, however many others ask for all that they can; and those who have
// had a session before those who have not.
func TestFairBuckets(t *testing.T) {
	for _, test := range []struct {
		name                     string
		greedy                   int
		greedyKnown, modestKnown bool
		every                    int // ticks of 20 ms that lie between checks of the modest one, who comes after 10 s
	}{
		{"strangers", 20, false, false, 2},
		{"the greedy are known", 20, true, false, 2},
		{"all are known", 20, true, true, 2},
		{"many strangers, who ask for little each", 200, false, true, 10},
	} {
		t.Run(test.name, func(t *testing.T) {
			var b buckets
			var modest Share
			greedy := make([]Share, test.greedy)
			for i := range greedy {
				greedy[i].known.Store(test.greedyKnown)
			}
			modest.known.Store(test.modestKnown)
			now, port, got, all := time.Now(), 0, 0, 0
			ask := func(s *Share) bool {
				port++
				to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(port >> 21), byte(port >> 13)}), uint16(port&0x1fff+1))
				if len(b.of) == maxBuckets {
					clear(b.of) // the bound of the table is not the subject
				}
				return b.take(s, to, now) == dropNone
			}
			for tick := range 20 * 50 { // of 20 ms
				now = now.Add(20 * time.Millisecond)
				for i := range greedy {
					for range 2 { // 100 a second, as the pacing of an agent has it
						if ask(&greedy[i]) {
							all++
						}
					}
				}
				if tick >= 500 && tick%test.every == 0 && ask(&modest) {
					got++
				}
			}
			if want := 500 / test.every; got != want || all+got < 19*globalRate {
				t.Errorf("%d of the modest one's %d checks; %d of all, want %d at least", got, want, all+got, 19*globalRate)
			}
		})
	}
}

// TestUnsendable: a socket that refuses is counted and harms nobody.
func TestUnsendable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMux(MuxConfig{Sender: pairSender{Pair: udp.Pair{V6: closedSocket{}}}, Addresses: func() []netip.Addr {
			return []netip.Addr{aliceAddr, alice6}
		}})
		c := NewConnection(AgentConfig{Mux: m, Mailbox: NewMailbox()})
		start(t, c, 1, silentCandidate(1), "2 1 udp 1 2001:db8::9 7 typ srflx raddr :: rport 9")
		time.Sleep(time.Second)
		if drops(m, dropSendFailed) == 0 {
			t.Error("not counted")
		}
		c.Close()
		m.Close()
	})
}

type closedSocket struct{ udp.Socket }

func (closedSocket) SendOne(udp.Run) error { return udp.ErrClosed }
func (closedSocket) LocalPort() uint16     { return 7 }
