package capture

import (
	"encoding/binary"
	"time"
)

// This file makes the blocks of a pcapng file (draft-ietf-opsawg-pcapng; sections are of that). All numbers are little-endian, which the
// section header says.

// Block types, section 4.
const (
	blockSection     = 0x0a0d0d0a // Section Header Block
	blockDescription = 1          // Interface Description Block
	blockStatistics  = 5          // Interface Statistics Block
	blockPacket      = 6          // Enhanced Packet Block
)

// Option codes, which are of the kind of block but for the first two (section 3.5).
const (
	optionEnd     = 0
	optionComment = 1

	sectionHardware, sectionOS, sectionApplication = 2, 3, 4

	interfaceName, interfaceText, interfaceResolution, interfaceFilter, interfaceOS = 2, 3, 9, 11, 12

	packetFlags = 2

	statisticsReceived, statisticsDropped = 4, 5
)

const (
	byteOrder                 = 0x1a2b3c4d
	linkRaw                   = 101 // LINKTYPE_RAW: the packet begins with an IP header
	nanoseconds               = 9   // of if_tsresol: negative powers of ten
	filterText                = 0   // of if_filter: the text of a filter
	flagInbound, flagOutbound = 1, 2
	maxOption                 = 1<<16 - 1 // bytes
)

// blocks is a run of whole blocks. Its methods add one each.
type blocks []byte

// begin adds the head of a block and returns where it stands; its length is set by end.
func (b *blocks) begin(kind uint32) (at int) {
	at = len(*b)
	b.u32(kind)
	b.u32(0)
	return at
}

// end ends the block that begins at at: its length stands in its head and behind it (section 3.1).
func (b *blocks) end(at int) {
	length := uint32(len(*b) - at + 4)
	binary.LittleEndian.PutUint32((*b)[at+4:], length)
	b.u32(length)
}

func (b *blocks) u16(v uint16) { *b = binary.LittleEndian.AppendUint16(*b, v) }
func (b *blocks) u32(v uint32) { *b = binary.LittleEndian.AppendUint32(*b, v) }
func (b *blocks) u64(v uint64) { *b = binary.LittleEndian.AppendUint64(*b, v) }

// padded adds bytes, and zeros up to a multiple of 4. A block begins at one, so the offset within the run tells.
func (b *blocks) padded(value []byte) {
	*b = append(*b, value...)
	for len(*b)%4 > 0 {
		*b = append(*b, 0)
	}
}

// option adds one; what is too long for its length is cut.
func (b *blocks) option(code uint16, value []byte) {
	value = value[:min(len(value), maxOption)]
	b.u16(code)
	b.u16(uint16(len(value)))
	b.padded(value)
}

// text adds an option, unless it is empty.
func (b *blocks) text(code uint16, value string) {
	if value != "" {
		b.option(code, []byte(value))
	}
}

func (b *blocks) optionsEnd() { b.option(optionEnd, nil) }

// time adds a time: nanoseconds since 1970, the upper half first (section 4.3).
func (b *blocks) time(at time.Time) {
	n := uint64(at.UnixNano())
	b.u32(uint32(n >> 32))
	b.u32(uint32(n))
}

// section adds what begins a file (section 4.1).
func (b *blocks) section(hardware, os, application string) {
	at := b.begin(blockSection)
	b.u32(byteOrder)
	b.u16(1) // version 1.0
	b.u16(0)
	b.u64(^uint64(0)) // of a length that is not known
	b.text(sectionHardware, hardware)
	b.text(sectionOS, os)
	b.text(sectionApplication, application)
	b.optionsEnd()
	b.end(at)
}

// description is of an interface.
type description struct {
	name, text, filter, os string // "" is left out
	snap                   uint32 // bytes that are kept of a packet, 0: all
}

// description adds an interface (section 4.2); they count from 0.
func (b *blocks) description(d description) {
	at := b.begin(blockDescription)
	b.u16(linkRaw)
	b.u16(0) // reserved
	b.u32(d.snap)
	b.text(interfaceName, d.name)
	b.text(interfaceText, d.text)
	b.option(interfaceResolution, []byte{nanoseconds})
	if d.filter != "" {
		b.option(interfaceFilter, append([]byte{filterText}, d.filter...))
	}
	b.text(interfaceOS, d.os)
	b.optionsEnd()
	b.end(at)
}

// record is a packet that was captured.
type record struct {
	on      int // the interface's number
	at      time.Time
	data    []byte // what was kept
	length  int    // of all of it, bytes
	inbound bool
	comment string
}

// packet adds one (section 4.3).
func (b *blocks) packet(p record) {
	at := b.begin(blockPacket)
	b.u32(uint32(p.on))
	b.time(p.at)
	b.u32(uint32(len(p.data)))
	b.u32(uint32(p.length))
	b.padded(p.data)
	direction := uint32(flagOutbound)
	if p.inbound {
		direction = flagInbound
	}
	b.option(packetFlags, binary.LittleEndian.AppendUint32(nil, direction))
	b.text(optionComment, p.comment)
	b.optionsEnd()
	b.end(at)
}

// statistics adds those of an interface (section 4.6); dropped may be nil.
func (b *blocks) statistics(on int, now time.Time, received uint64, dropped *uint64) {
	at := b.begin(blockStatistics)
	b.u32(uint32(on))
	b.time(now)
	b.option(statisticsReceived, binary.LittleEndian.AppendUint64(nil, received))
	if dropped != nil {
		b.option(statisticsDropped, binary.LittleEndian.AppendUint64(nil, *dropped))
	}
	b.optionsEnd()
	b.end(at)
}
