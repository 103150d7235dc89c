package udp

import (
	"encoding/binary"
	"net/netip"
	"time"
	"unsafe"
)

// Control messages of Linux (man 7 ip, ipv6, udp; include/uapi/linux/{in,in6,udp}.h). The code is bytes to bytes, needs no
// kernel and is built everywhere.
const (
	levelIP     = 0  // SOL_IP
	levelSocket = 1  // SOL_SOCKET, but on MIPS and SPARC, where no time of arrival is found
	levelUDP    = 17 // SOL_UDP
	levelIPv6   = 41 // SOL_IPV6

	typeTimestamp = 64 // SO_TIMESTAMPNS_NEW: struct __kernel_timespec, two int64 of whatever word size

	typeIPTOS        = 1  // IP_TOS: one byte when received, an int when sent
	typeIPTTL        = 2  // IP_TTL: int
	typeIPPktinfo    = 8  // IP_PKTINFO: struct in_pktinfo
	typeIPv6Pktinfo  = 50 // IPV6_PKTINFO: struct in6_pktinfo
	typeIPv6HopLimit = 52 // IPV6_HOPLIMIT: int
	typeIPv6Tclass   = 67 // IPV6_TCLASS: int

	typeUDPSegment = 103 // UDP_SEGMENT: uint16, bytes per segment
	typeUDPGRO     = 104 // UDP_GRO: int, bytes per segment

	wordSize         = int(unsafe.Sizeof(uintptr(0)))
	controlHeader    = wordSize + 8 // struct cmsghdr: size_t length, int level, int type; a multiple of wordSize
	pktinfoSize      = 12           // int ifindex; in_addr spec_dst; in_addr addr
	ipv6PktinfoSize  = 20           // in6_addr addr; uint32 ifindex
	timespecSize     = 16           // int64 seconds; int64 nanoseconds
	sendControlSize  = 4*controlHeader + 8 + 8 + 8 + 24
	receiveSpareSize = 64 // for messages that another option may add; cut ones are noticed by MSG_CTRUNC
	// receiveControlSize holds PKTINFO, TOS, GRO and TIMESTAMPNS.
	receiveControlSize = sendControlSize + receiveSpareSize
)

// outgoing is what the control messages of a send say.
type outgoing struct {
	src         netip.Addr // invalid: the kernel's choice
	ifIndex     int
	segmentSize int // 0: a single datagram
	tos, ttl    uint8
}

// incoming is what the control messages of a received run said; zero values for what was not there.
type incoming struct {
	dst         netip.Addr
	ifIndex     int
	segmentSize int
	tos         uint8
	arrived     int64 // see Datagrams
}

// appendControl appends the control messages of o for a socket of family f to b, which must have sendControlSize bytes of
// room if nothing is to be allocated. A source of the other family is left out.
func appendControl(b []byte, f family, o outgoing) []byte {
	native := binary.NativeEndian
	if (o.src.IsValid() || o.ifIndex != 0) && f == v4 && !o.src.Is6() {
		b = appendControlHeader(b, levelIP, typeIPPktinfo, pktinfoSize)
		b = native.AppendUint32(b, uint32(o.ifIndex))
		var a [4]byte
		if o.src.IsValid() {
			a = o.src.As4()
		}
		b = append(b, a[:]...) // the source; ipi_addr is not read on a send
		b = append(b, 0, 0, 0, 0)
		b = alignControl(b)
	}
	if (o.src.IsValid() || o.ifIndex != 0) && f == v6 && !o.src.Is4() {
		b = appendControlHeader(b, levelIPv6, typeIPv6Pktinfo, ipv6PktinfoSize)
		var a [16]byte
		if o.src.IsValid() {
			a = o.src.As16()
		}
		b = append(b, a[:]...)
		b = native.AppendUint32(b, uint32(o.ifIndex))
		b = alignControl(b)
	}
	if o.tos != 0 {
		level, kind := uint32(levelIP), uint32(typeIPTOS)
		if f == v6 {
			level, kind = levelIPv6, typeIPv6Tclass
		}
		b = appendControlHeader(b, level, kind, 4)
		b = alignControl(native.AppendUint32(b, uint32(o.tos)))
	}
	if o.ttl != 0 {
		level, kind := uint32(levelIP), uint32(typeIPTTL)
		if f == v6 {
			level, kind = levelIPv6, typeIPv6HopLimit
		}
		b = appendControlHeader(b, level, kind, 4)
		b = alignControl(native.AppendUint32(b, uint32(o.ttl)))
	}
	if o.segmentSize != 0 {
		b = appendControlHeader(b, levelUDP, typeUDPSegment, 2)
		b = alignControl(native.AppendUint16(b, uint16(o.segmentSize)))
	}
	return b
}

func appendControlHeader(b []byte, level, kind uint32, size int) []byte {
	native := binary.NativeEndian
	if wordSize == 8 {
		b = native.AppendUint64(b, uint64(controlHeader+size))
	} else {
		b = native.AppendUint32(b, uint32(controlHeader+size))
	}
	return native.AppendUint32(native.AppendUint32(b, level), kind)
}

// alignControl pads b with zeros to a multiple of the word size (CMSG_ALIGN); b starts aligned.
func alignControl(b []byte) []byte {
	for len(b)%wordSize != 0 {
		b = append(b, 0)
	}
	return b
}

// parseControl reads what it knows from control messages and skips the rest; it stops at the first that is cut or
// malformed, keeping what came before it.
func parseControl(b []byte) incoming {
	var in incoming
	for len(b) >= controlHeader {
		length, level, kind := parseControlHeader(b)
		if length < uint64(controlHeader) || length > uint64(len(b)) {
			break
		}
		in.read(level, kind, b[controlHeader:length])
		aligned := (int(length) + wordSize - 1) &^ (wordSize - 1)
		if aligned >= len(b) {
			break
		}
		b = b[aligned:]
	}
	return in
}

func parseControlHeader(b []byte) (length uint64, level, kind uint32) {
	native := binary.NativeEndian
	if wordSize == 8 {
		length = native.Uint64(b)
	} else {
		length = uint64(native.Uint32(b))
	}
	return length, native.Uint32(b[wordSize:]), native.Uint32(b[wordSize+4:])
}

// read takes one message's data.
func (in *incoming) read(level, kind uint32, data []byte) {
	native := binary.NativeEndian
	switch {
	case level == levelUDP && kind == typeUDPGRO && len(data) >= 4:
		if size := int32(native.Uint32(data)); size > 0 {
			in.segmentSize = int(size)
		}
	case level == levelIP && kind == typeIPPktinfo && len(data) >= pktinfoSize:
		in.ifIndex = int(int32(native.Uint32(data)))
		in.dst = netip.AddrFrom4([4]byte(data[8:12])) // ipi_addr, the header's destination
	case level == levelIPv6 && kind == typeIPv6Pktinfo && len(data) >= ipv6PktinfoSize:
		in.dst = netip.AddrFrom16([16]byte(data)).Unmap()
		in.ifIndex = int(int32(native.Uint32(data[16:])))
	case level == levelIP && kind == typeIPTOS && len(data) >= 1:
		in.tos = data[0]
	case level == levelIPv6 && kind == typeIPv6Tclass && len(data) >= 4:
		in.tos = uint8(native.Uint32(data))
	case level == levelSocket && kind == typeTimestamp && len(data) >= timespecSize:
		in.arrived = int64(native.Uint64(data))*int64(time.Second) + int64(native.Uint64(data[8:]))
	}
}
