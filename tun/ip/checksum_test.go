package ip

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// sumPlain is the slow twin: RFC 1071, section 4.1, word by word.
func sumPlain(b []byte, initial uint16) uint16 {
	acc := uint64(initial)
	for i := 0; i+1 < len(b); i += 2 {
		acc += uint64(b[i])<<8 | uint64(b[i+1])
	}
	if len(b)%2 == 1 {
		acc += uint64(b[len(b)-1]) << 8
	}
	for acc > 0xffff {
		acc = acc>>16 + acc&0xffff
	}
	return uint16(acc)
}

func TestSumVector(t *testing.T) {
	// RFC 1071, section 3.
	b := []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}
	if got := Sum(b, 0); got != 0xddf2 {
		t.Errorf("Sum = %#x, want 0xddf2", got)
	}
}

// implementations are tried by name, whatever Sum chooses.
func implementations(t *testing.T) map[string]func(dst, b []byte, initial uint16) uint16 {
	all := map[string]func(dst, b []byte, initial uint16) uint16{
		"words":   func(_, b []byte, initial uint16) uint16 { return sumWords(b, initial) },
		"Sum":     func(_, b []byte, initial uint16) uint16 { return Sum(b, initial) },
		"CopySum": CopySum,
	}
	if !vectors {
		t.Log("SKIPPED: no AVX2 on this machine, or built with purego")
		return all
	}
	all["vectors"] = func(_, b []byte, initial uint16) uint16 {
		if n := len(b) &^ 63; n > 0 {
			return Add(fold(sumVectors(b[:n])), sumWords(b[n:], initial))
		}
		return sumWords(b, initial)
	}
	all["copy vectors"] = func(dst, b []byte, initial uint16) uint16 {
		if n := len(b) &^ 63; n > 0 {
			return Add(fold(copySumVectors(dst[:n], b[:n])), sumWords(b[n:], initial))
		}
		return sumWords(b, initial)
	}
	return all
}

func TestSumTwin(t *testing.T) {
	sums := implementations(t)
	random := rand.New(rand.NewPCG(1, 2))
	b, dst := make([]byte, 2048+64), make([]byte, 2048+64)
	for fill := range 3 {
		for i := range b {
			b[i] = []byte{0xff, 0, byte(random.Uint32())}[fill]
		}
		for n := range 600 {
			for _, initial := range []uint16{0, 1, 0xff00, 0xfffe, 0xffff} {
				p := b[n%9 : n%9+n]
				want := sumPlain(p, initial)
				for name, sum := range sums {
					if got := sum(dst, p, initial); got != want {
						t.Fatalf("%s, fill %d, %d bytes, initial %#x: %#x, want %#x", name, fill, n, initial, got, want)
					}
				}
			}
		}
	}
}

func TestCopySum(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for n := range 3000 {
		src := make([]byte, n)
		for i := range src {
			src[i] = byte(random.Uint32())
		}
		dst := make([]byte, n+8)
		sum := CopySum(dst, src, uint16(n))
		if want := sumPlain(src, uint16(n)); sum != want {
			t.Fatalf("%d bytes: %#x, want %#x", n, sum, want)
		}
		if !bytes.Equal(dst[:n], src) || !bytes.Equal(dst[n:], make([]byte, 8)) {
			t.Fatalf("%d bytes: copied wrongly, or too much", n)
		}
	}
}

func TestAdd(t *testing.T) {
	for _, c := range [][3]uint16{{0, 0, 0}, {0xffff, 0xffff, 0xffff}, {0xffff, 1, 1}, {0x8000, 0x8000, 1}, {2, 3, 5}} {
		if got := Add(c[0], c[1]); got != c[2] {
			t.Errorf("Add(%#x, %#x) = %#x, want %#x", c[0], c[1], got, c[2])
		}
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint16(4))
	f.Add(bytes.Repeat([]byte{0xff}, 130), uint16(0xffff))
	f.Fuzz(func(t *testing.T, b []byte, initial uint16) {
		want := sumPlain(b, initial)
		if got := Sum(b, initial); got != want {
			t.Errorf("Sum %#x, want %#x", got, want)
		}
		dst := make([]byte, len(b))
		if got := CopySum(dst, b, initial); got != want || !bytes.Equal(dst, b) {
			t.Errorf("CopySum %#x, want %#x", got, want)
		}
	})
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{40, 1400, 65000} {
		p := make([]byte, n)
		b.Run(size(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				Sum(p, 0)
			}
		})
		b.Run(size(n)+"/words", func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				sumWords(p, 0)
			}
		})
	}
}

func BenchmarkCopySum(b *testing.B) {
	for _, n := range []int{40, 100, 128, 1400, 9000} {
		b.Run(size(n), func(b *testing.B) {
			src, dst := make([]byte, n), make([]byte, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				CopySum(dst, src, 0)
			}
		})
	}
}

func BenchmarkCopy(b *testing.B) {
	src, dst := make([]byte, 1400), make([]byte, 1400)
	b.SetBytes(1400)
	for b.Loop() {
		copy(dst, src)
	}
}

func size(n int) string { return fmt.Sprintf("%dB", n) }
