//go:build !purego

package secret

import "golang.org/x/sys/cpu"

var (
	hasAVX    = cpu.X86.HasAVX
	hasAVX512 = cpu.X86.HasAVX512F && cpu.X86.HasAVX512VL
)

// eraseRegisters sets all vector registers to zero.
//
//go:noescape
func eraseRegisters()
