package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Impairment is what a Line does to frames of one direction. The zero value passes them on at once. Loss, Duplicate, Reorder
// and Corrupt are probabilities from 0 to 1.
type Impairment struct {
	// Delay holds each frame, plus an even random share of Jitter, which does not change their order.
	Delay, Jitter time.Duration
	Loss          float64
	Duplicate     float64
	// Reorder holds a frame back by another Delay plus 5 ms, so that later ones overtake it.
	Reorder float64
	// Corrupt flips one bit behind the Ethernet header.
	Corrupt float64
}

// Line is a cable with a machine in its middle that passes frames on as Impair says. Offloads of its ends are off: frames of
// the MTU with complete checksums travel on it, at some hundred Mbit/s.
type Line struct {
	middle *Namespace
	ways   [2]*way
	tasks  sync.WaitGroup
}

// way is one direction of a line.
type way struct {
	in, out    int // sockets, owned
	impairment atomic.Pointer[Impairment]
	random     *rand.Rand // the reader's
	queue      chan frame
}

type frame struct {
	data []byte // owned
	due  time.Time
}

// lineQueue is how many frames may be under way in one direction; what does not fit is dropped.
const lineQueue = 4096

// lineOff are the offloads that a frame socket does not undo.
var lineOff = []Offload{TransmitCsum, TCPSegmentation, TCP6Segment, UDPSegmentation}

// ConnectLine lays a line between two namespaces, without impairments at first.
func ConnectLine(cable Cable, a, b Plug) (*Line, error) {
	middle, err := NewNamespace("line-" + a.Device + "-" + b.Device)
	if err != nil {
		return nil, err
	}
	l := &Line{middle: middle}
	for i, p := range [2]Plug{a, b} {
		port := Plug{Namespace: middle, Device: fmt.Sprintf("port%d", i)}
		c := cable
		c.Off = append(append([]Offload{}, cable.Off...), lineOff...)
		if err := Connect(c, p, port); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	if err := l.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("lab: line: %w", err), l.Close())
	}
	for _, w := range l.ways {
		l.tasks.Go(w.read)
		l.tasks.Go(w.write)
	}
	return l, nil
}

// open makes the frame sockets, two for each direction so that closing one ends its reader.
func (l *Line) open() error {
	return l.middle.Run(func() error {
		var index [2]int
		for i := range index {
			link, err := l.middle.handle.LinkByName(fmt.Sprintf("port%d", i))
			if err != nil {
				return err
			}
			index[i] = link.Attrs().Index
		}
		for i := range l.ways {
			w := &way{in: -1, out: -1, random: rand.New(rand.NewPCG(uint64(i), 1)), queue: make(chan frame, lineQueue)}
			w.impairment.Store(&Impairment{})
			l.ways[i] = w
			var err error
			if w.in, err = frameSocket(index[i], unix.ETH_P_ALL); err != nil {
				return err
			}
			if w.out, err = frameSocket(index[1-i], 0); err != nil {
				return err
			}
		}
		return nil
	})
}

// frameSocket is bound to a device; protocol 0 receives nothing.
func frameSocket(index int, protocol uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	wire := binary.NativeEndian.Uint16([]byte{byte(protocol >> 8), byte(protocol)})
	const buffer = 8 << 20
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
		// Root of a user namespace may not go beyond net.core.rmem_max; a line that is too fast for that loses frames.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
	}
	timeout := unix.NsecToTimeval(int64(100 * time.Millisecond))
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout), // so that the reader sees the end
		unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: index, Protocol: wire}))
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Impair changes what happens to frames from a to b (direction 0) or from b to a (1), from the next one on.
func (l *Line) Impair(direction int, i Impairment) { l.ways[direction].impairment.Store(&i) }

// ImpairBoth is Impair for both directions.
func (l *Line) ImpairBoth(i Impairment) {
	l.Impair(0, i)
	l.Impair(1, i)
}

// read takes frames from the device until the line is closed.
func (w *way) read() {
	defer close(w.queue)
	buf := make([]byte, 65536)
	for {
		n, from, err := unix.Recvfrom(w.in, buf, 0)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR || err == unix.ENETDOWN:
			if w.impairment.Load() == nil {
				return
			}
			continue
		case err != nil:
			return
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue // our own
		}
		i := w.impairment.Load()
		if i == nil {
			return
		}
		w.take(i, buf[:n], time.Now())
	}
}

// take queues a frame as often as it is to arrive.
func (w *way) take(i *Impairment, data []byte, now time.Time) {
	hit := func(p float64) bool { return p > 0 && w.random.Float64() < p }
	if hit(i.Loss) {
		return
	}
	copies := 1
	if hit(i.Duplicate) {
		copies = 2
	}
	for range copies {
		f := frame{append([]byte(nil), data...), now.Add(i.Delay)}
		if i.Jitter > 0 {
			f.due = f.due.Add(time.Duration(w.random.Int64N(int64(i.Jitter))))
		}
		if hit(i.Corrupt) && len(f.data) > 14 {
			f.data[14+w.random.IntN(len(f.data)-14)] ^= 1 << w.random.IntN(8)
		}
		if hit(i.Reorder) {
			late := f
			time.AfterFunc(i.Delay*2+5*time.Millisecond, func() { w.send(late.data) })
			continue
		}
		select {
		case w.queue <- f:
		default:
		}
	}
}

// write sends frames when they are due, in their order.
func (w *way) write() {
	for f := range w.queue {
		time.Sleep(time.Until(f.due))
		w.send(f.data)
	}
}

// send may fail while a device is down, as a cable loses what is sent into it.
func (w *way) send(data []byte) { _, _ = unix.Write(w.out, data) }

// Close ends the line; what is under way is lost.
func (l *Line) Close() error {
	for _, w := range l.ways {
		if w != nil {
			w.impairment.Store(nil)
		}
	}
	l.tasks.Wait()
	for _, w := range l.ways {
		if w == nil {
			continue
		}
		for _, fd := range [2]int{w.in, w.out} {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	}
	return l.middle.Close()
}
