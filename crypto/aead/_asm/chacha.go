package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// lanes is chachaLanes at work: registers that live through it, and its frame.
//
// There are two sets of tables of the 16 lanes' addresses: while one batch is in its rounds, the next one's is written,
// since reading a table back is only quick once the stores to it are done. A table has 32 entries, because a packet's
// lanes are written 8 or 16 at a time from its first one on, and the next packet writes over the rest.
type lanes struct {
	packet, left, block, offset, keys, lane, total, key Register
	next, current                                       Register
	size, first, limit                                  Mem
	used                                                Mem // lanes with work in the current batch
	tables                                              [2]Mem
	counter, nonceLow, nonceHigh                        Mem // 32-bit words
	tails, junk                                         Mem
}

// Parts of a set of tables.
const (
	tableSrc  = 0
	tableDst  = 256
	tableSize = 512
)

func chachaLanes() {
	TEXT("chachaLanes", 0, "func(key *[32]byte, packets *[64]byte, count int, size int, first int, limit int, keys *[32]byte)")
	Doc("chachaLanes encrypts the text of count packets, up to 16, from Src to Dst, 16 blocks of 64 bytes at a time.",
		"The text's length is the slice length at offset size in a packet, less a tag; bytes that Src lacks are zeros.",
		"Of each packet it takes the blocks from first on, at most limit. Block 0 is not text: its first half goes to keys,",
		"whose row behind the last one is overwritten as well. If first is not 0, packets that are not OK are left out.",
		"Only a packet's last block may have bytes that Src lacks.")
	Pragma("noescape")
	l := &lanes{
		packet: RDI, left: RSI, block: R8, offset: R9, keys: R10, lane: R11, total: R12, key: R13, next: R14, current: R15,
		tables:  [2]Mem{AllocLocal(tableSize), AllocLocal(tableSize)},
		counter: AllocLocal(128), nonceLow: AllocLocal(128), nonceHigh: AllocLocal(128),
		tails: AllocLocal(64 * chunk), junk: AllocLocal(64),
		size: AllocLocal(8), first: AllocLocal(8), limit: AllocLocal(8), used: AllocLocal(8),
	}
	l.parameters()

	Label("batch")
	l.fill()
	Label("filled")
	TESTQ(l.current, l.current)
	JZ(LabelRef("begin"))
	CMPQ(l.used, Imm(8))
	JLE(LabelRef("half"))
	l.rounds("rounds", zmm)
	l.feedForward(zmm)
	l.store()
	Label("begin")
	TESTQ(l.lane, l.lane)
	JZ(LabelRef("tails"))
	l.turn()
	l.load()
	JMP(LabelRef("batch"))

	Label("half")
	Comment("Half of the lanes are enough for the last batch, and half a vector is faster.")
	l.rounds("rounds8", ymm)
	l.feedForward(ymm)
	l.storeHalf()

	Label("tails")
	l.finishTails()
	VZEROUPPER()
	RET()
}

func (l *lanes) parameters() {
	for _, p := range []struct {
		name string
		to   Mem
	}{{"size", l.size}, {"first", l.first}, {"limit", l.limit}} {
		Load(Param(p.name), RAX)
		MOVQ(RAX, p.to)
	}
	Load(Param("key"), l.key)
	Load(Param("keys"), l.keys)
	Load(Param("packets"), l.packet)
	Load(Param("count"), l.left)
	MOVQ(l.first, l.block)
	XORL(R9L, R9L)
	XORL(R15L, R15L)
	LEAQ(l.tables[0], l.next)
}

// turn makes the filled tables the current ones.
func (l *lanes) turn() {
	MOVQ(l.lane, l.used)
	MOVQ(l.next, l.current)
	LEAQ(l.tables[0], RAX)
	LEAQ(l.tables[1], l.next)
	CMPQ(l.current, l.next)
	CMOVQEQ(RAX, l.next)
}

// fill gives the 16 lanes of the next tables their blocks. It leaves lane at zero if none is left.
func (l *lanes) fill() {
	XORL(R11L, R11L)
	Label("fill")
	TESTQ(l.left, l.left)
	JZ(LabelRef("idle"))
	l.measure()
	l.describe()
	l.redirect()

	ADDQ(RCX, l.lane)
	CMPQ(l.lane, Imm(16))
	JA(LabelRef("split"))
	Label("next")
	DECQ(l.left)
	ADDQ(Imm(packetSize), l.packet)
	ADDQ(Imm(keyStride), l.offset)
	MOVQ(l.first, l.block)
	CMPQ(l.lane, Imm(16))
	JNE(LabelRef("fill"))
	JMP(LabelRef("filled"))

	Label("split")
	Comment("The packet goes on in the next batch.")
	MOVQ(l.total, l.block)
	SUBQ(l.lane, l.block)
	ADDQ(Imm(16), l.block)
	JMP(LabelRef("filled"))

	Label("idle")
	TESTQ(l.lane, l.lane)
	JZ(LabelRef("filled"))
	Comment("Lanes without work read zeros and write to a place of their own.")
	LEAQ(zeros, RAX)
	VPBROADCASTQ(RAX, Z16)
	l.put(tableSrc, Z16, Z16)
	LEAQ(l.junk, RAX)
	VPBROADCASTQ(RAX, Z16)
	l.put(tableDst, Z16, Z16)
}

// measure sets total to the packet's blocks, RCX to how many of them are left, which is not none, and RDX to the first
// one that is not whole in Src and Dst.
func (l *lanes) measure() {
	MOVQ(l.size, RBX)
	MOVQ(Mem{Base: l.packet, Index: RBX, Scale: 1}, RBX)
	SUBQ(Imm(overhead), RBX)
	LEAQ(Mem{Base: RBX, Disp: 127}, l.total)
	SHRQ(Imm(6), l.total)
	CMPQ(l.total, l.limit)
	CMOVQHI(l.limit, l.total)
	MOVQ(l.total, RCX)
	SUBQ(l.block, RCX)
	JLE(LabelRef("next"))
	CMPQ(l.first, Imm(0))
	JE(LabelRef("wanted"))
	CMPB(Mem{Base: l.packet, Disp: packetOK}, Imm(0))
	JE(LabelRef("next"))
	Label("wanted")
	MOVQ(Mem{Base: l.packet, Disp: packetSrcLen}, RDX)
	CMPQ(RDX, RBX)
	CMOVQHI(RBX, RDX)
	SHRQ(Imm(6), RDX)
	INCQ(RDX)
}

func (l *lanes) put(table int, low, high Register) {
	VMOVDQU64(low, Mem{Base: l.next, Disp: table, Index: l.lane, Scale: 8})
	VMOVDQU64(high, Mem{Base: l.next, Disp: table + 64, Index: l.lane, Scale: 8})
}

// describe writes the tables as if all of the packet's lanes from here on were whole blocks of text: eight of them if it
// has no more, since stores are what this costs.
func (l *lanes) describe() {
	MOVQ(l.block, RBX)
	SHLQ(Imm(6), RBX)
	CMPQ(RCX, Imm(8))
	JG(LabelRef("sixteen"))
	l.describeLanes(ymm, func(table int) {
		VPADDQ(stride, Z16, Z16)
		VMOVDQU64(Z16, Mem{Base: l.next, Disp: table, Index: l.lane, Scale: 8})
	})
	JMP(LabelRef("described"))
	Label("sixteen")
	l.describeLanes(zmm, func(table int) {
		VPADDQ(stride, Z16, Z17)
		VPADDQ(stride.Offset(64), Z16, Z18)
		l.put(table, Z17, Z18)
	})
	Label("described")
}

// describeLanes writes as many 32-bit words as v has, and addresses by put, from the one in all parts of Z16.
func (l *lanes) describeLanes(v func(int) VecPhysical, put func(table int)) {
	for _, t := range []struct{ table, field int }{{tableSrc, packetSrc}, {tableDst, packetDst}} {
		MOVQ(Mem{Base: l.packet, Disp: t.field}, RAX)
		LEAQ(Mem{Base: RAX, Disp: -64, Index: RBX, Scale: 1}, RAX)
		VPBROADCASTQ(RAX, Z16)
		put(t.table)
	}
	VPBROADCASTD(R8L, v(16))
	VPADDD(iota32, v(16), v(16))
	VMOVDQU32(v(16), l.counter.Idx(l.lane, 4))
	VPBROADCASTD(Mem{Base: l.packet, Disp: packetCounter}, v(16))
	VMOVDQU32(v(16), l.nonceLow.Idx(l.lane, 4))
	VPBROADCASTD(Mem{Base: l.packet, Disp: packetCounter + 4}, v(16))
	VMOVDQU32(v(16), l.nonceHigh.Idx(l.lane, 4))
}

// redirect makes the lanes of block 0 and of a last block in part keep their key stream.
func (l *lanes) redirect() {
	at := func(table int, lane Register) Mem { return Mem{Base: l.next, Disp: table, Index: lane, Scale: 8} }
	LEAQ(zeros, RBX)
	TESTQ(l.block, l.block)
	JNZ(LabelRef("text"))
	LEAQ(Mem{Base: l.keys, Index: l.offset, Scale: 1}, RAX)
	MOVQ(RBX, at(tableSrc, l.lane))
	MOVQ(RAX, at(tableDst, l.lane))
	Label("text")
	CMPQ(RDX, l.total)
	JGE(LabelRef("whole"))
	LEAQ(Mem{Base: l.lane, Disp: -1, Index: RCX, Scale: 1}, RDX)
	CMPQ(RDX, Imm(16))
	JGE(LabelRef("whole"))
	LEAQ(l.tails.Idx(l.offset, 2), RAX)
	MOVQ(RBX, at(tableSrc, RDX))
	MOVQ(RAX, at(tableDst, RDX))
	Label("whole")
}

// load sets Z0 .. Z15 to the words of the initial state (RFC 8439, section 2.3), a lane a block.
func (l *lanes) load() {
	for i := range 12 {
		VPBROADCASTD(l.word(i), zmm(i))
	}
	VPXORD(Z13, Z13, Z13)
	VMOVDQU32(l.counter, Z12)
	VMOVDQU32(l.nonceLow, Z14)
	VMOVDQU32(l.nonceHigh, Z15)
	for _, i := range []int{12, 14, 15} {
		VMOVDQA32(zmm(i), zmm(i+8))
	}
}

// word returns where a word that all lanes share is read from.
func (l *lanes) word(i int) Mem {
	if i < 4 {
		return constants.Offset(4 * i)
	}
	return Mem{Base: l.key, Disp: 4 * (i - 4)}
}

// rounds is 20 rounds on vectors 0 .. 15. Of a round's four quarter rounds two go beside each other through a step (addition,
// exclusive or, rotation), then the other two: measured faster than one or four at a time.
func (l *lanes) rounds(label string, v func(int) VecPhysical) {
	MOVL(U32(10), EAX)
	Label(label)
	for _, shift := range []int{0, 1} {
		for _, step := range []struct{ to, add, by, rotate int }{{0, 4, 12, 16}, {8, 12, 4, 12}, {0, 4, 12, 8}, {8, 12, 4, 7}} {
			for q := 0; q < 4; q += 2 {
				a := func(r int) VecPhysical { return v(r + (q+shift*r/4)%4) }
				b := func(r int) VecPhysical { return v(r + (q+1+shift*r/4)%4) }
				VPADDD(a(step.add), a(step.to), a(step.to))
				VPADDD(b(step.add), b(step.to), b(step.to))
				VPXORD(a(step.to), a(step.by), a(step.by))
				VPXORD(b(step.to), b(step.by), b(step.by))
				VPROLD(Imm(uint64(step.rotate)), a(step.by), a(step.by))
				VPROLD(Imm(uint64(step.rotate)), b(step.by), b(step.by))
			}
		}
	}
	DECL(EAX)
	JNZ(LabelRef(label))
}

func (l *lanes) feedForward(v func(int) VecPhysical) {
	for i := range 12 {
		VPADDD_BCST(l.word(i), v(i), v(i))
	}
	for _, i := range []int{12, 14, 15} {
		VPADDD(v(i+8), v(i), v(i))
	}
}

// unpack makes four words of 16 lanes each, in a vector, four words of a lane each, in 16 bytes: vector 4g+j has words
// 4g .. 4g+3 of lanes j, j+4, j+8 and j+12.
func unpack(v func(int) VecPhysical) {
	for g := 0; g < 16; g += 4 {
		a, b, c, d := v(g), v(g+1), v(g+2), v(g+3)
		VPUNPCKLDQ(b, a, v(16))
		VPUNPCKHDQ(b, a, v(17))
		VPUNPCKLDQ(d, c, v(18))
		VPUNPCKHDQ(d, c, v(19))
		VPUNPCKLQDQ(v(18), v(16), a)
		VPUNPCKHQDQ(v(18), v(16), b)
		VPUNPCKLQDQ(v(19), v(17), c)
		VPUNPCKHQDQ(v(19), v(17), d)
	}
}

// store adds the text to each lane's block and writes it where it belongs: in the order of the lanes, since a block 0
// writes over half of the row behind its key, which the next packet's key then writes over.
func (l *lanes) store() {
	unpack(zmm)
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
		l.addresses(i)
		VPXORD(Mem{Base: RAX}, zmm(i), zmm(i))
		VMOVDQU32(zmm(i), Mem{Base: RBX})
	}
}

func (l *lanes) addresses(lane int) {
	MOVQ(Mem{Base: l.current, Disp: tableSrc + 8*lane}, RAX)
	MOVQ(Mem{Base: l.current, Disp: tableDst + 8*lane}, RBX)
}

// storeHalf is store for eight lanes.
func (l *lanes) storeHalf() {
	unpack(ymm)
	for lane := range 8 {
		l.addresses(lane)
		for half := range 2 {
			low, high := ymm(8*half+lane%4), ymm(8*half+4+lane%4)
			VSHUFI32X4(Imm(uint64(lane/4*3)), high, low, ymm(16+half))
			VPXORD(Mem{Base: RAX, Disp: 32 * half}, ymm(16+half), ymm(16+half))
			VMOVDQU32(ymm(16+half), Mem{Base: RBX, Disp: 32 * half})
		}
	}
}

// finishTails adds the text of each last block in part to its key stream, and wipes the frame's key stream.
func (l *lanes) finishTails() {
	VPXORD(Z17, Z17, Z17)
	VMOVDQU32(Z17, l.junk)
	CMPQ(l.limit, Imm(1))
	JE(LabelRef("done"))
	Load(Param("packets"), l.packet)
	Load(Param("count"), l.left)
	LEAQ(l.tails, R10)
	MOVQ(I64(-1), RDX)
	Label("tail")
	MOVQ(l.size, RAX)
	MOVQ(Mem{Base: l.packet, Index: RAX, Scale: 1}, RAX)
	SUBQ(Imm(overhead), RAX)
	MOVQ(Mem{Base: l.packet, Disp: packetSrcLen}, RBX)
	CMPQ(RBX, RAX)
	CMOVQHI(RAX, RBX)
	LEAQ(Mem{Base: RAX, Disp: 63}, RCX)
	SHRQ(Imm(6), RCX)
	MOVQ(RBX, R8)
	SHRQ(Imm(6), R8)
	CMPQ(R8, RCX)
	JGE(LabelRef("tailless"))
	CMPQ(l.first, Imm(0))
	JE(LabelRef("wantedTail"))
	CMPB(Mem{Base: l.packet, Disp: packetOK}, Imm(0))
	JE(LabelRef("tailless"))
	Label("wantedTail")
	DECQ(RCX)
	SHLQ(Imm(6), RCX)
	SUBQ(RCX, RAX)
	SUBQ(RCX, RBX)
	BZHIQ(RBX, RDX, RBX)
	BZHIQ(RAX, RDX, RAX)
	KMOVQ(RBX, K1)
	KMOVQ(RAX, K2)
	MOVQ(Mem{Base: l.packet, Disp: packetSrc}, RAX)
	VMOVDQU8_Z(Mem{Base: RAX, Index: RCX, Scale: 1}, K1, Z16)
	VPXORD(Mem{Base: R10}, Z16, Z16)
	VMOVDQU32(Z17, Mem{Base: R10})
	MOVQ(Mem{Base: l.packet, Disp: packetDst}, RAX)
	VMOVDQU8(Z16, K2, Mem{Base: RAX, Index: RCX, Scale: 1})
	Label("tailless")
	ADDQ(Imm(packetSize), l.packet)
	ADDQ(Imm(64), R10)
	DECQ(l.left)
	JNZ(LabelRef("tail"))
	Label("done")
}
