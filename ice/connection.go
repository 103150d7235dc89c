package ice

import (
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/ice/v2"

	"github.com/sluice-vpn/sluice/pipeline"
)

// Errors that callers branch on.
var (
	// ErrClosed: the connection or the mux was closed.
	ErrClosed = errors.New("ice: closed")
	// ErrTooMany: the mux has as many agents as it can serve.
	ErrTooMany = errors.New("ice: too many agents")
	// ErrGeneration: the generation is not the one that is connecting, or not newer than the latest.
	ErrGeneration = errors.New("ice: generation out of date")
	// ErrCredentials: the peer's credentials are of a form that RFC 8839 does not allow, or came twice.
	ErrCredentials = errors.New("ice: credentials refused")
)

// ConnectionConfig describes a Connection. Mux and Mailbox are required.
type ConnectionConfig struct {
	Mux     *Mux
	Mailbox *Mailbox
	// Prober finds server-reflexive candidates; nil does without.
	Prober *Prober
	// Relay gives relayed candidates; nil does without.
	Relay Relay
	// Share is what the peer has used of what all peers share, kept from one connection with it to the next; nil: nobody else is there.
	Share *Share
	// Controlling is the role (RFC 8445, section 6.1.1). The two sides must differ, so it cannot depend on what either may
	// get wrong, as keys.
	Controlling bool
	// Heard is called for each authentic STUN message to the agent in use, by any goroutine and under locks: it may only note
	// the time. Nil is allowed.
	Heard func()
}

// Connection is the ICE half of one connection to a peer: at most two agents, the selected one and one that is to take
// over. Restart makes the second; when it has selected a pair, the path moves to it and the first is closed; when it fails,
// the first stays.
//
// Its methods may be called by any goroutine but not from within the Relay or Sender. They do not wait for the network;
// Close waits for goroutines to end, which takes no longer than the Sender blocks.
type Connection struct {
	config ConnectionConfig // frozen

	mu         sync.Mutex // before Mailbox.mu and Mux.mu
	closed     bool
	latest     uint32 // generation of the newest agent, 0 before the first
	current    *agent // whose path is in use; nil before, at rest and after it failed
	next       *agent // is connecting
	path       *pipeline.Path
	paths      pipeline.PathNumber // how many there were
	foundBy    uint32              // the generation that selected path
	closing    map[uint32]*agent
	localType  string
	remoteType string

	tasks sync.WaitGroup // agents that start or close
}

// NewConnection makes a connection without an agent. It cannot fail.
func NewConnection(cfg ConnectionConfig) *Connection {
	if cfg.Heard == nil {
		cfg.Heard = func() {}
	}
	if cfg.Share == nil {
		cfg.Share = new(Share)
	}
	return &Connection{config: cfg, closing: map[uint32]*agent{}}
}

// Restart begins a generation, which must be greater than all before and so at least 1: it makes an agent beside the one
// in use and returns the credentials to signal. Candidates follow as events. An agent that was connecting is closed.
func (c *Connection) Restart(generation uint32) (Credentials, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return Credentials{}, ErrClosed
	case generation <= c.latest:
		return Credentials{}, ErrGeneration
	}
	a, err := newAgent(c, generation)
	if err != nil {
		return Credentials{}, err
	}
	c.latest = generation
	c.retire(c.next)
	c.next = a
	if err := a.pion.GatherCandidates(); err != nil {
		c.retire(a)
		c.next = nil
		return Credentials{}, err
	}
	if a.mapped = c.config.Prober == nil; !a.mapped {
		c.tasks.Go(func() { c.config.Prober.serve(a) })
	}
	return a.local, nil
}

// Connect starts the checks of a generation with the peer's credentials, as soon as fewer than 16 others are starting.
func (c *Connection) Connect(generation uint32, remote Credentials) error {
	if !remote.valid() {
		return ErrCredentials
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	a, err := c.connecting(generation)
	if err != nil {
		return err
	}
	if a.started {
		return ErrCredentials
	}
	a.started = true
	c.config.Mux.introduce(a.member, remote, c.config.Controlling)
	candidates := a.remotes
	c.tasks.Go(func() { a.start(remote, candidates) })
	return nil
}

// AddCandidate gives a generation a candidate of the peer, as text. It may come before Connect. Errors: ErrCandidate,
// which leaves the connection as it is, ErrGeneration, ErrClosed.
func (c *Connection) AddCandidate(generation uint32, text string) error {
	parsed, err := parseCandidate(text, &c.config.Mux.rules)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	a, err := c.connecting(generation)
	if err != nil {
		return err
	}
	if a.remotes == MaxCandidates {
		return ErrCandidate
	}
	a.remotes++
	if at, ok := candidateAddress(parsed); ok && parsed.Type() == ice.CandidateTypeRelay {
		if a.relayed == nil {
			a.relayed = make(map[netip.AddrPort]bool)
		}
		a.relayed[at] = true
		if a == c.current && c.path != nil {
			if path := *c.path; c.nameRelay(a, &path) {
				c.publish(a, path)
			}
		}
	}
	return a.pion.AddRemoteCandidate(parsed)
}

// nameRelay corrects a path whose far end is a relay that was taken for the peer, since a check came before its candidate,
// and tells whether there was something to correct.
func (c *Connection) nameRelay(a *agent, path *pipeline.Path) bool {
	if path.Relayed || !a.relayed[path.Dst] {
		return false
	}
	path.Relayed, c.remoteType = true, ice.CandidateTypeRelay.String()
	return true
}

// connecting finds the agent of a generation, which may be in use already: candidates trickle in late.
func (c *Connection) connecting(generation uint32) (*agent, error) {
	for _, a := range [2]*agent{c.next, c.current} {
		if a != nil && a.generation == generation {
			return a, nil
		}
	}
	if c.closed {
		return nil, ErrClosed
	}
	return nil, ErrGeneration
}

// Path is where the peer is reached now, frozen; nil if nowhere.
func (c *Connection) Path() *pipeline.Path {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.path
}

// roundTripFresh is for how long a round trip is told: where it is the peer that checks, none is measured here.
const roundTripFresh = time.Minute

// LastSeen is when the agent in use last had an authentic check from the peer or an answer to one of its own, and how long
// the latest answer took, without the time that the check waited to be sent; 0 if that was long ago. Zero before the first and
// at rest. pion leaves up to three ticks of 2 s between them on a good path.
func (c *Connection) LastSeen() (at time.Time, roundTrip time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil {
		return time.Time{}, 0
	}
	mux := c.config.Mux
	mux.mu.Lock()
	defer mux.mu.Unlock()
	a := c.current.member
	if time.Since(a.measured) < roundTripFresh {
		roundTrip = a.roundTrip
	}
	return a.lastSeen, roundTrip
}

// CloseAgent closes the agent of a generation, if there is one, and returns when none of its goroutines is left. The path
// stays, also if that agent had selected it: a connection that is idle needs none, since keepalives of WireGuard keep the
// NAT's mapping open for less.
func (c *Connection) CloseAgent(generation uint32) {
	c.mu.Lock()
	if c.next != nil && c.next.generation == generation {
		c.retire(c.next)
		c.next = nil
	}
	if c.current != nil && c.current.generation == generation {
		c.retire(c.current)
		c.current = nil
	}
	a := c.closing[generation]
	c.mu.Unlock()
	if a != nil {
		<-a.gone
	}
}

// Close closes the agents, clears the path and returns when no goroutine of the connection is left. No event follows.
func (c *Connection) Close() error {
	c.mu.Lock()
	c.closed = true
	c.path = nil
	c.retire(c.next)
	c.retire(c.current)
	c.next, c.current = nil, nil
	c.mu.Unlock()
	c.tasks.Wait()
	return nil
}

// retire closes an agent on a goroutine of its own, since pion waits for callbacks that wait for the lock, which is held.
// Nil is allowed.
func (c *Connection) retire(a *agent) {
	if a == nil || a.dead {
		return
	}
	a.dead = true
	a.inUse.Store(false)
	a.end()
	c.closing[a.generation] = a
	c.tasks.Go(func() {
		a.close()
		c.mu.Lock()
		delete(c.closing, a.generation)
		c.mu.Unlock()
		close(a.gone)
	})
}

func (c *Connection) stateChanged(a *agent, s State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !a.dead {
		a.news.State = s
		a.postNews()
	}
}

// selected moves the connection to the pair that an agent has selected, and to the agent if it was the second one.
func (c *Connection) selected(a *agent, path pipeline.Path, local, remote string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.dead {
		return
	}
	if a == c.next {
		c.retire(c.current)
		c.current, c.next = a, nil
	}
	a.inUse.Store(true)
	c.localType, c.remoteType = local, remote
	c.nameRelay(a, &path)
	a.news.State = StateConnected
	c.config.Mux.counters.PathsFound.Add(1)
	c.publish(a, path)
}

// Check has the pair that the agent in use has selected checked at once, since nothing is heard over it.
func (c *Connection) Check() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil {
		return
	}
	mux := c.config.Mux
	mux.mu.Lock()
	defer mux.mu.Unlock()
	mux.askAgain(c.current.member, time.Now())
}

// Stray notes that WireGuard data of the peer has come authentically from path.Dst to path.Src, or from path.Peer over the relay at
// path.Dst, although the connection's path leads elsewhere. If the peer answers there and not at the old address any more, the
// connection follows it, as an event tells.
func (c *Connection) Stray(path pipeline.Path) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil || c.path == nil {
		return
	}
	mux, a := c.config.Mux, c.current.member
	mux.mu.Lock()
	defer mux.mu.Unlock()
	from, at := path.Dst, a.at(path.Src, path.Dst.Addr().Is4())
	if path.Peer.IsValid() { // one allocation of ours is on a relay, so it came to the relayed address if the path leads over it
		from, at = path.Peer, nil
		if r := a.roam.conn; r != nil && r.over != nil && path.Dst == c.path.Dst {
			at = r
		}
	}
	if at != nil {
		mux.heardFrom(at, from, time.Now())
	}
}

// moved follows the peer of the agent in use to where a NAT has mapped it anew, and tells whether it could.
func (c *Connection) moved(a *agent, way func(to netip.AddrPort) (pipeline.Path, bool), from, to netip.AddrPort) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.dead || a != c.current || c.path == nil {
		return false
	}
	old, known := way(from)
	path, ok := way(to)
	if !known || !ok || c.path.Dst != old.Dst || c.path.Channel != old.Channel {
		return false // another pair was selected meanwhile, or the channel is gone
	}
	path.Fixed, path.Relayed, c.remoteType = true, c.path.Relayed, ice.CandidateTypePeerReflexive.String()
	c.nameRelay(a, &path)
	c.publish(a, path)
	return true
}

// publish tells of a path that an agent has selected. The lock is held.
func (c *Connection) publish(a *agent, path pipeline.Path) {
	c.paths++
	c.foundBy, path.Number = a.generation, c.paths
	c.path = &path
	a.postNews()
}

// failed closes an agent that has given up. If it was in use the path goes with it.
func (c *Connection) failed(a *agent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.dead {
		return
	}
	c.config.Mux.counters.AgentsFailed.Add(1)
	a.news.State = StateFailed
	switch a {
	case c.current:
		c.current, c.path, c.localType, c.remoteType = nil, nil, "", ""
	case c.next:
		c.next = nil
	}
	a.postNews()
	c.retire(a)
}
