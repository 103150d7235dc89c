package udp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// wire is a kernel that keeps what it is given, and refuses what its rules say.
type wire struct {
	sent    []string // one entry a datagram: "dst src tos: data"
	calls   int
	accept  int // messages taken per call; 0 is all
	refuse  func(m wireMessage) syscall.Errno
	waits   int
	waiting func()

	hideSource bool // leave sources out of sent
}

// wireMessage is one message as the kernel sees it.
type wireMessage struct {
	dst  netip.AddrPort
	out  outgoing
	data []byte
}

func (w *wire) sendmmsg(_ int, msgs []mmsghdr) (int, syscall.Errno) {
	w.calls++
	for i := range msgs {
		m := readMessage(&msgs[i])
		if w.accept != 0 && i == w.accept {
			return i, 0
		}
		if w.refuse != nil {
			if errno := w.refuse(m); errno != 0 {
				if i > 0 {
					return i, 0
				}
				return 0, errno
			}
		}
		w.take(m)
	}
	return len(msgs), 0
}

func (w *wire) wait(int, int16, int) {
	w.waits++
	if w.waiting != nil {
		w.waiting()
	}
}

func (w *wire) take(m wireMessage) {
	if w.hideSource {
		m.out.src = netip.Addr{}
	}
	size := m.out.segmentSize
	if size == 0 {
		size = max(1, len(m.data))
	}
	for off := 0; off == 0 || off < len(m.data); off += size {
		w.sent = append(w.sent, fmt.Sprintf("%v %v %d: %s", m.dst, m.out.src, m.out.tos, m.data[off:min(off+size, len(m.data))]))
	}
}

func readMessage(m *mmsghdr) wireMessage {
	h := &m.hdr
	addr, _ := parseSockaddr(unsafe.Slice(h.Name, h.Namelen))
	out := wireMessage{dst: addr, data: unsafe.Slice(h.Iov.Base, h.Iov.Len)}
	if h.Controllen > 0 {
		out.out = readSendControl(unsafe.Slice(h.Control, h.Controllen))
	}
	return out
}

func readSendControl(b []byte) outgoing {
	var out outgoing
	for len(b) > 0 {
		length, level, kind := parseControlHeader(b)
		data := b[controlHeader:length]
		switch {
		case level == levelUDP && kind == typeUDPSegment:
			out.segmentSize = int(binary.NativeEndian.Uint16(data))
		case level == levelIP && kind == typeIPPktinfo:
			out.ifIndex = int(binary.NativeEndian.Uint32(data))
			out.src = netip.AddrFrom4([4]byte(data[4:8]))
		case level == levelIP && kind == typeIPTOS:
			out.tos = data[0]
		}
		b = alignControl(b)[(length+uint64(wordSize)-1)&^uint64(wordSize-1):]
	}
	return out
}

var (
	dstA = netip.MustParseAddrPort("192.0.2.1:1000")
	dstB = netip.MustParseAddrPort("198.51.100.1:2000")
)

func wiredSocket(w *wire) *linuxSocket {
	calls := kernelCalls{sendmmsg: w.sendmmsg, recvmmsg: recvmmsg, wait: w.wait}
	return newLinuxSocket(-1, v4, 1, Offloads{SegmentSend: true, BatchCalls: true, LocalAddress: true}, calls)
}

// want lists datagrams as wire notes them.
func want(runs ...Run) []string {
	var w wire
	for i := range runs {
		r := &runs[i]
		w.take(wireMessage{r.Dst, outgoing{src: r.Src, tos: r.TOS, segmentSize: r.segmentSize()}, r.Data})
	}
	return w.sent
}

func expect(t *testing.T, w *wire, runs ...Run) {
	t.Helper()
	wanted := want(runs...)
	for i := range min(len(w.sent), len(wanted)) {
		if w.sent[i] != wanted[i] {
			t.Fatalf("datagram %d on the wire is %q, want %q", i, w.sent[i], wanted[i])
		}
	}
	if len(w.sent) != len(wanted) {
		t.Fatalf("%d datagrams on the wire, want %d", len(w.sent), len(wanted))
	}
}

func run(data string, size int, dst netip.AddrPort) Run {
	return Run{Data: []byte(data), SegmentSize: size, Dst: dst}
}

func withSource(r Run, src string) Run {
	r.Src = netip.MustParseAddr(src)
	return r
}

// refuseRuns is a path that takes single datagrams only.
func refuseRuns(errno syscall.Errno) func(wireMessage) syscall.Errno {
	return func(m wireMessage) syscall.Errno {
		if m.out.segmentSize != 0 {
			return errno
		}
		return 0
	}
}

func mustSend(t *testing.T, s *linuxSocket, runs ...Run) {
	t.Helper()
	if n, err := s.Send(runs); n != len(runs) || err != nil {
		t.Fatalf("Send of %d runs: %d, %v", len(runs), n, err)
	}
}

func TestSendPartial(t *testing.T) {
	for accept := 1; accept <= 4; accept++ {
		w := &wire{accept: accept}
		runs := []Run{run("aabbc", 2, dstA), run("d", 1, dstB), run("", 0, dstA), run("eeeff", 3, dstB)}
		mustSend(t, wiredSocket(w), runs...)
		expect(t, w, runs...)
	}
}

func TestSendMoreThanOneCall(t *testing.T) {
	w := &wire{}
	s := wiredSocket(w)
	var runs []Run
	for i := range 2*batchCalls + 3 {
		runs = append(runs, run(fmt.Sprintf("%03d", i), 2, dstA))
	}
	mustSend(t, s, runs...)
	expect(t, w, runs...)
	if w.calls != 3 || s.stats.SendDatagrams.Load() != uint64(2*len(runs)) || s.stats.SendRuns.Load() != uint64(len(runs)) {
		t.Fatalf("%d calls, %d datagrams", w.calls, s.stats.SendDatagrams.Load())
	}
}

func TestSendInterrupted(t *testing.T) {
	interrupts := 3
	w := &wire{refuse: func(wireMessage) syscall.Errno {
		if interrupts--; interrupts >= 0 {
			return unix.EINTR
		}
		return 0
	}}
	mustSend(t, wiredSocket(w), run("aab", 2, dstA))
	expect(t, w, run("aab", 2, dstA))
}

// TestSendFullInsideARun: the buffer fills in the middle of a run that goes datagram by datagram. The next Send goes on
// there, so nothing is lost, doubled or overtaken.
func TestSendFullInsideARun(t *testing.T) {
	for room := range 8 {
		left := room
		w := &wire{}
		w.refuse = func(m wireMessage) syscall.Errno {
			if m.out.segmentSize != 0 {
				return unix.EIO
			}
			if left == 0 {
				return unix.EAGAIN
			}
			left--
			return 0
		}
		s := wiredSocket(w)
		runs := []Run{run("aabbc", 2, dstA), run("ddee", 2, dstA), run("f", 1, dstB)}
		n, err := s.Send(runs)
		if wantRuns := []int{0, 0, 0, 1, 1, 2, 3, 3}[room]; n != wantRuns || err != nil {
			t.Fatalf("room for %d: Send returned %d, %v, want %d", room, n, err, wantRuns)
		}
		left = 100
		mustSend(t, s, runs[n:]...)
		expect(t, w, runs...)
	}
}

// TestSendForgetsAStopThatIsNotGoneOn: memory that is used for another run must go out whole.
func TestSendForgetsAStopThatIsNotGoneOn(t *testing.T) {
	w := &wire{}
	w.refuse = func(m wireMessage) syscall.Errno {
		if m.out.segmentSize != 0 {
			return unix.EIO
		}
		if len(w.sent) == 1 {
			return unix.EAGAIN
		}
		return 0
	}
	s := wiredSocket(w)
	r := run("aabb", 2, dstA)
	if n, err := s.Send([]Run{r}); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	copy(r.Data, "ccdd")
	w.sent, w.refuse = nil, nil
	mustSend(t, s, r)
	expect(t, w, r)
}

// TestSendSegmentsRefused: a path that refuses runs gets datagrams, is remembered, and is tried again later.
func TestSendSegmentsRefused(t *testing.T) {
	for _, errno := range []syscall.Errno{unix.EIO, unix.EINVAL, unix.EMSGSIZE, unix.ENOPROTOOPT} {
		w := &wire{refuse: refuseRuns(errno)}
		s := wiredSocket(w)
		runs := []Run{run("aabbc", 2, dstA), run("ddee", 2, dstA)}
		mustSend(t, s, runs...)
		expect(t, w, runs...)
		if n := s.stats.SegmentRefused.Load(); n != 2 {
			t.Errorf("%v: %d runs counted as refused, want 2", errno, n)
		}
		w.calls, w.sent = 0, nil
		mustSend(t, s, runs...)
		if w.calls != 1 {
			t.Errorf("%v: %d calls to a path that is known to refuse runs", errno, w.calls)
		}
		w.refuse = nil
		for range refusalFirst {
			mustSend(t, s, runs...)
		}
		refused := s.stats.SegmentRefused.Load()
		mustSend(t, s, runs...)
		if s.stats.SegmentRefused.Load() != refused {
			t.Errorf("%v: runs still go one by one after the path takes them", errno)
		}
	}
}

func TestSendNoBuffer(t *testing.T) {
	refusals := 1
	w := &wire{refuse: func(m wireMessage) syscall.Errno {
		if refusals--; refusals >= 0 {
			return unix.ENOBUFS
		}
		return 0
	}}
	s := wiredSocket(w)
	mustSend(t, s, run("a", 1, dstA), run("b", 1, dstA)) // one retry is enough
	expect(t, w, run("a", 1, dstA), run("b", 1, dstA))
	refusals = 2
	w.sent = nil
	mustSend(t, s, run("a", 1, dstA), run("b", 1, dstA)) // dropped after one retry
	expect(t, w, run("b", 1, dstA))
	refusals = 1
	w.sent = nil
	mustSend(t, s, run("aab", 2, dstA)) // a run is shortened instead, and not held against its destination
	expect(t, w, run("aab", 2, dstA))
	if s.lane.refusals.slots != nil || s.stats.SendNoBuffer.Load() != 1 {
		t.Fatalf("%d datagrams counted", s.stats.SendNoBuffer.Load())
	}
}

func TestSendDropsWhatIsRefused(t *testing.T) {
	tests := []struct {
		errno   syscall.Errno
		counter func(*Stats) uint64
	}{
		{unix.EPERM, func(s *Stats) uint64 { return s.SendErrors.Load() }},
		{unix.EHOSTUNREACH, func(s *Stats) uint64 { return s.SendErrors.Load() }},
		{unix.ENETUNREACH, func(s *Stats) uint64 { return s.SendErrors.Load() }},
		{unix.ECONNREFUSED, func(s *Stats) uint64 { return s.SendErrors.Load() }},
		{unix.EMSGSIZE, func(s *Stats) uint64 { return s.SendTooBig.Load() }},
		{unix.ENOBUFS, func(s *Stats) uint64 { return s.SendNoBuffer.Load() }},
	}
	for _, test := range tests {
		w := &wire{refuse: func(m wireMessage) syscall.Errno {
			if m.dst == dstA {
				return test.errno
			}
			return 0
		}}
		s := wiredSocket(w)
		mustSend(t, s, run("a", 1, dstB), run("xxyyz", 2, dstA), run("b", 1, dstB))
		expect(t, w, run("a", 1, dstB), run("b", 1, dstB))
		if n := test.counter(&s.stats); n != 3 {
			t.Errorf("%v: %d datagrams counted, want 3", test.errno, n)
		}
		if err := s.SendOne(run("x", 1, dstA)); !errors.Is(err, test.errno) {
			t.Errorf("SendOne: %v, want %v", err, test.errno)
		}
	}
}

// TestSendPendingError: ECONNREFUSED once is about an earlier datagram; this one goes out.
func TestSendPendingError(t *testing.T) {
	pending := true
	w := &wire{refuse: func(wireMessage) syscall.Errno {
		if pending {
			pending = false
			return unix.ECONNREFUSED
		}
		return 0
	}}
	mustSend(t, wiredSocket(w), run("aab", 2, dstA))
	expect(t, w, run("aab", 2, dstA))
}

// TestSendSourceRejected: a run whose source is no longer ours leaves from an address of the kernel's choice.
func TestSendSourceRejected(t *testing.T) {
	for _, errno := range []syscall.Errno{unix.EINVAL, unix.EADDRNOTAVAIL, unix.ENETUNREACH} {
		w := &wire{refuse: func(m wireMessage) syscall.Errno {
			if m.out.src.IsValid() && m.out.src.String() == "10.0.0.9" {
				return errno
			}
			return 0
		}}
		s := wiredSocket(w)
		good := withSource(run("ccd", 2, dstA), "10.0.0.1")
		mustSend(t, s, withSource(run("aab", 2, dstA), "10.0.0.9"), good, withSource(run("e", 1, dstA), "10.0.0.9"))
		expect(t, w, run("aab", 2, dstA), good, run("e", 1, dstA))
		if s.stats.SourceRejected.Load() != 2 || s.stats.SegmentRefused.Load() != 0 {
			t.Errorf("%v: %d sources rejected, %d runs refused", errno, s.stats.SourceRejected.Load(), s.stats.SegmentRefused.Load())
		}
		w.refuse, w.sent = nil, nil
		for range sourceMemory {
			mustSend(t, s, withSource(run("f", 1, dstA), "10.0.0.9"))
		}
		if last := w.sent[len(w.sent)-1]; last != want(withSource(run("f", 1, dstA), "10.0.0.9"))[0] {
			t.Errorf("%v: the source is not tried again: %s", errno, last)
		}
	}
}

// TestSendEINVALOfSegmentsKeepsTheSource: the error says the same for both reasons; the source must not pay for it.
func TestSendEINVALOfSegmentsKeepsTheSource(t *testing.T) {
	w := &wire{refuse: refuseRuns(unix.EINVAL)}
	s := wiredSocket(w)
	runs := []Run{withSource(run("aab", 2, dstA), "10.0.0.1"), withSource(run("ccd", 2, dstA), "10.0.0.1")}
	mustSend(t, s, runs...)
	expect(t, w, runs...)
	if s.stats.SourceRejected.Load() != 0 {
		t.Fatalf("%d sources rejected", s.stats.SourceRejected.Load())
	}
}

// TestSendBothRefused: neither the run nor its source are taken.
func TestSendBothRefused(t *testing.T) {
	w := &wire{refuse: func(m wireMessage) syscall.Errno {
		if m.out.segmentSize != 0 || m.out.src.IsValid() {
			return unix.EINVAL
		}
		return 0
	}}
	s := wiredSocket(w)
	mustSend(t, s, withSource(run("aabbc", 2, dstA), "10.0.0.9"), withSource(run("d", 2, dstA), "10.0.0.9"))
	expect(t, w, run("aabbc", 2, dstA), run("d", 2, dstA))
	if s.stats.SourceRejected.Load() != 2 || s.stats.SegmentRefused.Load() != 1 {
		t.Fatalf("%d sources rejected, %d runs refused", s.stats.SourceRejected.Load(), s.stats.SegmentRefused.Load())
	}
}

func TestSendOfWhatTheSocketCannotReach(t *testing.T) {
	w := &wire{}
	s := wiredSocket(w)
	mustSend(t, s, run("a", 1, dstA), run("xxy", 2, netip.MustParseAddrPort("[2001:db8::1]:1")), Run{Data: []byte("z")},
		run("z", 1, netip.AddrPortFrom(dstA.Addr(), 0)), run("b", 1, dstB))
	expect(t, w, run("a", 1, dstA), run("b", 1, dstB))
	if n := s.stats.SendErrors.Load(); n != 4 {
		t.Fatalf("%d datagrams counted, want 4", n)
	}
}

// TestSendLimits: a run past the limits of UDP_SEGMENT goes datagram by datagram.
func TestSendLimits(t *testing.T) {
	for _, test := range []struct {
		segments, size int
		joined         bool
	}{{MaxSegments, 10, true}, {MaxSegments + 1, 10, false}, {45, 1455, true}, {46, 1425, false}} {
		w := &wire{}
		joined := false
		w.refuse = func(m wireMessage) syscall.Errno {
			joined = joined || m.out.segmentSize != 0
			return 0
		}
		r := Run{Data: bytes.Repeat([]byte("x"), test.segments*test.size), SegmentSize: test.size, Dst: dstA}
		mustSend(t, wiredSocket(w), r)
		expect(t, w, r)
		if joined != test.joined {
			t.Errorf("%d segments of %d: joined is %t", test.segments, test.size, joined)
		}
	}
}

func TestSendOneWaits(t *testing.T) {
	full := true
	w := &wire{refuse: func(wireMessage) syscall.Errno {
		if full {
			return unix.EAGAIN
		}
		return 0
	}}
	s := wiredSocket(w)
	if err := s.SendOne(run("a", 1, dstA)); err == nil || w.waits != 10 || s.stats.SendNoBuffer.Load() != 1 {
		t.Fatalf("full: %v after %d waits", err, w.waits)
	}
	w.waiting = func() { full = false }
	if err := s.SendOne(run("abc", 1, dstA)); err != nil {
		t.Fatal(err)
	}
	expect(t, w, run("abc", 3, dstA))
}

func TestSendClosed(t *testing.T) {
	w := &wire{refuse: func(wireMessage) syscall.Errno { return unix.EBADF }}
	s := wiredSocket(w)
	if n, err := s.Send([]Run{run("a", 1, dstA)}); n != 0 || !errors.Is(err, ErrClosed) {
		t.Fatal(n, err)
	}
}

// TestReceiveErrors: what ICMP leaves pending is swallowed and counted; the rest is told.
func TestReceiveErrors(t *testing.T) {
	var script []syscall.Errno
	s := newLinuxSocket(-1, v4, 1, Offloads{}, kernelCalls{recvmmsg: func(int, []mmsghdr) (int, syscall.Errno) {
		errno := script[0]
		script = script[1:]
		return 0, errno
	}})
	batch := []Datagrams{{Buf: make([]byte, BufferSize)}}
	for _, test := range []struct {
		script  []syscall.Errno
		want    error
		counted uint64
	}{
		{[]syscall.Errno{unix.EAGAIN}, nil, 0},
		{[]syscall.Errno{unix.EINTR, unix.EAGAIN}, nil, 0},
		{[]syscall.Errno{unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.EAGAIN}, nil, 2},
		{slices.Repeat([]syscall.Errno{unix.ECONNREFUSED}, receiveRetries), nil, receiveRetries},
		{[]syscall.Errno{unix.EBADF}, ErrClosed, 0},
		{[]syscall.Errno{unix.ENOTSOCK}, unix.ENOTSOCK, 0},
	} {
		script = test.script
		before := s.stats.ReceiveErrors.Load()
		n, err := s.Receive(batch)
		if n != 0 || !errors.Is(err, test.want) || s.stats.ReceiveErrors.Load()-before != test.counted || len(script) != 0 {
			t.Errorf("%v: %d, %v, %d left", test.script, n, err, len(script))
		}
	}
}

// A call without runs in between does not make the rest of a run go out from its beginning.
func TestSendOfNothingKeepsTheStop(t *testing.T) {
	w := &wire{}
	w.refuse = func(m wireMessage) syscall.Errno {
		if m.out.segmentSize != 0 {
			return unix.EIO
		}
		if len(w.sent) == 1 {
			return unix.EAGAIN
		}
		return 0
	}
	s := wiredSocket(w)
	r := run("aabb", 2, dstA)
	if n, err := s.Send([]Run{r}); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	mustSend(t, s)
	w.refuse = nil
	mustSend(t, s, r)
	expect(t, w, r)
}
