package pipeline

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/sluice-vpn/sluice/pipeline/frame"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// sealed returns n messages that A sealed for B, each a datagram of its own.
func (l *lanes) sealed(tb testing.TB, n int) (messages [][]byte) {
	tb.Helper()
	for l.supply = n; l.supply > 0; {
		if _, err := l.a.shards[0].outbound.run(l.now); err != nil {
			tb.Fatal(err)
		}
	}
	for _, r := range l.wire.runs {
		for data := r.Data; len(data) > 0; {
			size := min(r.SegmentSize, len(data))
			messages = append(messages, bytes.Clone(data[:size]))
			data = data[size:]
		}
	}
	l.wire.runs, l.wire.bytes = l.wire.runs[:0], l.wire.bytes[:0]
	return messages
}

// forge returns a copy of a message that differs in one byte behind the header.
func forge(message []byte, at int) []byte {
	m := bytes.Clone(message)
	m[16+at%(len(m)-16)] ^= 1
	return m
}

// Of genuine messages among forged ones, each alone or in runs, all and only the genuine come out, in their order; each forged
// one is counted.
func TestForgedBetweenGenuine(t *testing.T) {
	for _, workers := range []int{0, 2} {
		for _, run := range []int{1, 3, 20} { // datagrams a message
			t.Run(fmt.Sprintf("%d workers, runs of %d", workers, run), func(t *testing.T) {
				random := rand.New(rand.NewPCG(31, uint64(run)))
				payload := datagram(laneInner[0], laneInner[1], 1, 600)
				l := newLanes(t, workers, tuntest.Packet{Data: payload}, laneInner)
				var order []byte // the counters that came out, by the number in each payload
				l.b.config.Device.(*tuntest.Device).Queue(0).SetSink(func(r *tun.Run) error {
					for _, piece := range r.Pieces {
						order = append(order, piece[len(piece)-1])
					}
					return nil
				})
				var stream [][]byte
				forged := 0
				for i := range 100 {
					l.source.Data = bytes.Clone(payload)
					l.source.Data[len(payload)-1] = byte(i)
					genuine := l.sealed(t, 1)[0]
					for range random.IntN(4) {
						stream = append(stream, forge(genuine, int(random.Uint32()>>1)))
						forged++
					}
					stream = append(stream, genuine)
				}
				for len(stream) > 0 {
					n := min(run, len(stream))
					l.wire.Send([]udp.Run{{Data: bytes.Join(stream[:n], nil), SegmentSize: len(stream[0])}})
					stream = stream[n:]
				}
				for len(l.wire.runs) > 0 {
					if _, err := l.b.shards[0].inbound.run(l.now, l.wire); err != nil {
						t.Fatal(err)
					}
				}
				for i := range 100 {
					if i >= len(order) || order[i] != byte(i) {
						t.Fatalf("packets %v came out, want 0 to 99", order)
					}
				}
				stats := l.b.shards[0].stats
				if got := stats.drops[dropUnauthentic].Load(); got != uint64(forged) || len(order) != 100 {
					t.Errorf("%d forged and %d genuine, want %d and 100", got, len(order), forged)
				}
			})
		}
	}
}

// BenchmarkForged is what a forged message costs once the kernel has handed it over: with the receiver index of a session, and
// with none; relayed is from a relay, in ChannelData. One operation is one message, each in a datagram of its own.
func BenchmarkForged(b *testing.B) {
	for _, size := range []int{100, 1380} {
		for _, kind := range []string{"index known true", "index known false", "relayed"} {
			b.Run(fmt.Sprintf("%dB, %s", size, kind), func(b *testing.B) {
				l := newLanes(b, 0, tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, size)}, laneInner)
				message := forge(l.sealed(b, 1)[0], 7)
				switch kind {
				case "index known false":
					binary.LittleEndian.PutUint32(message[4:], 1+binary.LittleEndian.Uint32(message[4:]))
				case "relayed":
					l.b.SetRelays([]netip.AddrPort{l.wire.from.Src})
					message = append(make([]byte, frame.ChannelHeaderSize), message...)
					frame.PutChannelHeader(message, 0x4000, uint16(len(message)-frame.ChannelHeaderSize))
				}
				b.ReportAllocs()
				for done := 0; done < b.N; done += receiveMessages {
					for range receiveMessages {
						l.wire.Send([]udp.Run{{Data: message, SegmentSize: len(message)}})
					}
					if _, err := l.b.shards[0].inbound.run(l.now, l.wire); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
