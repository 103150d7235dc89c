package udp

import (
	"fmt"
	"testing"
)

// BenchmarkBlast sends batches over loopback and receives them on the same goroutine: what one core pays for a byte at
// this edge, both directions together.
func BenchmarkBlast(b *testing.B) {
	for _, kind := range []struct {
		name string
		cfg  Config
	}{
		{"offloads", Config{}}, {"offloads, timestamps", Config{Timestamps: true}},
		{"batches", Config{NoSegment: true, NoGRO: true}}, {"batches, timestamps", Config{NoSegment: true, NoGRO: true, Timestamps: true}},
		{"portable", Config{Portable: true}},
	} {
		for _, size := range []int{100, 1452} {
			b.Run(fmt.Sprintf("%s/%d", kind.name, size), func(b *testing.B) { blast(b, kind.cfg, size) })
		}
	}
}

func blast(b *testing.B, cfg Config, size int) {
	from, to := open(b, cfg).V4, open(b, cfg).V4
	const segments, count = 40, 8
	runs := make([]Run, count)
	for i := range runs {
		runs[i] = Run{Data: make([]byte, segments*size), SegmentSize: size, Dst: loopback(to, v4)}
	}
	batch := newCollector().batch
	b.SetBytes(count * segments * int64(size))
	b.ReportAllocs()
	for b.Loop() {
		sendAll(b, from, runs)
		for left := count * segments * size; left > 0; {
			n, err := to.Receive(batch)
			if err != nil {
				b.Fatal(err)
			}
			for i := range batch[:n] {
				left -= len(batch[i].Data)
			}
			if n == 0 {
				waitReadable(to)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(count*segments), "ns/datagram")
}
