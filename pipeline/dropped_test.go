package pipeline

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/tun/ip"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// What was dropped of a peer is told with the flow of the latest, of both families, and of a packet that nobody has opened without one.
func TestPeerDrops(t *testing.T) {
	var d peerDrops
	if got := d.read(5); got.Counts != nil || got.Last != "" {
		t.Errorf("of none: %+v", got)
	}
	four, six := laneInner, [2]netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")}
	fragment := datagram(four[0], four[1], 1, 100)
	fragment[7] = 1 // not the first
	ping := datagram(four[0], four[1], 1, 100)
	ping[9] = ip.ProtocolICMP
	for i, tt := range []struct {
		why    dropReason
		n      int
		packet []byte
		want   string
		flow   Flow
	}{
		{dropStagedFull, 3, datagram(four[0], four[1], 1, 100), "drop_staged_full", Flow{17, netip.AddrPortFrom(four[0], 1000), netip.AddrPortFrom(four[1], 2000)}},
		{dropStagedExpired, 1, datagram(six[0], six[1], 1, 100), "drop_staged_expired", Flow{17, netip.AddrPortFrom(six[0], 1000), netip.AddrPortFrom(six[1], 2000)}},
		{dropReplayed, 0, fragment, "drop_staged_expired", Flow{17, netip.AddrPortFrom(six[0], 1000), netip.AddrPortFrom(six[1], 2000)}},
		{dropECN, 1, fragment, "drop_ecn", Flow{17, netip.AddrPortFrom(four[0], 0), netip.AddrPortFrom(four[1], 0)}},
		{dropSourceNotAllowed, 1, ping, "drop_source_not_allowed", Flow{1, netip.AddrPortFrom(four[0], 0), netip.AddrPortFrom(four[1], 0)}},
		{dropInnerMalformed, 1, []byte{0x45, 0, 0}, "drop_inner_malformed", Flow{}},
		{dropUnauthentic, 2, nil, "drop_unauthentic", Flow{}},
	} {
		now := time.Duration(i+1) * time.Second
		d.note(now, tt.why, tt.n, tt.packet)
		got := d.read(now + 500*time.Millisecond)
		if got.Last != tt.want || got.Flow != tt.flow || tt.n > 0 && (got.Counts[tt.want] != uint64(tt.n) || got.Ago != 500*time.Millisecond) {
			t.Errorf("%d: %+v, want %s %d of %v", i, got, tt.want, tt.n, tt.flow)
		}
	}
	var heir peerDrops
	heir.inherit(&d)
	if got, want := heir.read(time.Minute), d.read(time.Minute); got.Last != want.Last || len(got.Counts) != len(want.Counts) || got.Ago != want.Ago {
		t.Errorf("inherited %+v of %+v", got, want)
	}
	packet := datagram(six[0], six[1], 1, 100)
	if n := testing.AllocsPerRun(100, func() { d.note(1, dropStagedFull, 1, packet) }); n > 0 {
		t.Errorf("%v allocations a drop", n)
	}
}

// Lanes of several shards write at once: no count is lost, and what is told of the last drop is of one packet.
func TestPeerDropsTogether(t *testing.T) {
	var d peerDrops
	var lanes, reader sync.WaitGroup
	const each = 20000
	for lane := range 4 {
		a := netip.AddrFrom4([4]byte{10, 0, byte(lane), byte(lane)})
		packet := datagram(a, a, lane, 100)
		lanes.Go(func() {
			for range each {
				d.note(time.Duration(lane+1), dropReason(lane), 1, packet)
			}
		})
	}
	done := make(chan struct{})
	reader.Go(func() {
		for {
			got := d.read(100)
			if a := got.Flow.Src.Addr(); got.Last != "" {
				lane := a.As4()[2]
				if a != got.Flow.Dst.Addr() || got.Last != "drop_"+dropTable[lane].reason || got.Ago != 100-time.Duration(lane+1) {
					t.Errorf("of several packets: %+v", got)
				}
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	lanes.Wait()
	close(done)
	reader.Wait()
	for lane := range 4 {
		if got := d.counts[lane].Load(); got != each {
			t.Errorf("lane %d: %d drops, want %d", lane, got, each)
		}
	}
}

// What the lanes drop of a peer is in its account and in that of all, in both directions and families, and costs no allocation.
func TestDropsOfPeer(t *testing.T) {
	for name, inner := range map[string][2]netip.Addr{"IPv4": laneInner, "IPv6": {netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")}} {
		packet := tuntest.Packet{Data: datagram(inner[0], inner[1], 1, 100)}
		l := newLanes(t, 0, packet, inner)
		(&Edit{l.b.control}).SetDestinations([]netip.Addr{})
		const n = 5
		l.carry(t, n)
		got := l.b.control.controller.status(l.now)[0].Drops
		all := l.b.shards[0].stats.drops[dropDestinationNotOwn].Load()
		if all != n || got.Counts["drop_destination_not_own"] != n || len(got.Counts) != 1 || got.Flow.Src.Addr() != inner[0] || got.Flow.Dst.Addr() != inner[1] {
			t.Errorf("%s, inbound: %+v of %d, want %d from %v to %v", name, got, all, n, inner[0], inner[1])
		}
		if allocs := testing.AllocsPerRun(10, func() { l.carry(t, n) }); allocs > 0 {
			t.Errorf("%s: %v allocations for %d drops", name, allocs, n)
		}
		for _, p := range l.a.control.controller.peers {
			p.path.Store(nil)
		}
		l.carry(t, n)
		got = l.a.control.controller.status(l.now)[0].Drops
		if got.Counts["drop_no_endpoint"] != n || got.Last != "drop_no_endpoint" || got.Flow.Dst.Addr() != inner[1] {
			t.Errorf("%s, outbound: %+v, want %d without an endpoint", name, got, n)
		}
	}
}
