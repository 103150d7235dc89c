package portal

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/relay"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/ice/signal/broker"
)

// DefaultPort is the TCP port for nodes.
const DefaultPort = 4430

// Config describes a Portal. Folder and Public are required.
type Config struct {
	// Folder holds all state; it is made with mode 0700 if need be. One process uses it at a time.
	Folder string
	// Public is the host name or address under which nodes reach this machine.
	Public string
	// Listen is the TCP address for nodes; port 0 takes a free one. The zero value is DefaultPort on every address.
	Listen netip.AddrPort
	// Relay is the relay of the portal; its Secret is the state's. PublicAddrs empty: Public, if that is an address.
	Relay relay.Config
	// NoRelay runs none.
	NoRelay bool
	// Relays are further relays, of which the portal knows the secret.
	Relays []OtherRelay
	Logger *slog.Logger // nil discards
}

// OtherRelay is a STUN and TURN server that is not the portal's own, such as another `sluice portal` or coturn with
// use-auth-secret.
type OtherRelay struct {
	Name   string
	Addrs  []netip.AddrPort // at most one of each family
	Secret string
}

// Portal is a running portal. Make it with Start. Its methods may be called by any goroutine.
type Portal struct {
	config      Config
	log         *slog.Logger
	fingerprint signal.Fingerprint
	broker      *broker.Broker
	conn        *nats.Conn
	state       *state
	relay       *relay.Server // nil: none

	tasks  sync.WaitGroup
	cancel context.CancelFunc
	failed chan error

	mu     sync.Mutex
	held   map[string]*hold   // requests that wait for news, by node
	online map[string]bool    // nodes that are connected
	seen   map[string]visitor // the latest request of each
}

// visitor is a node's latest request.
type visitor struct {
	at      time.Time
	refused string
}

// Start opens the state and serves. Errors are one line that says what to do.
func Start(cfg Config) (_ *Portal, err error) {
	if cfg.Folder == "" || cfg.Public == "" {
		return nil, errors.New("portal: Config.Folder or Config.Public is missing")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if !cfg.Listen.IsValid() {
		cfg.Listen = netip.AddrPortFrom(netip.IPv6Unspecified(), DefaultPort)
	}
	p := &Portal{
		config: cfg, log: cfg.Logger, failed: make(chan error, 1), held: map[string]*hold{}, online: map[string]bool{},
		seen: map[string]visitor{}, cancel: func() {},
	}
	defer func() {
		if err != nil {
			_ = p.Close()
		}
	}()
	if err := os.MkdirAll(cfg.Folder, 0o700); err != nil {
		return nil, fmt.Errorf("portal: %w", err)
	}
	certificate, err := loadCertificate(cfg.Folder, time.Now())
	if err != nil {
		return nil, fmt.Errorf("portal: %w", err)
	}
	p.fingerprint = signal.FingerprintOf(certificate.Certificate[0])
	var ready sync.WaitGroup
	ready.Add(1) // nodes wait until the state is loaded
	authenticate := func(token string) (string, []string, error) {
		ready.Wait()
		if p.state == nil {
			return "", nil, errors.New("not ready")
		}
		return p.state.authenticate(token)
	}
	p.broker, err = broker.Start(broker.Config{
		Listen: cfg.Listen, TLS: &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13},
		Authenticate: authenticate, Store: filepath.Join(cfg.Folder, "store"), MaxPayload: protocol.MaxAnswer + 1024, MaxPending: 4 * protocol.MaxAnswer,
		Log: cfg.Logger,
	})
	if err != nil {
		ready.Done()
		return nil, fmt.Errorf("portal: %w", err)
	}
	err = p.open()
	ready.Done()
	if err != nil {
		return nil, fmt.Errorf("portal: %s: %w", cfg.Folder, err)
	}
	return p, p.serve()
}

// open loads the state from the broker's store.
func (p *Portal) open() error {
	var err error
	if p.conn, err = p.broker.Connect(); err != nil {
		return err
	}
	js, err := jetstream.New(p.conn)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	kv, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "sluice", History: 1, MaxBytes: 256 << 20})
	if err != nil {
		return fmt.Errorf("the store cannot be opened: %w", err)
	}
	p.state, err = loadState(ctx, kv)
	return err
}

// serve starts what runs until Close.
func (p *Portal) serve() error {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	if !p.config.NoRelay {
		cfg := p.config.Relay
		cfg.Secret, cfg.Logger = p.state.settings.RelaySecret, p.log
		if addr, err := netip.ParseAddr(p.config.Public); err == nil && len(cfg.PublicAddrs) == 0 {
			cfg.PublicAddrs = []netip.Addr{addr.Unmap()}
		}
		server, err := relay.New(cfg)
		if err != nil {
			return fmt.Errorf("portal: %w", err)
		}
		p.relay = server
		p.tasks.Go(func() {
			if err := server.Run(ctx); err != nil {
				p.fail(err)
			}
		})
	}
	if _, err := p.conn.Subscribe(signal.PortalSubject("*", protocol.Verb), func(m *nats.Msg) { p.handle(ctx, m) }); err != nil {
		return fmt.Errorf("portal: %w", err)
	}
	p.tasks.Go(func() { p.watch(ctx) })
	return nil
}

// fail ends Wait with an error; the first one counts.
func (p *Portal) fail(err error) {
	select {
	case p.failed <- err:
	default:
	}
}

// Wait returns when ctx ends (nil) or a part of the portal has failed.
func (p *Portal) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-p.failed:
		return fmt.Errorf("portal: %w", err)
	}
}

// Close ends, in this order: the relay and our own work, our connection to the broker, the broker and its store.
func (p *Portal) Close() error {
	p.cancel()
	p.tasks.Wait()
	if p.conn != nil {
		p.conn.Close()
	}
	if p.broker != nil {
		return p.broker.Close()
	}
	return nil
}

// Addr is where nodes connect.
func (p *Portal) Addr() netip.AddrPort { return p.broker.Addr() }

// RelayReady reports whether the relay serves; true without one.
func (p *Portal) RelayReady() bool { return p.relay == nil || p.relay.Ready() }

// RelayServer is the portal's relay, nil if there is none.
func (p *Portal) RelayServer() *relay.Server { return p.relay }

// token makes a node's token.
func (p *Portal) token(name string, secret [32]byte) protocol.Token {
	at := net.JoinHostPort(p.config.Public, strconv.Itoa(int(p.Addr().Port())))
	return protocol.Token{Name: name, Portals: []string{at}, Fingerprint: p.fingerprint, Secret: secret}
}

// AddNode makes a node and returns its token, which is not kept. allow names the gateways that a client may reach, empty: all;
// and those that a gateway may reach, empty: none.
func (p *Portal) AddNode(ctx context.Context, name string, role protocol.Role, allow []string) (protocol.Token, error) {
	secret, err := p.state.add(ctx, name, role, allow)
	if err != nil {
		return protocol.Token{}, err
	}
	p.log.Info("node added", "node", name, "role", string(role))
	p.permissionsChanged(name)
	return p.token(name, secret), nil
}

// RenewToken gives a node another token; the old one is refused from now on.
func (p *Portal) RenewToken(ctx context.Context, name string) (protocol.Token, error) {
	secret, err := p.state.renew(ctx, name)
	if err != nil {
		return protocol.Token{}, err
	}
	p.broker.Kick(name)
	p.log.Info("node has another token", "node", name)
	return p.token(name, secret), nil
}

// RemoveNode forgets a node and ends its connections. Its tunnels end when its peers hear of it, which is at once.
func (p *Portal) RemoveNode(ctx context.Context, name string) error {
	linked := p.linked(name)
	if err := p.state.remove(ctx, name); err != nil {
		return err
	}
	p.broker.Kick(name)
	for _, other := range linked {
		p.broker.Kick(other)
	}
	p.log.Info("node removed", "node", name)
	p.changed()
	return nil
}

// permissionsChanged has the nodes that are linked with name come back with what they may do now.
func (p *Portal) permissionsChanged(name string) {
	for _, other := range p.linked(name) {
		p.broker.Kick(other)
	}
	p.changed()
}

// linked names the nodes that may meet name.
func (p *Portal) linked(name string) (list []string) {
	nodes := p.state.list()
	for _, self := range nodes {
		if self.Name != name {
			continue
		}
		for _, other := range nodes {
			if mayMeet(self, other) {
				list = append(list, other.Name)
			}
		}
	}
	return list
}

// NodeStatus describes a node to the operator.
type NodeStatus struct {
	Name        string         `json:"name"`
	Role        protocol.Role  `json:"role"`
	Addresses   []netip.Prefix `json:"addresses"`
	Routes      []netip.Prefix `json:"routes,omitempty"`
	Allow       []string       `json:"allow,omitempty"`
	Online      bool           `json:"online"`
	From        []string       `json:"from,omitempty"` // host:port of each connection; two: its token is in use twice
	Seen        time.Time      `json:"seen,omitzero"`  // its latest request
	Program     string         `json:"program,omitempty"`
	Refused     string         `json:"refused,omitempty"`
	Created     time.Time      `json:"created"`
	PublicKey   string         `json:"public_key,omitempty"`
	Connections int            `json:"connections"`
}

// Nodes lists all nodes by name.
func (p *Portal) Nodes() []NodeStatus {
	var list []NodeStatus
	for _, r := range p.state.list() {
		s := NodeStatus{
			Name: r.Name, Role: r.Role, Addresses: addresses(r.Index), Routes: r.Routes, Allow: r.Allow, Program: r.Program, Created: r.Created,
		}
		if text, _ := r.PublicKey.MarshalText(); r.PublicKey != (protocol.Key{}) {
			s.PublicKey = string(text)
		}
		for _, c := range p.broker.Clients(r.Name) {
			s.From = append(s.From, c.Addr)
		}
		s.Connections, s.Online = len(s.From), len(s.From) > 0
		p.mu.Lock()
		s.Seen, s.Refused = p.seen[r.Name].at, p.seen[r.Name].refused
		p.mu.Unlock()
		list = append(list, s)
	}
	return list
}
