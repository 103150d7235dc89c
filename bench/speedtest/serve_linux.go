package speedtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// This file is the end of a live tunnel that serves, B. What it spends on strangers and on peers is bounded: it hears only what comes by
// the tunnel's interface (the kernel counts what the machine sends to itself as such), and of that only peers' tunnel addresses; it serves one peer at a time; a case has no more connections than it is made
// of; and all ends with Server.For.

const (
	maxVisitors = 32               // connections that have not said yet what they want
	aliveEvery  = 2 * time.Second  // Server.Alive
	maxFor      = 24 * time.Hour   // of Server.For
	minFor      = 10 * time.Second // likewise
)

// Serve serves until Server.For has passed or ctx ends, which are no errors.
func Serve(ctx context.Context, s Server) error {
	if s.For < minFor || s.For > maxFor {
		return fmt.Errorf("-for %v is out of range; use %v to %v, such as 10m", s.For, minFor, maxFor)
	}
	if s.Port == 0 {
		s.Port = LivePort
	}
	ends := time.Now().Add(s.For)
	ctx, stop := context.WithDeadlineCause(ctx, ends, errServed)
	defer stop()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	h := &house{Server: s, ends: ends, visitors: make(chan struct{}, maxVisitors)}
	var running sync.WaitGroup
	defer running.Wait()
	for _, a := range s.Addresses {
		l, err := (&net.ListenConfig{Control: byDevice(s.Device)}).Listen(ctx, "tcp", netip.AddrPortFrom(a, s.Port).String())
		if err != nil {
			fail(err)
			return fmt.Errorf("cannot serve at %s, TCP port %d: %w (is another speedtest -serve running?)", a, s.Port, errnoOf(err))
		}
		unhook := context.AfterFunc(ctx, func() { l.Close() })
		defer unhook()
		running.Go(func() { h.accept(ctx, l, &running) })
	}
	for {
		if err := s.Alive(ctx); err != nil && ctx.Err() == nil {
			fail(err)
			return err
		}
		if pause(ctx, nil, aliveEvery) != nil {
			return nil
		}
	}
}

// errServed: the time is over.
var errServed = errors.New("the server has ended: its time (-for) is over")

// house is a server that runs.
type house struct {
	Server
	ends     time.Time
	visitors chan struct{}

	mu    sync.Mutex
	guest *guest // nil: nobody is served
}

// guest is the peer that is served. What stands below flows belongs to its goroutine.
type guest struct {
	name    string
	address netip.Addr
	token   string           // of the case; house.mu
	flows   map[int]net.Conn // by number; house.mu

	control *talk
	one     Case
	warmUp  time.Duration
	length  time.Duration
	udp     int
}

// accept takes connections until the listener is closed.
func (h *house) accept(ctx context.Context, l net.Listener, running *sync.WaitGroup) {
	defer l.Close()
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			if err == nil {
				conn.Close()
			}
			return
		case err != nil: // out of descriptors, or a connection that has gone again
			_ = pause(ctx, nil, stopTimeout)
			continue
		}
		select {
		case h.visitors <- struct{}{}:
			running.Go(func() { h.receive(ctx, conn) })
		default:
			conn.Close()
		}
	}
}

// receive finds out what a connection wants: to be served, or to be a flow of the peer that is.
func (h *house) receive(ctx context.Context, conn net.Conn) {
	inside := true
	leave := func() {
		if inside {
			inside = false
			<-h.visitors
		}
	}
	defer leave()
	from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	name, err := h.Peer(ctx, from)
	if err != nil {
		conn.Close()
		return
	}
	t := newTalk(conn)
	var said hello
	if err := t.receive(liveHello, &said); err != nil {
		conn.Close()
		return
	}
	if said.Token != "" {
		h.join(conn, from, said)
		return
	}
	defer conn.Close()
	g := &guest{name: name, address: from, control: t, udp: -1, flows: map[int]net.Conn{}}
	if err := h.admit(g, said); err != nil {
		_ = t.send(answer{Error: err.Error()}) // who does not read it learns nothing
		return
	}
	leave()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer h.dismiss(g)
	if err := h.attend(ctx, g); err != nil && ctx.Err() == nil {
		h.log("%s has left: %v", g.name, err)
	}
}

func (h *house) log(format string, values ...any) {
	if h.Log != nil {
		h.Log(fmt.Sprintf(format, values...))
	}
}

// admit makes a peer the one that is served.
func (h *house) admit(g *guest, said hello) error {
	if said.Version != liveVersion {
		return fmt.Errorf("the two speed tests are of different versions (%d here, %d there); use the same sluice at both ends", liveVersion, said.Version)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.guest != nil {
		return fmt.Errorf("a speed test with %s is running there; try again after it", h.guest.name)
	}
	h.guest = g
	return nil
}

// dismiss ends serving a peer.
func (h *house) dismiss(g *guest) {
	h.mu.Lock()
	h.guest = nil
	h.mu.Unlock()
	g.closeFlows(g.flows)
	closeAll(g.udp)
}

func (*guest) closeFlows(flows map[int]net.Conn) {
	for _, conn := range flows {
		conn.Close()
	}
}

// join takes a connection as a flow of the case, or closes it.
func (h *house) join(conn net.Conn, from netip.Addr, said hello) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.guest
	if g == nil || g.token == "" || said.Token != g.token || from != g.address || said.Flow < 0 || said.Flow >= g.one.forward+g.one.backward ||
		g.flows[said.Flow] != nil {
		conn.Close()
		return
	}
	if err := conn.SetDeadline(time.Now().Add(liveHello)); err != nil {
		conn.Close()
		return
	}
	g.flows[said.Flow] = conn
	_, _ = conn.Write([]byte{'+'}) // into an empty buffer; who has gone shows at the start
}

// attend does what the peer asks for, case by case, until it hangs up.
func (h *house) attend(ctx context.Context, g *guest) error {
	build, machine := readBuild(), readMachine(endpoint{device: h.Device, addr: g.address})
	if err := g.control.send(answer{Sluice: &build, Machine: &machine}); err != nil {
		return err
	}
	h.log("serving %s (%s)", g.name, g.address)
	for {
		var ask request
		if err := g.control.receive(liveStep, &ask); err != nil {
			h.log("%s has finished", g.name)
			return nil
		}
		a, err := h.begin(g, ask)
		if err == nil {
			err = g.control.send(a)
		}
		if err == nil {
			err = h.serve(ctx, g)
		}
		if err != nil {
			_ = g.control.send(answer{Error: err.Error()})
			return err
		}
	}
}

// begin opens the sockets of a case.
func (h *house) begin(g *guest, ask request) (a answer, err error) {
	i := caseIndex(ask.Case)
	if ask.Ask != askBegin || i < 0 {
		return a, fmt.Errorf("%q of case %q is not understood; use the same sluice at both ends", ask.Ask, ask.Case)
	}
	g.warmUp, g.length = time.Duration(ask.WarmUpS*float64(time.Second)), time.Duration(ask.LengthS*float64(time.Second))
	left := time.Until(h.ends)
	if g.warmUp < 0 || g.length < MinDuration || g.length > MaxDuration || g.warmUp > MaxDuration || g.warmUp+g.length > left {
		return a, fmt.Errorf("a case of %v does not fit: the server there ends in %v (-for)", g.warmUp+g.length, left.Round(time.Second))
	}
	one := Cases()[i]
	if one.kind != loadTCP {
		local := g.control.conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if g.udp, err = (endpoint{device: h.Device, addr: local}).open(unix.SOCK_DGRAM, stopTimeout); err != nil {
			return a, err
		}
		growBuffers(g.udp)
		if err = unix.Connect(g.udp, sockaddr(netip.AddrPortFrom(g.address, ask.UDPPort))); err != nil {
			return a, err
		}
		if a.UDPPort, err = localPort(g.udp); err != nil {
			return a, err
		}
	}
	a.Token = rand.Text()
	h.mu.Lock()
	g.one, g.token = one, a.Token
	h.mu.Unlock()
	return a, nil
}

// serve runs a case from its start to its outcome.
func (h *house) serve(ctx context.Context, g *guest) error {
	var ask request
	if err := g.control.receive(liveStep, &ask); err != nil || ask.Ask != askStart {
		return fmt.Errorf("no start of %s: %q, %v", g.one.Name, ask.Ask, err)
	}
	load, err := h.open(g)
	if err != nil {
		return err
	}
	defer load.load.close()
	defer undisturbed()()
	before := counted(ctx, h.Counters)
	if err := g.control.send(answer{}); err != nil {
		return err
	}
	err = load.start()
	defer load.load.finish() // a second time it does nothing
	if err != nil {
		return err
	}
	here, gone := context.WithCancelCause(ctx)
	defer gone(nil)
	told := make(chan struct{})
	go func() { // who goes away meanwhile does not keep others from being served
		defer close(told)
		err := g.control.receive(g.warmUp+g.length+liveStep, &ask)
		if err == nil && ask.Ask != askFinish {
			err = fmt.Errorf("it asks for %q", ask.Ask)
		}
		if err != nil {
			gone(fmt.Errorf("in the middle of %s: %w", g.one.Name, err))
		}
	}()
	far, err := load.watch(here, g.warmUp, g.length, func(mark) {})
	if err != nil {
		return err
	}
	<-told
	if here.Err() != nil {
		return context.Cause(here)
	}
	load.finish(far)
	if err := far.count(ctx, g.one, before, h.Counters); err != nil {
		return err
	}
	if first, last := far.window(); last.BytesReceived > 0 {
		h.log("%s: %s, %.2f Gbit/s received", g.name, g.one.Name, 8e-9*rate(first, last, bytesIn))
	} else { // probes have no bytes that count
		h.log("%s: %s", g.name, g.one.Name)
	}
	return g.control.send(answer{Outcome: far})
}

// open makes the load of the flows that have come and of the UDP socket, which are its own from now on.
func (h *house) open(g *guest) (*half, error) {
	h.mu.Lock()
	conns := g.flows
	g.flows, g.token = map[int]net.Conn{}, ""
	h.mu.Unlock()
	if want := g.one.forward + g.one.backward; len(conns) != want {
		g.closeFlows(conns)
		return nil, fmt.Errorf("%d flows of %d have come", len(conns), want)
	}
	load := &tcpLoad{}
	var failed error
	for i := range len(conns) {
		fd, err := take(conns[i])
		failed = errors.Join(failed, err)
		if err == nil {
			load.flows = append(load.flows, g.one.flowOf(i, false, fd))
		}
	}
	if failed != nil {
		load.close()
		return nil, failed
	}
	udp := g.udp
	g.udp = -1
	return newHalf(g.one, false, load.flows, udp, g.warmUp+g.length), nil
}
