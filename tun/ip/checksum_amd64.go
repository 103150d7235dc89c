//go:build !purego

//go:generate sh -c "cd _asm && go run . -out ../checksum_amd64.s -stubs ../checksum_stubs_amd64.go -pkg ip"

package ip

import (
	"unsafe"

	"golang.org/x/sys/cpu"
)

// vectors says whether the AVX2 code may be used.
var vectors = cpu.X86.HasAVX2

// sumVectors returns the sum of the 32-bit little-endian words of b, whose length is a positive multiple of 64. It is
// congruent to the sum of the 16-bit words, since 2^16 is 1 modulo 2^16-1.
func sumVectors(b []byte) uint64 {
	return sumAVX2(unsafe.SliceData(b), len(b))
}

// copySumVectors is sumVectors, and copies src to dst of the same length.
func copySumVectors(dst, src []byte) uint64 {
	return copySumAVX2(unsafe.SliceData(dst), unsafe.SliceData(src), len(src))
}
