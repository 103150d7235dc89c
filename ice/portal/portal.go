package portal

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/relay"
	"github.com/sluice-vpn/sluice/ice/secretfile"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/ice/signal/broker"
	"github.com/sluice-vpn/sluice/pipeline/errno"
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
	// Relay is the relay of the portal; its Secret is the state's, and it knows the portal's nodes. PublicAddrs empty: Public, if that is an address.
	Relay relay.Config
	// NoRelay runs none.
	NoRelay bool
	// Relays are further relays, of which the portal knows the secret.
	Relays []OtherRelay
	// Overlay are the networks that tunnel addresses come from, at most one of each family; it is stored. A family without one has
	// what is stored, or protocol.DefaultOverlay. It cannot change while there are nodes.
	Overlay []netip.Prefix
	// Resolve finds the addresses of names, Public and those of Relays, again and again; nil: they stay what they are.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Cluster makes the portal a member of one; nil: it is alone.
	Cluster *Cluster
	Logger  *slog.Logger // nil discards
}

// OtherRelay is a STUN and TURN server that is not the portal's own, such as another `sluice portal` or coturn with
// use-auth-secret.
type OtherRelay struct {
	Name   string
	Addrs  []netip.AddrPort // at most one of each family
	Host   string           // a name that Addrs are of, to be resolved again; may be empty
	Secret string
}

// Portal is a running portal. Make it with Start. Its methods may be called by any goroutine.
type Portal struct {
	config      Config
	log         *slog.Logger
	folder      io.Closer // its lock
	fingerprint signal.Fingerprint
	broker      *broker.Broker
	conn        *nats.Conn
	storeConn   *nats.Conn
	state       *state
	relay       *relay.Server // nil: none

	tasks  sync.WaitGroup
	cancel context.CancelFunc
	failed chan error

	news     chan struct{}         // of one slot: an answer may be another one now
	arrivals chan struct{}         // of one slot: a node has come or gone
	broken   atomic.Bool           // a part has failed
	opened   os.FileInfo           // the folder, to be known again
	trouble  atomic.Pointer[error] // what guard found
	counters counters

	// Lock order: state.mu, then mu.
	mu       sync.Mutex
	visitors map[string]*visitor     // by node
	addrs    map[string][]netip.Addr // by host that nodes are told of; the lists are frozen
	siblings map[string]*presence    // the other portals of a cluster, by name; frozen
	topRank  uint64                  // the highest of any session; see elsewhere

	mute map[string]bool // owned by follow: names of which it was told that they do not resolve
}

// Start opens the state and serves. Errors are one line that says what to do.
func Start(cfg Config) (_ *Portal, err error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if !cfg.Listen.IsValid() {
		cfg.Listen = netip.AddrPortFrom(netip.IPv6Unspecified(), DefaultPort)
	}
	p := &Portal{
		config: cfg, log: cfg.Logger, failed: make(chan error, 1), news: make(chan struct{}, 1), visitors: map[string]*visitor{},
		cancel: func() {}, addrs: cfg.knownAddrs(), mute: map[string]bool{}, siblings: map[string]*presence{}, arrivals: make(chan struct{}, 1),
	}
	defer func() {
		if err != nil {
			_ = p.Close()
		}
	}()
	if p.folder, err = openFolder(cfg.Folder); err != nil {
		return nil, fmt.Errorf("portal: %w", err)
	}
	if p.opened, err = os.Stat(cfg.Folder); err != nil {
		return nil, fmt.Errorf("portal: %w", err)
	}
	path := filepath.Join(cfg.Folder, certificateName)
	certificate, made, err := loadCertificate(path, time.Now())
	if err != nil {
		return nil, fmt.Errorf("portal: %w", err)
	}
	p.fingerprint = signal.FingerprintOf(certificate.Certificate[0])
	if err := p.open(certificate, made != nil); errors.Is(err, broker.ErrListen) {
		return nil, fmt.Errorf("portal: %w; stop what has the port, or give another one with -listen", err)
	} else if errors.Is(err, broker.ErrClusterListen) {
		return nil, fmt.Errorf("portal: %w; stop what has the port, or give another one with -cluster-listen", err)
	} else if err != nil {
		return nil, fmt.Errorf("portal: state in %s: %w", cfg.Folder, err)
	}
	if made != nil { // last, so that where it is the state is whole
		if err := secretfile.Write(path, made); err != nil {
			return nil, fmt.Errorf("portal: %w", err)
		}
	}
	if err := p.serve(); err != nil {
		return nil, fmt.Errorf("portal: %w", err)
	}
	return p, nil
}

// Check says which field is wrong. It looks at nothing else.
func (cfg *Config) Check() error {
	if cfg.Folder == "" || cfg.Public == "" {
		return errors.New("portal: Config.Folder or Config.Public is missing")
	}
	if !protocol.ValidAddress(net.JoinHostPort(cfg.Public, "1")) {
		return fmt.Errorf("portal: %q is no host name or address; give one without a port, such as 203.0.113.7", cfg.Public)
	}
	if cfg.Cluster != nil {
		if err := cfg.Cluster.check(); err != nil {
			return err
		}
	}
	if err := checkOverlay(cfg.Overlay); err != nil {
		return fmt.Errorf("portal: the network of tunnel addresses: %w", err)
	}
	if len(cfg.Relays)+1 > protocol.MaxRelays {
		return fmt.Errorf("portal: more than %d further relays", protocol.MaxRelays-1)
	}
	for _, r := range cfg.Relays {
		if err := protocol.ValidateRelayAddrs(r.Addrs); err != nil || !signal.ValidName(r.Name) || r.Secret == "" {
			return fmt.Errorf("portal: relay %q: it needs a name of lower-case letters, digits and hyphens,"+
				" one address of a family, and a secret", r.Name)
		}
	}
	return nil
}

// open starts the broker and loads the state from its store. Nodes that sign in meanwhile wait.
func (p *Portal) open(certificate tls.Certificate, fresh bool) (err error) {
	store := p.storeFolder()
	if err := os.MkdirAll(store, 0o700); err != nil {
		return err
	}
	var cluster *broker.Cluster
	if p.config.Cluster != nil {
		cluster = p.config.Cluster.broker(certificate)
	}
	loaded := make(chan struct{})
	defer close(loaded)
	p.broker, err = broker.Start(broker.Config{
		Listen: listenable(p.config.Listen), TLS: &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13},
		Authenticate: func(token string) (string, []string, error) {
			<-loaded
			if p.state == nil {
				return "", nil, errors.New("not ready")
			}
			return p.state.authenticate(token)
		},
		Store: store, Cluster: cluster, MaxPayload: protocol.MaxAnswer + 1024, MaxPending: 4 * protocol.MaxAnswer, Log: p.log,
		MaxConnections: 2 * protocol.MaxPeers, // as many as nodes, and then those of strangers and those that have died unnoticed
	})
	if err != nil {
		return err
	}
	return p.load(fresh)
}

// listenable is addr, or every IPv4 address in place of every address if the machine has no IPv6.
func listenable(addr netip.AddrPort) netip.AddrPort {
	if addr.Addr() != netip.IPv6Unspecified() {
		return addr
	}
	probe, err := net.Listen("tcp6", "[::]:0")
	if err != nil {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
	}
	probe.Close()
	return addr
}

// load loads the state from the broker's store.
func (p *Portal) load(fresh bool) error {
	var err error
	if p.conn, err = p.broker.Connect(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), loadTime)
	defer cancel()
	if p.storeConn, err = p.broker.Connect(); err != nil {
		return err
	}
	s, err := p.loadStored(ctx, fresh)
	if err != nil {
		return err
	}
	s.log, s.act = p.log, p.act
	p.state = s
	var outdated []string
	for _, r := range s.list() {
		if r.Outdated != "" {
			outdated = append(outdated, r.Name)
		}
	}
	if len(outdated) > 0 {
		p.log.Warn("tokens of before there were identities are not taken any more; make new ones: sluice portal node token NAME", "nodes", outdated)
	}
	return s.settle(ctx, p.config.Overlay)
}

// loadStored loads the state of the folder, or of the cluster.
func (p *Portal) loadStored(ctx context.Context, fresh bool) (*state, error) {
	if p.config.Cluster != nil {
		return p.loadShared(ctx, fresh)
	}
	if _, err := os.Stat(filepath.Join(p.config.Folder, clusterStoreName)); err == nil {
		return nil, errors.New("the folder is that of a member of a cluster, and what it held before is out of date;" +
			" start it as that member, or restore a backup into another folder")
	}
	kv, err := p.bucket(ctx)
	if err != nil {
		return nil, err
	}
	return loadState(ctx, kv, filepath.Join(p.config.Folder, markName), fresh)
}

// storeFolder is where the broker stores.
func (p *Portal) storeFolder() string {
	if p.config.Cluster != nil {
		return filepath.Join(p.config.Folder, clusterStoreName)
	}
	return filepath.Join(p.config.Folder, storeName)
}

// bucket opens the bucket in the broker's store, and makes it if there is none.
func (p *Portal) bucket(ctx context.Context) (store, error) { return openBucket(ctx, p.storeConn, 1) }

// loadTime is how long a large state may take on a slow machine.
const loadTime = 2 * time.Minute

// serve starts what runs until Close.
func (p *Portal) serve() error {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	if !p.config.NoRelay {
		cfg := p.config.Relay
		cfg.Secret, cfg.Logger, cfg.Knows = p.state.settings.RelaySecret, p.log, p.state.knowsUser
		cfg.PublicAddrs = p.addrsOf(p.config.Public)
		server, err := relay.New(cfg)
		if err != nil {
			return err
		}
		p.relay = server
		p.tasks.Go(func() {
			if err := server.Run(ctx); err != nil {
				p.fail(err)
			}
		})
	}
	// In a group, so that several portals could share the work.
	subject := signal.PortalSubject("*", protocol.Verb)
	if _, err := p.conn.QueueSubscribe(subject, "portal", func(m *nats.Msg) { p.handle(ctx, m) }); err != nil {
		return err
	}
	for verb, handle := range map[string]nats.MsgHandler{protocol.WhoVerb: p.handleWho, protocol.LeaveVerb: p.handleLeave} {
		if _, err := p.conn.QueueSubscribe(signal.PortalSubject("*", verb), "portal", handle); err != nil {
			return err
		}
	}
	if p.config.Cluster != nil {
		if _, err := p.conn.Subscribe(presenceSubject, p.hear); err != nil {
			return err
		}
		p.tasks.Go(func() { p.followStore(ctx) })
		p.tasks.Go(func() { p.tellOthers(ctx) })
	}
	p.tasks.Go(func() { p.watch(ctx) })
	p.tasks.Go(func() { p.guard(ctx) })
	if p.config.Resolve != nil {
		p.tasks.Go(func() { p.follow(ctx) })
	}
	if err := p.waitForRelay(); err != nil {
		return err
	}
	p.adviseOnPorts()
	return nil
}

// waitForRelay returns when the relay serves, or has failed.
func (p *Portal) waitForRelay() error {
	ticker, late := time.NewTicker(5*time.Millisecond), time.After(relayTime)
	defer ticker.Stop()
	for p.relay != nil && !p.relay.Ready() {
		select {
		case err := <-p.failed:
			if errno.InUse(err) {
				err = fmt.Errorf("%w; stop what has the port, or give another one with -relay-listen", err)
			}
			return err
		case <-late:
			return errors.New("the relay does not become ready")
		case <-ticker.C:
		}
	}
	return nil
}

// relayTime is how long the relay may take to open its sockets.
const relayTime = 20 * time.Second

// fail ends Wait with an error; the first one counts.
func (p *Portal) fail(err error) {
	p.broken.Store(true)
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

// Close ends, in this order: the relay and our own work, our connection to the broker, the broker and its store, the lock of the
// folder.
func (p *Portal) Close() error {
	p.cancel()
	p.tasks.Wait()
	for _, conn := range []*nats.Conn{p.conn, p.storeConn} {
		if conn != nil {
			conn.Close()
		}
	}
	var err error
	if p.broker != nil {
		err = p.broker.Close()
	}
	if p.folder != nil {
		_ = p.folder.Close() // again, if Close is called twice
	}
	return err
}

// Addr is where nodes connect.
func (p *Portal) Addr() netip.AddrPort { return p.broker.Addr() }

// token makes a node's token.
func (p *Portal) token(name string, secret [32]byte) protocol.Token {
	t := protocol.Token{Name: name, Portals: []string{p.public()}, Fingerprint: p.fingerprint, Secret: secret}
	for _, other := range p.others() {
		t.Portals = append(t.Portals, other.Public) // mostMembers is less than a token has room for
	}
	return t
}
