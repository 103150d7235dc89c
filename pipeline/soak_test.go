//go:build soak

package pipeline

import (
	"encoding/binary"
	"testing"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/tun"
	"github.com/sluice-vpn/sluice/tun/ip"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// TestSoakPackets carries 100 million packets through both lanes. Each arrives once and in order, and every message has the
// counter after the one before.
func TestSoakPackets(t *testing.T) {
	const packets, batch = 100_000_000, 200
	l := newLanes(t, 0, tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 0, 20)}, laneInner)
	at := ip.IPv4HeaderLen + ip.UDPHeaderLen
	sent, received := uint64(0), uint64(0)
	l.a.config.Device.(*tuntest.Device).Queue(0).SetSource(func(p *tun.Superpacket) bool {
		if l.supply == 0 {
			return false
		}
		l.supply--
		p.Data = p.Buf[tun.ReadHeadroom:][:copy(p.Buf[tun.ReadHeadroom:], l.source.Data)]
		binary.BigEndian.PutUint64(p.Data[at:], sent)
		binary.BigEndian.PutUint16(p.Data[4:], uint16(sent))
		ip.IPv4(p.Data).SetChecksum()
		sent++
		return true
	})
	l.b.config.Device.(*tuntest.Device).Queue(0).SetSink(func(r *tun.Run) error {
		for i, piece := range r.Pieces {
			if i == 0 {
				piece = piece[at:]
			}
			if got := binary.BigEndian.Uint64(piece); got != received {
				t.Fatalf("packet %d arrived where %d was due", got, received)
			}
			received++
		}
		return nil
	})
	next := uint64(1) // 0 was the keepalive that confirmed the keys
	for sent < packets {
		l.supply = batch
		if _, err := l.a.shards[0].outbound.run(l.now); err != nil {
			t.Fatal(err)
		}
		for _, r := range l.wire.runs {
			for b := r.Data; len(b) > 0; b = b[r.SegmentSize:] {
				if _, counter, ok := crypto.ParseTransport(b); !ok || counter != next {
					t.Fatalf("counter %d where %d was due", counter, next)
				}
				next++
			}
		}
		for len(l.wire.runs) > 0 {
			if _, err := l.b.shards[0].inbound.run(l.now, l.wire); err != nil {
				t.Fatal(err)
			}
		}
	}
	if received != sent {
		t.Errorf("%d of %d packets arrived", received, sent)
	}
}
