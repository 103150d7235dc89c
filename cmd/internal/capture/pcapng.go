package capture

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"strings"
	"time"

	"github.com/sluice-vpn/sluice/cmd/internal/version"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/tun/ip"
)

// The interfaces of a file, in their order.
const (
	plainInterface = iota
	outerInterface
)

// Writer writes a pcapng stream with one interface for the packets of the tunnel and, if asked for, one for the datagrams that carry it.
// Each packet bears a comment that says whose it is and what became of it, and its direction. The blocks are made here (blocks.go), as
// libraries that make them bring tables of protocols that every process of this program would pay for.
type Writer struct {
	w     io.Writer
	outer bool
	count [2]uint64
	line  []byte // headers and data of a datagram
	out   blocks // what Flush writes
}

// NewWriter writes the head of a file of the interface of that name.
func NewWriter(w io.Writer, name string, o Options) (*Writer, error) {
	p := &Writer{w: w, outer: o.Outer}
	p.out.section(runtime.GOARCH, runtime.GOOS, "sluice "+version.String())
	p.out.description(description{name: name, text: "packets in the tunnel, superpackets before they are segmented", filter: o.Filter, os: runtime.GOOS,
		snap: uint32(o.SnapLength)})
	if o.Outer {
		p.out.description(description{name: name + "-outer", text: "datagrams of the tunnel, their IP and UDP headers made from addresses and ports", os: runtime.GOOS})
	}
	return p, nil
}

// enough is how much is written at once, bytes.
const enough = 64 << 10

// Flush writes what is kept back.
func (p *Writer) Flush() error {
	out := p.out
	p.out = p.out[:0]
	if len(out) == 0 {
		return nil
	}
	_, err := p.w.Write(out)
	return err
}

// Write writes one packet.
func (p *Writer) Write(c *pipeline.Captured) error {
	at, data, length := plainInterface, c.Data, c.Length
	if c.Outer {
		at = outerInterface
		p.line = append(appendHeaders(p.line[:0], c), c.Data...)
		length += len(p.line) - len(c.Data)
		data = p.line
	}
	p.count[at]++
	p.out.packet(record{on: at, at: c.At, data: data, length: length, inbound: c.Inbound, comment: Comment(c)})
	if len(p.out) < enough {
		return nil
	}
	return p.Flush()
}

// End writes how many packets there were for each interface, and how many were dropped.
func (p *Writer) End(dropped uint64) error {
	now := time.Now()
	p.out.statistics(plainInterface, now, p.count[plainInterface]+dropped, &dropped) // of both
	if p.outer {
		p.out.statistics(outerInterface, now, p.count[outerInterface], nil)
	}
	return p.Flush()
}

// Comment says in words whose a packet is and what became of it: "out to gate, superpacket of 43 packets of 1376 bytes".
func Comment(c *pipeline.Captured) string {
	var b strings.Builder
	way, other := "out", "to"
	if c.Inbound {
		way, other = "in", "from"
	}
	b.WriteString(way)
	switch {
	case c.Peer != "":
		fmt.Fprintf(&b, " %s %s", other, c.Peer)
	case !c.Outer:
		fmt.Fprintf(&b, " %s no peer", other)
	}
	if c.Channel != 0 {
		fmt.Fprintf(&b, ", by a relay, channel %#x", c.Channel)
	}
	if c.Segments > 0 {
		fmt.Fprintf(&b, ", superpacket of %d packets of %d bytes", c.Segments, c.SegmentSize)
	}
	if c.Refused {
		b.WriteString(", not sent: the kernel has refused it")
	}
	if c.Drop != "" {
		fmt.Fprintf(&b, ", dropped: %s", c.Drop)
	}
	return b.String()
}

// appendHeaders makes the IP and UDP headers of a datagram, which the kernel makes or takes away where nobody sees. What is not known
// is zero, and so are TTL and the UDP checksum.
func appendHeaders(b []byte, c *pipeline.Captured) []byte {
	src, dst := c.Src.Addr().Unmap(), c.Dst.Addr().Unmap()
	length := ip.UDPHeaderLen + c.Length
	if src.Is4() || dst.Is4() {
		b = append(b, make([]byte, ip.IPv4HeaderLen)...)
		b[0], b[9] = 0x45, ip.ProtocolUDP
		copy(b[12:], addressOf(src, 4))
		copy(b[16:], addressOf(dst, 4))
		ip.IPv4(b).SetTotalLen(ip.IPv4HeaderLen + length)
		ip.IPv4(b).SetChecksum()
	} else {
		b = append(b, make([]byte, ip.IPv6HeaderLen)...)
		b[0], b[6] = 0x60, ip.ProtocolUDP
		copy(b[8:], addressOf(src, 16))
		copy(b[24:], addressOf(dst, 16))
		ip.IPv6(b).SetPayloadLen(length)
	}
	b = binary.BigEndian.AppendUint16(b, c.Src.Port())
	b = binary.BigEndian.AppendUint16(b, c.Dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	return append(b, 0, 0)
}

// addressOf is an address as it stands in a header with addresses of that size, nil if it is none.
func addressOf(a netip.Addr, size int) []byte {
	if b := a.AsSlice(); len(b) == size {
		return b
	}
	return nil
}
