package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Server is a STUN and TURN server. Its methods may be called by any goroutine.
type Server struct {
	// frozen
	cfg      Config
	clock    func() time.Time // for the expiry of credentials
	start    time.Time
	bindings *limiter
	refusals *limiter
	quota    *quota
	stopped  chan struct{} // closed by Close
	ended    chan struct{} // closed when Run has returned, or will never be called

	// frozen when ready
	offloads offloads
	gates    []*gate
	mirrors  map[*gate]*mirror   // the other ports; those of some gates may be missing
	others   map[bool]netip.Addr // Config.OtherAddrs, by whether they are IPv4

	// atomic
	stats stats
	ready atomic.Bool
	reach atomic.Pointer[reach] // nil until the sockets are open

	inside neighbours

	allocations sync.WaitGroup // those that are open, and those that somebody reads from

	mu    sync.Mutex
	state runState
}

// runState is how far a Server has come.
type runState int

const (
	fresh runState = iota
	running
	closing
)

// ErrClosed is returned by Run after Close.
var ErrClosed = errors.New("relay: server closed")

// errRunTwice means a bug of the caller.
var errRunTwice = errors.New("relay: Run called twice")

// New checks cfg and makes a Server. It opens nothing. Errors name the field that is wrong.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Server{
		cfg: cfg, clock: time.Now, start: time.Now(),
		bindings: newLimiter(cfg.BindingsPerSecond, 5*cfg.BindingsPerSecond),
		refusals: newLimiter(cfg.RefusalsPerSecond, 5*cfg.RefusalsPerSecond),
		quota:    newQuota(cfg.Allocations, cfg.AllocationsPerUser),
		stopped:  make(chan struct{}),
		ended:    make(chan struct{}),
	}, nil
}

// Credential issues a credential for this server, see [Credential].
func (s *Server) Credential(expiry time.Time, salt string) (username, password string) {
	return Credential(s.cfg.Secret, expiry, salt)
}

// since is the time since New in ns, monotonic: the clock of the limiters.
func (s *Server) since() int64 { return int64(time.Since(s.start)) }

// Run opens the sockets and serves until ctx ends or Close is called, which is nil, or a socket fails. It may be called once.
// When it returns, every socket is closed and every goroutine has ended.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.state != fresh {
		defer s.mu.Unlock()
		if s.state == closing {
			return ErrClosed
		}
		return errRunTwice
	}
	s.state = running
	s.mu.Unlock()
	defer close(s.ended)

	err := s.open()
	if err == nil {
		err = s.serve(ctx)
	}
	s.ready.Store(false)
	s.shut()
	return err
}

// serve starts the gates and waits for an end.
func (s *Server) serve(ctx context.Context) error {
	failed := make(chan struct{}, len(s.gates))
	for i, g := range s.gates {
		if err := g.serve(); err != nil {
			for _, g := range s.gates[i:] {
				close(g.ended) // nobody reads
			}
			return fmt.Errorf("relay: %w", err)
		}
		go func() {
			<-g.ended
			failed <- struct{}{}
		}()
		s.cfg.Logger.Info("relay: listening", "address", g.sock.local, "receive_buffer", g.sock.granted)
	}
	for _, m := range s.mirrors {
		m.begun = true
		go m.serve()
	}
	s.ready.Store(true)
	select {
	case <-ctx.Done():
		return nil
	case <-s.stopped:
		return nil
	case <-failed:
		return errors.New("relay: a listening socket failed")
	}
}

// shut closes the gates, with which pion closes their allocations, and waits until nobody reads any more.
func (s *Server) shut() {
	for _, g := range s.gates {
		g.Close()
	}
	for _, m := range s.mirrors {
		m.sock.conn.Close()
		if m.begun {
			<-m.ended
		}
	}
	for _, g := range s.gates {
		if g.turn != nil {
			<-g.ended
		}
	}
	s.allocations.Wait()
}

// Close stops Run and waits for its end. It returns nil; a second call too.
func (s *Server) Close() error {
	s.mu.Lock()
	was := s.state
	s.state = closing
	switch was {
	case fresh:
		close(s.ended)
		close(s.stopped)
	case running:
		close(s.stopped)
	}
	s.mu.Unlock()
	<-s.ended
	return nil
}

// Addrs are the addresses listened on, in the order of Config.Listen. It is empty until the server is ready.
func (s *Server) Addrs() []netip.AddrPort {
	if !s.ready.Load() {
		return nil
	}
	addrs := make([]netip.AddrPort, len(s.gates))
	for i, g := range s.gates {
		addrs[i] = g.sock.local
	}
	return addrs
}

// Ports are the ports of relayed addresses, both included.
func (s *Server) Ports() (low, high uint16) { return s.cfg.MinPort, s.cfg.MaxPort }

// Ready reports whether every socket is open and served.
func (s *Server) Ready() bool { return s.ready.Load() }

// open opens the listening sockets and finds out the addresses of relayed ones.
func (s *Server) open() error {
	if !s.cfg.NoOffload {
		s.offloads = probeOffloads()
	}
	addrs, optional := s.cfg.listenAddrs()
	for _, addr := range addrs {
		sock, err := openSocket(addr, s.socketConfig(true))
		if optional && err != nil && familyMissing(err) {
			s.cfg.Logger.Warn("relay: address family missing", "address", addr, "error", err)
			continue
		}
		if err != nil {
			return err
		}
		s.gates = append(s.gates, newGate(s, sock))
	}
	if len(s.gates) == 0 {
		return errors.New("relay: the machine has neither IPv4 nor IPv6")
	}
	if err := s.openMirrors(); err != nil {
		return err
	}
	reach := s.newReach(s.cfg.PublicAddrs)
	if !reach.public[true].IsValid() && !reach.public[false].IsValid() {
		return errors.New("relay: Config.PublicAddrs is empty and no public address was found")
	}
	s.reach.Store(reach)
	return nil
}

func (s *Server) socketConfig(listening bool) socketConfig {
	return socketConfig{s.offloads, s.cfg.ReceiveBuffer, s.cfg.SendBuffer, listening}
}

// receiveFailed looks at the error of a receive and reports whether it is the end. Other errors are counted, and waited out for
// a moment so that one that stays cannot take a core.
func (s *Server) receiveFailed(err error) bool {
	switch {
	case err == nil:
	case errors.Is(err, net.ErrClosed):
		return true
	case errors.Is(err, errTruncated):
		s.stats.drop(dropOversized)
	default:
		s.stats.drop(dropReceiveFailed)
		time.Sleep(time.Millisecond)
	}
	return false
}

// familyMissing reports whether a socket could not be opened because the machine lacks its address family.
func familyMissing(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}
