package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/sluice-vpn/sluice/ice/signal"
)

const (
	// helloTime is how long a connection may say nothing, handshakeTime how long its TLS handshake may take from then on. A segment
	// that was lost costs a second of each (RFC 6298, section 2).
	helloTime, handshakeTime = 3 * time.Second, 5 * time.Second
	// handshakesPerSecond bounds what TLS costs: one is about half a millisecond of a core. A neighbourhood may begin a quarter of them,
	// so that the others do not wait for it. Those beyond either wait, for at most queueTime.
	handshakesPerSecond = 500
	handshakesOfSource  = handshakesPerSecond / 4
	queueTime           = 2 * time.Second
	// maxPaces is how many sources' paces are kept before those that are over are looked for.
	maxPaces = 4096
	// writeTime is how long a node may take to read a piece.
	writeTime = 10 * time.Second
	// farewells is how many connections may be told at once that they are too many.
	farewells, farewellTime = 256, time.Second
	// acceptPause is waited out after an error of the system, such as too many open files.
	acceptPause = 20 * time.Millisecond
)

// door is where nodes come in: it listens, keeps the TLS side, and hands each connection to the server with a PROXY header that
// says whose it is. It is before the server because that has one limit for all connections, and cannot tell them of it inside TLS.
//
// Until a connection has signed in it is a stranger's. Strangers have half of all connections, each source a share of these: nobody
// keeps nodes of other networks out, and those that have signed in need no share.
type door struct {
	// Frozen.
	listener net.Listener
	tls      *tls.Config // nil: none
	server   *server.Server
	log      *serverLog
	most     int           // connections
	farewell chan struct{} // holds one for each farewell under way
	tasks    sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	guests    map[netip.AddrPort]*guest // by the address they come from
	conns     map[net.Conn]struct{}
	strangers map[netip.Prefix]int       // by source, of both sizes, and in all by the zero Prefix
	paces     map[netip.Prefix]time.Time // when the next handshake may begin: of a neighbourhood, and in all by the zero Prefix
}

// guest is a connection. Its shares are held until it has signed in or ended.
type guest struct {
	from   netip.AddrPort
	shares []netip.Prefix // guarded by door.mu
}

// listen opens the address. The caller closes the door, whether it serves or not.
func listen(cfg *Config, log *serverLog) (*door, error) {
	listener, err := net.Listen("tcp", cfg.Listen.String())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrListen, err)
	}
	return &door{
		listener: listener, tls: cfg.TLS, log: log, most: or(cfg.MaxConnections, 4096), farewell: make(chan struct{}, farewells),
		guests: map[netip.AddrPort]*guest{}, conns: map[net.Conn]struct{}{}, strangers: map[netip.Prefix]int{},
		paces: map[netip.Prefix]time.Time{},
	}, nil
}

// sources are the networks that a stranger's share is counted for: a host (an IPv6 /64) and its neighbourhood.
func sources(a netip.Addr) []netip.Prefix {
	host, around := 32, 24
	if a.Is6() {
		host, around = 64, 48
	}
	one, _ := a.Prefix(host)
	many, _ := a.Prefix(around)
	return []netip.Prefix{one, many, {}}
}

// share is how many strangers' connections there may be of a source.
func (d *door) share(source netip.Prefix) int {
	switch {
	case !source.IsValid():
		return max(1, d.most/2)
	case source.Bits() == 24 || source.Bits() == 48:
		return max(1, d.most/16)
	}
	return max(1, d.most/64)
}

// serve accepts connections until the door is closed.
func (d *door) serve() {
	for {
		conn, err := d.listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			d.log.write(slog.LevelWarn, "a connection was not accepted", "reason", err)
			time.Sleep(acceptPause)
			continue
		}
		g, err := d.admit(conn)
		if err != nil {
			d.log.write(slog.LevelWarn, "connection refused", "from", conn.RemoteAddr().String(), "reason", err)
			d.tasks.Go(func() { d.refuse(conn); conn.Close() })
			continue
		}
		d.tasks.Go(func() {
			defer d.leave(conn, g)
			if err := d.pass(conn, g); err != nil {
				d.log.write(slog.LevelWarn, "connection failed", "from", g.from.String(), "reason", err)
			}
		})
	}
}

// admit counts a connection, or says why it is one too many.
func (d *door) admit(conn net.Conn) (*guest, error) {
	at := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	g := &guest{from: netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())}
	g.shares = sources(g.from.Addr())
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, net.ErrClosed
	}
	if len(d.conns) >= d.most {
		return nil, errors.New("there are too many connections")
	}
	for _, s := range g.shares {
		if d.strangers[s] < d.share(s) {
			continue
		}
		if !s.IsValid() {
			return nil, errors.New("too many connections have not signed in")
		}
		return nil, fmt.Errorf("too many connections from %v have not signed in", s)
	}
	for _, s := range g.shares {
		d.strangers[s]++
	}
	d.guests[g.from], d.conns[conn] = g, struct{}{}
	return g, nil
}

// signedIn frees the shares of a connection.
func (d *door) signedIn(from string) {
	at, err := netip.ParseAddrPort(from)
	d.mu.Lock()
	defer d.mu.Unlock()
	if g := d.guests[at]; err == nil && g != nil {
		d.freeLocked(g)
	}
}

func (d *door) freeLocked(g *guest) {
	for _, s := range g.shares {
		if d.strangers[s]--; d.strangers[s] == 0 {
			delete(d.strangers, s)
		}
	}
	g.shares = nil
}

func (d *door) leave(conn net.Conn, g *guest) {
	conn.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.freeLocked(g)
	delete(d.conns, conn)
	if d.guests[g.from] == g {
		delete(d.guests, g.from)
	}
}

// refuse tells a connection that it is one too many, in the server's words, which nodes know (signal.ErrBusy) and which stand where the
// first record of TLS should. What it has sent is read: closing with that unread could take the words away.
func (d *door) refuse(conn net.Conn) {
	select {
	case d.farewell <- struct{}{}:
		defer func() { <-d.farewell }()
	default:
		return
	}
	_ = conn.SetDeadline(time.Now().Add(farewellTime))
	if _, err := io.WriteString(conn, signal.BusyLine); err != nil {
		return
	}
	_ = conn.(*net.TCPConn).CloseWrite()
	_, _ = io.CopyN(io.Discard, conn, 16<<10)
}

// errQueue ends a handshake that would have to wait too long.
var errQueue = errors.New("too many handshakes wait")

// queue waits until a handshake may begin that comes from a neighbourhood: for its turn there, and then among all.
func (d *door) queue(ctx context.Context, around netip.Prefix) error {
	if err := d.await(ctx, around, handshakesOfSource); err != nil {
		return err
	}
	return d.await(ctx, netip.Prefix{}, handshakesPerSecond)
}

// await waits for the turn in one queue.
func (d *door) await(ctx context.Context, of netip.Prefix, perSecond int) error {
	d.mu.Lock()
	now := time.Now()
	if len(d.paces) > maxPaces {
		maps.DeleteFunc(d.paces, func(_ netip.Prefix, next time.Time) bool { return next.Before(now) })
	}
	wait := max(0, d.paces[of].Sub(now))
	if wait <= queueTime {
		d.paces[of] = now.Add(wait + time.Second/time.Duration(perSecond))
	}
	d.mu.Unlock()
	if wait > queueTime {
		return errQueue
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// handshake makes the TLS connection.
func (d *door) handshake(conn net.Conn, from netip.Addr) (net.Conn, error) {
	cfg := d.tls.Clone()
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) { // before anything that costs
		if err := d.queue(hello.Context(), sources(from)[1]); err != nil {
			d.refuse(conn)
			return nil, err
		}
		return nil, conn.SetDeadline(time.Now().Add(handshakeTime))
	}
	if err := conn.SetDeadline(time.Now().Add(helloTime)); err != nil {
		return nil, err
	}
	secure := tls.Server(conn, cfg)
	if err := secure.Handshake(); err != nil {
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return secure, conn.SetDeadline(time.Time{})
}

// pass connects a connection with the server until one of the two ends it.
func (d *door) pass(conn net.Conn, g *guest) (err error) {
	local := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	if d.tls != nil {
		if conn, err = d.handshake(conn, g.from.Addr()); err != nil {
			return err
		}
		defer conn.Close()
	}
	inside, err := d.server.InProcessConn()
	if err != nil {
		return err
	}
	defer inside.Close()
	d.tasks.Go(func() {
		defer conn.Close()
		defer inside.Close()
		carry(conn, inside)
	})
	if _, err := io.WriteString(inside, proxyHeader(g.from, local)); err != nil {
		return nil // the server ends
	}
	carry(inside, conn)
	return nil
}

// proxyHeader says whose a connection is (the PROXY protocol, version 1).
func proxyHeader(from, to netip.AddrPort) string {
	family, host := "TCP4", to.Addr().Unmap().WithZone("")
	if from.Addr().Is6() {
		family = "TCP6"
	}
	return fmt.Sprintf("PROXY %s %v %v %d %d\r\n", family, from.Addr(), host, from.Port(), to.Port())
}

// carry copies until one side has ended, or takes nothing for writeTime.
func carry(to, from net.Conn) {
	piece := make([]byte, 8<<10)
	for {
		n, err := from.Read(piece)
		if n > 0 {
			if to.SetWriteDeadline(time.Now().Add(writeTime)) != nil {
				return
			}
			if _, err := to.Write(piece[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// close ends all connections and returns when their goroutines have ended. It may be called twice.
func (d *door) close() {
	d.listener.Close()
	d.mu.Lock()
	d.closed = true
	for conn := range d.conns {
		conn.Close()
	}
	d.mu.Unlock()
	d.tasks.Wait()
}
