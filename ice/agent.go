package ice

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/pion/ice/v2"
	"github.com/pion/stun"
	"github.com/pion/transport/v2"

	"github.com/sluice-vpn/sluice/pipeline"
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
	// Path is how a peer's address is reached from a relayed address, ok false if it is not: Dst, Src and Channel.
	Path(relayed, remote netip.AddrPort) (p pipeline.Path, ok bool)
}

// agent is one generation of a connection: a pion agent on the mux. What stands under "guarded" is guarded by the
// connection's lock.
type agent struct {
	// frozen
	connection *Connection
	generation uint32
	local      Credentials
	member     *member
	pion       *ice.Agent
	ended      context.Context // ends when the agent is to be closed
	end        context.CancelFunc
	settled    context.Context // ends when its start is over, well or not
	settle     context.CancelFunc
	gone       chan struct{} // closed when it is closed and no goroutine is left

	inUse atomic.Bool // it selected the connection's path

	// guarded
	started  bool
	dead     bool
	remotes  int                     // candidates of the peer
	relayed  map[netip.AddrPort]bool // those that are a relay's; nil: none
	news     Event
	queued   bool
	unbound  [2]ice.Candidate // the selected pair, while it waits for a channel of its relay
	gathered bool             // host candidates are complete
	mapped   bool             // server-reflexive ones are
}

// newAgent makes an agent that gathers. The caller closes it.
func newAgent(c *Connection, generation uint32) (*agent, error) {
	a := &agent{connection: c, generation: generation, local: newCredentials(), gone: make(chan struct{})}
	heard := func() {
		if a.inUse.Load() {
			c.config.Heard()
		}
	}
	var err error
	if a.member, err = c.config.Mux.add(a.local.Ufrag, a.local.Password, c.config.Share, heard, a.onBound); err != nil {
		return nil, err
	}
	if a.pion, err = ice.NewAgent(a.pionConfig()); err != nil {
		c.config.Mux.RemoveConnByUfrag(a.local.Ufrag)
		return nil, fmt.Errorf("ice: new agent: %w", err)
	}
	a.ended, a.end = context.WithCancel(context.Background())
	a.settled, a.settle = context.WithCancel(a.ended)
	// Setting a callback cannot fail.
	_ = a.pion.OnCandidate(a.onCandidate)
	_ = a.pion.OnConnectionStateChange(a.onState)
	_ = a.pion.OnSelectedCandidatePairChange(a.onSelected)
	return a, nil
}

func (a *agent) pionConfig() *ice.AgentConfig {
	now, relayed := time.Duration(0), relayWait
	check, keepalive, disconnected, failed := checkInterval, keepaliveInterval, disconnectedTimeout, failedTimeout
	requests := uint16(maxBindingRequests)
	cfg := &ice.AgentConfig{
		LocalUfrag: a.local.Ufrag, LocalPwd: a.local.Password,
		MulticastDNSMode:    ice.MulticastDNSModeDisabled,
		NetworkTypes:        []ice.NetworkType{ice.NetworkTypeUDP4, ice.NetworkTypeUDP6},
		CandidateTypes:      []ice.CandidateType{ice.CandidateTypeHost},
		UDPMux:              a.connection.config.Mux,
		Net:                 NoNet{},
		LoggerFactory:       silent{},
		DisableActiveTCP:    true,
		CheckInterval:       &check,
		KeepaliveInterval:   &keepalive,
		DisconnectedTimeout: &disconnected, FailedTimeout: &failed,
		MaxBindingRequests:    &requests,
		HostAcceptanceMinWait: &now, SrflxAcceptanceMinWait: &now, PrflxAcceptanceMinWait: &now,
		RelayAcceptanceMinWait: &relayed,
		IncludeLoopback:        a.connection.config.Mux.rules.loopback,
	}
	if relay := a.connection.config.Relay; relay != nil {
		if urls := relay.URLs(); len(urls) > 0 {
			cfg.Urls, cfg.Net = urls, relay.Net(&Gate{a.connection.config.Mux, a.member})
			cfg.CandidateTypes = append(cfg.CandidateTypes, ice.CandidateTypeRelay)
		}
	}
	return cfg
}

// start waits for its turn and lets pion send checks. Connecting has a goroutine only as long as it waits.
func (a *agent) start(remote Credentials, candidates int) {
	mux := a.connection.config.Mux
	select {
	case mux.starts <- struct{}{}:
	case <-a.ended.Done():
		return
	}
	defer func() { <-mux.starts }()
	a.awaitCandidates(candidates)
	mux.counters.AgentsStarted.Add(1)
	at := a.pion.Accept
	if a.connection.config.Controlling {
		at = a.pion.Dial
	}
	// With a context that has ended already, pion starts and does not wait for the outcome: that comes as an event.
	over, cancel := context.WithCancel(context.Background())
	cancel()
	_, _ = at(over, remote.Ufrag, remote.Password)
	turn := time.NewTimer(startTime)
	defer turn.Stop()
	select {
	case <-turn.C:
	case <-a.settled.Done():
	}
}

// candidateTime is how long pion may take for candidates, which it adds on goroutines of its own.
const candidateTime = 20 * time.Millisecond

// awaitCandidates waits until pion knows the peer's candidates that came so far. Checks wait in the inbox until pion has started:
// what it knows by then, it does not take for peer-reflexive.
func (a *agent) awaitCandidates(n int) {
	for end := time.Now().Add(candidateTime); time.Now().Before(end); time.Sleep(candidateTime / 20) {
		if list, err := a.pion.GetRemoteCandidates(); err != nil || len(list) >= n {
			return
		}
	}
}

// close ends the agent and waits for its goroutines. No lock may be held, and not from its own callbacks.
func (a *agent) close() {
	a.end()
	_ = a.pion.GracefulClose() // fails only if it is closed already
	a.connection.config.Mux.RemoveConnByUfrag(a.local.Ufrag)
}

// onCandidate is pion's callback: a local candidate, or nil after the last.
func (a *agent) onCandidate(c ice.Candidate) {
	k := a.connection
	k.mu.Lock()
	defer k.mu.Unlock()
	if c == nil {
		a.gathered = true
	} else {
		a.news.Candidates = append(a.news.Candidates, c.Marshal())
	}
	a.postNews()
}

// onMapped is the prober's callback: mapped addresses, and whether these are all.
func (a *agent) onMapped(candidates []string, all bool) {
	k := a.connection
	k.mu.Lock()
	defer k.mu.Unlock()
	a.news.Candidates = append(a.news.Candidates, candidates...)
	a.mapped = a.mapped || all
	a.postNews()
}

// onState is pion's callback.
func (a *agent) onState(s ice.ConnectionState) {
	switch s {
	case ice.ConnectionStateChecking:
		a.connection.stateChanged(a, StateChecking)
	case ice.ConnectionStateConnected:
		a.settle()
		a.connection.stateChanged(a, StateConnected)
	case ice.ConnectionStateDisconnected:
		a.connection.stateChanged(a, StateDisconnected)
	case ice.ConnectionStateFailed:
		a.connection.failed(a)
	}
}

// onSelected is pion's callback.
func (a *agent) onSelected(local, remote ice.Candidate) {
	k := a.connection
	from, _ := candidateAddress(local)
	to, _ := candidateAddress(remote)
	path, ok := a.path(local, remote)
	if !ok {
		a.awaitChannel([2]ice.Candidate{local, remote})
		k.config.Mux.bind(a.member, from, to)
		return
	}
	a.awaitChannel([2]ice.Candidate{})
	k.selected(a, path, local.Type().String(), remote.Type().String())
	way := func(to netip.AddrPort) (pipeline.Path, bool) { return a.way(local, from, to) }
	k.config.Mux.follow(a.member, from, to, func(old, next netip.AddrPort) bool { return k.moved(a, way, old, next) })
}

// awaitChannel notes the pair that is selected as soon as its relay has bound a channel, or that none is.
func (a *agent) awaitChannel(pair [2]ice.Candidate) {
	a.connection.mu.Lock()
	defer a.connection.mu.Unlock()
	a.unbound = pair
}

// onBound is called when a channel is there that was asked for.
func (a *agent) onBound() {
	a.connection.mu.Lock()
	pair := a.unbound
	a.connection.mu.Unlock()
	if pair[0] != nil {
		a.onSelected(pair[0], pair[1])
	}
}

// way is how an address is reached from that of a local candidate.
func (a *agent) way(local ice.Candidate, from, to netip.AddrPort) (pipeline.Path, bool) {
	if local.Type() == ice.CandidateTypeRelay {
		return a.connection.config.Relay.Path(from, to)
	}
	return pipeline.Path{Dst: to, Src: from.Addr()}, true
}

// path translates a candidate pair.
func (a *agent) path(local, remote ice.Candidate) (pipeline.Path, bool) {
	from, ok1 := candidateAddress(local)
	to, ok2 := candidateAddress(remote)
	if !ok1 || !ok2 {
		return pipeline.Path{}, false
	}
	path, ok := a.way(local, from, to)
	path.Fixed = true
	path.Relayed = local.Type() == ice.CandidateTypeRelay || remote.Type() == ice.CandidateTypeRelay
	return path, ok
}

// postNews puts the agent into the mailbox if it is not there. The connection's lock is held.
func (a *agent) postNews() {
	if !a.queued && !a.dead {
		a.queued = true
		a.connection.config.Mailbox.post(a)
	}
}

// takeNews empties the agent's news for Poll.
func (a *agent) takeNews() (Event, bool) {
	c := a.connection
	c.mu.Lock()
	defer c.mu.Unlock()
	a.queued = false
	e := a.news
	a.news.Candidates = nil
	e.Connection, e.Generation, e.Gathered = c, a.generation, a.gathered && a.mapped
	e.Path, e.FoundBy, e.Local, e.Remote = c.path, c.foundBy, c.localType, c.remoteType
	return e, !c.closed && (!a.dead || e.State == StateFailed)
}
