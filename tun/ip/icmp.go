package ip

import (
	"encoding/binary"
	"net/netip"
)

const (
	icmpHeaderLen = 8
	// maxICMPv4 and maxICMPv6 bound the whole error, IP header included: RFC 1812, section 4.3.2.3, and the minimum
	// MTU, RFC 4443, section 2.4 (c).
	maxICMPv4 = 576
	maxICMPv6 = 1280

	icmpErrorTTL = 64
)

// AppendUnreachable appends to dst the ICMP error that says the packet's destination cannot be reached: host unreachable
// (RFC 792, type 3 code 1) or address unreachable (RFC 4443, type 1 code 3). src is the error's source address; where
// it is not a valid address of the packet's family, the packet's destination is used, so that the error still gets to
// a sender on this host.
//
// packet is one for which [Length] was ok, trimmed to it. dst comes back unchanged where no error may be sent (RFC 1122,
// section 3.2.2; RFC 4443, section 2.4 (e)): in answer to an ICMP error, to a packet for a multicast or broadcast
// address, to a fragment other than the first, or to a source that is not a single host. Limiting the rate is
// the caller's part.
func AppendUnreachable(dst, packet []byte, src netip.Addr) []byte {
	if !mayAnswer(packet, false) {
		return dst
	}
	if packet[0]>>4 == 4 {
		return appendICMPv4(dst, packet, src, 3, 1, 0)
	}
	return appendICMPv6(dst, packet, src, 1, 3, 0)
}

// AppendTooBig appends to dst the ICMP error that asks for packets of at most mtu bytes: fragmentation needed (RFC 1191,
// section 4), only for IPv4 packets with DF, or packet too big (RFC 4443, section 3.2). Everything else is as with
// [AppendUnreachable], but packet too big is also sent for multicast destinations.
func AppendTooBig(dst, packet []byte, src netip.Addr, mtu int) []byte {
	if !mayAnswer(packet, true) {
		return dst
	}
	if packet[0]>>4 == 4 {
		if !IPv4(packet).DontFragment() {
			return dst
		}
		return appendICMPv4(dst, packet, src, 3, 4, uint32(min(mtu, 0xffff)))
	}
	return appendICMPv6(dst, packet, src, 2, 0, uint32(mtu))
}

// mayAnswer obeys "An ICMP error message MUST NOT be sent as the result of receiving [...]" of RFC 1122, section 3.2.2,
// and the list of RFC 4443, section 2.4 (e).
func mayAnswer(packet []byte, tooBig bool) bool {
	t, ok := FindTransport(packet)
	if !ok || !t.First {
		return false
	}
	from, to := Source(packet), Destination(packet)
	if from.IsUnspecified() || from.IsMulticast() {
		return false
	}
	body := packet[t.Offset:]
	if packet[0]>>4 == 4 {
		// Loopback, class E and broadcast sources do not define a single host.
		if from.IsLoopback() || from.As4()[0] >= 240 || to.IsMulticast() || to == broadcast {
			return false
		}
		return t.Protocol != ProtocolICMP || len(body) > 0 && isICMPv4Query(body[0])
	}
	if to.IsMulticast() && !tooBig {
		return false
	}
	// ICMPv6 errors have types below 128; redirect is 137.
	return t.Protocol != ProtocolICMPv6 || len(body) > 0 && body[0] >= 128 && body[0] != 137
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// isICMPv4Query is true for the queries of RFC 792 and RFC 950; every other type counts as an error.
func isICMPv4Query(kind uint8) bool {
	switch kind {
	case 0, 8, 9, 10, 13, 14, 15, 16, 17, 18:
		return true
	}
	return false
}

// errorSource is src, or the packet's destination where src will not do.
func errorSource(packet []byte, src netip.Addr) netip.Addr {
	to := Destination(packet)
	if src = src.Unmap(); src.Is4() == to.Is4() && src.IsValid() {
		return src
	}
	return to
}

func appendICMPv4(dst, packet []byte, src netip.Addr, kind, code uint8, rest uint32) []byte {
	quoted := packet[:min(len(packet), maxICMPv4-IPv4HeaderLen-icmpHeaderLen)]
	start := len(dst)
	from, to := errorSource(packet, src).As4(), Source(packet).As4()
	dst = append(dst, 0x45, 0xc0, 0, 0, 0, 0, 0, 0, icmpErrorTTL, ProtocolICMP, 0, 0) // precedence 6, RFC 1812, 4.3.2.5
	dst = append(dst, from[:]...)
	dst = append(dst, to[:]...)
	dst = append(dst, kind, code, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, rest)
	dst = append(dst, quoted...)
	h := IPv4(dst[start:])
	h.SetTotalLen(len(h))
	h.SetChecksum()
	binary.BigEndian.PutUint16(h[IPv4HeaderLen+2:], ^Sum(h[IPv4HeaderLen:], 0))
	return dst
}

func appendICMPv6(dst, packet []byte, src netip.Addr, kind, code uint8, rest uint32) []byte {
	quoted := packet[:min(len(packet), maxICMPv6-IPv6HeaderLen-icmpHeaderLen)]
	start := len(dst)
	from, to := errorSource(packet, src).As16(), Source(packet).As16()
	dst = append(dst, 0x60, 0, 0, 0, 0, 0, ProtocolICMPv6, icmpErrorTTL)
	dst = append(dst, from[:]...)
	dst = append(dst, to[:]...)
	dst = append(dst, kind, code, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, rest)
	dst = append(dst, quoted...)
	h := IPv6(dst[start:])
	h.SetPayloadLen(len(h.Payload()))
	setICMPv6Checksum(h)
	return dst
}

// Quoted is what an ICMP error that this package made quotes of the packet that it is about, from its IP header on.
func Quoted(icmpError []byte) []byte {
	if icmpError[0]>>4 == 4 {
		return icmpError[IPv4HeaderLen+icmpHeaderLen:]
	}
	return icmpError[IPv6HeaderLen+icmpHeaderLen:]
}

// SetErrorSource gives an ICMP error that this package made another source address, of its family.
func SetErrorSource(icmpError []byte, src netip.Addr) {
	if icmpError[0]>>4 == 4 {
		from := src.As4()
		copy(icmpError[12:], from[:])
		IPv4(icmpError).SetChecksum()
		return
	}
	from := src.As16()
	copy(icmpError[8:], from[:])
	setICMPv6Checksum(icmpError)
}

func setICMPv6Checksum(h IPv6) {
	body := h.Payload()
	body[2], body[3] = 0, 0
	binary.BigEndian.PutUint16(body[2:], ^Sum(body, PseudoSum(h, ProtocolICMPv6, len(body))))
}
