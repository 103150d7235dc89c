package tun

import (
	"encoding/binary"

	"github.com/sluice-vpn/sluice/tun/ip"
)

// Bounds of a run.
const (
	// MaxRunSegments is how many TCP segments one run joins. With the virtio-net header they stay under IOV_MAX (1024).
	MaxRunSegments = 512
	// MaxUDPRunSegments is how many datagrams one run joins: UDP_MAX_SEGMENTS, include/linux/udp.h, before Linux 6.9.
	MaxUDPRunSegments = 64
)

const (
	flowSlots  = 256 // a power of two
	flowProbes = 8
	noRun      = -1
)

// Coalescer joins packets that came out of the tunnel into runs, each to be written to the device as one superpacket.
// It is the inverse of [Segmenter]: cutting a run gives back the packets that went in, except for the IPv4
// identification of packets with DF, which has no meaning (RFC 6864, section 4.1).
//
// Packets of one flow leave in the order they were added in: a packet joins only the newest run of its flow. Runs are
// in the order of their first packets. Payload is not copied: a run's pieces are its first packet and then views
// of the payload of the others.
//
// Joined are TCP packets with consecutive sequence numbers and nothing in the flags but ACK (and PSH, which ends a run),
// and UDP datagrams with a checksum where the device has USO; all of the same size, except that the last may be
// shorter; all with the same acknowledgement, window, TCP options, TTL, TOS and ECN mark (net/ipv4/tcp_offload.c
// tcp_gro_receive and net/ipv4/af_inet.c inet_gro_receive have the same conditions). Never joined are fragments and packets
// with IP options or extension headers.
//
// Transport checksums are not verified: the tunnel's authentication vouches for the bytes, as in
// drivers/net/wireguard/receive.c. IPv4 header checksums are, because a run's is computed anew.
//
// A coalescer belongs to one goroutine. Its memory grows to the largest batch seen and then stays.
type Coalescer struct {
	capabilities Capabilities
	packets      []added
	states       []runState
	runs         []Run
	pieces       [][]byte

	slots      [flowSlots]flowSlot
	generation uint32 // of slots; older ones are empty
	barrier    int32  // runs before this one are closed
	latest     int32  // run of the packet added last, or noRun
}

// added is one packet: what of it goes up, and in which run.
type added struct {
	bytes []byte
	run   int32
}

type flowSlot struct {
	generation uint32
	hash       uint32
	run        int32 // the newest run of the flow
}

// runState is a run while it grows.
type runState struct {
	first     []byte // whole first packet
	kind      GSOType
	closed    bool   // nothing may be appended
	push      bool   // PSH is set on the last segment
	transport int32  // start of the transport header
	header    int32  // length of all headers
	size      int32  // payload bytes of the first segment
	count     int32  // segments
	total     int32  // bytes, headers of the first included
	seq       uint32 // TCP sequence number that the next segment must have
}

// arrival is a parsed packet on its way into a run.
type arrival struct {
	packet    []byte
	kind      GSOType // GSONone: to be written alone
	joins     bool    // may be part of a run
	ends      bool    // nothing may follow it in a run
	transport int32
	header    int32
}

// NewCoalescer makes a coalescer for a device with these capabilities.
func NewCoalescer(c Capabilities) *Coalescer {
	return &Coalescer{capabilities: c, generation: 1, latest: noRun}
}

// SetCapabilities changes what may be joined, and is allowed only between Reset and the first Add: [Device] takes
// capabilities back when the kernel refuses what it granted.
func (c *Coalescer) SetCapabilities(caps Capabilities) { c.capabilities = caps }

// Reset forgets all packets, which thereby go back to their owner.
func (c *Coalescer) Reset() {
	c.packets = c.packets[:0]
	c.states = c.states[:0]
	c.barrier, c.latest = 0, noRun
	c.generation++
	if c.generation == 0 {
		c.slots = [flowSlots]flowSlot{}
		c.generation = 1
	}
}

// Add adds a packet, for which [ip.Length] is ok and which is trimmed to it. It is borrowed until Reset; the headers of
// the first packet of a run are changed by Runs.
func (c *Coalescer) Add(packet []byte) {
	a := c.parse(packet)
	if a.kind == GSONone {
		c.latest = c.open(&a)
		return
	}
	if c.latest != noRun && sameFlow(&c.states[c.latest], &a) {
		if !c.append(c.latest, &a) {
			c.replace(&a)
		}
		return
	}
	slot := c.find(&a)
	if slot == nil {
		// Too many flows: this one's packets stay alone, all of them, since slots are not given up before Reset.
		a.joins = false
		c.latest = c.open(&a)
		return
	}
	if slot.generation == c.generation && c.append(slot.run, &a) {
		c.latest = slot.run
		return
	}
	c.latest = c.open(&a)
	*slot = flowSlot{c.generation, flowHash(&a), c.latest}
}

// replace opens a new run for the flow of the latest one.
func (c *Coalescer) replace(a *arrival) {
	slot := c.find(a)
	if slot == nil {
		a.joins = false
	}
	c.latest = c.open(a)
	if slot != nil {
		*slot = flowSlot{c.generation, flowHash(a), c.latest}
	}
}

// Len is the number of packets added since Reset.
func (c *Coalescer) Len() int { return len(c.packets) }

// Runs stamps the headers of the runs' first packets and returns the runs, valid until the next Add or Reset.
func (c *Coalescer) Runs() []Run {
	c.runs = c.runs[:0]
	c.pieces = resize(c.pieces, len(c.packets))
	from := 0
	for i := range c.states {
		s := &c.states[i]
		to := from + int(s.count)
		c.runs = append(c.runs, Run{Offload: s.stamp(), Pieces: c.pieces[from:from:to]})
		from = to
	}
	for i := range c.packets {
		r := &c.runs[c.packets[i].run]
		r.Pieces = append(r.Pieces, c.packets[i].bytes)
	}
	return c.runs
}

func resize(s [][]byte, n int) [][]byte {
	if cap(s) < n {
		return make([][]byte, n, n+n/2)
	}
	return s[:n]
}

// parse says what a packet is, and closes all runs where its flow cannot be told.
func (c *Coalescer) parse(packet []byte) arrival {
	a := arrival{packet: packet}
	var protocol uint8
	if packet[0]>>4 == 4 {
		protocol = packet[9]
		a.transport = ip.IPv4HeaderLen
		// Options, fragments (all but DF, RFC 791) and bad checksums.
		if packet[0] != 0x45 || packet[6]&0xbf|packet[7] != 0 || !ip.IPv4(packet).ChecksumOK() {
			c.barrier = int32(len(c.states))
			return a
		}
	} else {
		protocol = packet[6]
		a.transport = ip.IPv6HeaderLen
	}
	switch protocol {
	case ip.ProtocolTCP:
		c.parseTCP(&a)
	case ip.ProtocolUDP:
		c.parseUDP(&a)
	case ip.ProtocolHopByHop, ip.ProtocolRouting, ip.ProtocolFragment, ip.ProtocolDestOptions:
		if packet[0]>>4 == 6 {
			c.barrier = int32(len(c.states))
		}
	}
	return a
}

func (c *Coalescer) parseTCP(a *arrival) {
	tcp, ok := ip.ParseTCP(a.packet[a.transport:])
	if !ok {
		return
	}
	kind, allowed := GSOTCPv4, c.capabilities.TSO4
	if a.packet[0]>>4 == 6 {
		kind, allowed = GSOTCPv6, c.capabilities.TSO6
	}
	if !allowed {
		return
	}
	a.kind, a.header = kind, a.transport+int32(tcp.HeaderLen())
	// The reserved bits beside the data offset count as flags: one of them is AE (RFC 9768).
	flags := tcp.Flags()
	a.ends = flags&ip.TCPPsh != 0
	a.joins = flags&^ip.TCPPsh == ip.TCPAck && tcp[12]&15 == 0 && int(a.header) < len(a.packet)
}

func (c *Coalescer) parseUDP(a *arrival) {
	udp, ok := ip.ParseUDP(a.packet[a.transport:])
	if !ok || !c.capabilities.USO {
		return
	}
	a.header = a.transport + ip.UDPHeaderLen
	a.kind = GSOUDPv4
	if a.packet[0]>>4 == 6 {
		a.kind = GSOUDPv6
	}
	whole := len(udp) == len(a.packet)-int(a.transport)
	a.joins = whole && udp.Checksum() != 0 && len(udp) > ip.UDPHeaderLen
}

// open makes a new run with one packet.
func (c *Coalescer) open(a *arrival) int32 {
	run := int32(len(c.states))
	s := runState{
		first: a.packet, kind: a.kind, closed: !a.joins || a.ends, push: a.ends,
		transport: a.transport, header: a.header,
		size: int32(len(a.packet)) - a.header, count: 1, total: int32(len(a.packet)),
	}
	if a.kind == GSOTCPv4 || a.kind == GSOTCPv6 {
		s.seq = binary.BigEndian.Uint32(a.packet[a.transport+4:]) + uint32(s.size)
	}
	c.states = append(c.states, s)
	c.packets = append(c.packets, added{a.packet, run})
	return run
}

// append joins the packet to a run of its flow, if it may.
func (c *Coalescer) append(run int32, a *arrival) bool {
	s := &c.states[run]
	size := int32(len(a.packet)) - a.header
	if s.closed || !a.joins || run < c.barrier || size > s.size || s.total+size > MaxSuperpacket {
		return false
	}
	if a.header != s.header || !sameNetwork(s, a.packet) {
		return false
	}
	if s.kind == GSOTCPv4 || s.kind == GSOTCPv6 {
		if s.count >= MaxRunSegments || !sameTCP(s, a.packet) {
			return false
		}
		s.seq += uint32(size)
	} else if s.count >= MaxUDPRunSegments {
		return false
	}
	s.closed = a.ends || size < s.size
	s.push = a.ends
	s.count++
	s.total += size
	c.packets = append(c.packets, added{a.packet[a.header:], run})
	return true
}

// sameFlow compares family, protocol, addresses and ports.
func sameFlow(s *runState, a *arrival) bool {
	if s.kind != a.kind {
		return false
	}
	p, q := s.first, a.packet
	if binary.NativeEndian.Uint32(p[s.transport:]) != binary.NativeEndian.Uint32(q[a.transport:]) {
		return false
	}
	if s.kind == GSOTCPv4 || s.kind == GSOUDPv4 {
		return binary.NativeEndian.Uint64(p[12:]) == binary.NativeEndian.Uint64(q[12:])
	}
	return [32]byte(p[8:40]) == [32]byte(q[8:40])
}

// sameNetwork compares what of the IP header stands for all segments of a superpacket.
func sameNetwork(s *runState, q []byte) bool {
	p := s.first
	if p[0]>>4 == 6 {
		// Version, traffic class with ECN, flow label; hop limit.
		return binary.NativeEndian.Uint32(p) == binary.NativeEndian.Uint32(q) && p[7] == q[7]
	}
	if p[1] != q[1] || p[8] != q[8] || p[6] != q[6] {
		return false
	}
	// With DF the identification has no meaning; without, the segments must get back the ones that they had.
	return p[6]&0x40 != 0 || binary.BigEndian.Uint16(q[4:]) == binary.BigEndian.Uint16(p[4:])+uint16(s.count)
}

// sameTCP compares what of the TCP header stands for all segments of a superpacket, and the sequence number.
func sameTCP(s *runState, q []byte) bool {
	t, u := s.first[s.transport:s.header], q[s.transport:s.header]
	return binary.BigEndian.Uint32(u[4:]) == s.seq &&
		binary.NativeEndian.Uint32(t[8:]) == binary.NativeEndian.Uint32(u[8:]) && // acknowledgement
		binary.NativeEndian.Uint16(t[14:]) == binary.NativeEndian.Uint16(u[14:]) && // window
		string(t[18:]) == string(u[18:]) // urgent pointer, options
}

// flowHash mixes addresses and ports; multiplication and xor-shift, as in MurmurHash3's finalizer (public domain).
func flowHash(a *arrival) uint32 {
	h := uint64(binary.NativeEndian.Uint32(a.packet[a.transport:])) ^ uint64(a.kind)<<32
	addresses := ip.Addresses(a.packet)
	for ; len(addresses) >= 8; addresses = addresses[8:] {
		h = (h ^ binary.NativeEndian.Uint64(addresses)) * 0xff51afd7ed558ccd
		h ^= h >> 33
	}
	return uint32(h)
}

// find returns the slot of the packet's flow, or a free one for it, or nil.
func (c *Coalescer) find(a *arrival) *flowSlot {
	hash := flowHash(a)
	for i := range uint32(flowProbes) {
		s := &c.slots[(hash+i)%flowSlots]
		if s.generation != c.generation || s.hash == hash && sameFlow(&c.states[s.run], a) {
			return s
		}
	}
	return nil
}

// stamp makes the first packet's headers those of the whole run.
func (s *runState) stamp() Offload {
	if s.count == 1 {
		return Offload{ChecksumValid: true}
	}
	o := Offload{
		Type: s.kind, NeedsChecksum: true,
		ChecksumStart: uint16(s.transport), HeaderLen: uint16(s.header), SegmentSize: uint16(s.size),
	}
	p, body := s.first, int(s.total-s.transport)
	if p[0]>>4 == 4 {
		h := ip.IPv4(p)
		h.SetTotalLen(int(s.total))
		h.SetChecksum()
	} else {
		ip.IPv6(p).SetPayloadLen(int(s.total) - ip.IPv6HeaderLen)
	}
	if s.kind == GSOTCPv4 || s.kind == GSOTCPv6 {
		o.ChecksumOffset = tcpChecksumOffset
		t := ip.TCP(p[s.transport:])
		if s.push {
			t.SetFlags(t.Flags() | ip.TCPPsh)
		}
		t.SetChecksum(ip.PseudoSum(p, ip.ProtocolTCP, body))
		return o
	}
	o.ChecksumOffset = udpChecksumOffset
	u := ip.UDP(p[s.transport:])
	u.SetLen(body)
	u.SetChecksum(ip.PseudoSum(p, ip.ProtocolUDP, body))
	return o
}
