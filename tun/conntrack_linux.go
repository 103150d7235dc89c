//go:build linux && !sluice_portable

package tun

import (
	"encoding/binary"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/tun/ip"
)

// This file asks connection tracking who has sent a packet whose source a NAT of this host has replaced (ctnetlink,
// include/uapi/linux/netfilter/nfnetlink_conntrack.h).

const (
	conntrackGet = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET

	attrTupleOriginal = 1 // CTA_TUPLE_ORIG
	attrTupleReply    = 2 // CTA_TUPLE_REPLY
	attrTupleIP       = 1 // CTA_TUPLE_IP
	attrTupleProtocol = 2 // CTA_TUPLE_PROTO
	attrSource4       = 1 // CTA_IP_V4_SRC, the destination is one more
	attrSource6       = 3 // CTA_IP_V6_SRC
	attrProtocol      = 1 // CTA_PROTO_NUM
	attrSourcePort    = 2 // CTA_PROTO_SRC_PORT
	attrICMPID        = 4 // CTA_PROTO_ICMP_ID, type and code are one and two more
	attrICMPv6ID      = 7 // CTA_PROTO_ICMPV6_ID

	netfilterLen = 4 // struct nfgenmsg
)

// originalSource returns who has sent a packet (or the beginning of it) that has left the host's NAT, if the host tracks it. The
// thread is in the namespace to ask.
func originalSource(packet []byte) (netip.Addr, bool) {
	if _, err := os.Stat("/proc/sys/net/netfilter/nf_conntrack_max"); err != nil {
		return netip.Addr{}, false // asking would load the module
	}
	request, ok := appendConntrackRequest(nil, packet)
	if !ok {
		return netip.Addr{}, false
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return netip.Addr{}, false
	}
	defer unix.Close(fd)
	if unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) != nil {
		return netip.Addr{}, false
	}
	var answer [4096]byte
	n, _, err := unix.Recvfrom(fd, answer[:], unix.MSG_DONTWAIT) // the kernel has answered within the send
	if err != nil {
		return netip.Addr{}, false
	}
	return parseConntrackAnswer(answer[:n])
}

// appendConntrackRequest appends the question for the connection of which packet is one in the first direction: its answers come
// with source and destination exchanged. Not ok: nothing that could be asked for.
func appendConntrackRequest(b, packet []byte) ([]byte, bool) {
	t, ok := ip.FindTransport(packet)
	if !ok || !t.First || len(packet) < t.Offset+ip.UDPHeaderLen {
		return b, false
	}
	family := uint8(unix.AF_INET)
	if packet[0]>>4 == 6 {
		family = unix.AF_INET6
	}
	body := []byte{family, 0, 0, 0} // version 0, resource 0
	return appendRequest(b, conntrackGet, appendAttr(body, attrTupleReply, appendAnswerTuple(nil, packet, t))), true
}

// appendAnswerTuple appends addresses and ports as the answers to packet have them.
func appendAnswerTuple(b, packet []byte, t ip.Transport) []byte {
	source, size := uint16(attrSource4), 4
	if packet[0]>>4 == 6 {
		source, size = attrSource6, 16
	}
	both, body := ip.Addresses(packet), packet[t.Offset:]
	b = appendAttr(b, attrTupleIP, appendAttr(appendAttr(nil, source, both[size:]), source+1, both[:size]))
	protocol := appendAttr(nil, attrProtocol, []byte{t.Protocol})
	switch t.Protocol {
	case ip.ProtocolTCP, ip.ProtocolUDP, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP, unix.IPPROTO_UDPLITE:
		protocol = appendAttr(appendAttr(protocol, attrSourcePort, body[2:4]), attrSourcePort+1, body[0:2])
	case ip.ProtocolICMP, ip.ProtocolICMPv6:
		id := uint16(attrICMPID)
		if t.Protocol == ip.ProtocolICMPv6 {
			id = attrICMPv6ID
		}
		protocol = appendAttr(protocol, id, body[4:6])
		protocol = appendAttr(protocol, id+1, []byte{answerType(t.Protocol, body[0])})
		protocol = appendAttr(protocol, id+2, body[1:2])
	}
	return appendAttr(b, attrTupleProtocol, protocol)
}

// answerType is the ICMP type that answers a query (RFC 792, RFC 950, RFC 4443, section 4).
func answerType(protocol, query uint8) uint8 {
	switch {
	case protocol == ip.ProtocolICMPv6:
		return query + 1 // 128 by 129, and node information, 139 by 140
	case query == 8:
		return 0
	}
	return query + 1 // 13 by 14, 15 by 16, 17 by 18
}

// parseConntrackAnswer returns the source of the connection's first direction.
func parseConntrackAnswer(b []byte) (netip.Addr, bool) {
	if len(b) < netlinkHeaderLen+netfilterLen || binary.NativeEndian.Uint16(b[4:])>>8 != unix.NFNL_SUBSYS_CTNETLINK {
		return netip.Addr{}, false // an error, as a rule that there is no such connection
	}
	b = b[netlinkHeaderLen+netfilterLen : min(len(b), max(netlinkHeaderLen+netfilterLen, int(binary.NativeEndian.Uint32(b))))]
	addresses := findAttr(findAttr(b, attrTupleOriginal), attrTupleIP)
	for _, kind := range []uint16{attrSource4, attrSource6} {
		if addr, ok := netip.AddrFromSlice(findAttr(addresses, kind)); ok {
			return addr, true
		}
	}
	return netip.Addr{}, false
}
