package speedtest

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// measurement is one case with one implementation in one round.
type measurement struct {
	config Config
	bed    *testbed
	dir    string // for the nodes' counters
	load   Case
	impl   implementation
	round  int
	show   *progress

	counted  bool   // the load tells all that it sent and received, so that packets can be accounted for
	receiver uint64 // packets that the kernel dropped at the load's own socket
}

// snapshot is everything that is read at the start and at the end of the window.
type snapshot struct {
	at      time.Time
	totals  totals
	machine machineTimes
	nodes   []float64 // CPU seconds
}

func (m *measurement) run(ctx context.Context) (Result, error) {
	r := Result{Case: m.load.Name, Impl: m.impl.name, Round: m.round}
	if err := ctx.Err(); err != nil {
		return r, context.Cause(ctx)
	}
	name := fmt.Sprintf("%s-%s-%d", m.load.Name, strings.ReplaceAll(m.impl.name, "/", "_"), m.round)
	out := filepath.Join(m.config.OutDir, name)
	a, b := endpoint{ns: m.bed.ends[0], addr: side(0).outer()}, endpoint{ns: m.bed.ends[1], addr: side(1).outer()}
	var t *tunnel
	if len(m.impl.command) > 0 {
		var err error
		if t, err = startTunnel(ctx, m.bed, m.impl, m.dir, m.config.Profile, out); err != nil {
			return r, err
		}
		defer t.stop()
		a.addr, b.addr = t.inner[0], t.inner[1]
		r.NodeReceiveBuffer, r.NodeSendBuffer = udpBuffers(m.bed.ends[0], listenPort)
		if m.impl.ours && m.config.Profile != "" {
			r.Files = append(r.Files, out)
		}
	}
	if err := m.measure(ctx, &r, t, a, b, out); err != nil {
		return r, fmt.Errorf("%s, %s: %w", m.load.Name, m.impl.name, err)
	}
	if t != nil {
		m.readNodes(&r, t)
	}
	return r, nil
}

// measure runs the load and fills in what it gives.
func (m *measurement) measure(ctx context.Context, r *Result, t *tunnel, a, b endpoint, out string) error {
	recordings, err := m.startPerf(t, out)
	defer func() {
		for _, rec := range recordings {
			rec.abandon()
		}
	}()
	if err != nil {
		return err
	}
	l := newLoad(m.config.Load, m.load, a, b, m.config.WarmUp+m.config.Duration)
	defer l.close()
	err = l.start()
	defer l.finish() // also ends the threads of a load that started in part; a second time it does nothing
	if err != nil {
		return err
	}
	if err := pause(ctx, t, m.config.WarmUp); err != nil {
		return err
	}
	first, err := m.snapshot(l, t)
	if err != nil {
		return err
	}
	if err := m.watch(ctx, r, l, t, first); err != nil {
		return err
	}
	last, err := m.snapshot(l, t)
	if err != nil {
		return err
	}
	l.finish()
	m.fill(r, first, last, l)
	if u, ok := l.(*udpLoad); ok && t != nil {
		m.counted, m.receiver = true, u.dropped()
		if m.impl.ours { // what the kernel dropped is in the nodes' counters as of a second ago
			if err := pause(ctx, t, countersBehind); err != nil {
				return err
			}
		}
	}
	for _, rec := range recordings {
		if err := rec.finish(); err != nil {
			return err
		}
		r.Files = append(r.Files, rec.data, rec.text)
	}
	recordings = nil
	return nil
}

func (m *measurement) startPerf(t *tunnel, out string) (list []*recording, err error) {
	if !m.config.Perf || t == nil {
		return nil, nil
	}
	for i, n := range t.nodes {
		rec, err := record(n.cmd.Process.Pid, out+"-"+sideNames[i])
		if err != nil {
			return list, err
		}
		list = append(list, rec)
	}
	for _, rec := range list {
		rec.begun()
	}
	return list, nil
}

// pause waits, or reports the end of ctx or of a node.
func pause(ctx context.Context, t *tunnel, d time.Duration) error {
	timer := time.NewTimer(max(d, 0))
	defer timer.Stop()
	var ended [2]chan struct{}
	if t != nil {
		ended = [2]chan struct{}{t.nodes[0].ended, t.nodes[1].ended}
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-ended[0]:
		return t.nodes[0].died()
	case <-ended[1]:
		return t.nodes[1].died()
	case <-timer.C:
		return nil
	}
}

func (m *measurement) snapshot(l load, t *tunnel) (s snapshot, err error) {
	if t != nil {
		for _, n := range t.nodes {
			cpu, err := readCPU(n.cmd.Process.Pid)
			if err != nil {
				return s, fmt.Errorf("node %s: %w", sideNames[n.side], err)
			}
			s.nodes = append(s.nodes, cpu)
		}
	}
	if s.machine, err = readMachineTimes(); err != nil {
		return s, err
	}
	s.totals = l.read()
	s.at = time.Now()
	return s, nil
}

// watch takes samples until the window is over.
func (m *measurement) watch(ctx context.Context, r *Result, l load, t *tunnel, first snapshot) error {
	every := max(m.config.Duration/30, 20*time.Millisecond)
	end := first.at.Add(m.config.Duration)
	last := first
	for {
		now := time.Now()
		if !now.Before(end) {
			return nil
		}
		wait := every
		if rest := end.Sub(now); rest < every*3/2 {
			wait = rest // no sliver at the end, whose rate would be noise
		}
		if err := pause(ctx, t, wait); err != nil {
			return err
		}
		next := snapshot{at: time.Now(), totals: l.read()}
		seconds := next.at.Sub(last.at).Seconds()
		s := Sample{AtS: next.at.Sub(first.at).Seconds()}
		s.GbitPerS = over(float64(next.totals.receivedBytes-last.totals.receivedBytes)*8e-9, seconds)
		if m.load.kind == loadUDP {
			s.KPPS = over(float64(next.totals.receivedPackets-last.totals.receivedPackets)*1e-3, seconds)
		}
		s.RTTS = next.totals.rtt.Seconds()
		m.show.live(*r, s)
		r.Samples = append(r.Samples, s)
		last = next
	}
}

// fill computes the figures of the window, and the totals after finish.
func (m *measurement) fill(r *Result, first, last snapshot, l load) {
	r.Seconds = last.at.Sub(first.at).Seconds()
	received := last.totals.receivedBytes - first.totals.receivedBytes
	r.GbitPerS = over(float64(received)*8e-9, r.Seconds)
	if m.load.backward > 0 {
		r.ForwardGbit = over(float64(last.totals.forward-first.totals.forward)*8e-9, r.Seconds)
		r.BackwardGbit = over(float64(last.totals.backward-first.totals.backward)*8e-9, r.Seconds)
	}
	r.Retransmits = last.totals.retransmits - first.totals.retransmits
	var nodes float64
	for i := range last.nodes {
		cpu := last.nodes[i] - first.nodes[i]
		r.NodeCPUSeconds = append(r.NodeCPUSeconds, cpu)
		nodes += cpu
	}
	r.MachineCPUSeconds = last.machine.busy - first.machine.busy
	r.StolenCPUSeconds = last.machine.stolen - first.machine.stolen
	r.GbitPerCPUSecond = over(float64(received)*8e-9, nodes)
	r.GbitPerMachineCPUSecond = over(float64(received)*8e-9, r.MachineCPUSeconds)

	final := l.read()
	r.BytesSent, r.BytesReceived = final.sentBytes, final.receivedBytes
	if m.load.kind == loadUDP {
		r.KPPS = over(float64(last.totals.receivedPackets-first.totals.receivedPackets)*1e-3, r.Seconds)
		r.OfferedKPPS = over(float64(last.totals.sentPackets-first.totals.sentPackets)*1e-3, r.Seconds)
	}
	if m.load.kind != loadTCP {
		r.PacketsSent, r.PacketsReceived = final.sentPackets, final.receivedPackets
		r.LossPercent = 100 * (1 - over(float64(final.receivedPackets), float64(final.sentPackets)))
	}
	if p := probesOf(l); p != nil {
		fillRTT(r, p, first.at, last.at)
	}
}

// fillRTT computes the round-trip figures of the window, and replaces the newest probe in each sample by the mean of the
// sample's interval.
func fillRTT(r *Result, p *probeLoad, first, last time.Time) {
	start, end := first.Sub(p.base), last.Sub(p.base)
	rtts, _ := p.between(start, end)
	r.RTTMeanS = mean(rtts).Seconds()
	r.RTTP50S = percentile(rtts, 50).Seconds()
	r.RTTP99S = percentile(rtts, 99).Seconds()
	r.RTTMaxS = percentile(rtts, 100).Seconds()
	from := start
	for i := range r.Samples {
		to := start + time.Duration(r.Samples[i].AtS*float64(time.Second))
		in, _ := p.between(from, to)
		r.Samples[i].RTTS = mean(in).Seconds()
		from = to
	}
}

// readNodes reads the peak memory, ends the nodes and reads their counters.
func (m *measurement) readNodes(r *Result, t *tunnel) {
	for _, n := range t.nodes {
		peak, err := readPeak(n.cmd.Process.Pid)
		if err != nil {
			peak = 0 // it ended in this very moment; its end is no failure of the measurement
		}
		r.PeakMiB = append(r.PeakMiB, peak)
	}
	t.stop()
	for _, n := range t.nodes {
		if c := n.counters(); c != nil {
			r.Counters = append(r.Counters, c)
		}
	}
	if m.counted && len(r.Counters) == len(t.nodes) {
		r.account(m.receiver)
	}
	r.SegmentsPerSend = over(sumCounters(r.Counters, "send_datagrams"), sumCounters(r.Counters, "send_runs"))
	r.SegmentsPerReceive = over(sumCounters(r.Counters, "receive_datagrams"), sumCounters(r.Counters, "receive_runs"))
}

// countersBehind is more than what the nodes' counters of the TUN device are behind the kernel's.
const countersBehind = 1200 * time.Millisecond
