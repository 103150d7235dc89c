package speedtest

import (
	"context"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// half is the end that is here of a case's load.
type half struct {
	load  load
	began time.Time
	udp   int // descriptor, -1: none
}

// newHalf makes this end's part of a case's load, of sockets that are open; it owns them. A sends what goes forward.
func newHalf(c Case, isA bool, flows []*tcpFlow, udp int, total time.Duration) *half {
	bulk := &tcpLoad{flows: flows}
	sender, receiver := udp, -1
	if !isA {
		sender, receiver = -1, udp
	}
	h := &half{udp: udp}
	switch {
	case c.kind == loadUDP:
		h.load = &udpLoad{size: c.size, sender: sender, receiver: receiver, opened: true}
	case c.kind == loadRTT:
		probes := newProbes(endpoint{}, endpoint{}, total)
		probes.prober, probes.echo, probes.opened = sender, receiver, true
		if isA {
			probes.patience = liveRTTDrain
		}
		if h.load = probes; c.loaded {
			h.load = &bothLoads{probes: probes, bulk: bulk}
		}
	default:
		h.load = bulk
	}
	return h
}

func (t totals) mark(at time.Duration) mark {
	return mark{at.Seconds(), t.sentBytes, t.receivedBytes, t.sentPackets, t.receivedPackets, t.retransmits}
}

// liveRTTDrain is how long answers to probes are waited for: behind a queue of the internet, longer than on one machine.
const liveRTTDrain = time.Second

func (h *half) start() error {
	h.began = time.Now()
	return h.load.start()
}

// watch takes marks of the window: at its begin, at its end, and in between. show gets each.
func (h *half) watch(ctx context.Context, warmUp, length time.Duration, show func(mark)) (o *outcome, err error) {
	o = &outcome{}
	for i := range liveSamples + 1 {
		due := h.began.Add(warmUp + length*time.Duration(i)/liveSamples)
		if err := pause(ctx, nil, time.Until(due)); err != nil {
			return o, err
		}
		o.Marks = append(o.Marks, h.load.read().mark(time.Since(h.began)))
		show(o.Marks[i])
	}
	return o, nil
}

// finish ends the load and adds what all came to.
func (h *half) finish(o *outcome) {
	h.load.finish()
	o.Final = h.load.read().mark(time.Since(h.began))
	if u, ok := h.load.(*udpLoad); ok {
		o.Overflow = u.dropped()
	}
}

// count adds what the node has counted since before. The kernel's drops come into its counters a second late.
func (o *outcome) count(ctx context.Context, c Case, before map[string]uint64, counters func(context.Context) (map[string]uint64, error)) error {
	if before == nil {
		return nil
	}
	if c.kind == loadUDP {
		if err := pause(ctx, nil, countersBehind); err != nil {
			return err
		}
	}
	after, err := counters(ctx)
	if err != nil {
		return nil // then there is no account; the node's end shows elsewhere
	}
	o.Counters = since(before, after)
	return nil
}

// counted asks for counters; nil if there are none to be had.
func counted(ctx context.Context, counters func(context.Context) (map[string]uint64, error)) map[string]uint64 {
	if counters == nil {
		return nil
	}
	values, err := counters(ctx)
	if err != nil {
		return nil
	}
	return values
}

// byDevice is the Control of a socket whose packets come and go by one device only, whatever the routes say.
func byDevice(device string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if other := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), device) }); other != nil {
			return other
		}
		return err
	}
}

// take makes a connection a descriptor for the load's threads. The connection is closed in any case.
func take(conn net.Conn) (fd int, err error) {
	defer conn.Close()
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return -1, fmt.Errorf("a flow over %T", conn)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return -1, err
	}
	other := raw.Control(func(of uintptr) { fd, err = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
	if other != nil || err != nil {
		return -1, fmt.Errorf("a flow's socket: %v, %v", other, err)
	}
	if err = unix.SetNonblock(fd, false); err == nil {
		err = setTimeout(fd, unix.SO_RCVTIMEO, stopTimeout)
	}
	if err == nil {
		err = setTimeout(fd, unix.SO_SNDTIMEO, stopTimeout)
	}
	if err != nil {
		closeAll(fd)
		return -1, err
	}
	return fd, nil
}

// flowOf is the end of a flow that is here.
func (c Case) flowOf(index int, isA bool, fd int) *tcpFlow {
	f := &tcpFlow{sender: -1, receiver: -1, backward: index >= c.forward}
	if isA != f.backward {
		f.sender = fd
	} else {
		f.receiver = fd
	}
	return f
}
