// Package pipeline is the data plane: it carries IP packets between a TUN device and UDP sockets through WireGuard sessions.
//
// Outbound, a shard reads superpackets from its TUN queue, routes each by its destination (cryptokey routing), cuts it
// into segments straight into the arena where they are sealed in place, and sends runs of equal datagrams with one system
// call. Inbound, it receives runs, looks up the session, opens the datagrams where they lie, checks them and writes
// coalesced superpackets to the TUN. See outbound.go and inbound.go, in packet order.
//
// A control goroutine owns everything else: handshakes, timers, endpoints and configuration. Its logic is a sans-IO state
// machine (controller.go over package crypto). The two planes meet only in immutable snapshots that control publishes (routes,
// keypair, and the path, which lanes move when the peer roams), in a bounded mailbox of handshake messages, and in per-peer
// stamps and signals.
//
// Goroutines, and what each may write:
//
//	control  protocol state of every peer, the one timer; publishes snapshots
//	shard    one per TUN queue: the queue, its sockets, its arenas; runs the lanes inline
//	worker   seals or opens parts of a shard's batch if Config.Workers asks for it; the shard waits for them
//
// Nothing is written by two of them except the atomics in stamps, the replay windows, which a mutex guards, and a peer's path,
// which lanes move by comparing (roam.go).
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/count"
	"github.com/sluice-vpn/sluice/pipeline/flow"
	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// ErrClosed is returned by calls that need the control goroutine after it has ended.
var ErrClosed = errors.New("pipeline: closed")

// Pipeline is one WireGuard interface. Make it with New, drive it with Run. Its methods may be called by any goroutine.
type Pipeline struct {
	config   Config
	clock    func() time.Duration
	local    *crypto.Local
	routes   routes
	relays   relays
	flows    *flow.Table              // nil: Config.Answers is off
	sockets  atomic.Pointer[udp.Pair] // the first shard's; nil while the interface is down
	tap      atomic.Pointer[Capture]  // nil: nobody captures
	notified notified
	mailbox  chan letter
	shards   []*shard
	control  *control

	calls  chan func()
	cancel chan struct{} // closed by Close
	once   sync.Once
	ended  chan struct{} // closed when Run has returned
}

// New checks the configuration and allocates the arenas; about 4 MiB of address space for each queue of the device. It opens
// no socket and starts no goroutine. On error the device stays the caller's.
func New(cfg Config) (*Pipeline, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	local, err := crypto.NewLocal(cfg.cryptoConfig())
	if err != nil {
		return nil, fmt.Errorf("pipeline: %w", err)
	}
	p := &Pipeline{
		config: cfg, clock: cfg.Clock, local: local,
		notified: notified{wake: make(chan struct{}, 1)},
		mailbox:  make(chan letter, mailboxSlots),
		calls:    make(chan func()),
		cancel:   make(chan struct{}),
		ended:    make(chan struct{}),
	}
	if p.clock == nil {
		p.clock = systemClock
	}
	p.routes.init()
	if cfg.Answers {
		p.flows = flow.NewTable()
	}
	for id, queue := range cfg.Device.Queues() {
		s := &shard{
			id: id, queue: queue, clock: p.clock, device: cfg.Device, routes: &p.routes, table: local.Table(),
			notified: &p.notified, mailbox: p.mailbox, sampled: cfg.SampleDelays, strays: cfg.Stray, relays: &p.relays, tap: &p.tap,
			stats: new(shardStats), ended: make(chan struct{}),
		}
		if s.waiter, err = newWaiter(queue); err != nil {
			p.closeWaiters()
			return nil, fmt.Errorf("pipeline: %w", err)
		}
		s.outbound = newOutbound(s, cfg.Workers)
		s.inbound = newInbound(s, cfg.Workers, cfg.Device.Capabilities())
		if p.flows != nil {
			s.outbound.flows, s.inbound.flows = p.flows.View(), p.flows.View()
		}
		p.shards = append(p.shards, s)
	}
	p.control = newControl(p)
	return p, nil
}

// Run runs the pipeline until ctx ends, Close is called or the device is deleted (nil), or an edge fails. It closes the
// device and the sockets, and overwrites all keys. In this order: control stops, shards finish their batch and end, workers
// end, sockets and device are closed. It may be called once.
func (p *Pipeline) Run(ctx context.Context) error {
	defer close(p.ended)
	var group sync.WaitGroup
	failed := make(chan error, len(p.shards))
	for _, s := range p.shards {
		s.outbound.crew.start(group.Go)
		s.inbound.crew.start(group.Go)
		group.Go(func() { failed <- s.loop() })
	}
	err := p.control.loop(ctx, failed)
	for _, s := range p.shards {
		s.post(command{kind: commandStop})
	}
	group.Wait()
	p.control.close()
	p.closeWaiters()
	return errors.Join(err, p.config.Device.Close())
}

func (p *Pipeline) closeWaiters() {
	for _, s := range p.shards {
		s.waiter.close()
	}
}

// Close makes Run return and waits for it. Only after Run was called.
func (p *Pipeline) Close() error {
	p.once.Do(func() { close(p.cancel) })
	<-p.ended
	return nil
}

// call runs f on the control goroutine and waits for it. It waits for Run to start, and returns ErrClosed once it has
// ended.
func (p *Pipeline) call(f func()) error {
	done := make(chan struct{})
	select {
	case p.calls <- func() { f(); close(done) }:
		<-done
		return nil
	case <-p.ended:
		return ErrClosed
	}
}

// Now reads the pipeline's clock, which runs in suspend where the system has one that does.
func (p *Pipeline) Now() time.Duration { return p.clock() }

// ResumeFlow has answers delivered to a connection that a program has begun before there was this Pipeline: TCP, or UDP of a connected
// socket. Where everything is delivered it does nothing.
func (p *Pipeline) ResumeFlow(protocol uint8, local, remote netip.AddrPort) {
	if p.flows != nil {
		p.flows.Resume(p.clock(), protocol, local, remote)
	}
}

// Serving tells whether the interface is up, and whether its sockets are open; ErrClosed after Run has ended.
func (p *Pipeline) Serving() (up, bound bool, err error) {
	err = p.call(func() { up, bound = p.control.controller.up, len(p.control.pairs) > 0 })
	return up, bound, err
}

// Counters returns what was counted, by name and in their order: shard counters as they are, those of the edges with the
// prefixes tun_ and udp_, drops as drop_REASON, handshake messages as handshake_RESULT. It also works after Run has ended.
func (p *Pipeline) Counters() []count.Counter {
	var set *count.Set
	if p.call(func() { set = p.control.counters() }) != nil {
		set = p.control.counters()
	}
	return set.List()
}
