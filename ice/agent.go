package ice

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/ice/v2"
	"github.com/pion/stun"
	"github.com/pion/transport/v2"

	"github.com/sluice-vpn/sluice/pipeline"
)

// Errors that callers branch on.
var (
	// ErrClosed: the agent or the mux was closed.
	ErrClosed = errors.New("ice: closed")
	// ErrTooMany: the mux has as many agents as it can serve.
	ErrTooMany = errors.New("ice: too many agents")
	// ErrCredentials: the peer's credentials are of a form that RFC 8839 does not allow, or came twice.
	ErrCredentials = errors.New("ice: credentials refused")
)

// The timers of an agent. Connecting must be quick, and the whole ICE timeout shorter than WireGuard's handshake
// lifetime, or a path change could not save a tunnel.
const (
	checkInterval = 50 * time.Millisecond
	// relayWait is how long the controlling side hopes for something better than a relayed pair.
	relayWait = 400 * time.Millisecond
	// maxBindingRequests keeps a pair open for the whole ICE timeout: pion's default of 7 gives it up after 1.6 s, and a
	// peer that comes later never connects. How many are sent is the mux's business, see pace.go.
	maxBindingRequests  = 300
	keepaliveInterval   = 2 * time.Second // consent (RFC 7675), too
	disconnectedTimeout = 3 * time.Second
	failedTimeout       = 8 * time.Second // after disconnectedTimeout

	// Timeout is how long pion may take, at most, to give up a connection that never came about or has gone silent, its
	// tick included: the backstop for whoever owns the connection.
	Timeout = disconnectedTimeout + failedTimeout + keepaliveInterval
)

// Relay gives agents a relayed candidate of an allocation that exists already; package ice/turn has one. Its methods may
// be called by any goroutine and never wait for the network.
type Relay interface {
	// URLs are the TURN servers whose allocation is up, with credentials. Read when an agent is made.
	URLs() []*stun.URI
	// Net is what the TURN client of one pion agent runs in. All that the agent sends to peers and gets from them passes the gate.
	Net(gate *Gate) transport.Net
	// Channel is how a peer's address is reached from a relayed address, ok false if it is not.
	Channel(relayed, remote netip.AddrPort) (server netip.AddrPort, channel uint16, ok bool)
}

// AgentConfig describes an Agent. Mux and Mailbox are required.
type AgentConfig struct {
	Mux     *Mux
	Mailbox *Mailbox
	// Prober finds server-reflexive candidates; nil does without.
	Prober *Prober
	// Relay gives relayed candidates; nil does without.
	Relay Relay
	// Share is what the peer has used of what all peers share, kept from one agent for it to the next; nil: nobody else is there.
	Share *Share
	// Controlling is the role (RFC 8445, section 6.1.1). The two sides must differ, so it cannot depend on what either may
	// get wrong, as keys.
	Controlling bool
	// Heard is called for each authentic STUN message to an agent that has selected a pair, by any goroutine and under locks: it may
	// only note the time. Nil is allowed.
	Heard func()
}

// Agent is a pion agent on the mux, which looks for a path to one peer. Whoever wants to move to another path has a second one beside it.
//
// Its methods may be called by any goroutine but not from within the Relay or Sender. They do not wait for the network; Close waits for
// goroutines to end, which takes no longer than the Sender blocks.
type Agent struct {
	// frozen
	config  AgentConfig
	local   Credentials
	member  *member
	pion    *ice.Agent
	ended   context.Context // ends when the agent is to be closed
	end     context.CancelFunc
	settled context.Context // ends when its start is over, well or not
	settle  context.CancelFunc

	inUse atomic.Bool // it has selected a pair and is not closed

	mu         sync.Mutex // before Mailbox.mu and Mux.mu; guards what follows
	started    bool
	dead       bool                    // it is to be closed
	closed     bool                    // by Close: no event follows
	remotes    int                     // candidates of the peer
	relayed    map[netip.AddrPort]bool // those that are a relay's; nil: none
	news       Event
	queued     bool
	unbound    [2]ice.Candidate // the selected pair, while it waits for a channel of its relay
	gathered   bool             // host candidates are complete
	mapped     bool             // server-reflexive ones are
	path       *pipeline.Path   // frozen; nil: none
	paths      pipeline.PathNumber
	localType  string
	remoteType string

	tasks sync.WaitGroup // what starts or closes it
}

// NewAgent makes an agent that gathers: candidates follow as events. The caller closes it.
func NewAgent(cfg AgentConfig) (*Agent, error) {
	if cfg.Heard == nil {
		cfg.Heard = func() {}
	}
	if cfg.Share == nil {
		cfg.Share = new(Share)
	}
	a := &Agent{config: cfg, local: newCredentials(), mapped: cfg.Prober == nil}
	heard := func() {
		if a.inUse.Load() {
			cfg.Heard()
		}
	}
	var err error
	if a.member, err = cfg.Mux.add(a.local.Ufrag, a.local.Password, cfg.Share, heard, a.onBound); err != nil {
		return nil, err
	}
	if a.pion, err = ice.NewAgent(a.pionConfig()); err != nil {
		cfg.Mux.RemoveConnByUfrag(a.local.Ufrag)
		return nil, fmt.Errorf("ice: new agent: %w", err)
	}
	a.ended, a.end = context.WithCancel(context.Background())
	a.settled, a.settle = context.WithCancel(a.ended)
	// Setting a callback cannot fail.
	_ = a.pion.OnCandidate(a.onCandidate)
	_ = a.pion.OnConnectionStateChange(a.onState)
	_ = a.pion.OnSelectedCandidatePairChange(a.onSelected)
	if err := a.pion.GatherCandidates(); err != nil {
		_ = a.Close()
		return nil, err
	}
	if cfg.Prober != nil {
		a.tasks.Go(func() { cfg.Prober.serve(a) })
	}
	return a, nil
}

// Credentials are those to signal.
func (a *Agent) Credentials() Credentials { return a.local }

// Connect starts the checks with the peer's credentials, as soon as fewer than 16 others are starting.
func (a *Agent) Connect(remote Credentials) error {
	if !remote.valid() {
		return ErrCredentials
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.dead:
		return ErrClosed
	case a.started:
		return ErrCredentials
	}
	a.started = true
	a.config.Mux.introduce(a.member, remote, a.config.Controlling)
	candidates := a.remotes
	a.tasks.Go(func() { a.start(remote, candidates) })
	return nil
}

// AddCandidate gives the agent a candidate of the peer, as text. It may come before Connect, and after a pair was selected: candidates
// trickle in late. Errors: ErrCandidate, which leaves the agent as it is, ErrClosed.
func (a *Agent) AddCandidate(text string) error {
	parsed, err := parseCandidate(text, &a.config.Mux.rules)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.dead:
		return ErrClosed
	case a.remotes == MaxCandidates:
		return ErrCandidate
	}
	a.remotes++
	if at, ok := candidateAddress(parsed); ok && parsed.Type() == ice.CandidateTypeRelay {
		if a.relayed == nil {
			a.relayed = make(map[netip.AddrPort]bool)
		}
		a.relayed[at] = true
		if a.path != nil {
			if path := *a.path; a.nameRelay(&path) {
				a.publish(path)
			}
		}
	}
	return a.pion.AddRemoteCandidate(parsed)
}

// nameRelay corrects a path whose far end is a relay that was taken for the peer, since a check came before its candidate,
// and tells whether there was something to correct.
func (a *Agent) nameRelay(path *pipeline.Path) bool {
	if path.Relayed || !a.relayed[path.Dst] {
		return false
	}
	path.Relayed, a.remoteType = true, ice.CandidateTypeRelay.String()
	return true
}

// Path is where the peer is reached, frozen; nil if nowhere, or no more.
func (a *Agent) Path() *pipeline.Path {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.path
}

// roundTripFresh is for how long a round trip is told: where it is the peer that checks, none is measured here.
const roundTripFresh = time.Minute

// LastSeen is when the agent last had an authentic check from the peer or an answer to one of its own, and how long
// the latest answer took, without the time that the check waited to be sent; 0 if that was long ago. Zero before the first.
// pion leaves up to three ticks of 2 s between them on a good path.
func (a *Agent) LastSeen() (at time.Time, roundTrip time.Duration) {
	mux := a.config.Mux
	mux.mu.Lock()
	defer mux.mu.Unlock()
	if time.Since(a.member.measured) < roundTripFresh {
		roundTrip = a.member.roundTrip
	}
	return a.member.lastSeen, roundTrip
}

// Check has the pair that the agent has selected checked at once, since nothing is heard over it.
func (a *Agent) Check() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.path == nil || a.dead {
		return
	}
	mux := a.config.Mux
	mux.mu.Lock()
	defer mux.mu.Unlock()
	mux.askAgain(a.member, time.Now())
}

// Stray notes that WireGuard data of the peer has come authentically from path.Dst to path.Src, or from path.Peer over the relay at
// path.Dst, although the agent's path leads elsewhere. If the peer answers there and not at the old address any more, the
// agent follows it, as an event tells.
func (a *Agent) Stray(path pipeline.Path) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.path == nil || a.dead {
		return
	}
	mux, m := a.config.Mux, a.member
	mux.mu.Lock()
	defer mux.mu.Unlock()
	from, at := path.Dst, m.at(path.Src, path.Dst.Addr().Is4())
	if path.Peer.IsValid() { // one allocation of ours is on a relay, so it came to the relayed address if the path leads over it
		from, at = path.Peer, nil
		if r := m.roam.conn; r != nil && r.over != nil && path.Dst == a.path.Dst {
			at = r
		}
	}
	if at != nil {
		mux.heardFrom(at, from, time.Now())
	}
}

// Close closes the agent and returns when none of its goroutines is left. No event follows.
func (a *Agent) Close() error {
	a.mu.Lock()
	a.closed, a.path = true, nil
	a.retire()
	a.mu.Unlock()
	a.tasks.Wait()
	return nil
}

// retire closes the agent on a goroutine of its own, since pion waits for callbacks that wait for the lock, which is held.
func (a *Agent) retire() {
	if a.dead {
		return
	}
	a.dead = true
	a.inUse.Store(false)
	a.end()
	a.tasks.Go(func() {
		_ = a.pion.GracefulClose() // fails only if it is closed already
		a.config.Mux.RemoveConnByUfrag(a.local.Ufrag)
	})
}
