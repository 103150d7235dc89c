package pipeline

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// Of a flood through a tunnel every packet is accounted for: what was sent has been received, or is in a counter that says where it
// was lost. The reader of the second node's socket is made slow by a small buffer, and the first node's TUN by a flood that
// is faster than sealing.
func TestFloodIsAccountedFor(t *testing.T) {
	const floods, packets = 8, 40_000
	nodes := newLabPairWith(t, 1, udp.Config{Port: 9000, ReceiveBuffer: 1 << 16, NoGRO: true, NoSegment: true})
	echo(t, nodes)
	var client net.Conn
	err := nodes[0].ns.Run(func() (err error) {
		client, err = net.Dial("udp4", netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 2}), 9).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	before := accounted(t, nodes)
	sent := uint64(0)
	payload := make([]byte, 1000)
	for range floods {
		for range packets / floods {
			if _, err := client.Write(payload); err == nil { // else it is the ICMP error of an earlier one
				sent++
			}
		}
	}
	var got accounts
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		got = accounted(t, nodes).since(before)
		if total := got.received + got.lost; within(total, sent, 1000) || time.Now().After(deadline) {
			break
		}
	}
	t.Logf("%d sent: %d received, %d lost: %v", sent, got.received, got.lost, got.where)
	if !within(got.received+got.lost, sent, 1000) {
		t.Errorf("%d sent, but %d received and %d in counters of what was lost: %v", sent, got.received, got.lost, got.where)
	}
	if got.lost == 0 {
		t.Error("nothing was lost: this was no flood")
	}
}

// within says whether a is b but for one part in so many.
func within(a, b, parts uint64) bool {
	return max(a, b)-min(a, b) <= b/parts
}

// accounts says where packets that were sent from the first node have got to.
type accounts struct {
	received, lost uint64
	where          map[string]uint64
}

func accounted(t *testing.T, nodes [2]labNode) accounts {
	t.Helper()
	a := accounts{where: make(map[string]uint64)}
	for i, n := range nodes {
		s, err := n.Status()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range s.Lost {
			a.where[string(rune('a'+i))+" "+c.Name] = c.Value
			a.lost += c.Value
		}
	}
	a.received = nodes[1].shards[0].queue.Stats().WriteSegments.Load()
	return a
}

func (a accounts) since(b accounts) accounts {
	d := accounts{received: a.received - b.received, lost: a.lost - b.lost, where: make(map[string]uint64)}
	for name, value := range a.where {
		if value > b.where[name] {
			d.where[name] = value - b.where[name]
		}
	}
	return d
}
