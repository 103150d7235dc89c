// Package proxy lets the programs of a machine reach a tunnel that has no interface there: as a SOCKS5 server (RFC 1928), as an HTTP
// proxy (RFC 9110, sections 7.6 and 9.3.6) and by ports that are forwarded. It knows no tunnel, only a function that dials.
//
// Every client is bounded: in number, in time until it has said what it wants, and in memory. Who is connected may be silent for as long
// as it likes; either direction may end before the other.
//
// The SOCKS5 here is our own. github.com/things-go/go-socks5, the maintained library, has no limit of time or number, and finds out by the
// words of an error which reply to give.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/errno"
)

// Conn is a connection of which either direction may end before the other.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// What Dial may return beside the errors of package net, by errors.Is.
var (
	ErrNotRouted = errors.New("not routed through the tunnel")
	ErrNoName    = errors.New("no such name")
)

// Config says whom to dial by. Dial and Logger are required, the zero value of the rest is its default.
type Config struct {
	// Dial connects to a host, an address or a name, by the tunnel. Any goroutine.
	Dial   func(ctx context.Context, host string, port uint16) (Conn, error)
	Logger *slog.Logger
	// Most clients at once; more are turned away. 0: DefaultMost.
	Most int
	// Handshake is the time that a client has to say what it wants, Connect the time until it is connected. 0: 10 s and 20 s, of which a
	// tunnel may take 15 s to come about.
	Handshake, Connect time.Duration
}

// DefaultMost clients have 8 KiB each for copying while they are silent.
const DefaultMost = 4096

// Server serves at all addresses that it was told to. Its methods may be called by any goroutine.
type Server struct {
	// Frozen.
	config Config
	ctx    context.Context // of all that is under way
	end    context.CancelFunc
	rooms  chan struct{} // a place for each client
	http   httpProxy

	served sync.WaitGroup

	mu     sync.Mutex
	closed bool                                    // from here on guarded by mu
	open   map[interface{ Close() error }]struct{} // listeners and clients
	full   time.Time                               // when it was last told that there is no room
}

// New makes a server that serves nowhere yet.
func New(c Config) *Server {
	if c.Most == 0 {
		c.Most = DefaultMost
	}
	if c.Handshake == 0 {
		c.Handshake = 10 * time.Second
	}
	if c.Connect == 0 {
		c.Connect = 20 * time.Second
	}
	s := &Server{config: c, rooms: make(chan struct{}, c.Most), open: map[interface{ Close() error }]struct{}{}}
	s.ctx, s.end = context.WithCancel(context.Background())
	s.http = newHTTPProxy(s)
	return s
}

// Close ends all.
func (s *Server) Close() error {
	s.end()
	s.mu.Lock()
	s.closed = true
	for c := range s.open {
		c.Close()
	}
	s.mu.Unlock()
	s.served.Wait()
	s.http.close()
	return nil
}

// Address is what a flag names: ADDRESS:PORT, or PORT and :PORT, which are on 127.0.0.1. An error is one line that says what to do.
func Address(flag, at string) (string, error) {
	if _, err := strconv.ParseUint(at, 10, 16); err == nil {
		at = ":" + at
	}
	host, port, err := net.SplitHostPort(at)
	if _, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil {
		return "", fmt.Errorf("%s %q: use PORT (on 127.0.0.1) or ADDRESS:PORT", flag, at)
	}
	if host == "" {
		host = "127.0.0.1" // who wants others to use it says so with 0.0.0.0 or [::]
	}
	return net.JoinHostPort(host, port), nil
}

// Target is a host and a port behind the tunnel.
type Target struct {
	Host string
	Port uint16
}

func (t Target) String() string { return net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port))) }

// Forward leads from an address of this machine to a target.
type Forward struct {
	Local string // as Address has it
	To    Target
}

// ParseForward reads LOCAL=HOST:PORT. An error is one line that says what to do.
func ParseForward(text string) (f Forward, err error) {
	local, to, ok := strings.Cut(text, "=")
	host, portText, split := net.SplitHostPort(to)
	port, bad := strconv.ParseUint(portText, 10, 16)
	if !ok || split != nil || bad != nil || host == "" || port == 0 {
		return f, fmt.Errorf("-forward %q: use LOCAL=HOST:PORT, such as 8080=10.0.0.7:80; LOCAL is PORT (on 127.0.0.1) or ADDRESS:PORT", text)
	}
	f.To = Target{host, uint16(port)}
	f.Local, err = Address("-forward", local)
	return f, err
}

// Loopback tells whether only this machine reaches an address to listen at.
func Loopback(at net.Addr) bool {
	a, err := netip.ParseAddrPort(at.String())
	return err == nil && a.Addr().Unmap().IsLoopback()
}

// SOCKS serves SOCKS5 at an address; HTTP is an HTTP proxy; Forward leads to one target. flag begins errors, which say what to do.
func (s *Server) SOCKS(flag, at string) (net.Addr, error) { return s.listen(flag, at, s.serveSOCKS) }

// HTTP serves as an HTTP proxy.
func (s *Server) HTTP(flag, at string) (net.Addr, error) { return s.listen(flag, at, s.http.serve) }

// Forward leads from an address to a target.
func (s *Server) Forward(flag string, f Forward) (net.Addr, error) {
	var told atomic.Int64 // nanoseconds since 1970
	return s.listen(flag, f.Local, func(client Conn) {
		there, err := s.dial(s.ctx, f.To)
		if err != nil { // the client cannot be told
			if last := told.Load(); time.Since(time.Unix(0, last)) >= again && told.CompareAndSwap(last, time.Now().UnixNano()) {
				s.config.Logger.Warn("a forwarded port does not reach its target", "local", f.Local, "target", f.To.String(), "why", Why(err))
			}
			return
		}
		s.join(client, client, there)
	})
}

func (s *Server) listen(flag, at string, serve func(Conn)) (net.Addr, error) {
	l, err := net.Listen("tcp", at)
	switch {
	case errno.InUse(err):
		return nil, fmt.Errorf("%s %s: another program has this port; choose another one", flag, at)
	case err != nil:
		return nil, fmt.Errorf("%s %s: %w", flag, at, err)
	}
	if !s.hold(l) {
		l.Close()
		return nil, net.ErrClosed
	}
	s.served.Go(func() { s.accept(l, serve) })
	return l.Addr(), nil
}

// hold has Close close something; false: it has come too late.
func (s *Server) hold(c interface{ Close() error }) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.open[c] = struct{}{}
	}
	return !s.closed
}

// release closes what was held.
func (s *Server) release(c interface{ Close() error }) {
	c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

// acceptAgain is when a listener is asked again that has failed: mostly for want of descriptors.
const acceptAgain = 50 * time.Millisecond

// accept serves clients until the listener is closed.
func (s *Server) accept(l net.Listener, serve func(Conn)) {
	defer s.release(l)
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select {
			case <-s.ctx.Done():
				return
			case <-time.After(acceptAgain):
			}
			continue
		}
		client := conn.(*net.TCPConn)
		select {
		case s.rooms <- struct{}{}:
		default:
			client.Close()
			s.tellFull()
			continue
		}
		if !s.hold(client) {
			client.Close()
			return
		}
		s.served.Go(func() {
			defer func() { <-s.rooms }()
			defer s.release(client)
			serve(client)
		})
	}
}

// again is how often the same is logged at most that clients bring about.
const again = time.Minute

func (s *Server) tellFull() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.full) >= again {
		s.full = time.Now()
		s.config.Logger.Warn("clients of the proxy are turned away, since there are too many", "most", s.config.Most)
	}
}

// dial connects to what a client wants, and logs what does not come about.
func (s *Server) dial(ctx context.Context, to Target) (Conn, error) {
	ctx, stop := context.WithTimeout(ctx, s.config.Connect)
	defer stop()
	conn, err := s.config.Dial(ctx, to.Host, to.Port)
	if err != nil {
		s.config.Logger.Debug("a client of the proxy is not connected", "to", to.String(), "why", Why(err))
		return nil, err
	}
	return conn, nil
}

// Why says in a few words why a dial has failed.
func Why(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return "no answer in time"
	case errors.Is(err, context.Canceled):
		return "the program ends"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused by the peer"
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}
