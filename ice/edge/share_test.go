package edge

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

// greedy is a member that only signals, and takes what it can get of a gateway.
type greedy struct {
	*mute
	key        crypto.PublicKey
	generation uint64
	random     *rand.Rand
}

func (w *world) greedy(number uint16) *greedy {
	g := &greedy{
		mute: w.mute(fmt.Sprint("greedy-", number), protocol.Client), random: rand.New(rand.NewPCG(1, uint64(number))),
		key: crypto.PrivateKey{200, byte(number), byte(number >> 8)}.Public(),
	}
	w.portal.change(func() {
		w.portal.nodes[g.name] = &entry{role: protocol.Client, number: number, key: protocol.Key(g.key)}
	})
	return g
}

// offer begins another attempt, with 16 addresses that nobody has heard of.
func (g *greedy) offer(to string) {
	g.generation++
	msg := signal.Message{
		Kind: signal.Offer, Generation: g.generation, Agent: 1, PublicKey: g.key,
		Ufrag: "abcdefgh", Pwd: "abcdefghijklmnopqrstuvwxyz", End: true,
	}
	for i := range 16 {
		msg.Candidates = append(msg.Candidates, fmt.Sprintf("%d 1 udp 2130706431 198.18.%d.%d %d typ host",
			i+1, g.random.IntN(256), g.random.IntN(256), 1024+g.random.IntN(60000)))
	}
	_ = g.Send(context.Background(), to, msg) // the gateway may be behind
}

// grants is what a relay counts of the gateway's allocation, as relay.Config.PeersPerAllocation bounds it.
type grants struct {
	limit                 int
	permissions, channels map[string]bool
	refused               int
}

// pass tells whether a datagram is granted: it drops what asks for more permissions or channels than there are.
func (g *grants) pass(d *udptest.Datagram) bool {
	const createPermission, channelBind, xorPeerAddress = 0x0008, 0x0009, 0x0012
	if d.Dst.Port() != 3478 || len(d.Data) < 20 {
		return true
	}
	taken, from := g.permissions, 4 // in the attribute, where the address without its port is
	switch binary.BigEndian.Uint16(d.Data) {
	case createPermission:
	case channelBind:
		taken, from = g.channels, 2
	default:
		return true
	}
	for at := 20; at+12 <= len(d.Data); at += 4 + (int(binary.BigEndian.Uint16(d.Data[at+2:]))+3)&^3 {
		if binary.BigEndian.Uint16(d.Data[at:]) != xorPeerAddress {
			continue
		}
		k := string(d.Data[at+4+from : at+12])
		if !taken[k] && len(taken) == g.limit {
			g.refused++
			return false
		}
		taken[k] = true
	}
	return true
}

// Whoever names addresses without end takes nothing from others: all clients of a gateway that reaches nothing but its relay connect,
// beside 20 that make attempts as fast as the gateway takes them.
func TestGreedyPeers(t *testing.T) {
	clients, bad := 280, 20
	if race {
		clients, bad = 40, 20
	}
	run(t, signal.Faults{}, func(w *world) {
		one, _ := w.relayNamed("north", 1)
		w.portal.relays = []protocol.Relay{one}
		g := w.node("gate", protocol.Gateway)
		granted := &grants{limit: 1024, permissions: map[string]bool{}, channels: map[string]bool{}}
		w.network.Hook(func(d *udptest.Datagram) bool {
			confined := d.Src.Addr() == g.outer() && d.Dst.Port() != 3478 || d.Dst.Addr() == g.outer() && d.Src.Port() != 3478
			return !confined && (d.Src.Addr() != g.outer() || granted.pass(d))
		})
		var greed []*greedy
		for i := range bad {
			greed = append(greed, w.greedy(uint16(60000+i)))
		}
		flooding, over := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(over)
			for {
				for _, k := range greed {
					k.offer("gate")
				}
				select {
				case <-flooding:
					return
				case <-time.After(1100 * time.Millisecond):
				}
			}
		}()
		time.Sleep(15 * time.Second)
		synctest.Wait()
		t.Logf("%d permissions and %d channels taken before anybody else has come", len(granted.permissions), len(granted.channels))
		var honest []*node
		for i := range clients {
			honest = append(honest, w.node(fmt.Sprint("laptop-", i), protocol.Client))
			time.Sleep(50 * time.Millisecond)
		}
		connected := func() (n int) {
			s, err := g.edge.Status(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range s.Connections {
				if c.State == "up" || c.State == "idle" {
					n++
				}
			}
			return n
		}
		for end := time.Now().Add(time.Minute); connected() < clients && time.Now().Before(end); {
			time.Sleep(time.Second)
		}
		if n := connected(); n != clients {
			t.Errorf("%d clients are connected, want %d; %d channels, %d refused", n, clients, len(granted.channels), granted.refused)
		}
		w.carries(honest[0], g)
		w.carries(honest[clients-1], g)
		t.Logf("%d permissions, %d channels, %d refused, after %v", len(granted.permissions), len(granted.channels), granted.refused, time.Since(w.start))
		close(flooding)
		<-over
	})
}

// However many peers come with keys that the portal does not have, the portal is asked some times a second for all of them, and who
// comes with the right one meanwhile connects as ever.
func TestQuestionsAreShared(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		var greed []*greedy
		for i := range 20 {
			k := w.greedy(uint16(60000 + i))
			k.key = crypto.PrivateKey{201, byte(i)}.Public()
			greed = append(greed, k)
		}
		time.Sleep(time.Second)
		before, began := w.portal.questions(), time.Now()
		flood := func() {
			for _, k := range greed {
				k.offer("gate")
			}
			time.Sleep(100 * time.Millisecond)
		}
		for range 100 {
			flood()
		}
		if n, most := w.portal.questions()-before, 5+asksPerSecond*int(time.Since(began)/time.Second)+1; n < 10 || n > most {
			t.Errorf("%d questions in %v, want 10 at least and %d at most", n, time.Since(began), most)
		}
		c := w.node("laptop", protocol.Client)
		began = time.Now()
		for !up(c, g) && time.Since(began) < 5*time.Second {
			flood()
		}
		if !up(c, g) {
			t.Errorf("not connected in 5 s: %s", g.log)
		}
	})
}
