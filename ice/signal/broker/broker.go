// Package broker embeds a NATS server as the signaling broker of a portal. Nodes do not link it.
//
// Who connects shows a token; the portal's callback says which node that is and which peers it may write to, and the server
// then enforces [signal.Permissions]. Nothing about nodes is kept here: a revoked node is kicked, and its token refused when
// it comes back. JetStream, if there is a folder for it, is for the portal alone, which talks to the server inside
// the process and may do everything.
//
//	node --TLS--> door (shares of each source, handshakes in turn) --PROXY header, pipe--> NATS server --> Authenticate
//
// Everything is bounded: connections, in all, of one node and of one source that has not signed in, TLS handshakes, subscriptions, the
// size of messages, what may wait for a slow reader, and the memory and disk of JetStream.
package broker

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Config is what a Broker needs. It is frozen once given to Start.
type Config struct {
	// Listen is the TCP address for nodes; port 0 picks a free one.
	Listen netip.AddrPort
	// TLS is the server's configuration, and the connection begins with the TLS handshake. nil is for tests only.
	TLS *tls.Config
	// Authenticate returns the node that a token stands for and the names of the peers it may exchange messages with. An
	// error refuses the connection; its text goes to the log, never to who connects. It is called by several goroutines, and
	// Kick waits for calls under way. It may not call methods of the Broker.
	Authenticate func(token string) (name string, allowed []string, err error)
	// Store is the folder of JetStream; without one there is no JetStream.
	Store string
	// MaxMemory and MaxStore limit JetStream, in bytes; 0 means 64 MiB and 1 GiB.
	MaxMemory, MaxStore int64
	// MaxConnections limits connections; 0 means 4096. Those that have not signed in have half of them, an IPv4 /24 or IPv6 /48 a
	// sixteenth, an IPv4 address or IPv6 /64 a 64th.
	MaxConnections int
	// MaxPayload limits a message, in bytes; 0 means 64 KiB, of which nodes take signal.MaxMessage from one another.
	MaxPayload int32
	// MaxPending limits what waits to be written to one connection, in bytes; one that is slower is closed. 0 means 4 MiB.
	MaxPending int64
	// MaxSubscriptions limits the subscriptions of one connection; 0 means 8, where a node (signal.Bus) has 3. A message that fits all
	// of a node's goes out as often as it has them on all of its connections together.
	MaxSubscriptions int
	// Cluster makes the server a member of one, with Store; nil: it is alone.
	Cluster *Cluster
	// Log receives the server's warnings and errors and who was refused, a few lines a second at most; nil drops them.
	Log *slog.Logger
}

// Broker is a running server. Its methods may be used by several goroutines.
type Broker struct {
	server *server.Server
	door   *door
	auth   *authenticator
	store  *server.JetStreamConfig // as it was at the start
}

// readyTime is how long the server may take to open its store and its port.
const readyTime = 20 * time.Second

// Start runs a server; it accepts nodes when Start returns.
func Start(cfg Config) (*Broker, error) {
	if cfg.Authenticate == nil {
		return nil, errors.New("broker: no Authenticate")
	}
	if !cfg.Listen.IsValid() {
		return nil, errors.New("broker: no address to listen on")
	}
	if cfg.Cluster != nil {
		own := *cfg.Cluster
		cfg.Cluster = &own
		if err := errors.Join(own.settle(), own.seed(cfg.Store)); err != nil {
			return nil, fmt.Errorf("broker: %w", err)
		}
	}
	log := &serverLog{to: cfg.Log, now: time.Now, starting: true}
	door, err := listen(&cfg, log) // before the store is opened
	if err != nil {
		return nil, err
	}
	auth := newAuthenticator(cfg.Authenticate, log, door.signedIn)
	o := options(&cfg, auth)
	srv, err := server.NewServer(o)
	if err != nil {
		door.close()
		return nil, fmt.Errorf("broker: %w", err)
	}
	door.server = srv
	auth.alive = func(id uint64) bool { return srv.GetClient(id) != nil }
	auth.end = srv.DisconnectClientByID
	auth.systemAccount = srv.SystemAccount
	srv.SetLoggerV2(log, false, false, false)
	b := &Broker{server: srv, door: door, auth: auth, store: storeOf(o)}
	srv.Start()
	if cfg.Cluster != nil {
		startRoutes(srv)
	}
	if err := log.started(); err != nil {
		b.Close()
		return nil, fmt.Errorf("broker: %w", err)
	}
	if !srv.ReadyForConnections(readyTime) {
		b.Close()
		return nil, errors.New("broker: the server does not become ready")
	}
	door.tasks.Go(door.serve)
	return b, nil
}

// ErrListen: the address to listen on cannot be had.
var ErrListen = errors.New("cannot listen for nodes")

// ownConnections is how many connections the portal itself may have beside those of nodes.
const ownConnections = 8

func options(cfg *Config, auth *authenticator) *server.Options {
	o := &server.Options{
		ServerName: "sluice-portal", DontListen: true, ProxyProtocol: true, // connections come through the door
		NoSigs: true, NoLog: cfg.Log == nil,
		MaxConn: or(cfg.MaxConnections, 4096) + ownConnections, MaxSubs: or(cfg.MaxSubscriptions, 8),
		MaxPayload: or(cfg.MaxPayload, 64<<10), MaxPending: or(cfg.MaxPending, 4<<20),
		MaxControlLine: 4 << 10, MaxClosedClients: 16, WriteDeadline: 5 * time.Second,
		PingInterval: 15 * time.Second, MaxPingsOut: 2, AuthTimeout: 5,
		CustomClientAuthentication: auth,
	}
	if cfg.TLS != nil {
		// What comes in has left TLS behind. The server says with it that there is TLS, as nodes want to hear.
		o.TLSConfig, o.TLSTimeout = cfg.TLS, 5
	}
	if cfg.Cluster != nil {
		cfg.Cluster.apply(o)
	}
	if cfg.Store != "" {
		o.JetStream, o.StoreDir = true, cfg.Store
		o.JetStreamMaxMemory, o.JetStreamMaxStore = or(cfg.MaxMemory, 64<<20), or(cfg.MaxStore, 1<<30)
		o.DisableJetStreamBanner = true
		o.SyncAlways = true // what was stored, a revoked token for example, stays so when the power fails
	}
	return o
}

// storeOf is JetStream's part of the options, as the server takes it at its start.
func storeOf(o *server.Options) *server.JetStreamConfig {
	return &server.JetStreamConfig{
		StoreDir: o.StoreDir, MaxMemory: o.JetStreamMaxMemory, MaxStore: o.JetStreamMaxStore, SyncAlways: o.SyncAlways,
		SyncInterval: o.SyncInterval, Strict: !o.NoJetStreamStrict, CompressOK: true,
	}
}

// or returns value, or otherwise if value is 0.
func or[T int | int32 | int64](value, otherwise T) T {
	if value == 0 {
		return otherwise
	}
	return value
}

// Addr returns where the server listens for nodes.
func (b *Broker) Addr() netip.AddrPort {
	addr := b.door.listener.Addr().(*net.TCPAddr)
	return netip.AddrPortFrom(addr.AddrPort().Addr().Unmap(), addr.AddrPort().Port())
}

// Connect connects the portal itself, inside the process and with all permissions. The caller closes the connection.
func (b *Broker) Connect(options ...nats.Option) (*nats.Conn, error) {
	// A machine that is busy, as many are at their start, does not answer within NATS's 2 s.
	options = append([]nats.Option{nats.Timeout(readyTime)}, options...)
	options = append(options, nats.InProcessServer(b.server), nats.Token(b.auth.own))
	return nats.Connect("", options...)
}

// ReopenStore closes JetStream and opens it anew, while nodes stay connected. The server closes it itself when the disk is full or
// read-only, and never opens it again. What was stored is there; who uses the store asks for it anew.
func (b *Broker) ReopenStore() error {
	if err := b.server.ShutdownJetStream(); err != nil { // nothing if it is closed
		return fmt.Errorf("broker: %w", err)
	}
	if err := b.server.EnableJetStream(b.store); err != nil {
		return fmt.Errorf("broker: the store cannot be opened: %w", err)
	}
	return nil
}

// Client is a connection of a node.
type Client struct {
	ID   uint64
	Addr string // host:port it comes from
}

// Clients returns the connections that a node has now; more than one means that its token is in use twice, or that an
// older connection has not been found dead yet. They are in the order in which they came.
func (b *Broker) Clients(name string) []Client { return b.auth.clients(name) }

// Kick ends all connections of a node and returns how many there were. A connection that is being authenticated is waited
// for: once Authenticate refuses a token, Kick leaves no connection that was made with it. A node whose token is still good
// comes back at once, with what Authenticate then says that it may do.
func (b *Broker) Kick(name string) int {
	b.auth.mu.Lock()
	defer b.auth.mu.Unlock()
	ended := 0
	for _, id := range b.auth.take(name) {
		if b.server.DisconnectClientByID(id) == nil {
			ended++
		}
	}
	return ended
}

// Close ends all connections and the server, and returns when its goroutines have ended. It may be called twice.
func (b *Broker) Close() error {
	b.door.close()
	b.server.Shutdown()
	b.server.WaitForShutdown()
	return nil
}
