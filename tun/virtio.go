package tun

import (
	"encoding/binary"

	"github.com/sluice-vpn/sluice/tun/ip"
)

// virtioHeaderLen is the size of struct virtio_net_hdr, which stands in front of each packet when IFF_VNET_HDR is set
// (include/uapi/linux/virtio_net.h). Its fields have the machine's byte order:
//
//	0 flags  1 gso_type  2 hdr_len  4 gso_size  6 csum_start  8 csum_offset
const virtioHeaderLen = 10

// Values of flags and gso_type.
const (
	virtioNeedsChecksum = 1
	virtioChecksumValid = 2

	virtioGSONone  = 0
	virtioGSOTCPv4 = 1
	virtioGSOTCPv6 = 4
	virtioGSOUDP   = 5    // UDP_L4, both families
	virtioGSOECN   = 0x80 // TCP with CWR; the segmenter handles CWR in any case
)

// Where the checksum stands in the transport header.
const (
	tcpChecksumOffset = 16
	udpChecksumOffset = 6
)

// fault says why a packet that was read is not used.
type fault uint8

const (
	faultNone      fault = iota
	faultMalformed       // no IP packet, or fields that do not fit it
	faultUnserved        // a superpacket of a kind that is not cut
)

// decodeVirtio reads the header and validates it against the packet behind it, which is trimmed to its IP length. hdr_len
// is not read: on forwarded packets it is not to be trusted, so header lengths come from the packet.
func decodeVirtio(header, packet []byte) (data []byte, o Offload, f fault) {
	n, ok := ip.Length(packet)
	if !ok {
		return nil, o, faultMalformed
	}
	data = packet[:n]
	flags, kind := header[0], header[1]&^virtioGSOECN
	start, offset := binary.NativeEndian.Uint16(header[6:]), binary.NativeEndian.Uint16(header[8:])
	if kind == virtioGSONone {
		if flags&virtioNeedsChecksum == 0 {
			return data, Offload{}, faultNone
		}
		o = Offload{NeedsChecksum: true, ChecksumStart: start, ChecksumOffset: offset}
		if !validateChecksum(data, &o) {
			return nil, o, faultMalformed
		}
		return data, o, faultNone
	}
	o.NeedsChecksum = flags&virtioNeedsChecksum != 0
	o.SegmentSize = binary.NativeEndian.Uint16(header[4:])
	four := data[0]>>4 == 4
	switch {
	case kind == virtioGSOTCPv4 && four:
		o.Type = GSOTCPv4
	case kind == virtioGSOTCPv6 && !four:
		o.Type = GSOTCPv6
	case kind == virtioGSOUDP && four:
		o.Type = GSOUDPv4
	case kind == virtioGSOUDP:
		o.Type = GSOUDPv6
	default:
		return nil, o, faultUnserved
	}
	if !locateTransport(data, &o) {
		return nil, o, faultUnserved
	}
	if o.NeedsChecksum && (o.ChecksumStart != start || o.ChecksumOffset != offset) {
		return nil, o, faultMalformed
	}
	return data, o, faultNone
}

// validateChecksum says whether the checksum field lies behind the IP header and inside of the packet.
func validateChecksum(data []byte, o *Offload) bool {
	header := ip.IPv6HeaderLen
	if data[0]>>4 == 4 {
		header = ip.IPv4(data).HeaderLen()
	}
	start := int(o.ChecksumStart)
	return start >= header && start+int(o.ChecksumOffset)+2 <= len(data)
}

// locateTransport sets ChecksumStart, ChecksumOffset and HeaderLen of a packet to be segmented from its own headers, and
// says whether it is one that can be segmented.
func locateTransport(data []byte, o *Offload) bool {
	t, ok := ip.FindTransport(data)
	if !ok || t.Fragment || o.SegmentSize == 0 {
		return false
	}
	// An incomplete checksum has the routing header's final destination in it; nothing else tells that.
	if t.Routed && !o.NeedsChecksum {
		return false
	}
	o.ChecksumStart = uint16(t.Offset)
	switch o.Type {
	case GSOTCPv4, GSOTCPv6:
		tcp, ok := ip.ParseTCP(data[t.Offset:])
		if !ok || t.Protocol != ip.ProtocolTCP {
			return false
		}
		o.ChecksumOffset = tcpChecksumOffset
		o.HeaderLen = uint16(t.Offset + tcp.HeaderLen())
	case GSOUDPv4, GSOUDPv6:
		if t.Protocol != ip.ProtocolUDP || len(data) < t.Offset+ip.UDPHeaderLen {
			return false
		}
		o.ChecksumOffset = udpChecksumOffset
		o.HeaderLen = uint16(t.Offset + ip.UDPHeaderLen)
	default:
		return false
	}
	return true
}

// encodeVirtio writes the header for o, which is our own and not validated.
func encodeVirtio(header []byte, o *Offload) {
	_ = header[virtioHeaderLen-1]
	clear(header[:virtioHeaderLen])
	if o.NeedsChecksum {
		header[0] = virtioNeedsChecksum
		binary.NativeEndian.PutUint16(header[6:], o.ChecksumStart)
		binary.NativeEndian.PutUint16(header[8:], o.ChecksumOffset)
	} else if o.ChecksumValid {
		header[0] = virtioChecksumValid
	}
	switch o.Type {
	case GSONone:
		return
	case GSOTCPv4:
		header[1] = virtioGSOTCPv4
	case GSOTCPv6:
		header[1] = virtioGSOTCPv6
	case GSOUDPv4, GSOUDPv6:
		header[1] = virtioGSOUDP
	}
	binary.NativeEndian.PutUint16(header[2:], o.HeaderLen)
	binary.NativeEndian.PutUint16(header[4:], o.SegmentSize)
}
