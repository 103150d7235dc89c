package udp

import (
	"os"

	"golang.org/x/sys/unix"
)

const (
	// spareBuffer is how many bytes, as Config counts them, a socket is to hold together with its spares: Linux makes twice that
	// of it, what a device's queue of usual length (txqueuelen 1000) holds of the longest runs.
	spareBuffer = 32 << 20
	// spareMost bounds how many descriptors that makes where the system grants little (net.core.wmem_max is 208 KiB by default).
	spareMost = 160
)

// addSpares gives the sockets of a port spare ones to send by, where the kernel has refused them the buffer that was asked for: not
// everyone may pass net.core.wmem_max (SO_SNDBUFFORCE needs CAP_NET_ADMIN in the first user namespace). What a slow device's queue
// holds fills a small buffer, and then nothing leaves for anybody; with spares that queue is full first, and drops, for those who
// go that way only, as it does with a buffer without bounds. What spares cannot be had is done without.
func addSpares(cfg Config, pairs []Pair) {
	for f := range numbersOf {
		var sockets []*linuxSocket
		for _, p := range pairs {
			if s, ok := p.of(f).(*linuxSocket); ok {
				sockets = append(sockets, s)
			}
		}
		if len(sockets) > 0 {
			addFamilySpares(cfg, f, sockets)
		}
	}
}

// addFamilySpares does so for one family. The spares join the group of sockets that share the port (SO_REUSEPORT), whose program keeps
// what comes in away from them.
func addFamilySpares(cfg Config, f family, sockets []*linuxSocket) {
	granted := sockets[0].offloads.SendBuffer
	if granted <= 0 || granted >= cfg.SendBuffer {
		return
	}
	each := min(spareMost, min(cfg.SendBuffer, spareBuffer)/granted) // not shared among the shards: a flow has one
	if each <= 1 || set(sockets[0].fd, "SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) != nil {
		return
	}
	steered := false
	for _, s := range sockets {
		for len(s.senders) < each {
			fd, _, _, err := openDescriptor(cfg, f, s.port, true)
			if err != nil {
				return
			}
			if !steered {
				if steer(sockets[0].fd, f, len(sockets)) != nil {
					unix.Close(fd)
					return
				}
				steered = true
			}
			s.senders = append(s.senders, fd)
			s.offloads.SendBuffer += granted
		}
	}
}

// steer attaches a program to the group of sockets that fd belongs to: it chooses one of the first n, in the order in which they were
// bound, by the source's address and port, so that a flow stays with its socket (man 7 socket, SO_ATTACH_REUSEPORT_CBPF). Behind IP
// options or extension headers it reads something else for the port, which is as good.
func steer(fd int, f family, n int) error {
	const header = 1<<32 - 0x100000                       // SKF_NET_OFF (linux/filter.h): offsets in the IP header
	address, port := uint32(header+12), uint32(header+20) // of IPv4 without options
	if f == v6 {
		address, port = header+20, header+40 // the low half of the source's interface identifier
	}
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: address},
		{Code: unix.BPF_MISC | unix.BPF_TAX},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: port},
		{Code: unix.BPF_ALU | unix.BPF_ADD | unix.BPF_X},
		{Code: unix.BPF_ALU | unix.BPF_MUL | unix.BPF_K, K: 0x9e3779b1}, // golden ratio: all bits reach the upper half
		{Code: unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K, K: 16},
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: uint32(n)},
		{Code: unix.BPF_RET | unix.BPF_A},
	}
	return os.NewSyscallError("setsockopt SO_ATTACH_REUSEPORT_CBPF", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET,
		unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}))
}
