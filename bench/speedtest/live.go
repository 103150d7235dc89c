package speedtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// This file holds what the two ends of a speed test over a live tunnel say to each other. A is who connects, B who serves.
//
//	A: hello                      by TCP, to B's address in the tunnel
//	B: answer: build, machine
//	for each case:
//	A: begin: case, times, A's UDP port
//	B: answer: B's UDP port, a token
//	A: a connection with hello and the token for each TCP flow; B: one byte
//	A: start                      B: answer; then the load runs, and nothing is said that it would delay
//	A: finish                     B: answer: what has arrived, and when
//
// Each message is a line of JSON. Whatever is wrong B says in an answer and ends.

// LivePort is the TCP port of speed tests, at the tunnel's own addresses.
const LivePort = 4431

// liveVersion is that of what is said; both ends must have the same.
const liveVersion = 1

// Bounds of what an end waits for, and of what it reads.
const (
	liveDial    = 20 * time.Second // for a tunnel that has to be made first as well
	liveHello   = 5 * time.Second
	liveStep    = 30 * time.Second // from one message to the next, beside the load's own time
	liveLine    = 256 << 10        // bytes
	liveSamples = 30               // within the window of a case
)

// Live is a tunnel that is up, as the node at this end of it knows it.
type Live struct {
	Peer          string // its name
	Local, Remote netip.Addr
	Port          uint16 // 0: LivePort
	Device        string // the tunnel's interface, by which all packets go
	MTU           int
	Path          string // in words
	// Counters asks the node for its counters. Nil, or an error: there is no account of lost packets.
	Counters func(context.Context) (map[string]uint64, error)
}

// Server lets peers measure the tunnels to this node.
type Server struct {
	Addresses []netip.Addr  // to serve at: the node's own in the tunnel
	Port      uint16        // 0: LivePort
	Device    string        // the tunnel's interface; what comes by another is not heard
	For       time.Duration // it ends by itself after that
	// Peer names the peer whose tunnel address that is. An error refuses it.
	Peer func(context.Context, netip.Addr) (string, error)
	// Counters is as in Live. Alive is asked now and then: an error ends the server.
	Counters func(context.Context) (map[string]uint64, error)
	Alive    func(context.Context) error
	Log      func(text string) // nil: nobody is told
}

// Far is the other end of a live tunnel.
type Far struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	Path    string     `json:"path"`
	Sluice  Build      `json:"sluice"`
	Machine Machine    `json:"machine"`
}

// hello begins a connection: of the test, or with a token one of its flows.
type hello struct {
	Version int    `json:"sluice_speedtest"`
	Token   string `json:"token,omitempty"`
	Flow    int    `json:"flow,omitempty"` // from 0
}

// What A asks for.
const (
	askBegin  = "begin"
	askStart  = "start"
	askFinish = "finish"
)

type request struct {
	Ask     string  `json:"ask"`
	Case    string  `json:"case,omitempty"`
	WarmUpS float64 `json:"warm_up_s,omitempty"`
	LengthS float64 `json:"length_s,omitempty"`
	UDPPort uint16  `json:"udp_port,omitempty"`
}

type answer struct {
	Error   string   `json:"error,omitempty"`
	Sluice  *Build   `json:"sluice,omitempty"`
	Machine *Machine `json:"machine,omitempty"`
	Token   string   `json:"token,omitempty"`
	UDPPort uint16   `json:"udp_port,omitempty"`
	Outcome *outcome `json:"outcome,omitempty"`
}

// outcome is what one end saw of a case.
type outcome struct {
	Marks    []mark            `json:"marks"` // the first begins the window, the last ends it
	Final    mark              `json:"final"` // when all is in
	Overflow uint64            `json:"overflow"`
	Counters map[string]uint64 `json:"counters,omitempty"` // what the node has counted meanwhile
}

// mark is what an end has sent and received at a time, since the load began there.
type mark struct {
	AtS             float64 `json:"at_s"`
	BytesSent       uint64  `json:"bytes_sent"`
	BytesReceived   uint64  `json:"bytes_received"`
	PacketsSent     uint64  `json:"packets_sent"`
	PacketsReceived uint64  `json:"packets_received"`
	Retransmits     uint64  `json:"retransmits"`
}

// window is the first and the last mark; zeros without any.
func (o *outcome) window() (first, last mark) {
	if len(o.Marks) == 0 {
		return first, last
	}
	return o.Marks[0], o.Marks[len(o.Marks)-1]
}

// rate is of something between two marks, per second.
func rate(first, last mark, of func(mark) uint64) float64 {
	return over(float64(of(last)-of(first)), last.AtS-first.AtS)
}

func bytesIn(m mark) uint64    { return m.BytesReceived }
func packetsIn(m mark) uint64  { return m.PacketsReceived }
func packetsOut(m mark) uint64 { return m.PacketsSent }

// talk is one connection with lines of JSON. It belongs to one goroutine.
type talk struct {
	conn net.Conn
	in   *bufio.Reader
}

func newTalk(conn net.Conn) *talk { return &talk{conn, bufio.NewReaderSize(conn, liveLine)} }

func (t *talk) send(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := t.conn.SetWriteDeadline(time.Now().Add(liveStep)); err != nil {
		return err
	}
	_, err = t.conn.Write(append(text, '\n'))
	return err
}

// receive reads one line, which may take that long.
func (t *talk) receive(wait time.Duration, v any) error {
	if err := t.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	line, err := t.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, v)
}

// ask sends a request and reads the answer; an answer that is an error is one.
func (t *talk) ask(wait time.Duration, v any) (a answer, err error) {
	if err := t.send(v); err != nil {
		return a, err
	}
	if err := t.receive(wait, &a); err != nil {
		return a, err
	}
	if a.Error != "" {
		return a, refusal{a.Error}
	}
	return a, nil
}

// refusal is what B says in an answer.
type refusal struct{ text string }

func (r refusal) Error() string { return r.text }

// ended is the error of a connection that ended while more was expected.
func (l Live) ended(err error) error {
	var said refusal
	if errors.As(err, &said) {
		return fmt.Errorf("%s refuses: %s", l.Peer, said.text)
	}
	return fmt.Errorf("the speed test with %s has broken off (%w): the server there has ended, or the tunnel has", l.Peer, err)
}

// since is what counters have grown by; nil if one of them is missing.
func since(before, after map[string]uint64) map[string]uint64 {
	if before == nil || after == nil {
		return nil
	}
	grown := map[string]uint64{}
	for name, n := range after {
		if was := before[name]; n > was {
			grown[name] = n - was
		}
	}
	return grown
}

// fillLive computes a case's figures: a is what this end saw, b the other.
func (r *Result) fillLive(c Case, a, b *outcome) {
	aFirst, aLast := a.window()
	bFirst, bLast := b.window()
	r.Seconds = aLast.AtS - aFirst.AtS
	forward, backward := 8e-9*rate(bFirst, bLast, bytesIn), 8e-9*rate(aFirst, aLast, bytesIn)
	r.GbitPerS = forward + backward
	if c.backward > 0 {
		r.ForwardGbit, r.BackwardGbit = forward, backward
	}
	r.Retransmits = aLast.Retransmits - aFirst.Retransmits + bLast.Retransmits - bFirst.Retransmits
	r.BytesSent, r.BytesReceived = a.Final.BytesSent+b.Final.BytesSent, a.Final.BytesReceived+b.Final.BytesReceived
	switch c.kind {
	case loadUDP:
		r.KPPS, r.OfferedKPPS = 1e-3*rate(bFirst, bLast, packetsIn), 1e-3*rate(aFirst, aLast, packetsOut)
		r.PacketsSent, r.PacketsReceived = a.Final.PacketsSent, b.Final.PacketsReceived
	case loadRTT:
		r.PacketsSent, r.PacketsReceived = a.Final.PacketsSent, a.Final.PacketsReceived
	}
	if c.kind != loadTCP {
		r.LossPercent = 100 * (1 - over(float64(r.PacketsReceived), float64(r.PacketsSent)))
	}
	r.sampleLive(c, a, b)
	if a.Counters == nil || b.Counters == nil {
		return
	}
	r.Counters = []map[string]uint64{a.Counters, b.Counters}
	r.SegmentsPerSend = over(sumCounters(r.Counters, "send_datagrams"), sumCounters(r.Counters, "send_runs"))
	r.SegmentsPerReceive = over(sumCounters(r.Counters, "receive_datagrams"), sumCounters(r.Counters, "receive_runs"))
	if c.kind == loadUDP {
		r.account(b.Overflow)
	}
}

// sampleLive makes samples of marks: each end has the same number of them, at the same times of its own clock. An end that was too busy
// takes several at once afterwards; between those there is no rate, so a sample goes on until both have half of an interval.
func (r *Result) sampleLive(c Case, a, b *outcome) {
	n := min(len(a.Marks), len(b.Marks))
	if n < 2 {
		return
	}
	first, last := a.window()
	least := (last.AtS - first.AtS) / float64(2*(n-1))
	before := 0
	for i := 1; i < n; i++ {
		if a.Marks[i].AtS-a.Marks[before].AtS < least || b.Marks[i].AtS-b.Marks[before].AtS < least {
			continue
		}
		s := Sample{AtS: a.Marks[i].AtS - a.Marks[0].AtS}
		s.GbitPerS = 8e-9 * (rate(b.Marks[before], b.Marks[i], bytesIn) + rate(a.Marks[before], a.Marks[i], bytesIn))
		if c.kind == loadUDP {
			s.KPPS = 1e-3 * rate(b.Marks[before], b.Marks[i], packetsIn)
		}
		r.Samples = append(r.Samples, s)
		before = i
	}
}
