package speedtest

import (
	"sync/atomic"
	"time"
)

// totals are what a load has sent and received since its start. Bytes are payload.
type totals struct {
	sentBytes, receivedBytes     uint64
	sentPackets, receivedPackets uint64        // UDP only
	forward, backward            uint64        // received bytes by direction, TCP only
	retransmits                  uint64        // segments, TCP only
	rtt                          time.Duration // of the newest probe
}

// load is traffic between the two ends. start, finish and close are called by one goroutine; read also while it runs.
type load interface {
	start() error
	// read returns the totals so far.
	read() totals
	// finish stops sending, waits until what is on its way has arrived or is lost, and ends the threads. A second
	// call returns at once.
	finish()
	// close closes the sockets.
	close()
}

// count is written by one thread and read by others. The padding keeps threads off each other's cache lines.
type count struct {
	bytes, packets atomic.Uint64
	_              [112]byte
}

// newLoad makes the load of a case between two endpoints, with one of the programs of Loads.
func newLoad(program string, c Case, a, b endpoint, total time.Duration) load {
	switch {
	case program == LoadIperf:
		return &iperfLoad{load: c, a: a, b: b, total: total}
	case c.kind == loadUDP:
		return &udpLoad{from: a, to: b, size: c.size}
	case c.kind == loadRTT && c.loaded:
		return &bothLoads{probes: newProbes(a, b, total), bulk: &tcpLoad{a: a, b: b, forward: c.forward}}
	case c.kind == loadRTT:
		return newProbes(a, b, total)
	default:
		return &tcpLoad{a: a, b: b, forward: c.forward, backward: c.backward}
	}
}

// bothLoads are probes beside bulk traffic.
type bothLoads struct {
	probes *probeLoad
	bulk   *tcpLoad
}

func (l *bothLoads) start() error {
	if err := l.bulk.start(); err != nil {
		return err
	}
	return l.probes.start()
}

// read has the bytes of the bulk traffic and the packets of the probes.
func (l *bothLoads) read() totals {
	t, p := l.bulk.read(), l.probes.read()
	t.sentPackets, t.receivedPackets, t.rtt = p.sentPackets, p.receivedPackets, p.rtt
	return t
}

func (l *bothLoads) finish() { l.probes.finish(); l.bulk.finish() }
func (l *bothLoads) close()  { l.probes.close(); l.bulk.close() }

// probesOf returns the probes of a load, nil if it has none.
func probesOf(l load) *probeLoad {
	switch l := l.(type) {
	case *bothLoads:
		return l.probes
	case *probeLoad:
		return l
	}
	return nil
}
