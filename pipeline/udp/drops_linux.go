package udp

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Indices of what SO_MEMINFO returns (include/uapi/linux/sock_diag.h).
const (
	memoryDrops = 8 // SK_MEMINFO_DROPS
	memoryVars  = 9 // SK_MEMINFO_VARS
)

// dropCount follows the kernel's count of what it dropped, which has 32 bits and begins again.
type dropCount struct {
	mu   sync.Mutex
	last uint32
}

// countDropped asks the kernel how much it dropped before Receive. It costs a system call here, and nothing on the way of a packet.
func (s *linuxSocket) countDropped() {
	if !s.acquire() {
		return
	}
	defer s.release()
	s.drops.mu.Lock()
	defer s.drops.mu.Unlock()
	var memory [memoryVars]uint32
	size := uint32(unsafe.Sizeof(memory))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&memory[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 || size < uint32(unsafe.Sizeof(memory)) {
		return // before Linux 4.12
	}
	s.stats.ReceiveDropped.Add(uint64(memory[memoryDrops] - s.drops.last))
	s.drops.last = memory[memoryDrops]
}
