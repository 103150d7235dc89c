package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Arithmetic modulo 2^130 - 5 on eight numbers at once, in limbs of 44, 44 and 42 bits, each a vector.

// factor is a multiplicand with what reduction wants of it: 2^132 = 20 modulo 2^130 - 5.
type factor struct {
	limb [3]VecPhysical
	s    [3]VecPhysical // 20 times limbs 1 and 2
}

const factorSize = 5 * 64

func (x factor) vectors() []VecPhysical {
	return []VecPhysical{x.limb[0], x.limb[1], x.limb[2], x.s[1], x.s[2]}
}

func (x factor) save(to Mem) {
	for i, v := range x.vectors() {
		VMOVDQU64(v, to.Offset(64*i))
	}
}

func (x factor) load(from Mem) {
	for i, v := range x.vectors() {
		VMOVDQU64(from.Offset(64*i), v)
	}
}

func (x factor) copy(y factor) {
	for i, v := range x.vectors() {
		VMOVDQA64(y.vectors()[i], v)
	}
}

func (x factor) squareOf(y factor) {
	clearSums()
	multiply(y.limb, y)
	carry(x.limb)
	x.reduced()
}

// reduced computes the multiples that stand for limbs past 2^130.
func (x factor) reduced() {
	for i := 1; i < 3; i++ {
		VPSLLQ(Imm(4), x.limb[i], scratch1)
		VPSLLQ(Imm(2), x.limb[i], x.s[i])
		VPADDQ(scratch1, x.s[i], x.s[i])
	}
}

func clearSums() {
	for i := range low {
		VPXORQ(low[i], low[i], low[i])
		VPXORQ(high[i], high[i], high[i])
	}
}

func clearHigh() {
	for i := range high {
		VPXORQ(high[i], high[i], high[i])
	}
}

// steps are instructions to write, so that two independent sequences can be written in turn.
type steps []func()

func (s steps) emit() {
	for _, step := range s {
		step()
	}
}

// with spreads the steps of other evenly among those of s.
func (s steps) with(other steps) steps {
	var all steps
	done := 0
	for i, step := range s {
		all = append(all, step)
		for ; done < (i+1)*len(other)/len(s); done++ {
			all = append(all, other[done])
		}
	}
	return all
}

func multiply(x [3]VecPhysical, y factor) { product(low, high, x, y).emit() }

// product adds x times y to the sums. It takes x's limbs in the order in which carry has them ready.
func product(low, high, x [3]VecPhysical, y factor) steps {
	var s steps
	for _, i := range []int{2, 0, 1} {
		for j := range 3 {
			to, by := i+j, y.limb[j]
			if to > 2 {
				to, by = to-3, y.s[j]
			}
			s = append(s,
				func() { VPMADD52LUQ(by, x[i], low[to]) },
				func() { VPMADD52HUQ(by, x[i], high[to]) })
		}
	}
	return s
}

// carry folds the sums into limbs, from 1 to 2 to 0 (times 5) to 1. A limb may stay some bits too long, which the 52 bits
// of the multiplier's input have room for.
func carry(to [3]VecPhysical) { carrySteps(to).emit() }

func carrySteps(to [3]VecPhysical) steps {
	return steps{
		func() { VPSLLQ(Imm(8), high[0], high[0]) },
		func() { VPSLLQ(Imm(8), high[1], high[1]) },
		func() { VPADDQ(high[0], low[1], low[1]) },
		func() { VPADDQ(high[1], low[2], low[2]) },
		func() { VPSRLQ(Imm(44), low[1], scratch1) },
		func() { VPSLLQ(Imm(10), high[2], high[2]) },
		func() { VPADDQ(scratch1, low[2], low[2]) },
		func() { VPANDQ_BCST(maskLimb, low[1], to[1]) },
		func() { VPSRLQ(Imm(42), low[2], scratch1) },
		func() { VPADDQ(high[2], scratch1, scratch1) },
		func() { VPANDQ_BCST(maskTop, low[2], to[2]) },
		func() { VPSLLQ(Imm(2), scratch1, scratch2) },
		func() { VPADDQ(scratch1, low[0], low[0]) },
		func() { VPADDQ(scratch2, low[0], low[0]) },
		func() { VPSRLQ(Imm(44), low[0], scratch1) },
		func() { VPANDQ_BCST(maskLimb, low[0], to[0]) },
		func() { VPADDQ(scratch1, to[1], to[1]) },
	}
}

// gather loads 16 bytes of each packet and leaves their halves in zmmLow and zmmHigh.
func gather(at func(slot int) Mem) { gatherSteps(at).emit() }

func gatherSteps(at func(slot int) Mem) steps {
	var s steps
	for i, v := range []VecPhysical{Z22, Z23} {
		for q, mask := range quarter {
			if m := at(4*i + q); q == 0 {
				s = append(s, func() { VBROADCASTI64X2(m, v) })
			} else {
				s = append(s, func() { VBROADCASTI64X2(m, mask, v) })
			}
		}
	}
	return append(s,
		func() { VPUNPCKLQDQ(Z23, Z22, zmmLow) },
		func() { VPUNPCKHQDQ(Z23, Z22, zmmHigh) })
}

// split cuts 128 bits into limbs.
func split(to [3]VecPhysical) { splitSteps(to).emit() }

func splitSteps(to [3]VecPhysical) steps {
	return steps{
		func() { VPSRLQ(Imm(44), zmmLow, to[1]) },
		func() { VPSLLQ(Imm(20), zmmHigh, scratch1) },
		func() { VPANDQ_BCST(maskLimb, zmmLow, to[0]) },
		func() { VPTERNLOGQ_BCST(Imm(0xa8), maskLimb, scratch1, to[1]) }, // (to[1] | scratch1) & maskLimb
		func() { VPSRLQ(Imm(24), zmmHigh, to[2]) },
	}
}

// reduce makes h the smallest number that it stands for.
func reduce() {
	ripple := func(v [3]VecPhysical) {
		VPSRLQ(Imm(44), v[0], scratch1)
		VPADDQ(scratch1, v[1], v[1])
		VPANDQ_BCST(maskLimb, v[0], v[0])
		VPSRLQ(Imm(44), v[1], scratch1)
		VPADDQ(scratch1, v[2], v[2])
		VPANDQ_BCST(maskLimb, v[1], v[1])
	}
	ripple(h)
	VPSRLQ(Imm(42), h[2], scratch1)
	VPANDQ_BCST(maskTop, h[2], h[2])
	VPADDQ(scratch1, h[0], h[0])
	VPSLLQ(Imm(2), scratch1, scratch1)
	VPADDQ(scratch1, h[0], h[0])
	ripple(h)

	Comment("h - p is h + 5 - 2^130; take it unless it is negative.")
	VPADDQ_BCST(five, h[0], message[0])
	VMOVDQA64(h[1], message[1])
	VMOVDQA64(h[2], message[2])
	ripple(message)
	VPSRLQ(Imm(42), message[2], scratch1)
	VPTESTMQ(scratch1, scratch1, scratchK4)
	for i := range h {
		VMOVDQA64(message[i], scratchK4, h[i])
	}
}
