package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Poly1305 in limbs of 44, 44 and 42 bits, each limb of eight packets in a vector; or of four packets in two ways each,
// two in four ways or one in eight. Of w ways, way i takes every w-th block from the i-th on and multiplies by r^w instead
// of r; at the end they are added up. A packet's ways are neighbouring 64-bit lanes.
//
// Unpacking four 16-byte blocks with four others puts them in the order laneOf.

var (
	h         = [3]VecPhysical{Z0, Z1, Z2}
	r         = factor{limb: [3]VecPhysical{Z3, Z4, Z5}, s: [3]VecPhysical{nil, Z6, Z7}}
	rr        = factor{limb: [3]VecPhysical{Z8, Z9, Z10}, s: [3]VecPhysical{nil, Z11, Z12}}
	low       = [3]VecPhysical{Z13, Z14, Z15} // sums of products' low 52 bits
	high      = [3]VecPhysical{Z16, Z17, Z18} // and of the bits above
	message   = [3]VecPhysical{Z19, Z20, Z21}
	nextLow   = [3]VecPhysical{Z26, Z27, Z28} // the same of the next step
	nextHigh  = [3]VecPhysical{Z29, Z30, Z31}
	pointers  = [8]Register{R8, R9, R10, R11, R12, R13, RSI, RDI} // the end of each lane's whole blocks, by slot
	laneOf    = [8]int{0, 2, 4, 6, 1, 3, 5, 7}                    // of a slot
	slotOf    = [8]int{0, 4, 1, 5, 2, 6, 3, 7}                    // of a lane
	quarter   = [4]Register{nil, K1, K2, K3}                      // masks of a vector's 16-byte parts
	shortest  = R14
	longest   = R15
	zmmLow    = Z24
	zmmHigh   = Z25
	scratch1  = Z22
	scratch2  = Z23
	scratch3  = Z26
	scratchK4 = K4
)

// polyFrame is the frame of polyLanes.
type polyFrame struct {
	packets, count, field, keys Mem
	ways                        Mem    // their binary logarithm
	last                        Mem    // last block of each packet, if there is text, by slot
	tags                        Mem    // where each packet's tag is, by slot
	start, n                    Mem    // where each packet's first block is, relative to the end; its length; by lane
	s                           Mem    // halves of the keys' second half
	powers                      [3]Mem // r, r^2 and r^4, as far as the ways need them
	square                      Mem    // r^2 for the last step
}

func polyLanes() {
	TEXT("polyLanes", 0, "func(packets *[64]byte, count int, ways int, field int, keys *[32]byte, aad int, aadBlocks int)")
	Doc("polyLanes authenticates the text of count packets, up to 8, each in 2^ways ways, count<<ways being at most 8, and",
		"wipes 8 rows of keys. The text is the slice at offset field in a packet, less a tag. At the offset of Dst the tag is",
		"written, at that of Src it is compared and OK set. The lengths at the end are aad, and the text's less aadBlocks, for",
		"tests with additional data in front of the text; both are 0 otherwise.",
		"All packets end at the same step; shorter ones start later.")
	Pragma("noescape")
	f := &polyFrame{
		packets: AllocLocal(8), count: AllocLocal(8), field: AllocLocal(8), keys: AllocLocal(8), ways: AllocLocal(8),
		last: AllocLocal(128), tags: AllocLocal(64), start: AllocLocal(64), n: AllocLocal(64), s: AllocLocal(128),
		powers: [3]Mem{AllocLocal(factorSize), AllocLocal(factorSize), AllocLocal(factorSize)}, square: AllocLocal(factorSize),
	}
	for _, p := range []struct {
		name string
		to   Mem
	}{{"packets", f.packets}, {"count", f.count}, {"field", f.field}, {"keys", f.keys}, {"ways", f.ways}} {
		Load(Param(p.name), RAX)
		MOVQ(RAX, p.to)
	}
	for i, mask := range []uint64{0, 0x0c, 0x30, 0xc0} {
		if i > 0 {
			MOVL(U32(mask), EAX)
			KMOVB(EAX, quarter[i])
		}
	}

	f.loadKeys()
	f.raise()
	f.setUp()
	f.late()
	f.body()
	f.join()
	f.finish()
	reduce()
	f.addKey()
	f.deliver()
	VZEROUPPER()
	RET()
}

// number sets EDX to the packet of a slot: lanes behind the last packet repeat the first one. It needs ways in CL and
// zero in RAX.
func (f *polyFrame) number(slot int) {
	MOVL(U32(laneOf[slot]), EDX)
	SHRL(CL, EDX)
	CMPQ(RDX, f.count)
	CMOVQGE(RAX, RDX)
}

// loadKeys sets r, and h to zero. It wipes the keys.
func (f *polyFrame) loadKeys() {
	MOVQ(f.ways, RCX)
	XORL(EAX, EAX)
	for i, p := range pointers {
		f.number(i)
		SHLQ(Imm(5), RDX)
		ADDQ(f.keys, RDX)
		MOVQ(RDX, p)
	}
	gather(func(i int) Mem { return Mem{Base: pointers[i], Disp: 16} })
	VMOVDQU64(zmmLow, f.s)
	VMOVDQU64(zmmHigh, f.s.Offset(64))
	gather(func(i int) Mem { return Mem{Base: pointers[i]} })
	VPANDQ_BCST(clampLow, zmmLow, zmmLow)
	VPANDQ_BCST(clampHigh, zmmHigh, zmmHigh)
	split(r.limb)
	r.reduced()
	for _, v := range h {
		VPXORQ(v, v, v)
	}
	MOVQ(f.keys, RAX)
	for i := range 8 * keyStride / 64 {
		VMOVDQU64(h[0], Mem{Base: RAX, Disp: 64 * i})
	}
}

// raise sets r to the key's power of the number of ways, and rr to its square. It keeps the powers on the way.
func (f *polyFrame) raise() {
	rr.squareOf(r)
	for i, power := range f.powers {
		CMPQ(f.ways, Imm(uint64(i)))
		JLE(LabelRef("raised"))
		r.save(power)
		if i == 0 {
			rr.save(f.square)
		}
		r.copy(rr)
		rr.squareOf(r)
	}
	Label("raised")
}

// setUp notes where each lane starts and ends.
func (f *polyFrame) setUp() {
	MOVQ(f.ways, RCX)
	MOVQ(I64(-1<<63), shortest)
	XORL(R15L, R15L)
	for i, p := range pointers {
		whole, n := RAX, RBX
		XORL(EAX, EAX)
		f.number(i)
		SHLQ(Imm(6), RDX)
		ADDQ(f.packets, RDX)
		ADDQ(f.field, RDX)
		MOVQ(Mem{Base: RDX}, p)
		MOVQ(Mem{Base: RDX, Disp: packetDstLen - packetDst}, n)
		SUBQ(Imm(overhead), n)
		LEAQ(Mem{Base: p, Index: n, Scale: 1}, RDX)
		MOVQ(RDX, f.tags.Offset(8*i))
		LEAQ(Mem{Base: n, Disp: -1}, whole)
		ANDQ(I32(-16), whole)
		TESTQ(n, n)
		CMOVQEQ(n, whole)
		ADDQ(whole, p)
		MOVQ(n, f.n.Offset(8*laneOf[i]))
		SUBQ(whole, n)
		MOVL(U32(0xffff), EDX)
		BZHIQ(n, RDX, RDX)
		KMOVW(EDX, scratchK4)
		VMOVDQU8_Z(Mem{Base: p}, scratchK4, X29)
		VMOVDQU64(X29, f.last.Offset(16*i))
		NEGQ(whole)
		MOVL(U32(laneOf[i]), EBX)
		BZHIL(ECX, EBX, EBX)
		SHLQ(Imm(4), RBX)
		ADDQ(RBX, p)
		SUBQ(RBX, whole)
		MOVQ(whole, f.start.Offset(8*laneOf[i]))
		CMPQ(whole, shortest)
		CMOVQGT(whole, shortest)
		CMPQ(whole, longest)
		CMOVQLT(whole, longest)
	}
}

// late takes the blocks before the last lane's first one, and one more if an odd number is left: h = h*r + block, with
// zeros for the lanes that have not started. Blocks are counted in bytes before the end, in RAX; a step is RBX bytes.
func (f *polyFrame) late() {
	MOVL(U32(16), EBX)
	SHLQ(CL, RBX)
	LEAQ(Mem{Base: longest, Disp: -1, Index: RBX, Scale: 1}, RAX)
	MOVQ(RBX, RCX)
	NEGQ(RCX)
	ANDQ(RCX, RAX)
	Label("late")
	CMPQ(RAX, shortest)
	JL(LabelRef("single"))
	TESTQ(RAX, RBX)
	JZ(LabelRef("together"))
	Label("single")
	LEAQ(zeros, RDX)
	for i, v := range []VecPhysical{Z22, Z23} {
		for q, mask := range quarter {
			p := pointers[4*i+q]
			LEAQ(Mem{Base: p, Index: RAX, Scale: 1}, RCX)
			CMPQ(RAX, f.start.Offset(8*laneOf[4*i+q]))
			CMOVQLT(RDX, RCX)
			if q == 0 {
				VBROADCASTI64X2(Mem{Base: RCX}, v)
			} else {
				VBROADCASTI64X2(Mem{Base: RCX}, mask, v)
			}
		}
	}
	VPUNPCKLQDQ(Z23, Z22, zmmLow)
	VPUNPCKHQDQ(Z23, Z22, zmmHigh)
	split(low)
	VPBROADCASTQ(RAX, scratch1)
	VPCMPQ(Imm(5), f.start, scratch1, scratchK4)
	VPORQ_BCST(padBit, low[2], scratchK4, low[2])
	clearHigh()
	multiply(h, r)
	carry(h)
	ADDQ(RBX, RAX)
	JMP(LabelRef("late"))
	Label("together")
}

// body takes two blocks of each lane a step: h = h*r^2 + first*r + second. What needs no h is done a step ahead, among
// the carries, which alone would leave the multipliers idle.
func (f *polyFrame) body() {
	TESTQ(RAX, RAX)
	JZ(LabelRef("complete"))
	LEAQ(Mem{Base: RAX, Index: RBX, Scale: 1}, RCX)
	ADDQ(RBX, RBX)
	loadPair(low, high).emit()
	multiply(message, r)
	Label("pair")
	ADDQ(RBX, RCX)
	ADDQ(RBX, RAX)
	JZ(LabelRef("lastPair"))
	product(low, high, h, rr).with(loadPair(nextLow, nextHigh)).emit()
	product(nextLow, nextHigh, message, r).with(carrySteps(h)).emit()
	for i := range low {
		VMOVDQA64(nextLow[i], low[i])
		VMOVDQA64(nextHigh[i], high[i])
	}
	JMP(LabelRef("pair"))
	Label("lastPair")
	multiply(h, rr)
	carry(h)
	Label("complete")
}

// loadPair sets message to the first of two blocks of each lane and the sums to the second.
func loadPair(low, high [3]VecPhysical) steps {
	var s steps
	for i, to := range [][3]VecPhysical{message, low} {
		s = append(s, gatherSteps(func(slot int) Mem {
			return Mem{Base: pointers[slot], Index: []Register{RAX, RCX}[i], Scale: 1}
		})...)
		s = append(s, splitSteps(to)...)
		s = append(s, func() { VPORQ_BCST(padBit, to[2], to[2]) })
	}
	for _, v := range high {
		s = append(s, func() { VPXORQ(v, v, v) })
	}
	return s
}

// join adds up the ways: of two neighbours, the first one's sum is multiplied with the power that it lacks. Afterwards a
// packet's lanes are all the same.
func (f *polyFrame) join() {
	CMPQ(f.ways, Imm(0))
	JE(LabelRef("joined"))
	for level := 2; level >= 0; level-- {
		if level > 0 {
			CMPQ(f.ways, Imm(uint64(level)))
			JLE(LabelRef([]string{"", "ways2", "ways4"}[level]))
		}
		r.load(f.powers[level])
		clearSums()
		multiply(h, r)
		carry(message)
		MOVL(U32([]uint32{0x55, 0x33, 0x0f}[level]), EAX)
		KMOVB(EAX, scratchK4)
		for i, v := range h {
			VMOVDQA64(message[i], scratchK4, v)
			switch level {
			case 0:
				VPSHUFD(Imm(0x4e), v, scratch1)
			case 1:
				VPERMQ(Imm(0x4e), v, scratch1)
			case 2:
				VSHUFI64X2(Imm(0x4e), v, v, scratch1)
			}
			VPADDQ(scratch1, v, v)
		}
		if level > 0 {
			Label([]string{"", "ways2", "ways4"}[level])
		}
	}
	rr.load(f.square)
	VPXORQ(scratch1, scratch1, scratch1)
	for _, m := range append(f.powers[:], f.square) {
		for i := range factorSize / 64 {
			VMOVDQU64(scratch1, m.Offset(64*i))
		}
	}
	Label("joined")
}

// finish takes each packet's last block of text, if there is text, and its lengths.
func (f *polyFrame) finish() {
	gather(func(i int) Mem { return f.last.Offset(16 * i) })
	split(message)
	VMOVDQU64(f.n, scratch3)
	VPTESTMQ(scratch3, scratch3, scratchK4)
	VPORQ_BCST(padBit, message[2], scratchK4, message[2])
	Load(Param("aad"), RAX)
	VPBROADCASTQ(RAX, zmmLow)
	Load(Param("aadBlocks"), RAX)
	VPBROADCASTQ(RAX, zmmHigh)
	VPSUBQ(zmmHigh, scratch3, zmmHigh)
	split(low)
	VPORQ_BCST(padBit, low[2], low[2])
	clearHigh()
	multiply(message, r)
	multiply(h, rr)
	carry(h)
	clearSums()
	multiply(h, r)
	carry(h)
}

// addKey makes h's first two vectors the halves of the tags: h and the key's second half, modulo 2^128.
func (f *polyFrame) addKey() {
	VMOVDQU64(f.s, zmmLow)
	VMOVDQU64(f.s.Offset(64), zmmHigh)
	VPSLLQ(Imm(44), h[1], scratch1)
	VPORQ(scratch1, h[0], h[0])
	VPSRLQ(Imm(20), h[1], h[1])
	VPSLLQ(Imm(24), h[2], scratch1)
	VPORQ(scratch1, h[1], h[1])
	VPADDQ(zmmLow, h[0], h[0])
	VPADDQ(zmmHigh, h[1], h[1])
	VPCMPUQ(Imm(1), zmmLow, h[0], scratchK4)
	VPADDQ_BCST(one, h[1], scratchK4, h[1])
}

// deliver writes the tags behind the texts, or compares them with what is there. It wipes the frame.
func (f *polyFrame) deliver() {
	VPXORQ(scratch1, scratch1, scratch1)
	VMOVDQU64(scratch1, f.s)
	VMOVDQU64(scratch1, f.s.Offset(64))
	MOVQ(f.ways, RCX)
	MOVQ(f.count, RBX)
	SHLQ(CL, RBX)
	CMPQ(f.field, Imm(packetDst))
	JNE(LabelRef("compare"))
	VPUNPCKLQDQ(h[1], h[0], Z22)
	VPUNPCKHQDQ(h[1], h[0], Z23)
	for lane, slot := range slotOf {
		if lane > 0 {
			CMPQ(RBX, Imm(uint64(lane)))
			JLE(LabelRef("delivered"))
		}
		MOVQ(f.tags.Offset(8*slot), RAX)
		VEXTRACTI64X2(Imm(uint64(slot%4)), []VecPhysical{Z22, Z23}[slot/4], Mem{Base: RAX})
	}
	JMP(LabelRef("delivered"))

	Label("compare")
	for slot, p := range pointers {
		MOVQ(f.tags.Offset(8*slot), p)
	}
	gather(func(slot int) Mem { return Mem{Base: pointers[slot]} })
	VPXORQ(zmmLow, h[0], h[0])
	VPXORQ(zmmHigh, h[1], h[1])
	VPORQ(h[0], h[1], h[1])
	VPTESTNMQ(h[1], h[1], scratchK4)
	KMOVB(scratchK4, ESI)
	MOVQ(f.packets, RDX)
	for lane := range slotOf {
		if lane > 0 {
			CMPQ(RBX, Imm(uint64(lane)))
			JLE(LabelRef("delivered"))
		}
		MOVL(U32(lane), EAX)
		SHRL(CL, EAX)
		SHLL(Imm(6), EAX)
		BTL(Imm(uint64(lane)), ESI)
		SETCS(Mem{Base: RDX, Disp: packetOK, Index: RAX, Scale: 1})
	}
	Label("delivered")
}
