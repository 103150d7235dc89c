package aead

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"
)

// forEach runs a test for every implementation by name and says which ones this machine lacks.
func forEach(t *testing.T, test func(t *testing.T, impl Implementation)) {
	for _, impl := range Implementations() {
		t.Run(impl.Name, func(t *testing.T) {
			if !impl.Available {
				t.Skipf("NOT TESTED: this build or processor has no %s", impl.Name)
			}
			test(t, impl)
		})
	}
}

func testKey() *[KeySize]byte {
	var key [KeySize]byte
	for i := range key {
		key[i] = byte(0x80 + i)
	}
	return &key
}

// reference seals one packet with x/crypto alone, not through this package.
func reference(t testing.TB, key *[KeySize]byte, counter uint64, text []byte) []byte {
	t.Helper()
	aead, err := chacha20poly1305.New(key[:])
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, 12)
	binary.LittleEndian.PutUint64(nonce[4:], counter)
	return aead.Seal(nil, nonce, text, nil)
}

// layout says where a test packet lies in memory.
type layout struct {
	inPlace bool
	srcAt   int // offset from a 64-byte boundary, 0..63
	dstAt   int
	pad     int  // zeros behind the plaintext
	fill    byte // of the memory around Dst, which must stay as it is
}

// sample is a test packet with what it must become.
type sample struct {
	layout
	text, sealed []byte // sealed is of text with pad zeros behind
	counter      uint64
	arena        []byte // around Dst
	dst          []byte
}

// aligned returns n bytes that start at offset at from a 64-byte boundary, inside an arena filled with fill.
func aligned(n, at int, fill byte) (arena, b []byte) {
	arena = bytes.Repeat([]byte{fill}, n+192)
	skip := int(-addressOf(arena)&63) + 64 + at
	return arena, arena[skip : skip+n : skip+n]
}

// noise is bytes to make texts of.
var noise = sync.OnceValue(func() []byte {
	rng := rand.New(rand.NewPCG(29, 30))
	b := make([]byte, 2*maxDst)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	return b
})

func newSample(t testing.TB, key *[KeySize]byte, rng *rand.Rand, n int, counter uint64, l layout) *sample {
	s := &sample{layout: l, counter: counter, text: make([]byte, n)}
	copy(s.text, noise()[rng.IntN(maxDst):])
	s.sealed = reference(t, key, counter, append(bytes.Clone(s.text), make([]byte, l.pad)...))
	return s
}

func (s *sample) place(n, srcLen int) (dst, src []byte) {
	s.arena, s.dst = aligned(n, s.dstAt, s.fill)
	if s.inPlace {
		return s.dst, s.dst[:srcLen]
	}
	_, src = aligned(srcLen, s.srcAt, 0xEE)
	return s.dst, src
}

func (s *sample) sealPacket() Packet {
	dst, src := s.place(len(s.text)+s.pad+Overhead, len(s.text))
	copy(src, s.text)
	return Packet{Dst: dst, Src: src, Counter: s.counter}
}

func (s *sample) openPacket() Packet {
	dst, src := s.place(len(s.sealed), len(s.sealed))
	copy(src, s.sealed)
	if !s.inPlace {
		dst = dst[:len(s.sealed)-Overhead]
	}
	return Packet{Dst: dst, Src: src, Counter: s.counter}
}

// checkArena fails if a byte outside dst[:n] changed.
func (s *sample) checkArena(t testing.TB, n int) {
	t.Helper()
	start := int(addressOf(s.dst) - addressOf(s.arena))
	before, behind := s.arena[:start], s.arena[start+n:]
	fill := bytes.Repeat([]byte{s.fill}, max(len(before), len(behind)))
	if !bytes.Equal(before, fill[:len(before)]) || !bytes.Equal(behind, fill[:len(behind)]) {
		t.Fatalf("a byte outside of Dst (length %d) was overwritten", n)
	}
}

func (s *sample) checkSealed(t testing.TB, p *Packet) {
	t.Helper()
	if !bytes.Equal(p.Dst, s.sealed) {
		t.Fatalf("Seal: length %d, counter %#x, %+v: wrong from byte %d on",
			len(s.text), s.counter, s.layout, firstDifference(p.Dst, s.sealed))
	}
	s.checkArena(t, len(s.sealed))
}

func (s *sample) checkOpened(t testing.TB, p *Packet) {
	t.Helper()
	n := len(s.sealed) - Overhead
	if !p.OK {
		t.Fatalf("Open: length %d, counter %#x, %+v: not OK", n, s.counter, s.layout)
	}
	if want := append(bytes.Clone(s.text), make([]byte, s.pad)...); !bytes.Equal(p.Dst[:n], want) {
		t.Fatalf("Open: length %d, counter %#x, %+v: wrong from byte %d on",
			n, s.counter, s.layout, firstDifference(p.Dst[:n], want))
	}
	if s.inPlace {
		n += Overhead // the tag is inside the arena and not the fill
	}
	s.checkArena(t, n)
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// roundTrip seals and opens a run of samples and compares each byte with the reference.
func roundTrip(t testing.TB, c Cipher, samples []*sample) {
	t.Helper()
	run := make([]Packet, len(samples))
	for i, s := range samples {
		run[i] = s.sealPacket()
	}
	c.Seal(run)
	for i, s := range samples {
		s.checkSealed(t, &run[i])
	}
	for i, s := range samples {
		run[i] = s.openPacket()
	}
	if n := c.Open(run); n != len(run) {
		t.Fatalf("Open returned %d for a run of %d good packets", n, len(run))
	}
	for i, s := range samples {
		s.checkOpened(t, &run[i])
	}
}

func TestEveryLength(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		key := testKey()
		c := impl.New(key)
		rng := rand.New(rand.NewPCG(1, 2))
		for n := 0; n <= 4096; n++ {
			run := make([]*sample, 1+n%(9-n/600))
			for i := range run {
				run[i] = newSample(t, key, rng, n, uint64(n*16+i), layout{
					inPlace: (n+i)%2 == 0, srcAt: (n + 5*i) % 64, dstAt: (3*n + i) % 64, fill: 0xA5,
				})
			}
			roundTrip(t, c, run)
		}
	})
}

func TestEveryAlignment(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		key := testKey()
		c := impl.New(key)
		rng := rand.New(rand.NewPCG(3, 4))
		for _, n := range []int{1, 15, 16, 63, 64, 65, 100, 255, 1420} {
			for at := range 64 {
				var run []*sample
				for i := range 9 {
					run = append(run, newSample(t, key, rng, n, uint64(i), layout{
						inPlace: i%3 == 0, srcAt: at, dstAt: (at * (i + 1)) % 64, fill: 0x5A,
					}))
				}
				roundTrip(t, c, run)
			}
		}
	})
}

func TestRunLengths(t *testing.T) {
	const mixed = -1
	forEach(t, func(t *testing.T, impl Implementation) {
		key := testKey()
		c := impl.New(key)
		rng := rand.New(rand.NewPCG(5, 6))
		for size := 0; size <= 130; size++ {
			for _, equal := range []int{0, 64, 300, mixed} {
				run := make([]*sample, size)
				for i := range run {
					n := equal
					if n == mixed {
						n = []int{0, 1, 48, 64, 80, 128, 576, 1420}[rng.IntN(8)]
					}
					run[i] = newSample(t, key, rng, n, rng.Uint64(), layout{inPlace: i%2 == 0, fill: 1})
				}
				roundTrip(t, c, run)
			}
		}
	})
}

func TestMixedLengths(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		key := testKey()
		c := impl.New(key)
		rng := rand.New(rand.NewPCG(7, 8))
		for range 300 {
			run := make([]*sample, 1+rng.IntN(50))
			for i := range run {
				n := rng.IntN(200)
				if rng.IntN(4) == 0 {
					n = rng.IntN(9200)
				}
				run[i] = newSample(t, key, rng, n, rng.Uint64(), layout{
					inPlace: rng.IntN(2) == 0, srcAt: rng.IntN(64), dstAt: rng.IntN(64),
					pad: rng.IntN(2) * rng.IntN(17), fill: 0xC3,
				})
			}
			roundTrip(t, c, run)
		}
	})
}

func TestPadding(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		key := testKey()
		c := impl.New(key)
		rng := rand.New(rand.NewPCG(9, 10))
		for n := range 140 {
			var run []*sample
			for pad := range 20 {
				run = append(run, newSample(t, key, rng, n, uint64(pad), layout{
					inPlace: pad%2 == 0, pad: pad * (1 + pad/15*31), fill: 0xFF,
				}))
			}
			roundTrip(t, c, run)
		}
	})
}

func TestLongest(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		key := testKey()
		c := impl.New(key)
		rng := rand.New(rand.NewPCG(11, 12))
		var run []*sample
		for i := range 10 {
			run = append(run, newSample(t, key, rng, maxDst-Overhead-i%3, uint64(i), layout{inPlace: i%2 == 0}))
		}
		roundTrip(t, c, run)
	})
}

// A counter's upper half is a nonce word of its own: a carry between the halves must not be lost, nor one be made up.
func TestCounters(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		key := testKey()
		c := impl.New(key)
		rng := rand.New(rand.NewPCG(13, 14))
		for _, first := range []uint64{0, 1<<31 - 8, 1<<32 - 8, 1<<33 - 8, 1<<63 - 8, ^uint64(0) - 7} {
			for _, n := range []int{0, 64, 500} {
				run := make([]*sample, 17)
				for i := range run {
					run[i] = newSample(t, key, rng, n, first+uint64(i), layout{inPlace: i%2 == 0})
				}
				roundTrip(t, c, run)
			}
		}
	})
}

func TestForged(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		key := testKey()
		c := impl.New(key)
		rng := rand.New(rand.NewPCG(15, 16))
		for _, size := range []int{1, 2, 7, 8, 16, 19} {
			for bit := range 128 {
				forgeOne(t, c, key, rng, size, bit)
			}
		}
	})
}

// forgeOne flips one bit of one packet's tag or ciphertext: only that packet fails.
func forgeOne(t *testing.T, c Cipher, key *[KeySize]byte, rng *rand.Rand, size, bit int) {
	t.Helper()
	run, samples := make([]Packet, size), make([]*sample, size)
	for i := range run {
		samples[i] = newSample(t, key, rng, rng.IntN(300), uint64(i), layout{inPlace: i%2 == 0})
		run[i] = samples[i].openPacket()
	}
	victim := rng.IntN(size)
	src := run[victim].Src
	switch n := len(src) - Overhead; {
	case bit%3 == 0 && n > 0:
		src[rng.IntN(n)] ^= 1 << (bit % 8)
	default:
		src[n+bit/8] ^= 1 << (bit % 8)
	}
	run[victim].OK = true
	if got := c.Open(run); got != size-1 {
		t.Fatalf("Open returned %d of %d with one forged", got, size)
	}
	for i, s := range samples {
		if i == victim {
			if run[i].OK {
				t.Fatalf("a forged packet is OK (bit %d)", bit)
			}
			continue
		}
		s.checkOpened(t, &run[i])
	}
}

// A flood of forgeries: no packet of the run is OK.
func TestAllForged(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		key := testKey()
		c := impl.New(key)
		rng := rand.New(rand.NewPCG(23, 24))
		for size := range 40 {
			for _, n := range []int{0, 20, 64, 700} {
				run := make([]Packet, size)
				for i := range run {
					run[i] = newSample(t, key, rng, n, uint64(i), layout{inPlace: i%2 == 0}).openPacket()
					run[i].Src[rng.IntN(len(run[i].Src))] ^= 4
				}
				if got := c.Open(run); got != 0 {
					t.Fatalf("Open returned %d of %d forged packets", got, size)
				}
			}
		}
	})
}

// Every truncation of a good packet fails, down to nothing, and says so rather than panics.
func TestTruncated(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		key := testKey()
		c := impl.New(key)
		sealed := reference(t, key, 7, []byte("seventy bytes of text are enough to have two blocks of ChaCha20 in it."))
		run := make([]Packet, len(sealed)+1)
		for n := range run {
			run[n] = Packet{Src: bytes.Clone(sealed[:n]), Dst: make([]byte, max(0, n-Overhead)), Counter: 7, OK: true}
		}
		if got := c.Open(run); got != 1 || !run[len(sealed)].OK {
			t.Fatalf("Open returned %d, want the whole packet alone", got)
		}
		for n := range len(sealed) {
			if run[n].OK {
				t.Errorf("truncation to %d bytes is OK", n)
			}
		}
	})
}

func TestContractPanics(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		c := impl.New(testKey())
		buf := make([]byte, 300)
		for name, call := range map[string]func(){
			"seal short":   func() { c.Seal([]Packet{{Dst: make([]byte, 40), Src: make([]byte, 25)}}) },
			"seal no room": func() { c.Seal([]Packet{{Dst: make([]byte, 15)}}) },
			"seal long":    func() { c.Seal([]Packet{{Dst: make([]byte, maxDst+1)}}) },
			"open short":   func() { c.Open([]Packet{{Dst: make([]byte, 23), Src: make([]byte, 40)}}) },
			"seal overlap": func() { c.Seal([]Packet{{Dst: buf[1:200], Src: buf[:180]}, {Dst: make([]byte, 16)}}) },
			"open overlap": func() { c.Open([]Packet{{Dst: buf[1:200], Src: buf[:180]}}) },
		} {
			t.Run(name, func(t *testing.T) {
				defer func() {
					if recover() == nil {
						t.Error("no panic")
					}
				}()
				call()
			})
		}
	})
}

// After Wipe the key that is used is all zeros, so no copy of it is left where the cipher reads it.
func TestWipe(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		c := impl.New(testKey())
		c.Wipe()
		var zero [KeySize]byte
		rng := rand.New(rand.NewPCG(17, 18))
		for _, size := range []int{1, 2, 4, 8, 16, 33} {
			for _, n := range []int{0, 40, 1420, 20000} {
				var run []*sample
				for i := range size {
					run = append(run, newSample(t, &zero, rng, n, uint64(i), layout{}))
				}
				roundTrip(t, c, run)
			}
		}
	})
}

func TestNewCopiesKey(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		key := testKey()
		c := impl.New(key)
		clear(key[:])
		roundTrip(t, c, []*sample{newSample(t, testKey(), rand.New(rand.NewPCG(0, 0)), 99, 1, layout{})})
	})
}

func TestNewWithHonoursFeatures(t *testing.T) {
	if _, ok := NewWith(testKey(), Features{NoAVX512: true}).(*generic); !ok {
		t.Error("with AVX-512 ruled out New must be generic")
	}
	want := NewGeneric
	for _, impl := range Implementations() {
		if impl.Available {
			want = impl.New
			break
		}
	}
	if got, want := fmt.Sprintf("%T", New(testKey())), fmt.Sprintf("%T", want(testKey())); got != want {
		t.Errorf("New is %s, the fastest available is %s", got, want)
	}
}

func TestParallel(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		key := testKey()
		c := impl.New(key)
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(19, uint64(g)))
				for range 30 {
					var run []*sample
					for i := range 1 + rng.IntN(20) {
						run = append(run, newSample(t, key, rng, rng.IntN(1500), uint64(i), layout{inPlace: i%2 == 0}))
					}
					roundTrip(t, c, run)
				}
			})
		}
		wg.Wait()
	})
}

// No call allocates, but for what x/crypto does by itself where it has no assembly.
func TestAllocations(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		c := impl.New(testKey())
		for _, size := range []int{1, 3, 8, 45} {
			for _, n := range []int{64, 1420, 20000} {
				want := 0.0
				if impl.Name == "generic" {
					want = float64(size) * referenceAllocations(t, n)
				}
				seal, open := benchmarkRuns(c, size, n)
				if got := testing.AllocsPerRun(20, func() { c.Seal(seal) }); got != want {
					t.Errorf("Seal of %d packets of %d bytes: %v allocations, want %v", size, n, got, want)
				}
				if got := testing.AllocsPerRun(20, func() { c.Open(open) }); got != want {
					t.Errorf("Open of %d packets of %d bytes: %v allocations, want %v", size, n, got, want)
				}
			}
		}
	})
}

// referenceAllocations returns how often x/crypto allocates in sealing n bytes.
func referenceAllocations(t *testing.T, n int) float64 {
	aead, err := chacha20poly1305.New(testKey()[:])
	if err != nil {
		t.Fatal(err)
	}
	nonce, text := make([]byte, 12), make([]byte, n, n+Overhead)
	allocations := testing.AllocsPerRun(20, func() { aead.Seal(text[:0], nonce, text, nil) })
	if allocations != 0 {
		t.Logf("x/crypto allocates %v times a packet on %s in this build", allocations, runtime.GOARCH)
	}
	return allocations
}
