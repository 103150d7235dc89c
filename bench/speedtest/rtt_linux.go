package speedtest

import (
	"encoding/binary"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	rttEvery   = 2 * time.Millisecond
	rttPayload = 64 // bytes: a sequence number and zeros
	rttDrain   = 100 * time.Millisecond
)

// probeLoad sends small UDP packets on a timetable to an echo thread at the other end. The timetable does not wait for
// answers, so a slow path is probed as often as a fast one.
type probeLoad struct {
	from, to      endpoint
	prober, echo  int // descriptors; -1: that end is on another machine
	opened        bool
	threads       threads
	stop, abandon atomic.Bool
	patience      time.Duration // for answers that are late; 0: rttDrain
	base          time.Time
	sent          []atomic.Int64 // nanoseconds since base, at least 1, by sequence number; 0 for not sent
	rtts          []atomic.Int64 // nanoseconds, by sequence number; 0 until the answer came
	nSent         atomic.Uint64
	nReceived     atomic.Uint64
	newest        atomic.Int64
}

// newProbes prepares room for the probes of a measurement of that length.
func newProbes(from, to endpoint, total time.Duration) *probeLoad {
	room := int(total/rttEvery) + 1000
	return &probeLoad{from: from, to: to, sent: make([]atomic.Int64, room), rtts: make([]atomic.Int64, room)}
}

func (l *probeLoad) start() error {
	if !l.opened {
		var err error
		if l.prober, l.echo, err = openUDP(l.from, l.to); err != nil {
			return err
		}
		l.opened = true
	}
	l.base = time.Now()
	if l.echo >= 0 {
		l.threads.start(l.echoes)
	}
	if l.prober >= 0 {
		l.threads.start(l.answers)
		l.threads.start(l.probes)
	}
	return nil
}

func (l *probeLoad) probes() {
	var packet [rttPayload]byte
	for seq := 0; seq < len(l.sent) && !l.stop.Load(); seq++ {
		due := time.Duration(seq) * rttEvery
		if early := due - time.Since(l.base); early > 0 {
			pause := unix.NsecToTimespec(int64(early))
			_, _, _ = unix.Syscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0)
		}
		binary.LittleEndian.PutUint64(packet[:], uint64(seq))
		l.sent[seq].Store(max(int64(time.Since(l.base)), 1))
		if _, err := unix.Write(l.prober, packet[:]); err == nil {
			l.nSent.Add(1)
		}
	}
}

func (l *probeLoad) answers() {
	var packet [rttPayload]byte
	for !l.abandon.Load() {
		n, err := unix.Read(l.prober, packet[:])
		if err != nil || n != rttPayload {
			continue
		}
		now := time.Since(l.base)
		seq := binary.LittleEndian.Uint64(packet[:])
		if seq >= uint64(len(l.sent)) || l.rtts[seq].Load() != 0 {
			continue // not ours, or a duplicate
		}
		rtt := max(now-time.Duration(l.sent[seq].Load()), 1)
		l.rtts[seq].Store(int64(rtt))
		l.newest.Store(int64(rtt))
		l.nReceived.Add(1)
	}
}

func (l *probeLoad) echoes() {
	var packet [rttPayload]byte
	for !l.abandon.Load() {
		if n, err := unix.Read(l.echo, packet[:]); err == nil {
			_, _ = unix.Write(l.echo, packet[:n])
		}
	}
}

func (l *probeLoad) read() totals {
	return totals{sentPackets: l.nSent.Load(), receivedPackets: l.nReceived.Load(), rtt: time.Duration(l.newest.Load())}
}

func (l *probeLoad) finish() {
	if l.stop.Swap(true) {
		return
	}
	for end := time.Now().Add(max(l.patience, rttDrain)); time.Now().Before(end) && (l.patience == 0 || l.nReceived.Load() < l.nSent.Load()); {
		time.Sleep(rttDrain / 10)
	}
	l.abandon.Store(true)
	l.threads.wait()
}

func (l *probeLoad) close() {
	if l.opened {
		closeAll(l.prober, l.echo)
		l.opened = false
	}
}

// between returns the sorted round-trip times of the probes that were sent in an interval, given since base, and how many
// of them were not answered. It is called after finish.
func (l *probeLoad) between(start, end time.Duration) (rtts []time.Duration, lost int) {
	for seq := range l.sent {
		at := time.Duration(l.sent[seq].Load())
		if at == 0 {
			break // not sent
		}
		if at < start || at >= end {
			continue
		}
		if rtt := l.rtts[seq].Load(); rtt > 0 {
			rtts = append(rtts, time.Duration(rtt))
		} else {
			lost++
		}
	}
	slices.Sort(rtts)
	return rtts, lost
}
