package aead

import (
	"fmt"
	"testing"
	"unsafe"
)

func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// benchmarkRuns returns a run of size packets of n bytes to seal and one to open, both out of place and repeatable.
func benchmarkRuns(c Cipher, size, n int) (seal, open []Packet) {
	stride := (n+Overhead+63)&^63 + 64
	texts, sealed, opened := make([]byte, size*stride), make([]byte, size*stride), make([]byte, size*stride)
	for i := range size {
		at := i * stride
		seal = append(seal, Packet{Dst: sealed[at : at+n+Overhead], Src: texts[at : at+n], Counter: uint64(i)})
		open = append(open, Packet{Dst: opened[at : at+n], Src: sealed[at : at+n+Overhead], Counter: uint64(i)})
	}
	c.Seal(seal)
	return seal, open
}

// BenchmarkSeal and BenchmarkOpen report ns/packet for runs of equal packets that stay in the cache.
func BenchmarkSeal(b *testing.B) {
	benchmark(b, func(c Cipher, seal, _ []Packet) { c.Seal(seal) })
}

func BenchmarkOpen(b *testing.B) {
	benchmark(b, func(c Cipher, _, open []Packet) {
		if c.Open(open) != len(open) {
			b.Fatal("not OK")
		}
	})
}

func benchmark(b *testing.B, call func(c Cipher, seal, open []Packet)) {
	for _, n := range []int{64, 128, 256, 576, 1420} {
		for _, size := range []int{1, 2, 4, 8, 16, 45} {
			for _, impl := range Implementations() {
				b.Run(fmt.Sprintf("bytes=%d/run=%d/impl=%s", n, size, impl.Name), func(b *testing.B) {
					if !impl.Available {
						b.Skipf("this build or processor has no %s", impl.Name)
					}
					c := impl.New(testKey())
					seal, open := benchmarkRuns(c, size, n)
					b.SetBytes(int64(size * n))
					b.ReportAllocs()
					for b.Loop() {
						call(c, seal, open)
					}
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(size), "ns/packet")
				})
			}
		}
	}
}
