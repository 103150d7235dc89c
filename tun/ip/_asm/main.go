// Command _asm generates the checksum kernels of package ip:
//
//	cd tun/ip/_asm && go run . -out ../checksum_amd64.s -stubs ../checksum_stubs_amd64.go -pkg ip
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

func main() {
	ConstraintExpr("!purego")
	kernel("sumAVX2", "func(src *byte, n int) uint64", false)
	kernel("copySumAVX2", "func(dst, src *byte, n int) uint64", true)
	Generate()
}

// kernel adds up 32-bit little-endian words in 64-bit lanes, which cannot overflow with less than 16 GiB. Even and odd words
// have accumulators of their own.
func kernel(name, signature string, copies bool) {
	TEXT(name, NOSPLIT, signature)
	Pragma("noescape")
	if copies {
		Doc(name + " copies n bytes, a positive multiple of 64, and returns the sum of their 32-bit little-endian words.")
	} else {
		Doc(name + " returns the sum of the 32-bit little-endian words of n bytes, a positive multiple of 64.")
	}
	var dst Register
	if copies {
		dst = Load(Param("dst"), GP64())
	}
	src := Load(Param("src"), GP64())
	n := Load(Param("n"), GP64())

	low := YMM()
	VPCMPEQD(low, low, low)
	VPSRLQ(U8(32), low, low)
	even, odd := [2]VecVirtual{YMM(), YMM()}, [2]VecVirtual{YMM(), YMM()}
	for i := range even {
		VPXOR(even[i], even[i], even[i])
		VPXOR(odd[i], odd[i], odd[i])
	}

	Label(name + "Loop")
	for i := range even {
		v, w := YMM(), YMM()
		VMOVDQU(Mem{Base: src, Disp: 32 * i}, v)
		if copies {
			VMOVDQU(v, Mem{Base: dst, Disp: 32 * i})
		}
		VPAND(low, v, w)
		VPSRLQ(U8(32), v, v)
		VPADDQ(w, even[i], even[i])
		VPADDQ(v, odd[i], odd[i])
	}
	ADDQ(U8(64), src)
	if copies {
		ADDQ(U8(64), dst)
	}
	SUBQ(U8(64), n)
	JNZ(LabelRef(name + "Loop"))

	VPADDQ(even[0], even[1], even[0])
	VPADDQ(odd[0], odd[1], odd[0])
	VPADDQ(even[0], odd[0], even[0])
	half := XMM()
	VEXTRACTI128(U8(1), even[0], half)
	VPADDQ(even[0].AsX(), half, half)
	top, sum, rest := XMM(), GP64(), GP64()
	VPSHUFD(U8(0x4e), half, top)
	VMOVQ(half, sum)
	VMOVQ(top, rest)
	ADDQ(rest, sum)
	VZEROUPPER()
	Store(sum, ReturnIndex(0))
	RET()
}
