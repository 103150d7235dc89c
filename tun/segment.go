package tun

import (
	"encoding/binary"
	"errors"

	"github.com/sluice-vpn/sluice/tun/ip"
)

// ErrMalformed: a superpacket's Offload does not fit its bytes.
var ErrMalformed = errors.New("tun: malformed superpacket")

// Segmenter cuts a superpacket into the packets that it stands for. The zero value is ready for Init. After Init it is
// frozen: Count, Len and Cut may be called by several goroutines at once, until the next Init. It borrows the
// superpacket's Data until then and never writes to it.
//
// The packets are those that the kernel would make (net/ipv4/tcp_offload.c tcp_gso_segment, net/ipv4/udp_offload.c
// __udp_gso_segment, net/ipv4/af_inet.c inet_gso_segment): IPv4 identification counts up, sequence numbers advance,
// FIN and PSH stand only on the last and CWR only on the first, checksums are complete. IPv4 options and IPv6 extension
// headers stand in every segment as they are.
type Segmenter struct {
	data      []byte
	kind      GSOType
	transport int // start of the transport header
	header    int // length of all headers
	size      int // payload bytes of each segment but the last
	count     int

	// Sums over everything in the headers that are the same in all segments.
	ipSum        uint16 // IPv4 header without length, ID and checksum
	transportSum uint16 // pseudo-header without length, transport header without what a segment changes

	// GSONone: where the checksum is to be completed; -1 where it is complete.
	checksum int
}

// Init parses p.Data, which must be exactly one IP packet, and freezes the segmenter. It returns [ErrMalformed] if
// p.Offload does not fit it; the segmenter then has no segments.
func (s *Segmenter) Init(p *Superpacket) error {
	*s = Segmenter{}
	n, ok := ip.Length(p.Data)
	if !ok || n != len(p.Data) {
		return ErrMalformed
	}
	if p.Type == GSONone {
		return s.initSingle(p)
	}
	o := Offload{Type: p.Type, SegmentSize: p.SegmentSize, NeedsChecksum: p.NeedsChecksum}
	four := p.Data[0]>>4 == 4
	if four != (p.Type == GSOTCPv4 || p.Type == GSOUDPv4) || !locateTransport(p.Data, &o) {
		return ErrMalformed
	}
	s.data, s.kind, s.size = p.Data, p.Type, int(o.SegmentSize)
	s.transport, s.header = int(o.ChecksumStart), int(o.HeaderLen)
	s.count = max(1, (len(s.data)-s.header+s.size-1)/s.size)
	s.sumHeaders(s.pseudoSum(p.NeedsChecksum, int(o.ChecksumOffset)))
	return nil
}

// pseudoSum is the sum of the pseudo-header without the length. An incomplete checksum's field, at offset, holds it, and there
// the kernel goes on from that (tcp_gso_segment): it has the final destination (RFC 8200, section 8.1), which is not the IP
// header's where there is an IPv6 routing header or an IPv4 source route.
func (s *Segmenter) pseudoSum(incomplete bool, offset int) uint16 {
	if incomplete {
		t := s.data[s.transport:]
		return ip.Add(binary.BigEndian.Uint16(t[offset:]), ^uint16(len(t)))
	}
	protocol := uint8(ip.ProtocolUDP)
	if s.isTCP() {
		protocol = ip.ProtocolTCP
	}
	return ip.PseudoSum(s.data, protocol, 0)
}

func (s *Segmenter) initSingle(p *Superpacket) error {
	s.checksum = -1
	if p.NeedsChecksum {
		if !validateChecksum(p.Data, &p.Offload) {
			return ErrMalformed
		}
		s.transport = int(p.ChecksumStart)
		s.checksum = s.transport + int(p.ChecksumOffset)
	}
	s.data, s.count = p.Data, 1
	return nil
}

// sumHeaders takes the sum of the pseudo-header without the length.
func (s *Segmenter) sumHeaders(sum uint16) {
	h := s.data[:s.header]
	if h[0]>>4 == 4 {
		s.ipSum = ip.Sum(h[0:2], ip.Sum(h[6:10], ip.Sum(h[12:ip.IPv4(h).HeaderLen()], 0)))
	}
	t := h[s.transport:]
	if s.isTCP() {
		// Ports; acknowledgement; window; urgent pointer and options. Not: sequence number, flags, checksum.
		sum = ip.Sum(t[8:12], ip.Sum(t[0:4], sum))
		s.transportSum = ip.Sum(t[18:], ip.Sum(t[14:16], sum))
		return
	}
	s.transportSum = ip.Sum(t[0:4], sum)
}

func (s *Segmenter) isTCP() bool { return s.kind == GSOTCPv4 || s.kind == GSOTCPv6 }

// Count is the number of segments; at least 1 after a successful Init.
func (s *Segmenter) Count() int { return s.count }

// HeaderLen is the length of IP and transport header together, which every segment begins with; 0 for a single packet
// (GSONone).
func (s *Segmenter) HeaderLen() int { return s.header }

// Data is the whole superpacket, borrowed. Addresses and ports in it are those of every segment.
func (s *Segmenter) Data() []byte { return s.data }

// Len is the length of segment k in bytes, headers included.
func (s *Segmenter) Len(k int) int {
	if k < s.count-1 {
		return s.header + s.size
	}
	return len(s.data) - (s.count-1)*s.size
}

// Cut writes segment k to dst, which must be at least Len(k) long and must not overlap the superpacket, and returns
// Len(k).
func (s *Segmenter) Cut(k int, dst []byte) int {
	n := s.Len(k)
	dst = dst[:n]
	if s.kind == GSONone {
		s.cutSingle(dst)
		return n
	}
	copy(dst, s.data[:s.header])
	from := s.header + k*s.size
	sum := ip.CopySum(dst[s.header:], s.data[from:from+n-s.header], s.transportSum)
	s.stampIP(k, dst)
	if s.isTCP() {
		s.stampTCP(k, dst[s.transport:], sum)
	} else {
		s.stampUDP(dst[s.transport:], sum)
	}
	return n
}

func (s *Segmenter) cutSingle(dst []byte) {
	if s.checksum < 0 {
		copy(dst, s.data)
		return
	}
	copy(dst, s.data[:s.transport])
	// The field holds the pseudo-header sum, and so becomes part of the sum.
	sum := ip.CopySum(dst[s.transport:], s.data[s.transport:], 0)
	binary.BigEndian.PutUint16(dst[s.checksum:], complete(sum))
}

func (s *Segmenter) stampIP(k int, dst []byte) {
	if s.kind == GSOTCPv6 || s.kind == GSOUDPv6 {
		binary.BigEndian.PutUint16(dst[4:], uint16(len(dst)-ip.IPv6HeaderLen))
		return
	}
	id := binary.BigEndian.Uint16(dst[4:]) + uint16(k)
	binary.BigEndian.PutUint16(dst[2:], uint16(len(dst)))
	binary.BigEndian.PutUint16(dst[4:], id)
	binary.BigEndian.PutUint16(dst[10:], ^ip.Add(s.ipSum, ip.Add(uint16(len(dst)), id)))
}

// stampTCP stamps the header at the start of t; sum is that of everything but the fields stamped and the length.
func (s *Segmenter) stampTCP(k int, t []byte, sum uint16) {
	seq := binary.BigEndian.Uint32(t[4:]) + uint32(k*s.size)
	binary.BigEndian.PutUint32(t[4:], seq)
	if k < s.count-1 {
		t[13] &^= ip.TCPFin | ip.TCPPsh
	}
	if k > 0 {
		t[13] &^= ip.TCPCwr
	}
	sum = ip.Add(sum, uint16(len(t)))
	sum = ip.Add(sum, ip.Add(uint16(seq>>16), uint16(seq)))
	sum = ip.Add(sum, binary.BigEndian.Uint16(t[12:]))
	binary.BigEndian.PutUint16(t[16:], complete(sum))
}

// stampUDP stamps the header at the start of t; sum is that of everything but the two lengths.
func (s *Segmenter) stampUDP(t []byte, sum uint16) {
	n := uint16(len(t))
	binary.BigEndian.PutUint16(t[4:], n)
	binary.BigEndian.PutUint16(t[6:], complete(ip.Add(sum, ip.Add(n, n))))
}

// complete makes a checksum of a sum. Zero would mean "no checksum" in UDP, and 0xffff is the same number (RFC 768); the
// kernel writes it for every protocol (net/core/dev.c skb_checksum_help).
func complete(sum uint16) uint16 {
	if sum == 0xffff {
		return sum
	}
	return ^sum
}
