package udp

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// familyNumbers are the constants of one address family.
type familyNumbers struct {
	domain, level                  int
	pktinfo, tos, discover, noFrag int
}

var numbersOf = map[family]familyNumbers{
	v4: {unix.AF_INET, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.IP_RECVTOS, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT},
	v6: {unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, unix.IPV6_RECVTCLASS, unix.IPV6_MTU_DISCOVER,
		unix.IPV6_PMTUDISC_DONT},
}

// openNative is the opener of Linux sockets.
func openNative(cfg Config, f family, port uint16, share bool) (Socket, error) {
	fd, offloads, port, err := openDescriptor(cfg, f, port, share)
	if err != nil {
		return nil, err
	}
	return newLinuxSocket(fd, f, port, offloads, linuxCalls), nil
}

// openDescriptor opens and binds a socket and returns the port it has got.
func openDescriptor(cfg Config, f family, port uint16, share bool) (int, Offloads, uint16, error) {
	fd, err := unix.Socket(numbersOf[f].domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, Offloads{}, 0, familyError(os.NewSyscallError("socket", err))
	}
	offloads, port, err := setUp(fd, cfg, f, port, share)
	if err != nil {
		unix.Close(fd)
	}
	return fd, offloads, port, err
}

// setUp sets every option before the port is bound, so that no datagram comes in without them; but the first socket
// of a family shares its port only afterwards, see opener.
func setUp(fd int, cfg Config, f family, port uint16, share bool) (Offloads, uint16, error) {
	if f == v6 {
		if err := set(fd, "IPV6_V6ONLY", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return Offloads{}, 0, err
		}
	}
	if cfg.Mark != 0 { // without its mark a tunnel's datagrams may be routed into the tunnel
		if err := set(fd, "SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, int(cfg.Mark)); err != nil {
			return Offloads{}, 0, err
		}
	}
	offloads, err := setOptions(fd, cfg, f)
	if err != nil {
		return Offloads{}, 0, err
	}
	if share {
		if err := set(fd, "SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return Offloads{}, 0, err
		}
	}
	if port, err = bind(fd, f, port); err != nil {
		return Offloads{}, 0, err
	}
	if !share && cfg.Shards > 1 {
		if err := set(fd, "SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return Offloads{}, 0, err
		}
	}
	return offloads, port, nil
}

// setOptions asks for what the data path wants and tells what there is.
//
// Fragmentation is that of the kernel's WireGuard (skb->ignore_df, and DF clear on the outer header): PMTUDISC_DONT clears
// DF and lets a datagram longer than the path MTU leave in fragments. It does not apply to runs: a segment must fit the
// MTU, or the run is refused and its datagrams go one by one, in fragments.
func setOptions(fd int, cfg Config, f family) (Offloads, error) {
	n := numbersOf[f]
	if err := set(fd, "MTU_DISCOVER", n.level, n.discover, n.noFrag); err != nil {
		return Offloads{}, err
	}
	o := Offloads{BatchCalls: true}
	o.LocalAddress = unix.SetsockoptInt(fd, n.level, n.pktinfo, 1) == nil
	_ = unix.SetsockoptInt(fd, n.level, n.tos, 1) // without it ECN reads as not-ECT
	if cfg.Timestamps {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1) // without it Arrived stays 0
	}
	o.ReceiveBuffer = setBuffer(fd, cfg.ReceiveBuffer, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
	o.SendBuffer = setBuffer(fd, cfg.SendBuffer, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
	kernel := runningRelease()
	if !cfg.NoSegment && (kernel.trustSegment() || cfg.ForceSegment) {
		_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		o.SegmentSend = err == nil
	}
	if !cfg.NoGRO && kernel.trustGRO() {
		o.GROReceive = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
	}
	return o, nil
}

// setBuffer asks for a buffer of size bytes, above the system's limit if we may, and returns what was granted, in the
// unit that was asked for: the kernel keeps and tells twice that, for its own bookkeeping (man 7 socket).
func setBuffer(fd, size, force, plain int) int {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size) // cut to net.core.{r,w}mem_max, not refused
	}
	granted, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, plain)
	if err != nil {
		return 0
	}
	return granted / 2
}

// bind binds fd to port on every address and returns the port the kernel chose.
func bind(fd int, f family, port uint16) (uint16, error) {
	var addr unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	if f == v6 {
		addr = &unix.SockaddrInet6{Port: int(port)}
	}
	if err := unix.Bind(fd, addr); err != nil {
		return 0, os.NewSyscallError("bind", err)
	}
	addr, err := unix.Getsockname(fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	switch a := addr.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port), nil
	case *unix.SockaddrInet6:
		return uint16(a.Port), nil
	}
	return 0, fmt.Errorf("getsockname: address of type %T", addr)
}

func set(fd int, name string, level, option, value int) error {
	return os.NewSyscallError("setsockopt "+name, unix.SetsockoptInt(fd, level, option, value))
}

// runningRelease is the kernel's version; 0.0.0, which no policy trusts with GRO, if it does not say.
func runningRelease() release {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return release{}
	}
	return parseRelease(unix.ByteSliceToString(u.Release[:]))
}

// KnownFaults tells of the running kernel whether it damages what is sent with UDP_SEGMENT, or received with UDP_GRO: both are not used
// there. The sources are with trustSegment and trustGRO.
func KnownFaults() (segment, gro bool) {
	r := runningRelease()
	return !r.trustSegment(), !r.trustGRO()
}
