package flow

import (
	"encoding/binary"
	"net/netip"

	"github.com/sluice-vpn/sluice/tun/ip"
)

// key is the two ends of a flow, from where this node is: the protocol, the type of an ICMP query, the IP version, the local and the remote
// port, the local and the remote address.
type key [40]byte

// Protocols that have ports where TCP and UDP have them (RFC 9260, RFC 4340, RFC 3828).
const (
	protocolDCCP    = 33
	protocolSCTP    = 132
	protocolUDPLite = 136
)

// Types of ICMP (RFC 792, RFC 4443). Queries have an identifier, and their answers are of the next type; of ICMPv4 an echo's is 0.
const (
	echoReply, echoRequest     = 0, 8
	timestamp, addressMask     = 13, 17
	echoRequest6, nodeQuery6   = 128, 139
	unreachable, sourceQuench  = 3, 4
	timeExceeded, badParameter = 11, 12
	firstError6, lastError6    = 1, 4
	icmpHeaderLen              = 8
)

// segment is a packet as far as it matters here.
type segment struct {
	key   key
	flags uint8 // of TCP
	kind  kind
}

type kind uint8

const (
	malformed kind = iota
	rest           // a fragment that is not the first, which is of no use without the first one
	plain
	query   // ICMP
	tcp     // with flags
	failure // an ICMP error
	refused // of ICMP, and neither a query nor an error
	others  // without ports
)

// parse reads a packet for which ip.Length was ok, or the begin of one with a whole IP header; ours: this node has sent it.
func (s *segment) parse(p []byte, ours bool) {
	t, ok := ip.FindTransport(p)
	if !ok || t.Offset > len(p) {
		s.kind = malformed
		return
	}
	if !t.First {
		s.kind = rest
		return
	}
	s.key = key{0: t.Protocol, 2: p[0] >> 4}
	s.addresses(p, ours)
	b := p[t.Offset:]
	switch t.Protocol {
	case ip.ProtocolTCP:
		s.ports(b, ours)
		if len(b) > flagsAt {
			s.kind, s.flags = tcp, b[flagsAt]
		}
	case ip.ProtocolUDP, protocolDCCP, protocolSCTP, protocolUDPLite:
		s.ports(b, ours)
	case ip.ProtocolICMP, ip.ProtocolICMPv6:
		s.icmp(b, ours)
	default:
		s.kind = others
	}
}

// flagsAt is where a TCP header has its flags (RFC 9293, section 3.1).
const flagsAt = 13

func (s *segment) addresses(p []byte, ours bool) {
	both := ip.Addresses(p)
	n := len(both) / 2
	local, remote := both[:n], both[n:]
	if !ours {
		local, remote = remote, local
	}
	copy(s.key[8:], local)
	copy(s.key[8+n:], remote)
}

func (s *segment) ports(b []byte, ours bool) {
	if len(b) < icmpHeaderLen { // as long as what an ICMP error quotes at least, RFC 792
		s.kind = malformed
		return
	}
	s.kind = plain
	local, remote := b[0:2], b[2:4]
	if !ours {
		local, remote = remote, local
	}
	copy(s.key[4:], local)
	copy(s.key[6:], remote)
}

// icmp reads queries of ours, answers to us, and errors.
func (s *segment) icmp(b []byte, ours bool) {
	if len(b) < icmpHeaderLen {
		s.kind = malformed
		return
	}
	s.kind = refused
	asked, v6 := b[0], s.key[2] == 6
	if !ours {
		if isError(asked, v6) {
			s.kind = failure
			return
		}
		switch asked--; {
		case v6:
		case b[0] == echoReply:
			asked = echoRequest
		case asked == echoRequest: // a router's advertisement (RFC 1256), which answers no echo
			return
		}
	}
	if isQuery(asked, v6) {
		s.kind = query
		s.key[1] = asked
		copy(s.key[4:], b[4:6])
	}
}

func isError(kind uint8, v6 bool) bool {
	if v6 {
		return kind >= firstError6 && kind <= lastError6
	}
	return kind == unreachable || kind == sourceQuench || kind == timeExceeded || kind == badParameter
}

func isQuery(kind uint8, v6 bool) bool {
	if v6 {
		return kind == echoRequest6 || kind == nodeQuery6
	}
	return kind == echoRequest || kind >= timestamp && kind <= addressMask && kind%2 == 1
}

// quoted is the packet that an ICMP error is about; nil: not enough of it is there.
func quoted(p []byte) []byte {
	t, ok := ip.FindTransport(p)
	if !ok || len(p) < t.Offset+icmpHeaderLen {
		return nil
	}
	q := p[t.Offset+icmpHeaderLen:]
	header := ip.IPv6HeaderLen
	if len(q) > 0 && q[0]>>4 == 4 {
		header = max(int(q[0]&15)*4, ip.IPv4HeaderLen)
	}
	if len(q) < header || q[0]>>4 != p[0]>>4 {
		return nil
	}
	return q
}

func keyOf(protocol uint8, local, remote netip.AddrPort) (k key, ok bool) {
	l, r := local.Addr().Unmap(), remote.Addr().Unmap()
	if l.Is4() != r.Is4() || !l.IsValid() || !r.IsValid() || protocol != ip.ProtocolTCP && protocol != ip.ProtocolUDP {
		return k, false
	}
	k[0], k[2] = protocol, 6
	if l.Is4() {
		k[2] = 4
	}
	binary.BigEndian.PutUint16(k[4:], local.Port())
	binary.BigEndian.PutUint16(k[6:], remote.Port())
	n := copy(k[8:], l.AsSlice())
	copy(k[8+n:], r.AsSlice())
	return k, true
}

func resumed(protocol uint8) stage {
	if protocol == ip.ProtocolTCP {
		return established
	}
	return stream
}
