package udp

import (
	"encoding/binary"
	"net/netip"
)

// Routes tells where datagrams would leave. It belongs to one goroutine, but for the channel of Changed.
type Routes interface {
	// SourceHolds tells whether r, sent with that fwmark, is to leave from r.Src, the address that the peer wrote to: if its
	// route then leads to r.IfIndex, where the peer's datagram came in. Where it leads elsewhere or nowhere, or Src is not ours
	// any more, the routing table is to choose (kernel socket.c, send4; its send6 keeps whatever is ours, which the network on the
	// other side may drop all the same: RFC 2827). True where the system does not say.
	SourceHolds(r Run, mark uint32) bool
	// Changed delivers a value when what SourceHolds has said may be wrong by now; while nobody takes it, nothing is read.
	Changed() <-chan struct{}
	Close() error
}

// Of include/uapi/linux/{netlink,rtnetlink}.h. The code is bytes to bytes, needs no kernel and is built everywhere.
const (
	netlinkHeader  = 16 // struct nlmsghdr: length, type, flags, sequence, port
	routeHeader    = 12 // struct rtmsg
	attrHeader     = 4  // struct rtattr
	netlinkError   = 2  // NLMSG_ERROR
	netlinkRequest = 1  // NLM_F_REQUEST
	newRoute       = 24 // RTM_NEWROUTE
	getRoute       = 26 // RTM_GETROUTE

	attrDst, attrSrc, attrOIF, attrMark = 1, 2, 4, 16 // RTA_DST, RTA_SRC, RTA_OIF, RTA_MARK
	attrProtocol, attrSport, attrDport  = 27, 28, 29  // RTA_IP_PROTO, RTA_SPORT, RTA_DPORT: Linux 4.18; older ones ignore them
	protocolUDP                         = 17
	routeRequestSize                    = netlinkHeader + routeHeader + 2*(attrHeader+16) + 5*(attrHeader+4)
)

// routeQuestion asks for the way of a datagram.
type routeQuestion struct {
	dst     netip.AddrPort
	src     netip.Addr // invalid: not chosen yet
	port    uint16     // ours
	mark    uint32
	ifIndex int // that the datagram is bound to, 0: none
}

// appendRouteRequest appends RTM_GETROUTE for q to b, which is empty and needs routeRequestSize bytes.
func appendRouteRequest(b []byte, sequence uint32, q routeQuestion) []byte {
	native, network := binary.NativeEndian, binary.BigEndian
	kind, bits := byte(afINET), byte(32)
	if q.dst.Addr().Is6() {
		kind, bits = afINET6, 128
	}
	b = append(b, make([]byte, netlinkHeader)...)
	srcBits := byte(0)
	if q.src.IsValid() {
		srcBits = bits
	}
	b = append(b, kind, bits, srcBits, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = appendRouteAttr(b, attrDst, q.dst.Addr().AsSlice())
	if q.src.IsValid() {
		b = appendRouteAttr(b, attrSrc, q.src.AsSlice())
	}
	b = appendRouteAttr(b, attrProtocol, []byte{protocolUDP})
	b = appendRouteAttr(b, attrSport, network.AppendUint16(nil, q.port))
	b = appendRouteAttr(b, attrDport, network.AppendUint16(nil, q.dst.Port()))
	if q.ifIndex != 0 {
		b = appendRouteAttr(b, attrOIF, native.AppendUint32(nil, uint32(q.ifIndex)))
	}
	if q.mark != 0 {
		b = appendRouteAttr(b, attrMark, native.AppendUint32(nil, q.mark))
	}
	native.PutUint32(b, uint32(len(b)))
	native.PutUint16(b[4:], getRoute)
	native.PutUint16(b[6:], netlinkRequest)
	native.PutUint32(b[8:], sequence)
	return b
}

func appendRouteAttr(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%attrHeader != 0 {
		b = append(b, 0)
	}
	return b
}

// parseRouteAnswer reads the answer to the request of that number: the interface that the datagram would leave by, or the error
// number (errno) of why it would not. Not ok: it is another message, or none.
func parseRouteAnswer(b []byte, sequence uint32) (ifIndex int, errno uint32, ok bool) {
	native := binary.NativeEndian
	if len(b) < netlinkHeader || native.Uint32(b[8:]) != sequence {
		return 0, 0, false
	}
	length, kind := native.Uint32(b), native.Uint16(b[4:])
	if length < netlinkHeader || uint64(length) > uint64(len(b)) {
		return 0, 0, false
	}
	b = b[netlinkHeader:length]
	switch {
	case kind == netlinkError && len(b) >= 4 && int32(native.Uint32(b)) < 0:
		return 0, -native.Uint32(b), true
	case kind != newRoute || len(b) < routeHeader:
		return 0, 0, false
	}
	for b = b[routeHeader:]; len(b) >= attrHeader; {
		size := int(native.Uint16(b))
		if size < attrHeader || size > len(b) {
			break
		}
		if native.Uint16(b[2:]) == attrOIF && size >= attrHeader+4 {
			return int(int32(native.Uint32(b[attrHeader:]))), 0, true
		}
		b = b[min(len(b), (size+attrHeader-1)&^(attrHeader-1)):]
	}
	return 0, 0, false
}

// sourceHolds is the rule of Routes.SourceHolds. ask returns where a datagram would leave, or that it would not (routed); not ok:
// the system does not say.
func sourceHolds(r *Run, q routeQuestion, ask func(routeQuestion) (ifIndex int, routed, ok bool)) bool {
	if !r.Src.IsValid() || r.IfIndex == 0 {
		return true
	}
	q.dst, q.src, q.ifIndex = r.Dst, r.Src, r.scope()
	ifIndex, routed, ok := ask(q)
	if !ok || routed && ifIndex == r.IfIndex {
		return true
	}
	if !routed {
		return false
	}
	// What comes in from an interface of a VRF, or from this host itself, is told to have come by the VRF's own device, or the one
	// that has the address, but leaves by the interface, or the loopback. Bound to where it came in, it does so too. It is asked
	// without source: with one IPv6 takes the binding for a wish (ip6_route_output_flags_noref in net/ipv6/route.c).
	q.src, q.ifIndex = netip.Addr{}, r.IfIndex
	bound, routed, ok := ask(q)
	return !ok || routed && bound == ifIndex
}
