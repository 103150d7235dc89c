package ice

import (
	"context"
	"crypto/rand"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// probeWaits are the times between the tries of a probe: a little quicker than RFC 8489, section 6.2.1, since a connection
// waits for it, and given up as early as a NAT's mapping is of no more use to it.
var probeWaits = [...]time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second}

// doubtGap is how old an answer must be to be doubted: a NAT that has forgotten its mappings makes many connections silent at once.
const doubtGap = time.Second

// mappingLife is how long an answer counts: many NATs forget an idle mapping after 30 s.
const mappingLife = 25 * time.Second

// Mapping is what a server saw of the sockets.
type Mapping struct {
	Server netip.AddrPort
	// Mapped is the address and port behind the NAT; Base the local ones it stands for.
	Mapped, Base netip.AddrPort
}

// Prober asks STUN servers what the pipeline's sockets look like from outside, once for all agents. What it learns is
// signaled as server-reflexive candidates and never gathered: checks leave from the base in any case. Its methods may be
// called by any goroutine.
type Prober struct {
	mux   *Mux
	tasks sync.WaitGroup

	mu       sync.Mutex // a leaf
	closed   bool
	servers  []netip.AddrPort // frozen, replaced as a whole
	asked    map[stun.ID]netip.AddrPort
	mappings []Mapping
	finished time.Time          // of the last round
	round    context.CancelFunc // of the round that runs, nil if none
	changed  chan struct{}      // closed and replaced when mappings or round change
}

// NewProber makes the mux's Prober for servers that answer Binding requests, TURN servers included. It asks nothing before
// an agent needs it.
func NewProber(m *Mux, servers []netip.AddrPort) *Prober {
	p := &Prober{
		mux: m, servers: slices.Clone(servers), asked: map[stun.ID]netip.AddrPort{}, changed: make(chan struct{}),
	}
	m.prober.Store(p)
	return p
}

// SetServers changes the servers. If they are others than before, what is known is forgotten and they are asked.
func (p *Prober) SetServers(servers []netip.AddrPort) {
	p.mu.Lock()
	same := slices.Equal(p.servers, servers)
	p.servers = slices.Clone(servers)
	p.mu.Unlock()
	if !same {
		p.Reset()
	}
}

// Servers lists those that are asked. Frozen.
func (p *Prober) Servers() []netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.servers
}

// Mappings lists what is known now, at most one for each server.
func (p *Prober) Mappings() []Mapping {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.mappings)
}

// Reset forgets what is known and asks again, after a network change.
func (p *Prober) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.round != nil {
		p.round()
	}
	p.mappings, p.round = nil, nil
	clear(p.asked)
	p.begin()
	p.tell()
}

// Doubt asks again because a path has gone silent: it may be that the NAT maps elsewhere now. What has just been asked is not.
func (p *Prober) Doubt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.round == nil && time.Since(p.finished) >= doubtGap {
		p.mappings = nil
		p.begin()
		p.tell()
	}
}

// Close ends what is under way and waits for it.
func (p *Prober) Close() error {
	p.mu.Lock()
	p.closed = true
	if p.round != nil {
		p.round()
	}
	p.mu.Unlock()
	p.tasks.Wait()
	return nil
}

// begin starts a round. The lock is held.
func (p *Prober) begin() {
	if p.closed || len(p.servers) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.round = cancel
	p.tasks.Go(func() { p.run(ctx) })
}

// run asks every server until it has answered or the tries are over.
func (p *Prober) run(ctx context.Context) {
	p.mu.Lock()
	open := slices.Clone(p.servers)
	p.mu.Unlock()
	var ids []stun.ID
	sent := false
	for _, wait := range probeWaits {
		for _, server := range slices.Clone(open) {
			if id, ok := p.ask(server); ok {
				ids, sent = append(ids, id), true
			} else {
				open = slices.DeleteFunc(open, func(s netip.AddrPort) bool { return s == server })
			}
		}
		if open = p.await(ctx, open, wait); len(open) == 0 {
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		delete(p.asked, id)
	}
	if ctx.Err() != nil && !p.closed {
		return // Reset has ended this round
	}
	if p.round != nil {
		p.round()
	}
	p.round = nil
	if sent { // else there were no sockets, and the next agent asks again
		p.finished = time.Now()
	}
	p.tell()
}

// ask sends one request. Each try is a transaction of its own, so that an answer cannot come from an older mapping.
func (p *Prober) ask(server netip.AddrPort) (stun.ID, bool) {
	id := newTransactionID()
	p.mu.Lock()
	p.asked[id] = server
	p.mu.Unlock()
	w := stun.Build(nil, stun.Request, stun.Binding, id)
	w.Fingerprint()
	b := w.Bytes()
	p.mux.counters.ProbesSent.Add(1)
	if err := p.mux.sender.SendOne(udp.Run{Data: b, SegmentSize: len(b), Dst: server}); err != nil {
		p.mux.counters.drop(dropSendFailed)
		p.mu.Lock()
		delete(p.asked, id)
		p.mu.Unlock()
		return id, false
	}
	return id, true
}

// await returns the servers that have not answered when the time is over, or none as soon as all have.
func (p *Prober) await(ctx context.Context, open []netip.AddrPort, wait time.Duration) []netip.AddrPort {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		p.mu.Lock()
		changed := p.changed
		open = slices.DeleteFunc(open, p.has)
		p.mu.Unlock()
		if len(open) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return open
		case <-ctx.Done():
			return nil
		}
	}
}

// has tells whether a server has answered in this round. The lock is held.
func (p *Prober) has(server netip.AddrPort) bool {
	for _, asked := range p.asked {
		if asked == server {
			return false
		}
	}
	return true
}

// answer takes the datagram that has the ID of a probe, and says whether it was one. It never blocks.
func (p *Prober) answer(s *pipeline.Stray, id stun.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	server, ok := p.asked[id]
	if !ok || server != s.Src {
		return false
	}
	var msg stun.Message
	why := dropOf[msg.Parse(s.Data, stun.Client)]
	if why == dropNone && msg.Method != stun.Binding {
		why = dropNotBinding
	}
	if why != dropNone {
		p.mux.counters.drop(why)
		return true
	}
	for id, asked := range p.asked {
		if asked == server {
			delete(p.asked, id)
		}
	}
	p.mappings = slices.DeleteFunc(p.mappings, func(m Mapping) bool { return m.Server == server })
	if mapped := msg.Mapped(); msg.Class == stun.Success && p.mux.rules.allow(mapped.Addr()) && mapped.Port() != 0 {
		base := netip.AddrPortFrom(s.Dst, p.mux.sender.LocalPort())
		p.mappings = append(p.mappings, Mapping{Server: server, Mapped: mapped, Base: base})
	}
	p.tell()
	return true
}

// tell wakes who waits for a change. The lock is held.
func (p *Prober) tell() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// serve gives an agent the candidates that are known and those that come, until a round is over or the agent ends.
func (p *Prober) serve(a *Agent) {
	var told []string
	for first := true; ; first = false {
		p.mu.Lock()
		if first && p.round == nil && time.Since(p.finished) >= mappingLife {
			p.mappings = nil
			p.begin()
		}
		changed, over := p.changed, p.round == nil
		mappings := slices.Clone(p.mappings)
		p.mu.Unlock()
		fresh := candidates(mappings, told)
		told = append(told, fresh...)
		if len(fresh) > 0 || over {
			a.onMapped(fresh, over)
		}
		if over {
			return
		}
		select {
		case <-changed:
		case <-a.ended.Done():
			return
		}
	}
}

// candidates are the texts of mappings that were not told before. An address that is its own base is a host candidate.
func candidates(mappings []Mapping, told []string) (fresh []string) {
	for _, m := range mappings {
		base := m.Base
		if !base.Addr().IsValid() { // the platform does not tell; RFC 8839, section 5.1, then wants zeroes
			base = netip.AddrPortFrom(unspecified(m.Mapped.Addr()), 9)
		}
		text, err := mappedCandidate(m.Mapped, base)
		if err == nil && m.Mapped != m.Base && !slices.Contains(told, text) && !slices.Contains(fresh, text) {
			fresh = append(fresh, text)
		}
	}
	return fresh
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func newTransactionID() (id stun.ID) {
	rand.Read(id[:]) // never fails
	return id
}
