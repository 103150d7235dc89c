// Command asm writes the AVX-512 kernels of package aead.
//
// Both kernels read a run of the Go type Packet. chachaLanes turns every 64-byte block of every packet into one of 16
// lanes, whatever packet it is from; polyLanes authenticates eight packets at a time, each in a 64-bit lane. Both need F,
// VL, BW, DQ and IFMA of AVX-512, and BMI2.
package main

import (
	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Offsets in the Go type Packet.
const (
	packetDst     = 0
	packetDstLen  = 8
	packetSrc     = 24
	packetSrcLen  = 32
	packetCounter = 48
	packetOK      = 56
	packetSize    = 64
)

const (
	keyStride = 32 // bytes from one Poly1305 key to the next
	overhead  = 16
	chunk     = 16 // packets a call may have
)

func main() {
	ConstraintExpr("amd64,!purego")
	tables()
	chachaLanes()
	polyLanes()
	Generate()
}

var (
	zeros     Mem // 64 bytes of zeros: the source of lanes that keep the key stream itself
	iota32    Mem // 0, 1, .. 15
	stride    Mem // 0, 64, .. 960
	constants Mem // ChaCha20's first row
	maskLimb  Mem // 2^44 - 1
	maskTop   Mem // 2^42 - 1
	padBit    Mem // 2^128 as bit 40 of the third limb
	clampLow  Mem // r's mask, RFC 8439, section 2.5
	clampHigh Mem
	five      Mem
	one       Mem
)

func tables() {
	zeros = table64("zeros", make([]uint64, 8)...)
	iota32 = GLOBL("lane_numbers", attr.RODATA|attr.NOPTR)
	for i := range 16 {
		DATA(4*i, U32(i))
	}
	offsets := make([]uint64, 16)
	for i := range offsets {
		offsets[i] = uint64(64 * i)
	}
	stride = table64("lane_offsets", offsets...)
	constants = GLOBL("constants", attr.RODATA|attr.NOPTR)
	for i, word := range []U32{0x61707865, 0x3320646e, 0x79622d32, 0x6b206574} {
		DATA(4*i, word)
	}
	maskLimb = table64("mask_limb", 1<<44-1)
	maskTop = table64("mask_top", 1<<42-1)
	padBit = table64("pad_bit", 1<<40)
	clampLow = table64("clamp_low", 0x0ffffffc0fffffff)
	clampHigh = table64("clamp_high", 0x0ffffffc0ffffffc)
	five = table64("five", 5)
	one = table64("one", 1)
}

func table64(name string, words ...uint64) Mem {
	m := GLOBL(name, attr.RODATA|attr.NOPTR)
	for i, w := range words {
		DATA(8*i, U64(w))
	}
	return m
}

// ymm is Y0 .. Y31 by number.
func ymm(i int) VecPhysical {
	return []VecPhysical{
		Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y8, Y9, Y10, Y11, Y12, Y13, Y14, Y15,
		Y16, Y17, Y18, Y19, Y20, Y21, Y22, Y23, Y24, Y25, Y26, Y27, Y28, Y29, Y30, Y31,
	}[i]
}

// zmm is Z0 .. Z31 by number; the kernels place every vector by hand.
func zmm(i int) VecPhysical {
	return []VecPhysical{
		Z0, Z1, Z2, Z3, Z4, Z5, Z6, Z7, Z8, Z9, Z10, Z11, Z12, Z13, Z14, Z15,
		Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z24, Z25, Z26, Z27, Z28, Z29, Z30, Z31,
	}[i]
}
