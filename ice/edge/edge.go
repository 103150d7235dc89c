package edge

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/ice"
	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/rate"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/ice/turn"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/count"
	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// Config describes an Edge. Name, Role, Identity, Signaler and Sync are required.
type Config struct {
	// Name and Role are this node's, as its token says.
	Name string
	Role protocol.Role
	// Identity is this node's, as its token gives it.
	Identity ed25519.PrivateKey
	// Pins are the identities of the peers that were met before, by name; they are the Edge's from New on. SavePins is called with
	// all of them when they have changed, and must not block. Nil: none, and they last as long as the Edge.
	Pins     map[string]protocol.Identity
	SavePins func(map[string]protocol.Identity)
	// Routes are the networks that a gateway offers.
	Routes []netip.Prefix
	// Signaler exchanges messages with peers; Sync asks the portal. Sync may block until ctx ends.
	Signaler signal.Signaler
	Sync     func(context.Context, protocol.SyncRequest) (protocol.Sync, error)
	// PortalState tells whether the portal is reachable: while it is not, nothing is attempted. It is called by any goroutine
	// and must not block. Nil: not known but by Sync's errors.
	PortalState func() signal.State
	// CheckPortal is called when the network has changed, before other paths are looked for: what is signaled would be lost with a
	// connection to the portal that belongs to the old network. It must not block. Nil: there is nothing to check.
	CheckPortal func()
	// Apply configures the host by what the portal says: addresses, routes. It is called on the Edge's goroutine after the
	// pipeline was configured. An error is logged and shown by Status, and Apply is called again with the next answer. It
	// is not given the routes that are refused. Nil: nothing to configure.
	Apply func(protocol.Sync) error
	// Choose decides which of the routes that the portal gives are used, for each prefix of each peer (see RoutesIn), and says why one
	// is refused. It is called on the Edge's goroutine before an answer is applied, and when the network has changed. Nil: all are used.
	Choose func(protocol.Sync) []RouteStatus
	// Interface is the name of the TUN, whose addresses are never offered.
	Interface string
	// Mark is the fwmark of what the pipeline's sockets send, by which the system chooses its way.
	Mark uint32
	// Addresses lists the local addresses to offer; nil: those of all other interfaces, as ice.Uplinks orders them. Loopback allows
	// loopback ones. Both are for tests.
	Addresses func() []netip.Addr
	Loopback  bool
	// Watch follows changes of the network (netlink).
	Watch bool
	// Program names the program and its version to the portal.
	Program string
	// Now reads the clock, monotonic and wall; nil is the system's. It is read once for each input.
	Now    func() time.Time
	Logger *slog.Logger // nil discards
}

// Edge is the connectivity edge of one node. Make it with New, give Stray and Connector to the pipeline's Config, then Run it
// beside the pipeline. Its exported methods may be called by any goroutine.
type Edge struct {
	// frozen
	config  Config
	log     *slog.Logger
	key     crypto.PrivateKey
	signed  protocol.Signature // of its public part
	started time.Time
	mux     *ice.Mux
	mailbox *ice.Mailbox
	prober  *ice.Prober
	links   *link.Links
	byes    chan struct{} // holds a value for each bye that is being sent
	uplinks *ice.Uplinks  // nil: Config.Addresses says what is offered

	pipeline atomic.Pointer[pipeline.Pipeline]
	receiver atomic.Pointer[turn.Relays]         // relays, for other goroutines; nil before Run
	asked    atomic.Uint64                       // questions to the portal, by number
	silent   atomic.Bool                         // the portal has not answered the latest question of follow
	given    atomic.Pointer[map[netip.Addr]bool] // tunnel addresses, as the portal has given them

	mu           sync.Mutex // a leaf; guards what follows
	wanted       []link.Task
	lostRelays   []netip.AddrPort
	movedRelays  []netip.AddrPort
	relaysChange bool
	wake         chan struct{} // one slot

	posts   chan func() // what goroutines of ours found out, for the owner
	changes chan struct{}
	ended   chan struct{}
	tasks   sync.WaitGroup

	// owned by Run's goroutine
	ctx         context.Context
	now         time.Time // of the input that is handled
	relays      *turn.Relays
	relaysUp    map[netip.AddrPort]bool      // as logged
	relaysTold  map[netip.AddrPort]time.Time // when it was logged that one has no allocation for us
	passage     passage
	told        obstacle
	peers       map[string]*peer
	pins        map[string]protocol.Identity // of peers that were met, by name
	judged      map[string]*judgement        // of the peers in view, by name
	agents      map[agentID]*agent
	byICE       map[*ice.Agent]*agent // the same
	ways        map[uint64]way        // of attempts that have a path, by their serial number
	view        protocol.Sync         // as applied
	host        protocol.Sync         // what Apply was called with, without what does not matter to a host
	applied     bool                  // there is a view
	overtaken   uint64                // questions up to that number may be answered by an older view
	routes      []RouteStatus         // of the view
	synced      time.Time             // the latest answer
	leaseEnds   time.Duration         // by the pipeline's clock: from when on the view may not be acted upon; 0: there is none
	questions   []func(error)         // what waits for the portal's next answer, see askForAll
	asks        rate.Bucket           // of that
	askAt       time.Time             // when it has room again; zero: not known to have none
	strangers   rate.Bucket           // questions to the portal because of nodes that we do not know
	syncError   error
	portalWrong string    // as logged; "": nothing is
	portalSince time.Time // when syncError became an error, or none
	applyError  error
	lastRefused string
	// refusalsTold are the routes of which it was logged that they are refused.
	refusalsTold map[RouteStatus]bool
	skew         time.Duration // the portal's clock minus ours
	clock        time.Duration // the pipeline's at the latest input
	awake        time.Time     // the runtime's then, which stands still in suspend
	relaysAsked  time.Time     // see probeRelays
	timer        *time.Timer
}

// New makes an Edge with a fresh private key, which is never stored. It starts no goroutine.
func New(cfg Config) (*Edge, error) {
	switch {
	case !signal.ValidName(cfg.Name):
		return nil, fmt.Errorf("edge: %q cannot be a node's name", cfg.Name)
	case len(cfg.Identity) != ed25519.PrivateKeySize:
		return nil, errors.New("edge: Config.Identity is missing")
	case cfg.Signaler == nil || cfg.Sync == nil:
		return nil, errors.New("edge: Config.Signaler or Config.Sync is missing")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = systemTime
	}
	key, err := crypto.GeneratePrivateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("edge: %w", err)
	}
	e := &Edge{
		config: cfg, log: cfg.Logger, key: key, signed: protocol.SignKey(cfg.Identity, cfg.Name, protocol.Key(key.Public())), started: cfg.Now(), mailbox: ice.NewMailbox(),
		wake: make(chan struct{}, 1), posts: make(chan func()), changes: make(chan struct{}, 1), ended: make(chan struct{}),
		byes: make(chan struct{}, maxByes), relaysUp: make(map[netip.AddrPort]bool), relaysTold: make(map[netip.AddrPort]time.Time),
		peers: make(map[string]*peer), agents: make(map[agentID]*agent), byICE: make(map[*ice.Agent]*agent), ways: make(map[uint64]way),
		refusalsTold: make(map[RouteStatus]bool),
		pins:         cfg.Pins,
	}
	if e.pins == nil {
		e.pins = make(map[string]protocol.Identity)
	}
	e.links = link.New(link.Config{
		Name: cfg.Name, Client: cfg.Role == protocol.Client, Task: e.want, Signaling: e.signaling, Reachable: e.reachable, Logger: cfg.Logger,
	})
	mux := ice.MuxConfig{Sender: sockets{e}, Addresses: cfg.Addresses, Tunnel: e.inTunnel, Loopback: cfg.Loopback}
	if cfg.Addresses == nil {
		e.uplinks, err = ice.NewUplinks(func(name string) bool { return name == cfg.Interface }, cfg.Mark)
		if err != nil {
			return nil, fmt.Errorf("edge: %w", err)
		}
		mux.Addresses, mux.Leads = e.offered, e.uplinks.Leads
	}
	e.mux = ice.NewMux(mux)
	e.prober = ice.NewProber(e.mux, nil)
	return e, nil
}

// PublicKey is the node's.
func (e *Edge) PublicKey() crypto.PublicKey { return e.key.Public() }

// sockets sends from the pipeline's sockets once there is a pipeline.
type sockets struct{ edge *Edge }

func (s sockets) SendOne(r udp.Run) error {
	p := s.edge.pipeline.Load()
	if p == nil {
		return udp.ErrClosed
	}
	return p.SendOne(r)
}

func (s sockets) LocalPort() uint16 {
	if p := s.edge.pipeline.Load(); p != nil {
		return p.LocalPort()
	}
	return 0
}

// offered are the addresses of our uplinks, those from which the relays are reached first. Any goroutine.
func (e *Edge) offered() []netip.Addr {
	var servers []netip.Addr
	for _, s := range e.prober.Servers() {
		servers = append(servers, s.Addr())
	}
	return e.uplinks.Addresses(servers)
}

// inTunnel tells the tunnel addresses that the portal has given to us and our peers. Any goroutine.
func (e *Edge) inTunnel(a netip.Addr) bool {
	given := e.given.Load()
	return given != nil && (*given)[a]
}

// givenBy lists the tunnel addresses in the portal's answer: ours, and of what leads to a peer the single addresses of the overlay.
func givenBy(s *protocol.Sync) map[netip.Addr]bool {
	given := make(map[netip.Addr]bool)
	for _, p := range s.Addresses {
		given[p.Addr()] = true
	}
	for i := range s.Peers {
		for _, p := range s.Peers[i].AllowedIPs {
			inside := func(o netip.Prefix) bool { return o.Contains(p.Addr()) }
			if p.IsSingleIP() && slices.ContainsFunc(s.Overlay, inside) {
				given[p.Addr()] = true
			}
		}
	}
	return given
}

// Stray is for pipeline.Config.Stray: it never blocks.
func (e *Edge) Stray(s pipeline.Stray) {
	if s.Channel == 0 && e.mux.Probed(s) {
		return // a relay also answers the prober
	}
	if relays := e.receiver.Load(); relays == nil || !relays.Receive(s.Src, s.Channel, s.Data) {
		e.mux.Receive(s)
	}
}

// Connector is for pipeline.Config.Connector.
func (e *Edge) Connector() pipeline.Connector { return e.links }

// want takes what a link wants, on control's goroutine: it never blocks. What waits is bounded by what links want for each peer.
func (e *Edge) want(t link.Task) {
	e.mu.Lock()
	e.wanted = append(e.wanted, t)
	e.mu.Unlock()
	e.rouse()
}

// rouse lets the owner look at what is under mu.
func (e *Edge) rouse() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Counters returns what was counted of ICE and of the relays, by name. It also works before Run, and after it has ended.
func (e *Edge) Counters() []count.Counter {
	relays := e.receiver.Load()
	if relays == nil {
		relays = new(turn.Relays)
	}
	return append(e.mux.Counters(), relays.Counters()...)
}

// NetworkChanged has every connection look for another path, as a change of addresses or routes does.
func (e *Edge) NetworkChanged() {
	select {
	case e.changes <- struct{}{}:
	default:
	}
}

// Run runs the edge of p until ctx ends, and returns when everything that it started has ended; nil unless p could not be
// configured. p must run, and outlive it. It may be called once.
func (e *Edge) Run(ctx context.Context, p *pipeline.Pipeline) error {
	defer close(e.ended)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e.ctx = ctx
	e.pipeline.Store(p)
	err := p.Edit(func(edit *pipeline.Edit) error {
		edit.SetPrivateKey(&e.key)
		return nil
	})
	if err != nil {
		return fmt.Errorf("edge: %w", err)
	}
	var changed <-chan struct{}
	if e.config.Watch {
		addresses := e.config.Addresses
		if e.uplinks != nil {
			addresses = e.uplinks.All
		}
		watcher, err := ice.NewWatcher(addresses)
		if err != nil {
			e.log.Warn("changes of the network are not noticed; send SIGHUP after one", "error", err)
		} else {
			defer watcher.Close()
			changed = watcher.Changes()
		}
	}
	e.relays = turn.NewRelays(turn.RelaysConfig{
		Sender: sockets{e}, Changed: e.noteRelays, Lost: e.noteLostRelay, Moved: e.noteMovedRelay, Clock: p.Now,
	})
	e.receiver.Store(e.relays)
	e.now = e.config.Now()
	e.clock, e.awake = p.Now(), e.now
	e.timer = time.NewTimer(time.Hour)
	defer e.timer.Stop()
	e.tasks.Go(func() { e.follow(ctx) })
	e.loop(ctx, changed)
	cancel()
	return e.close()
}

// loop is the owner's: every input, then what is due.
func (e *Edge) loop(ctx context.Context, changed <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.wake:
		case <-e.mailbox.Wake():
			e.now = e.config.Now()
			for event, ok := e.mailbox.Poll(); ok; event, ok = e.mailbox.Poll() {
				e.handleEvent(event)
			}
		case msg, ok := <-e.config.Signaler.Recv():
			if !ok {
				return
			}
			e.now = e.config.Now()
			e.handleMessage(msg)
		case f := <-e.posts:
			e.now = e.config.Now()
			f()
		case <-changed:
			e.now = e.config.Now()
			e.networkChanged("the system says so")
		case <-e.changes:
			e.now = e.config.Now()
			e.networkChanged("asked to")
		case <-e.timer.C:
		}
		e.now = e.config.Now()
		e.noticeSleep()
		e.obey()
		e.followRelays()
		e.timer.Reset(e.handleTimeouts(e.now))
	}
}

// post gives the owner something to run; it is dropped when the owner has ended.
func (e *Edge) post(f func()) {
	select {
	case e.posts <- f:
	case <-e.ctx.Done():
	}
}

const (
	// closeWait is how long byes may take to leave when the node ends.
	closeWait = time.Second
	// maxByes is how many byes are sent at once; others wait.
	maxByes = 64
)

// close ends all connections, tells the peers, and waits for what the edge started.
func (e *Edge) close() error {
	e.tellAll(func(_ time.Duration, l *link.Link) { l.Close(link.CloseShutdown) })
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	var byes sync.WaitGroup
	for _, t := range e.take() {
		if t.Kind == link.TaskBye {
			byes.Go(func() { e.sendBye(ctx, closeWait, &t) })
		}
	}
	byes.Wait()
	for _, a := range e.agents {
		_ = a.Close()
	}
	e.tasks.Wait()
	err := errors.Join(e.prober.Close(), e.relays.Close(), e.mux.Close())
	if e.uplinks != nil {
		err = errors.Join(err, e.uplinks.Close())
	}
	return err
}

// take empties the mailbox of tasks.
func (e *Edge) take() []link.Task {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := e.wanted
	e.wanted = nil
	return list
}
