package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// lanes is chachaLanes at work: registers that live through it, and the tables of the 16 lanes in its frame. A table has
// 32 entries, since a job's lanes are written 16 at a time from its first one on, and the next job writes over the rest.
type lanes struct {
	job, left, block, offset, base, lane, total, key Register
	first, limit                                     Mem
	src, dst                                         Mem // 64-bit addresses
	counter, nonceLow, nonceHigh                     Mem // 32-bit words
}

func chachaLanes() {
	TEXT("chachaLanes", 0, "func(key *[32]byte, jobs *[64]byte, count int, first int, limit int, s *[2112]byte)")
	Doc("chachaLanes encrypts the text of count jobs from src to dst, 16 blocks of 64 bytes at a time.",
		"A job's lanes are its blocks from first on, at most limit of them; block 0 is its Poly1305 key and goes to s.keys.",
		"A last block that is not whole in src and in dst goes by way of s.tails.")
	Pragma("noescape")
	l := &lanes{
		job: RDI, left: RSI, block: R8, offset: R9, base: R10, lane: R11, total: R12, key: R13,
		src: AllocLocal(256), dst: AllocLocal(256),
		counter: AllocLocal(128), nonceLow: AllocLocal(128), nonceHigh: AllocLocal(128),
		first: AllocLocal(8), limit: AllocLocal(8),
	}
	Load(Param("key"), l.key)
	Load(Param("s"), l.base)
	Load(Param("first"), RAX)
	MOVQ(RAX, l.first)
	Load(Param("limit"), RAX)
	MOVQ(RAX, l.limit)
	Load(Param("jobs"), l.job)
	Load(Param("count"), l.left)
	XORL(R9L, R9L)
	MOVQ(l.first, l.block)

	Label("batch")
	l.fill()
	l.load()
	l.rounds()
	l.feedForward()
	l.store()
	JMP(LabelRef("batch"))

	Label("tails")
	l.tails()
	VZEROUPPER()
	RET()
}

// fill gives the 16 lanes their blocks, and goes to tails if none is left.
func (l *lanes) fill() {
	XORL(R11L, R11L)
	Label("fill")
	TESTQ(l.left, l.left)
	JZ(LabelRef("idle"))
	MOVQ(Mem{Base: l.job, Disp: jobN}, l.total)
	ADDQ(Imm(63), l.total)
	SHRQ(Imm(6), l.total)
	INCQ(l.total)
	CMPQ(l.total, l.limit)
	CMOVQHI(l.limit, l.total)
	MOVQ(l.total, RCX)
	SUBQ(l.block, RCX)
	JLE(LabelRef("next"))

	l.describe()
	l.redirect()

	ADDQ(RCX, l.lane)
	CMPQ(l.lane, Imm(16))
	JA(LabelRef("split"))
	Label("next")
	DECQ(l.left)
	ADDQ(Imm(jobSize), l.job)
	ADDQ(Imm(64), l.offset)
	MOVQ(l.first, l.block)
	CMPQ(l.lane, Imm(16))
	JNE(LabelRef("fill"))
	JMP(LabelRef("run"))

	Label("split")
	Comment("The job goes on in the next batch.")
	MOVQ(l.total, l.block)
	SUBQ(l.lane, l.block)
	ADDQ(Imm(16), l.block)
	JMP(LabelRef("run"))

	Label("idle")
	TESTQ(l.lane, l.lane)
	JZ(LabelRef("tails"))
	Comment("Lanes without work read zeros and write to a place of their own.")
	LEAQ(zeros, RAX)
	VPBROADCASTQ(RAX, Z16)
	l.put(l.src, Z16, Z16)
	LEAQ(Mem{Base: l.base, Disp: scratchJunk}, RAX)
	VPBROADCASTQ(RAX, Z16)
	l.put(l.dst, Z16, Z16)
	Label("run")
}

func (l *lanes) put(table Mem, low, high Register) {
	VMOVDQU64(low, table.Idx(l.lane, 8))
	VMOVDQU64(high, table.Offset(64).Idx(l.lane, 8))
}

// describe writes the tables as if all of the job's lanes from here on were whole blocks of text.
func (l *lanes) describe() {
	MOVQ(l.block, RBX)
	SHLQ(Imm(6), RBX)
	for _, t := range []struct {
		table Mem
		field int
	}{{l.src, jobSrc}, {l.dst, jobDst}} {
		MOVQ(Mem{Base: l.job, Disp: t.field}, RAX)
		LEAQ(Mem{Base: RAX, Disp: -64, Index: RBX, Scale: 1}, RAX)
		VPBROADCASTQ(RAX, Z16)
		VPADDQ(stride, Z16, Z17)
		VPADDQ(stride.Offset(64), Z16, Z18)
		l.put(t.table, Z17, Z18)
	}
	VPBROADCASTD(R8L, Z16)
	VPADDD(iota32, Z16, Z16)
	VMOVDQU32(Z16, l.counter.Idx(l.lane, 4))
	VPBROADCASTD(Mem{Base: l.job, Disp: jobCounter}, Z16)
	VMOVDQU32(Z16, l.nonceLow.Idx(l.lane, 4))
	VPBROADCASTD(Mem{Base: l.job, Disp: jobCounter + 4}, Z16)
	VMOVDQU32(Z16, l.nonceHigh.Idx(l.lane, 4))
}

// redirect makes the lanes of block 0 and of a last block in part keep their key stream in the scratch memory.
func (l *lanes) redirect() {
	LEAQ(zeros, RDX)
	TESTQ(l.block, l.block)
	JNZ(LabelRef("text"))
	LEAQ(Mem{Base: l.base, Disp: scratchKeys, Index: l.offset, Scale: 1}, RAX)
	MOVQ(RDX, l.src.Idx(l.lane, 8))
	MOVQ(RAX, l.dst.Idx(l.lane, 8))
	Label("text")
	MOVQ(Mem{Base: l.job, Disp: jobM}, RAX)
	SHRQ(Imm(6), RAX)
	INCQ(RAX)
	CMPQ(RAX, l.total)
	JGE(LabelRef("whole"))
	LEAQ(Mem{Base: l.lane, Disp: -1, Index: RCX, Scale: 1}, RBX)
	CMPQ(RBX, Imm(16))
	JGE(LabelRef("whole"))
	LEAQ(Mem{Base: l.base, Disp: scratchTails, Index: l.offset, Scale: 1}, RAX)
	MOVQ(RDX, l.src.Idx(RBX, 8))
	MOVQ(RAX, l.dst.Idx(RBX, 8))
	Label("whole")
}

// load sets Z0 .. Z15 to the words of the initial state (RFC 8439, section 2.3), a lane a block.
func (l *lanes) load() {
	for i := range 12 {
		VPBROADCASTD(l.word(i), zmm(i))
	}
	VMOVDQU32(l.counter, Z12)
	VPXORD(Z13, Z13, Z13)
	VMOVDQU32(l.nonceLow, Z14)
	VMOVDQU32(l.nonceHigh, Z15)
}

// word returns where a word that all lanes share is read from.
func (l *lanes) word(i int) Mem {
	if i < 4 {
		return constants.Offset(4 * i)
	}
	return Mem{Base: l.key, Disp: 4 * (i - 4)}
}

// rounds is 20 rounds on Z0 .. Z15. The four quarter rounds of a round go step by step beside each other, each with its
// addition, exclusive or and rotation in turn: measured faster than four of a kind in a row.
func (l *lanes) rounds() {
	MOVL(U32(10), EAX)
	Label("rounds")
	for _, shift := range []int{0, 1} {
		for _, step := range []struct{ to, add, by, rotate int }{{0, 4, 12, 16}, {8, 12, 4, 12}, {0, 4, 12, 8}, {8, 12, 4, 7}} {
			for q := range 4 {
				row := func(r int) VecPhysical { return zmm(r + (q+shift*r/4)%4) }
				VPADDD(row(step.add), row(step.to), row(step.to))
				VPXORD(row(step.to), row(step.by), row(step.by))
				VPROLD(Imm(uint64(step.rotate)), row(step.by), row(step.by))
			}
		}
	}
	DECL(EAX)
	JNZ(LabelRef("rounds"))
}

func (l *lanes) feedForward() {
	for i := range 12 {
		VPADDD_BCST(l.word(i), zmm(i), zmm(i))
	}
	VPADDD(l.counter, Z12, Z12)
	VPADDD(l.nonceLow, Z14, Z14)
	VPADDD(l.nonceHigh, Z15, Z15)
}

// store turns Z0 .. Z15 from a word of 16 lanes each into a lane's block each, and adds the text to each block.
func (l *lanes) store() {
	for g := 0; g < 16; g += 4 {
		a, b, c, d := zmm(g), zmm(g+1), zmm(g+2), zmm(g+3)
		VPUNPCKLDQ(b, a, Z16)
		VPUNPCKHDQ(b, a, Z17)
		VPUNPCKLDQ(d, c, Z18)
		VPUNPCKHDQ(d, c, Z19)
		VPUNPCKLQDQ(Z18, Z16, a)
		VPUNPCKHQDQ(Z18, Z16, b)
		VPUNPCKLQDQ(Z19, Z17, c)
		VPUNPCKHQDQ(Z19, Z17, d)
	}
	for j := range 4 {
		a, b, c, d := zmm(j), zmm(j+4), zmm(j+8), zmm(j+12)
		VSHUFI32X4(Imm(0x44), b, a, Z16)
		VSHUFI32X4(Imm(0xee), b, a, Z17)
		VSHUFI32X4(Imm(0x44), d, c, Z18)
		VSHUFI32X4(Imm(0xee), d, c, Z19)
		VSHUFI32X4(Imm(0x88), Z18, Z16, a)
		VSHUFI32X4(Imm(0xdd), Z18, Z16, b)
		VSHUFI32X4(Imm(0x88), Z19, Z17, c)
		VSHUFI32X4(Imm(0xdd), Z19, Z17, d)
	}
	for i := range 16 {
		MOVQ(l.src.Offset(8*i), RAX)
		MOVQ(l.dst.Offset(8*i), RBX)
		VPXORD(Mem{Base: RAX}, zmm(i), zmm(i))
		VMOVDQU32(zmm(i), Mem{Base: RBX})
	}
}

// tails adds the text of each last block in part to its key stream. Bytes of src that are missing count as zeros.
func (l *lanes) tails() {
	Load(Param("jobs"), l.job)
	Load(Param("count"), l.left)
	CMPQ(l.limit, Imm(1))
	JE(LabelRef("done"))
	LEAQ(Mem{Base: l.base, Disp: scratchTails}, l.base)
	MOVQ(I64(-1), RDX)
	Label("tail")
	MOVQ(Mem{Base: l.job, Disp: jobN}, RAX)
	MOVQ(Mem{Base: l.job, Disp: jobM}, RBX)
	LEAQ(Mem{Base: RAX, Disp: 63}, RCX)
	SHRQ(Imm(6), RCX)
	MOVQ(RBX, R8)
	SHRQ(Imm(6), R8)
	CMPQ(R8, RCX)
	JGE(LabelRef("tailless"))
	DECQ(RCX)
	SHLQ(Imm(6), RCX)
	SUBQ(RCX, RAX)
	SUBQ(RCX, RBX)
	BZHIQ(RBX, RDX, RBX)
	BZHIQ(RAX, RDX, RAX)
	KMOVQ(RBX, K1)
	KMOVQ(RAX, K2)
	MOVQ(Mem{Base: l.job, Disp: jobSrc}, RAX)
	VMOVDQU8_Z(Mem{Base: RAX, Index: RCX, Scale: 1}, K1, Z16)
	VPXORD(Mem{Base: l.base}, Z16, Z16)
	MOVQ(Mem{Base: l.job, Disp: jobDst}, RAX)
	VMOVDQU8(Z16, K2, Mem{Base: RAX, Index: RCX, Scale: 1})
	Label("tailless")
	ADDQ(Imm(jobSize), l.job)
	ADDQ(Imm(64), l.base)
	DECQ(l.left)
	JNZ(LabelRef("tail"))
	Label("done")
}
