package capture

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"strings"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/sluice-vpn/sluice/cmd/internal/version"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/tun/ip"
)

// The interfaces of a file, in their order.
const (
	plainInterface = iota
	outerInterface
)

// Writer writes a pcapng stream (draft-ietf-opsawg-pcapng) with one interface for the packets of the tunnel and, if asked for, one for
// the datagrams that carry it. Each packet bears a comment that says whose it is and what became of it, and its direction.
type Writer struct {
	w     io.Writer
	block bytes.Buffer // what the library has written of one block or several
	ng    *pcapgo.NgWriter
	outer bool
	snap  int
	count [2]uint64
	line  []byte
	out   []byte
}

// NewWriter writes the head of a file of the interface of that name.
func NewWriter(w io.Writer, name string, o Options) (*Writer, error) {
	p := &Writer{w: w, outer: o.Outer, snap: o.SnapLength}
	plain := pcapgo.NgInterface{Name: name, Description: "packets in the tunnel, superpackets before they are segmented", Filter: o.Filter,
		OS: runtime.GOOS, LinkType: layers.LinkTypeRaw, SnapLength: uint32(o.SnapLength)}
	section := pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{OS: runtime.GOOS, Hardware: runtime.GOARCH, Application: "sluice " + version.String()}}
	var err error
	if p.ng, err = pcapgo.NewNgWriterInterface(&p.block, plain, section); err != nil {
		return nil, err
	}
	if o.Outer {
		_, err = p.ng.AddInterface(pcapgo.NgInterface{Name: name + "-outer",
			Description: "datagrams of the tunnel, their IP and UDP headers made from addresses and ports", OS: runtime.GOOS, LinkType: layers.LinkTypeRaw})
		if err != nil {
			return nil, err
		}
	}
	return p, p.take()
}

// take moves what the library has written to what Flush writes.
func (p *Writer) take() error {
	if err := p.ng.Flush(); err != nil {
		return err
	}
	p.out = append(p.out, p.block.Bytes()...)
	p.block.Reset()
	if len(p.out) < 64<<10 {
		return nil
	}
	return p.Flush()
}

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
	err := p.ng.WritePacket(gopacket.CaptureInfo{Timestamp: c.At, CaptureLength: len(data), Length: length, InterfaceIndex: at}, data)
	if err == nil {
		err = p.ng.Flush()
	}
	if err != nil {
		return err
	}
	addOptions(&p.block, direction(c.Inbound), Comment(c))
	return p.take()
}

// End writes how many packets there were for each interface, and how many were dropped.
func (p *Writer) End(dropped uint64) error {
	for i, n := range p.count {
		if i == outerInterface && !p.outer {
			break
		}
		s := pcapgo.NgInterfaceStatistics{LastUpdate: time.Now(), PacketsReceived: n, PacketsDropped: pcapgo.NgNoValue64}
		if i == plainInterface {
			s.PacketsReceived, s.PacketsDropped = n+dropped, dropped // of both
		}
		if err := p.ng.WriteInterfaceStats(i, s); err != nil {
			return err
		}
	}
	return p.take()
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

// Options of an enhanced packet block, and the values of the flags (section 4.3).
const (
	optionEnd     = 0
	optionComment = 1
	optionFlags   = 2

	flagInbound, flagOutbound = 1, 2
)

func direction(inbound bool) uint32 {
	if inbound {
		return flagInbound
	}
	return flagOutbound
}

// addOptions gives the one enhanced packet block in b its options: pcapgo has none for packets. They stand between the packet and the
// block's length, which comes a second time at its end (section 3.1).
func addOptions(b *bytes.Buffer, flags uint32, comment string) {
	block := b.Bytes()
	b.Truncate(len(block) - 4)
	var options []byte
	option := func(code int, value []byte) {
		options = binary.LittleEndian.AppendUint16(options, uint16(code))
		options = binary.LittleEndian.AppendUint16(options, uint16(len(value)))
		options = append(options, value...)
		for len(options)%4 > 0 {
			options = append(options, 0)
		}
	}
	option(optionFlags, binary.LittleEndian.AppendUint32(nil, flags))
	option(optionComment, []byte(comment))
	option(optionEnd, nil)
	b.Write(options)
	length := uint32(len(block) + len(options))
	binary.LittleEndian.PutUint32(b.Bytes()[4:], length)
	b.Write(binary.LittleEndian.AppendUint32(nil, length))
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
