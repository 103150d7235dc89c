package relay

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setOptions runs between socket and bind. Buffers and offloads are asked for and may be refused.
func (s *socket) setOptions(raw syscall.RawConn, v6 bool, cfg socketConfig) error {
	var err error
	control := func(fd uintptr) {
		if v6 {
			if err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
				return
			}
		}
		s.granted = setBuffer(int(fd), cfg.receiveBuffer, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
		setBuffer(int(fd), cfg.sendBuffer, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
		if cfg.localAddress {
			level, option := unix.IPPROTO_IP, unix.IP_PKTINFO
			if v6 {
				level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
			}
			s.pktinfo = unix.SetsockoptInt(int(fd), level, option, 1) == nil
		}
		if cfg.gro {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1)
		}
		s.segment.Store(cfg.segment)
	}
	if e := raw.Control(control); e != nil {
		return e
	}
	return err
}

// setBuffer asks for a buffer of size bytes, above the system's limit if we may, and returns what was granted in the same
// unit: the kernel keeps and tells twice that, for its own bookkeeping (man 7 socket).
func setBuffer(fd, size, force, plain int) int {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
	}
	granted, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, plain)
	if err != nil {
		return 0
	}
	return granted / 2
}

// wait blocks until a datagram can be read, so that no memory need be held while there is none.
func (s *socket) wait() error {
	return s.raw.Read(func(fd uintptr) bool {
		poll := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll[:], 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

func wasTruncated(flags, _, _ int) bool { return flags&unix.MSG_TRUNC != 0 }

// givesUpRuns reports whether what was refused with err is to be sent again, datagram by datagram (udp(7), Linux
// udp_send_skb): where a segment does not fit the MTU (EINVAL or EMSGSIZE, by version) or memory is short, which is so for
// this one flow or moment; where the device cannot checksum (EIO) or there is no such option, runs are given up for good.
func (s *socket) givesUpRuns(err error) bool {
	for _, e := range []error{unix.EIO, unix.EOPNOTSUPP, unix.ENOPROTOOPT} {
		if errors.Is(err, e) {
			s.segment.Store(false)
			return true
		}
	}
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM)
}

// native is the byte order of control messages.
var native = binary.NativeEndian

// parseControl reads the control messages of a received message.
func parseControl(oob []byte, r *received) {
	for len(oob) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(oob) {
			return
		}
		data := oob[unix.CmsgLen(0):size]
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			if n := int(native.Uint32(data)); n > 0 {
				r.segment = n
			}
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			r.local = netip.AddrFrom4([4]byte(data[8:12])) // ipi_addr: the destination in the header
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			r.local = netip.AddrFrom16([16]byte(data[:16]))
		}
		step := unix.CmsgSpace(size - unix.CmsgLen(0))
		if step >= len(oob) {
			return
		}
		oob = oob[step:]
	}
}

// appendControl appends the control messages that choose the local address, if it is valid, and cut a run into segments.
func appendControl(oob []byte, local netip.Addr, segment int, run bool) []byte {
	switch {
	case local.Is4():
		var info [unix.SizeofInet4Pktinfo]byte
		a := local.As4()
		copy(info[4:8], a[:]) // ipi_spec_dst
		oob = appendCmsg(oob, unix.IPPROTO_IP, unix.IP_PKTINFO, info[:])
	case local.Is6():
		var info [unix.SizeofInet6Pktinfo]byte
		a := local.As16()
		copy(info[:16], a[:])
		oob = appendCmsg(oob, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, info[:])
	}
	if run {
		var size [2]byte
		native.PutUint16(size[:], uint16(segment))
		oob = appendCmsg(oob, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size[:])
	}
	return oob
}

func appendCmsg(oob []byte, level, kind int32, data []byte) []byte {
	at := len(oob)
	for range unix.CmsgSpace(len(data)) {
		oob = append(oob, 0)
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[at]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(len(data)))
	copy(oob[at+unix.CmsgLen(0):], data)
	return oob
}
