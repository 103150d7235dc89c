package udp

import (
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sender turns runs into messages for sendmmsg and keeps its place among them through partial sends and refusals.
//
// Its place is a cursor: a run, and the bytes of it already sent, other than 0 only in a run that goes datagram by
// datagram. A refusal of the message at the cursor changes how that run is sent or drops the message; then messages are
// made again from the cursor on. So nothing is sent twice, lost or overtaken. Owned by one goroutine.
type sender struct {
	sock     *linuxSocket
	msgs     []mmsghdr
	iovs     []unix.Iovec
	names    []sockaddr
	controls [][sendControlSize]byte
	pieces   []piece
	via      int // index of the descriptor in sock.senders to send by

	cursor
	stopped     stopPoint
	refusals    refusalTable
	badSource   sourceRefusal
	lastRefusal syscall.Errno // of the last datagram dropped
}

// cursor is the next byte to send and how its run is sent.
type cursor struct {
	run, off         int
	decided          bool // single and noSource hold for this run; else fill decides
	single, noSource bool // datagram by datagram; PKTINFO left out
	retried          bool // the message at the cursor is tried again after a passing error
}

// piece is what message i of the arrays carries.
type piece struct {
	run, end         int // end is the cursor's off after it, -1 if the run ends with it
	bytes, datagrams int
	single           bool
	source, leftOut  bool // PKTINFO was given; the run names a source and it was not given
}

// stopPoint is where a full socket buffer stopped inside a run, to go on there if the next Send begins with that run.
type stopPoint struct {
	cursor
	data  *byte
	bytes int
	dst   netip.AddrPort
	start [16]byte // receiver index and counter of transport data: tells the run from a later one in the same memory
}

func (t *sender) init(s *linuxSocket, n int) {
	t.sock = s
	t.msgs, t.iovs, t.pieces = make([]mmsghdr, n), make([]unix.Iovec, n), make([]piece, n)
	t.names, t.controls = make([]sockaddr, n), make([][sendControlSize]byte, n)
	for i := range t.msgs {
		h := &t.msgs[i].hdr
		h.Name, h.Iov = &t.names[i][0], &t.iovs[i]
		h.SetIovlen(1)
	}
}

// send is Socket.Send.
func (t *sender) send(runs []Run) (int, error) {
	t.resume(runs)
	full := 0 // descriptors in a row whose buffer is
	for t.run < len(runs) {
		n := t.fill(runs)
		if n == 0 {
			r := &runs[t.run]
			t.drop(r, piece{run: t.run, end: -1, datagrams: segmentCount(len(r.Data), r.segmentSize())}, unix.EAFNOSUPPORT)
			continue
		}
		t.sock.stats.SendCalls.Add(1)
		sent, errno := t.sock.calls.sendmmsg(t.sock.senders[t.via], t.msgs[:n])
		switch {
		case errno == 0 && sent > 0:
			full = 0
			t.advance(runs, sent) // what a partial send left out says why when it is the first
		case errno == 0, errno == unix.EAGAIN:
			t.via = (t.via + 1) % len(t.sock.senders) // the one that was full first, so the first to have room again
			if full++; full < len(t.sock.senders) {
				continue
			}
			t.stop(runs)
			return t.run, nil
		case errno == unix.EBADF:
			return t.run, ErrClosed
		default:
			t.refused(&runs[t.run], t.pieces[0], errno)
		}
	}
	return len(runs), nil
}

// fill makes messages from the cursor on, up to a run with an address that cannot be used, and returns how many.
func (t *sender) fill(runs []Run) int {
	n := 0
	for c := t.cursor; c.run < len(runs) && n < len(t.msgs); n++ {
		r := &runs[c.run]
		nameLen := t.encodeName(n, r)
		if nameLen == 0 {
			break
		}
		if !c.decided {
			c.decided, c.single, c.noSource = true, t.mustSplit(r), t.badSource.covers(r)
		}
		t.msgs[n].hdr.Namelen = uint32(nameLen)
		p := t.cut(n, r, c)
		if t.pieces[n] = p; p.end < 0 {
			c = cursor{run: c.run + 1}
		} else {
			c.off = p.end
		}
	}
	return n
}

// encodeName writes the destination of message i; 0 if this socket cannot send there.
func (t *sender) encodeName(i int, r *Run) int {
	if r.Dst.Port() == 0 {
		return 0
	}
	var scope uint32
	if zone := r.Dst.Addr().Zone(); zone != "" {
		if scope = scopeOf(zone); scope == 0 {
			return 0
		}
	}
	return encodeSockaddr(&t.names[i], t.sock.family, r.Dst, scope)
}

// mustSplit tells whether r cannot go as one UDP_SEGMENT run.
func (t *sender) mustSplit(r *Run) bool {
	size := r.segmentSize()
	if len(r.Data) <= size {
		return false
	}
	return !t.sock.offloads.SegmentSend || len(r.Data) > MaxDatagram || segmentCount(len(r.Data), size) > MaxSegments ||
		t.refusals.refuses(r.Dst.Addr(), size)
}

// cut makes message i of what the cursor c points at: the rest of the run, or its next datagram.
func (t *sender) cut(i int, r *Run, c cursor) piece {
	size := r.segmentSize()
	data := r.Data[c.off:]
	if c.single {
		data = data[:min(size, len(data))]
	}
	p := piece{run: c.run, end: c.off + len(data), bytes: len(data), datagrams: segmentCount(len(data), size), single: c.single}
	if p.end >= len(r.Data) {
		p.end = -1
	}
	out := outgoing{tos: r.TOS, ttl: r.TTL}
	if p.datagrams > 1 {
		out.segmentSize = size
	}
	ifIndex := r.scope()
	if named := r.Src.IsValid() || ifIndex != 0; named && c.noSource {
		p.leftOut = true
	} else if named {
		p.source = true
		out.src, out.ifIndex = r.Src, ifIndex
	}
	t.iovs[i].Base = unsafe.SliceData(data)
	t.iovs[i].SetLen(len(data))
	control := appendControl(t.controls[i][:0], t.sock.family, out)
	h := &t.msgs[i].hdr
	h.Control = nil
	if len(control) > 0 {
		h.Control = &t.controls[i][0]
	}
	h.SetControllen(len(control))
	return p
}

// advance moves the cursor past the first sent messages and counts them.
func (t *sender) advance(runs []Run, sent int) {
	var datagrams, bytes uint64
	for _, p := range t.pieces[:sent] {
		datagrams += uint64(p.datagrams)
		bytes += uint64(p.bytes)
		r := &runs[p.run]
		if p.datagrams > 1 {
			t.refusals.passed(r.Dst.Addr(), r.segmentSize())
		}
		t.pass(r, p)
	}
	t.sock.stats.SendDatagrams.Add(datagrams)
	t.sock.stats.SendBytes.Add(bytes)
}

// pass moves the cursor past p, which was sent or dropped.
func (t *sender) pass(r *Run, p piece) {
	if p.end >= 0 {
		t.cursor = cursor{run: p.run, off: p.end, decided: true, single: p.single, noSource: p.leftOut}
		return
	}
	t.cursor = cursor{run: p.run + 1}
	stats := &t.sock.stats
	stats.SendRuns.Add(1)
	if p.single && len(r.Data) > r.segmentSize() {
		stats.SegmentRefused.Add(1)
	}
	if p.leftOut {
		stats.SourceRejected.Add(1)
	}
}

// drop gives up on p and counts why.
func (t *sender) drop(r *Run, p piece, errno syscall.Errno) {
	stats := &t.sock.stats
	counter := &stats.SendErrors
	switch errno {
	case unix.EMSGSIZE:
		counter = &stats.SendTooBig
	case unix.ENOBUFS, unix.ENOMEM:
		counter = &stats.SendNoBuffer
	}
	counter.Add(uint64(p.datagrams))
	r.Refused += p.bytes
	t.lastRefusal = errno
	t.badSource = sourceRefusal{} // it was not to blame, if it was left out
	p.leftOut = false
	t.pass(r, p)
}

// stop remembers the cursor if it is inside a run.
func (t *sender) stop(runs []Run) {
	if t.off == 0 {
		return
	}
	r := &runs[t.run]
	t.stopped = stopPoint{cursor: t.cursor, data: unsafe.SliceData(r.Data), bytes: len(r.Data), dst: r.Dst}
	copy(t.stopped.start[:], r.Data)
}

// resume sets the cursor to where the last send stopped, if runs begin with the run in which it stopped. A call without
// runs is no answer to that.
func (t *sender) resume(runs []Run) {
	t.cursor = cursor{}
	if t.stopped.data == nil || len(runs) == 0 {
		return
	}
	if t.stopped.isIn(&runs[0]) {
		t.cursor = t.stopped.cursor
		t.run = 0
	}
	t.stopped = stopPoint{}
}

func (p *stopPoint) isIn(r *Run) bool {
	var start [16]byte
	copy(start[:], r.Data)
	return unsafe.SliceData(r.Data) == p.data && len(r.Data) == p.bytes && r.Dst == p.dst && start == p.start
}
