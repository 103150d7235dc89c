package pipeline

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/tun/ip"
)

// Flow is whose a packet in the tunnel is. Ports are 0 where the protocol has none or the packet does not say. The zero value: not known,
// as of a datagram that nobody has opened.
type Flow struct {
	Protocol uint8 // IANA's number
	Src, Dst netip.AddrPort
}

// PeerDrops are the packets of a peer that went no further, by the name of the counter that has them among those of all.
type PeerDrops struct {
	Counts map[string]uint64 // those of 0 left out; nil: none
	// Last is the name of the latest, "" for none; Ago how long that is ago, and Flow whose it was.
	Last string
	Ago  time.Duration
	Flow Flow
}

// peerDrops counts those packets. Lanes of all shards write it, and only where a packet is dropped; the counts are atomic, and of the last
// drop the words are, which sequence keeps together: it is odd while a lane writes them, and a lane that finds it so leaves its own out.
type peerDrops struct {
	counts   [dropReasons]atomic.Uint64
	sequence atomic.Uint32
	last     [dropWords]atomic.Uint64
}

// The words of the last drop: when; reason, version, protocol and ports; the addresses.
const (
	dropAt = iota
	dropWhat
	dropSrc
	dropDst   = dropSrc + 2
	dropWords = dropDst + 2
)

// note counts n packets that are dropped at now. packet is the inner one, or one of them; nil where it is not known.
func (d *peerDrops) note(now time.Duration, why dropReason, n int, packet []byte) {
	if n == 0 {
		return
	}
	d.counts[why].Add(uint64(n))
	sequence := d.sequence.Load()
	if sequence%2 == 1 || !d.sequence.CompareAndSwap(sequence, sequence+1) {
		return // another lane's is as good
	}
	what, src, dst := flowWords(packet)
	d.last[dropAt].Store(uint64(now))
	d.last[dropWhat].Store(what | uint64(why)<<56)
	for i := range 2 {
		d.last[dropSrc+i].Store(src[i])
		d.last[dropDst+i].Store(dst[i])
	}
	d.sequence.Store(sequence + 2)
}

// flowWords packs whose a packet is: version, protocol and ports in the lower 48 bits, and the addresses. Zeros: not known.
func flowWords(packet []byte) (what uint64, src, dst [2]uint64) {
	if _, ok := ip.Length(packet); !ok {
		return 0, src, dst
	}
	both := ip.Addresses(packet)
	n := len(both) / 2
	src, dst = addressWords(both[:n]), addressWords(both[n:])
	what = uint64(packet[0]>>4) << 40
	if t, ok := ip.FindTransport(packet); ok {
		what |= uint64(t.Protocol) << 32
		if b := packet[min(t.Offset, len(packet)):]; t.First && len(b) >= 4 && (t.Protocol == ip.ProtocolTCP || t.Protocol == ip.ProtocolUDP) {
			what |= uint64(binary.BigEndian.Uint32(b))
		}
	}
	return what, src, dst
}

// addressWords packs 4 or 16 bytes.
func addressWords(b []byte) [2]uint64 {
	var full [16]byte
	copy(full[:], b)
	return [2]uint64{binary.BigEndian.Uint64(full[:]), binary.BigEndian.Uint64(full[8:])}
}

// read tells what was counted, as of now. Any goroutine.
func (d *peerDrops) read(now time.Duration) (r PeerDrops) {
	for why := range d.counts {
		if n := d.counts[why].Load(); n > 0 {
			if r.Counts == nil {
				r.Counts = map[string]uint64{}
			}
			r.Counts["drop_"+dropTable[why].reason] = n
		}
	}
	if w, ok := d.latest(); ok {
		r.Last, r.Ago, r.Flow = "drop_"+dropTable[w[dropWhat]>>56].reason, max(now-time.Duration(w[dropAt]), 0), flowOf(w)
	}
	return r
}

// latest is the words of the last drop. Not ok: there was none, or lanes, which write for nanoseconds, were never found at rest.
func (d *peerDrops) latest() (w [dropWords]uint64, ok bool) {
	for range 100 {
		before := d.sequence.Load()
		if before == 0 {
			return w, false
		}
		for i := range w {
			w[i] = d.last[i].Load()
		}
		if before%2 == 0 && d.sequence.Load() == before {
			return w, true
		}
	}
	return w, false
}

// flowOf is the reverse of flowWords.
func flowOf(w [dropWords]uint64) (f Flow) {
	version := w[dropWhat] >> 40 & 0xf
	if version == 0 {
		return f
	}
	address := func(at int, port uint16) netip.AddrPort {
		var full [16]byte
		binary.BigEndian.PutUint64(full[:], w[at])
		binary.BigEndian.PutUint64(full[8:], w[at+1])
		if version == 4 {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(full[:4])), port)
		}
		return netip.AddrPortFrom(netip.AddrFrom16(full), port)
	}
	f.Protocol = uint8(w[dropWhat] >> 32)
	f.Src, f.Dst = address(dropSrc, uint16(w[dropWhat]>>16)), address(dropDst, uint16(w[dropWhat]))
	return f
}

// inherit adds what was counted of the same peer under another key.
func (d *peerDrops) inherit(older *peerDrops) {
	for why := range d.counts {
		d.counts[why].Add(older.counts[why].Load())
	}
	if w, ok := older.latest(); ok && d.sequence.CompareAndSwap(0, 1) {
		for i := range w {
			d.last[i].Store(w[i])
		}
		d.sequence.Store(2)
	}
}
