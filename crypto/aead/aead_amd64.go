//go:build amd64 && !purego

package aead

import (
	"encoding/binary"
	"math"
	"unsafe"

	"golang.org/x/sys/cpu"
)

//go:generate sh -c "cd _asm && go run . -out ../kernels_amd64.s -stubs ../kernels_amd64.go -pkg aead"

const (
	// chunkPackets is how many packets go through the kernels together: two vectors of Poly1305, and few enough that
	// their text stays in the first cache from one kernel to the next.
	chunkPackets = 16
	// chunkBytes keeps each kernel call, which the scheduler cannot interrupt, below some 20 microseconds.
	chunkBytes = 48 << 10
	// shortRun is the number of packets up to which x/crypto is faster.
	shortRun = 1
	// allBlocks lets chachaLanes take all blocks of a job.
	allBlocks = math.MaxInt
)

// hasAVX512 says whether processor and operating system have what the kernels use.
func hasAVX512() bool {
	x := &cpu.X86
	return x.HasAVX512F && x.HasAVX512VL && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512IFMA && x.HasBMI2
}

// avx512 seals and opens up to chunkPackets packets at a time.
type avx512 struct {
	key   [KeySize]byte
	short generic
}

func newAVX512(key *[KeySize]byte) Cipher {
	c := &avx512{key: *key}
	c.short.init(key)
	return c
}

// job is a packet as the kernels read it (offsets in _asm/main.go). The pointers are borrowed for a call.
type job struct {
	src, dst unsafe.Pointer
	n        int // bytes of text, padding included
	m        int // bytes of them that src has
	counter  uint64
	lengths  [2]uint64 // of the additional data and of the text: Poly1305's last block
	_        uint64
}

// scratch is what the kernels leave for each other (offsets in _asm/main.go). It holds key stream and must be wiped.
type scratch struct {
	keys  [chunkPackets][64]byte // ChaCha20 block 0, of which the first half is the Poly1305 key
	tails [chunkPackets][64]byte // key stream of last blocks
	junk  [64]byte               // output of idle lanes
}

// chunk is the kernels' work on one call's stack.
type chunk struct {
	scratch scratch
	jobs    [chunkPackets]job
	tags    [chunkPackets][Overhead]byte
	packet  [chunkPackets]int // each job's place in the run
	count   int
}

func (ch *chunk) wipe() {
	clear(ch.scratch.keys[:])
	clear(ch.scratch.tails[:])
	clear(ch.scratch.junk[:])
}

// chacha encrypts blocks first, first+1, .. of the chunk's jobs, at most limit blocks of each.
func (ch *chunk) chacha(key *[KeySize]byte, first, limit int) {
	if ch.count > 0 {
		chachaLanes(key, (*[64]byte)(unsafe.Pointer(&ch.jobs)), ch.count, first, limit, (*[2112]byte)(unsafe.Pointer(&ch.scratch)))
	}
}

// poly computes the tags of the chunk's jobs over the text at src or dst, named by its offset in job.
func (ch *chunk) poly(field uintptr) {
	if ch.count > 0 {
		polyLanes((*[64]byte)(unsafe.Pointer(&ch.jobs)), ch.count, int(field), &ch.scratch.keys[0], &ch.tags[0])
	}
}

func (c *avx512) Seal(run []Packet) {
	if len(run) <= shortRun {
		c.short.Seal(run)
		return
	}
	var ch chunk
	for len(run) > 0 {
		taken := ch.takeSeal(run)
		ch.chacha(&c.key, 0, allBlocks)
		ch.poly(unsafe.Offsetof(job{}.dst))
		for i := range taken {
			copy(run[i].Dst[ch.jobs[i].n:], ch.tags[i][:])
		}
		run = run[taken:]
	}
	ch.wipe()
}

// takeSeal makes jobs of the first packets of the run and returns how many.
func (ch *chunk) takeSeal(run []Packet) int {
	bytes := 0
	ch.count = 0
	for i := range run[:min(len(run), chunkPackets)] {
		p := &run[i]
		n, src := textLen(p), p.Src
		if bytes += n; bytes > chunkBytes && i > 0 {
			break
		}
		if len(src)>>6 < (n-1)>>6 {
			// More than the last block has padding, which WireGuard's never does.
			copy(p.Dst, src)
			clear(p.Dst[len(src):n])
			src = p.Dst[:n]
		}
		ch.jobs[i] = job{
			src: unsafe.Pointer(unsafe.SliceData(src)), dst: unsafe.Pointer(unsafe.SliceData(p.Dst)),
			n: n, m: len(src), counter: p.Counter, lengths: [2]uint64{0, uint64(n)},
		}
		ch.count++
	}
	return ch.count
}

func (c *avx512) Open(run []Packet) int {
	if len(run) <= shortRun {
		return c.short.Open(run)
	}
	var ch chunk
	opened := 0
	for len(run) > 0 {
		taken := ch.takeOpen(run)
		ch.chacha(&c.key, 0, 1)
		ch.poly(unsafe.Offsetof(job{}.src))
		ch.verify(run)
		ch.chacha(&c.key, 1, allBlocks)
		opened += ch.count
		run = run[taken:]
	}
	ch.wipe()
	return opened
}

// takeOpen makes jobs of the first packets of the run, leaves out those that cannot have a tag, and returns how many
// packets it passed.
func (ch *chunk) takeOpen(run []Packet) int {
	bytes := 0
	ch.count = 0
	for i := range run {
		p := &run[i]
		p.OK = false
		n := len(p.Src) - Overhead
		if n < 0 {
			continue
		}
		if bytes += n; ch.count == chunkPackets || bytes > chunkBytes && ch.count > 0 {
			return i
		}
		checkOpen(p)
		ch.jobs[ch.count] = job{
			src: unsafe.Pointer(unsafe.SliceData(p.Src)), dst: unsafe.Pointer(unsafe.SliceData(p.Dst)),
			n: n, m: n, counter: p.Counter, lengths: [2]uint64{0, uint64(n)},
		}
		ch.packet[ch.count] = i
		ch.count++
	}
	return len(run)
}

// verify compares the tags, each in constant time, and keeps only the jobs of genuine packets: nothing else is decrypted.
func (ch *chunk) verify(run []Packet) {
	genuine := 0
	for i := range ch.count {
		p := &run[ch.packet[i]]
		got, want := &ch.tags[i], p.Src[len(p.Src)-Overhead:]
		difference := binary.LittleEndian.Uint64(got[:8]) ^ binary.LittleEndian.Uint64(want[:8])
		difference |= binary.LittleEndian.Uint64(got[8:]) ^ binary.LittleEndian.Uint64(want[8:])
		if p.OK = difference == 0; p.OK {
			ch.jobs[genuine] = ch.jobs[i]
			genuine++
		}
	}
	ch.count = genuine
}

func (c *avx512) Wipe() {
	clear(c.key[:])
	c.short.Wipe()
}
