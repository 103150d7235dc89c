package udp

import (
	"encoding/binary"
	"net/netip"
)

// Socket addresses of Linux (include/uapi/linux/{in,in6}.h), bytes to bytes.
const (
	afINET  = 2
	afINET6 = 10

	sockaddrIn4Size = 16 // family, port, addr, 8 bytes of zero
	sockaddrIn6Size = 28 // family, port, flow label, addr, scope
)

// sockaddr has room for both families.
type sockaddr [sockaddrIn6Size]byte

// encodeSockaddr writes addr for a socket of family f and returns its length; 0 if addr is of the other family. scope
// is the interface of a link-local IPv6 address, else 0. The address's own zone is not looked at.
func encodeSockaddr(b *sockaddr, f family, addr netip.AddrPort, scope uint32) int {
	ip := addr.Addr()
	switch {
	case f == v4 && (ip.Is4() || ip.Is4In6()):
		*b = sockaddr{}
		binary.NativeEndian.PutUint16(b[0:], afINET)
		binary.BigEndian.PutUint16(b[2:], addr.Port())
		a := ip.As4()
		copy(b[4:8], a[:])
		return sockaddrIn4Size
	case f == v6 && ip.Is6() && !ip.Is4In6():
		*b = sockaddr{}
		binary.NativeEndian.PutUint16(b[0:], afINET6)
		binary.BigEndian.PutUint16(b[2:], addr.Port())
		a := ip.As16()
		copy(b[8:24], a[:])
		binary.NativeEndian.PutUint32(b[24:], scope)
		return sockaddrIn6Size
	}
	return 0
}

// parseSockaddr reads an address of either family, unmapped and without its zone, and the scope that goes with it, 0 for
// IPv4, mapped or not. The address is invalid if b is cut or of another family.
func parseSockaddr(b []byte) (addr netip.AddrPort, scope uint32) {
	if len(b) < sockaddrIn4Size {
		return netip.AddrPort{}, 0
	}
	port := binary.BigEndian.Uint16(b[2:])
	switch f := binary.NativeEndian.Uint16(b); {
	case f == afINET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port), 0
	case f == afINET6 && len(b) >= sockaddrIn6Size:
		ip := netip.AddrFrom16([16]byte(b[8:24])).Unmap()
		if ip.Is4() {
			return netip.AddrPortFrom(ip, port), 0
		}
		return netip.AddrPortFrom(ip, port), binary.NativeEndian.Uint32(b[24:])
	}
	return netip.AddrPort{}, 0
}
