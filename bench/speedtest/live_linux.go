package speedtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// This file is the end of a live tunnel that connects, A.

// Connect measures a live tunnel whose other end serves. A report that comes with an error holds what was measured before it.
func Connect(ctx context.Context, c Config, l Live) (*Report, error) {
	c, err := c.Normalize()
	if err != nil {
		return nil, err
	}
	cases, err := c.selected()
	if err != nil {
		return nil, err
	}
	if l.Port == 0 {
		l.Port = LivePort
	}
	conn, err := l.dial(ctx)
	if err != nil {
		return nil, l.unreachable(err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	control := newTalk(conn)
	far, err := control.ask(liveHello, hello{Version: liveVersion})
	if err == nil && (far.Sluice == nil || far.Machine == nil) {
		err = refusal{"what answers there is no speed test"}
	}
	if err != nil {
		return nil, l.ended(err)
	}
	report := &Report{Schema: ReportSchema, Started: time.Now().UTC().Truncate(time.Second), Sluice: readBuild(),
		Machine: readMachine(endpoint{device: l.Device, addr: l.Local}),
		Peer:    &Far{Name: l.Peer, Address: l.Remote, Path: l.Path, Sluice: *far.Sluice, Machine: *far.Machine},
		Settings: Settings{DurationS: c.Duration.Seconds(), WarmUpS: c.WarmUp.Seconds(), Rounds: c.Rounds, InnerMTU: l.MTU,
			Topology: TopologyLive, Load: LoadOwn, RTTEveryS: rttEvery.Seconds()}}
	show := &progress{w: c.Progress, terminal: c.Terminal, total: c.Rounds * len(cases)}
	defer show.clear()
	defer undisturbed()()
	for _, one := range cases {
		for round := 1; round <= c.Rounds; round++ {
			r := Result{Case: one.Name, Impl: ImplSluice, Round: round}
			if err := l.measure(ctx, control, c, one, &r, show); err != nil {
				if ctx.Err() != nil {
					return report, context.Cause(ctx)
				}
				return report, fmt.Errorf("%s: %w", one.Name, err)
			}
			report.Results = append(report.Results, r)
			show.finished(r)
			runtime.GC()
		}
	}
	return report, nil
}

func (l Live) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: liveDial, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.Local, 0)), Control: byDevice(l.Device)}
	return d.DialContext(ctx, "tcp", netip.AddrPortFrom(l.Remote, l.Port).String())
}

// unreachable says what the error of a first connection means.
func (l Live) unreachable(err error) error {
	at := netip.AddrPortFrom(l.Remote, l.Port)
	var timeout net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("nobody serves a speed test on %s (%s): start sluice speedtest -serve there", l.Peer, at)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ETIMEDOUT), errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("%s (%s) does not answer: a client lets connections in only with -accept-incoming, a firewall there may drop "+
			"them, or the tunnel is not up, which sluice why %s tells", l.Peer, at, l.Peer)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return fmt.Errorf("packets to %s (%s) are refused (%w): a firewall here or there, or the tunnel is not up, which sluice why %s tells",
			l.Peer, at, errnoOf(err), l.Peer)
	}
	return fmt.Errorf("%s (%s): %w", l.Peer, at, err)
}

// errnoOf is the system's error within err.
func errnoOf(err error) error {
	var no syscall.Errno
	if errors.As(err, &no) {
		return no
	}
	return err
}

// measure runs one case.
func (l Live) measure(ctx context.Context, control *talk, c Config, one Case, r *Result, show *progress) error {
	h, err := l.begin(ctx, control, c, one)
	if err != nil {
		return err
	}
	defer h.load.close()
	before := counted(ctx, l.Counters)
	if _, err := control.ask(liveStep, request{Ask: askStart}); err != nil {
		return l.ended(err)
	}
	err = h.start()
	defer h.load.finish() // a second time it does nothing
	if err != nil {
		return err
	}
	near, err := h.watch(ctx, c.WarmUp, c.Duration, func(m mark) {
		show.live(*r, Sample{GbitPerS: over(8e-9*float64(m.BytesSent+m.BytesReceived), m.AtS), KPPS: over(1e-3*float64(m.PacketsSent), m.AtS)})
	})
	if err != nil {
		return err
	}
	finished := make(chan struct{})
	go func() { defer close(finished); h.finish(near) }()
	if one.backward == 0 { // else this end waits for the other's flows, which end when the other is told
		<-finished
	}
	a, err := control.ask(drainTime+liveStep, request{Ask: askFinish})
	<-finished
	if err == nil && a.Outcome == nil {
		err = refusal{"there is no outcome"}
	}
	if err != nil {
		return l.ended(err)
	}
	if err := near.count(ctx, one, before, l.Counters); err != nil {
		return err
	}
	r.fillLive(one, near, a.Outcome)
	if p := probesOf(h.load); p != nil && len(near.Marks) > 0 {
		first, last := near.window()
		at := func(m mark) time.Time { return h.began.Add(time.Duration(m.AtS * float64(time.Second))) }
		fillRTT(r, p, at(first), at(last))
	}
	return nil
}

// begin opens the sockets of a case, at both ends.
func (l Live) begin(ctx context.Context, control *talk, c Config, one Case) (h *half, err error) {
	udp, flows := -1, []*tcpFlow{}
	defer func() {
		if err != nil {
			closeAll(udp)
			(&tcpLoad{flows: flows}).close()
		}
	}()
	ask := request{Ask: askBegin, Case: one.Name, WarmUpS: c.WarmUp.Seconds(), LengthS: c.Duration.Seconds()}
	if one.kind != loadTCP {
		if udp, err = (endpoint{device: l.Device, addr: l.Local}).open(unix.SOCK_DGRAM, stopTimeout); err != nil {
			return nil, err
		}
		growBuffers(udp)
		if ask.UDPPort, err = localPort(udp); err != nil {
			return nil, err
		}
	}
	a, err := control.ask(liveStep, ask)
	if err != nil {
		return nil, l.ended(err)
	}
	if udp >= 0 {
		if err = unix.Connect(udp, sockaddr(netip.AddrPortFrom(l.Remote, a.UDPPort))); err != nil {
			return nil, fmt.Errorf("UDP to %s: %w", l.Remote, err)
		}
	}
	for i := range one.forward + one.backward {
		fd, err := l.openFlow(ctx, a.Token, i)
		if err != nil {
			return nil, l.ended(err)
		}
		flows = append(flows, one.flowOf(i, true, fd))
	}
	return newHalf(one, true, flows, udp, c.WarmUp+c.Duration), nil
}

// openFlow makes a TCP connection that the other end knows by the token and a number.
func (l Live) openFlow(ctx context.Context, token string, index int) (fd int, err error) {
	conn, err := l.dial(ctx)
	if err != nil {
		return -1, err
	}
	flow := newTalk(conn)
	if err = flow.send(hello{Version: liveVersion, Token: token, Flow: index}); err == nil {
		err = conn.SetReadDeadline(time.Now().Add(liveStep))
	}
	if err == nil {
		_, err = conn.Read(make([]byte, 1)) // nothing follows before the start
	}
	if err != nil {
		conn.Close()
		return -1, err
	}
	return take(conn)
}
