//go:build amd64 && !purego

package aead

import (
	"math"
	"unsafe"

	"golang.org/x/sys/cpu"

	"github.com/sluice-vpn/sluice/crypto/secret"
)

//go:generate sh -c "cd _asm && go run . -out ../kernels_amd64.s -stubs ../kernels_amd64.go -pkg aead"

const (
	// chunkPackets is how many packets go through the kernels together: two vectors of Poly1305, and few enough that
	// their text stays in the caches from one kernel to the next.
	chunkPackets = 16
	// chunkBytes keeps each kernel call, which the scheduler cannot interrupt, below some 20 microseconds. Eight jumbo
	// frames are less.
	chunkBytes = 80 << 10
	// allBlocks lets chachaLanes take all blocks of a packet.
	allBlocks = math.MaxInt
)

// hasAVX512 says whether processor and operating system have what the kernels use.
func hasAVX512() bool {
	x := &cpu.X86
	return x.HasAVX512F && x.HasAVX512VL && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512IFMA && x.HasBMI2
}

// The kernels read runs as they lie in memory; _asm/main.go has the same numbers. A wrong one does not compile.
var (
	_ [0]struct{}  = [unsafe.Offsetof(Packet{}.Dst)]struct{}{}
	_ [24]struct{} = [unsafe.Offsetof(Packet{}.Src)]struct{}{}
	_ [48]struct{} = [unsafe.Offsetof(Packet{}.Counter)]struct{}{}
	_ [56]struct{} = [unsafe.Offsetof(Packet{}.OK)]struct{}{}
	_ [64]struct{} = [unsafe.Sizeof(Packet{})]struct{}{}
)

// Fields of a Packet for the kernels: where a slice lies, and where its length does.
const (
	fieldDst    = int(unsafe.Offsetof(Packet{}.Dst))
	fieldSrc    = int(unsafe.Offsetof(Packet{}.Src))
	fieldDstLen = fieldDst + 8
	fieldSrcLen = fieldSrc + 8
)

// polyKeys are the Poly1305 keys of a chunk, and the row that the last one's other half is written to. It holds secrets
// between the kernels only: the second one wipes it.
type polyKeys [chunkPackets + 1][32]byte

// avx512 seals and opens up to chunkPackets packets at a time, and leaves to x/crypto what that is quicker at.
type avx512 struct{ short generic } // with the key, of which there is one copy

func newAVX512(key *[KeySize]byte) Cipher {
	c := new(avx512)
	c.short.init(key)
	return c
}

func (c *avx512) Seal(run []Packet) {
	secret.ReserveKernel()
	var keys polyKeys
	for len(run) > 0 {
		taken := takeSeal(run)
		if chunk := run[:taken]; quickerToSeal(chunk) {
			chachaLanes(c.short.key, first(chunk), taken, fieldDstLen, 0, allBlocks, &keys[0])
			authenticate(chunk, fieldDst, &keys)
			secret.ScrubKernel() // where the kernels lay the key out
		} else {
			taken = max(1, taken)
			c.short.Seal(run[:taken])
		}
		run = run[taken:]
	}
}

// takeSeal returns how many of the run's first packets can be one chunk; 0 means that the first one cannot be in any.
func takeSeal(run []Packet) int {
	bytes := 0
	run = run[:min(len(run), chunkPackets)]
	for i := range run {
		p := &run[i]
		n := textLen(p)
		bytes += n
		// Padding in more than the last block is not for the kernels, and WireGuard's never is.
		if len(p.Src)>>6 < (n-1)>>6 || bytes > chunkBytes && i > 0 {
			return i
		}
	}
	return len(run)
}

func (c *avx512) Open(run []Packet) int {
	secret.ReserveKernel()
	var keys polyKeys
	opened := 0
	for len(run) > 0 {
		taken := takeOpen(run)
		if chunk := run[:taken]; quickerToOpen(chunk) {
			chachaLanes(c.short.key, first(chunk), taken, fieldSrcLen, 0, 1, &keys[0])
			authenticate(chunk, fieldSrc, &keys)
			// Only what is OK by now is decrypted.
			chachaLanes(c.short.key, first(chunk), taken, fieldSrcLen, 1, allBlocks, &keys[0])
			secret.ScrubKernel()
			opened += countOK(chunk)
		} else {
			taken = max(1, taken)
			opened += c.short.Open(run[:taken])
		}
		run = run[taken:]
	}
	return opened
}

// takeOpen returns how many of the run's first packets can be one chunk; 0 means that the first one cannot be in any.
func takeOpen(run []Packet) int {
	bytes := 0
	run = run[:min(len(run), chunkPackets)]
	for i := range run {
		p := &run[i]
		bytes += len(p.Src)
		if len(p.Src) < Overhead || bytes > chunkBytes && i > 0 {
			return i
		}
		checkOpen(p)
	}
	return len(run)
}

// quickerToSeal says whether the kernels beat x/crypto, as measured on Zen 4: with two packets always, with one if it is
// long. An empty chunk is a packet that no chunk can have.
func quickerToSeal(chunk []Packet) bool {
	switch len(chunk) {
	case 0:
		return false
	case 1:
		return len(chunk[0].Src) >= 1280
	}
	return true
}

// quickerToOpen is the same for Open, where the Poly1305 keys are a pass of their own.
func quickerToOpen(chunk []Packet) bool {
	switch len(chunk) {
	case 0:
		return false
	case 1:
		return len(chunk[0].Src) >= 3072
	case 2:
		return len(chunk[0].Src) >= 1024
	}
	return true
}

// first returns a chunk as the kernels take it.
func first(chunk []Packet) *[64]byte { return (*[64]byte)(unsafe.Pointer(&chunk[0])) }

// authenticate writes or compares the tags of a chunk, and wipes its keys.
func authenticate(chunk []Packet, field int, keys *polyKeys) {
	for i := 0; i < len(chunk); i += 8 {
		eight := chunk[i:min(i+8, len(chunk))]
		polyLanes(first(eight), len(eight), ways(eight), field, &keys[i], 0, 0)
	}
	keys[len(chunk)] = [32]byte{}
}

// ways returns the binary logarithm of how many ways each packet's text is best authenticated in. Below 256 bytes, more
// than one costs more at the end than it saves.
func ways(chunk []Packet) int {
	if len(chunk) > 4 {
		return 0
	}
	longest := 0
	for i := range chunk {
		longest = max(longest, len(chunk[i].Src))
	}
	if longest < 256 {
		return 0
	}
	return [...]int{0, 3, 2, 1, 1}[len(chunk)]
}

func countOK(run []Packet) int {
	n := 0
	for i := range run {
		if run[i].OK {
			n++
		}
	}
	return n
}

func (c *avx512) Wipe() { c.short.Wipe() }
