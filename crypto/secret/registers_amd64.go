//go:build !purego

package secret

import "golang.org/x/sys/cpu"

// What the processor has, for the assembly.
var (
	//lint:ignore U1000 read by registers_amd64.s
	hasAVX = cpu.X86.HasAVX
	//lint:ignore U1000 read by registers_amd64.s
	hasAVX512 = cpu.X86.HasAVX512F && cpu.X86.HasAVX512VL
)

// eraseRegisters sets all vector registers to zero.
//
//go:noescape
func eraseRegisters()
