package link

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/cryptotest"
	"github.com/sluice-vpn/sluice/pipeline"
)

// These tests join two connections, each next to a real protocol core, by a link in virtual time. What an agent would do is
// played: agents of the same number on both sides find each other, the controlled side first.

const (
	signalLatency = 4 * time.Millisecond
	controlledICE = 30 * time.Millisecond // from when both have the agent
	controllerICE = 40 * time.Millisecond
)

// party is one side.
type party struct {
	t          *testing.T
	world      *desync
	name       string
	node       *cryptotest.Node
	knows      crypto.PublicKey // the peer's key, as the portal tells it at the next attempt
	psk        crypto.PresharedKey
	remote     *cryptotest.Remote
	connection *connection
	backoff    backoff
	other      *party

	eventsSeen int
	verdicts   map[crypto.Reason]int
	lastData   time.Duration
	lastSTUN   time.Duration

	agents    map[uint32]bool
	nominated time.Duration // the first path of the connection
	attempts  []time.Duration
	closed    []Closed
	closedAt  []time.Duration
	reports   []Closed
	initiated []time.Duration // of all series, also of cores that were removed
}

// lookAt is what control would see of a core.
func lookAt(now time.Duration, core *crypto.Peer, a crypto.Activity, lastData, lastSTUN time.Duration) sessionView {
	v := sessionView{View: pipeline.View{Tally: core.Tally(), Activity: a, LastData: lastData}, lastSTUN: lastSTUN}
	v.SeriesSince, _, v.SeriesRunning = core.Series()
	if k := core.Sending(); k != nil && k.Usable(now) {
		v.Usable, v.Created = true, k.Created
	}
	return v
}

// desync is the world of the two.
type desync struct {
	net        *cryptotest.Net
	a, b       *party // a controls and initiates
	generation uint32
	stun       bool // STUN passes
	signaling  bool
	dead       uint32 // the agent whose path is dead
	plans      []plan
}

type plan struct {
	at time.Duration
	f  func()
}

func newDesync(t *testing.T) *desync { return newSeededDesync(t, 1) }

func newSeededDesync(t *testing.T, seed uint64) *desync {
	w := &desync{net: cryptotest.NewNet(seed, cryptotest.Link{Latency: time.Millisecond}), stun: true, signaling: true}
	join := func(name, addr string) *party {
		return &party{
			t: t, world: w, name: name, node: w.net.Join(name, netip.MustParseAddrPort(addr)),
			verdicts: make(map[crypto.Reason]int), agents: make(map[uint32]bool),
		}
	}
	w.a, w.b = join("a", "192.0.2.1:1000"), join("b", "192.0.2.2:2000")
	w.a.other, w.b.other = w.b, w.a
	w.agree()
	return w
}

// agree has the portal tell both the current keys and one preshared key.
func (w *desync) agree() {
	for _, p := range []*party{w.a, w.b} {
		p.knows, p.psk = p.other.node.Local.PublicKey(), crypto.PresharedKey{1}
	}
}

func (w *desync) now() time.Duration { return w.net.Now() }

func (w *desync) plan(d time.Duration, f func()) { w.plans = append(w.plans, plan{w.now() + d, f}) }

// next is when something of ours is due.
func (w *desync) next() (at time.Duration) {
	sooner := func(t time.Duration) {
		if t != 0 && (at == 0 || t < at) {
			at = t
		}
	}
	for _, p := range w.plans {
		sooner(p.at)
	}
	for _, p := range []*party{w.a, w.b} {
		if p.backoff.wanted {
			sooner(p.backoff.earliest)
		}
		if p.connection != nil {
			due, why := p.connection.nextTimeout()
			if due != 0 && due <= w.now() {
				p.t.Fatalf("%s: %v was due %v ago", p.name, why, w.now()-due)
			}
			sooner(due)
		}
	}
	return at
}

// run lets d pass.
func (w *desync) run(d time.Duration) {
	end := w.now() + d
	for {
		w.step()
		at := w.next()
		if at == 0 || at > end {
			at = end
		}
		w.net.RunUntil(at, func() bool {
			w.touch()
			due := w.next()
			return due != 0 && due < at
		})
		w.step()
		if w.now() >= end && (w.next() == 0 || w.next() > end) {
			return
		}
	}
}

// step runs the plans that are due and touches both sides.
func (w *desync) step() {
	for i := 0; i < len(w.plans); {
		if w.plans[i].at > w.now() {
			i++
			continue
		}
		f := w.plans[i].f
		w.plans = slices.Delete(w.plans, i, i+1)
		f()
		i = 0
	}
	w.touch()
}

func (w *desync) touch() {
	w.a.touch()
	w.b.touch()
	w.a.touch() // what b did may concern a
}

// want is traffic for the peer.
func (p *party) want() {
	if p.connection == nil || p.connection.over() {
		if p.backoff.want(p.world.now()) {
			p.world.generation++
			p.begin(p.world.generation)
		}
	}
}

// begin makes a connection with the keys of the moment.
func (p *party) begin(generation uint32) {
	now := p.world.now()
	p.attempts = append(p.attempts, now)
	if p.remote == nil || !p.remote.Peer.PublicKey().Equal(p.knows) {
		p.forgetCore()
		p.remote = p.node.AddKey(netip.AddrPort{}, crypto.PeerConfig{PublicKey: p.knows})
		p.eventsSeen = 0
	}
	p.remote.Peer.SetPresharedKey(&p.psk)
	p.nominated, p.lastData, p.lastSTUN = 0, 0, 0
	p.connection = newConnection(now, generation, p == p.world.a)
	p.touch()
}

func (p *party) forgetCore() {
	if p.remote != nil {
		p.initiated = append(p.initiated, p.remote.Initiations()...)
		p.node.Local.RemovePeer(p.world.now(), p.remote.Peer)
		p.remote.Drain()
		p.remote = nil
	}
}

// restart is the loss of all state; the node has another key afterwards.
func (p *party) restart() {
	p.forgetCore()
	p.connection, p.backoff = nil, backoff{}
	clear(p.agents)
	p.rekey()
}

// rekey gives the node another key, behind the portal's back.
func (p *party) rekey() {
	key, err := crypto.GeneratePrivateKey(p.world.net)
	if err != nil {
		p.t.Fatal(err)
	}
	p.node.Local.SetPrivateKey(p.world.now(), &key)
	if p.remote != nil {
		p.remote.Drain()
	}
}

// send is a packet through the tunnel.
func (p *party) send() {
	p.lastData = p.world.now()
	p.remote.Send([]byte("data"))
}

func (p *party) touch() {
	if p.connection == nil {
		return
	}
	now := p.world.now()
	if p.backoff.due(now) {
		p.world.generation++
		p.begin(p.world.generation)
		return
	}
	for changed := true; changed; {
		p.noteVerdicts(now)
		for ; p.eventsSeen < len(p.remote.Events); p.eventsSeen++ {
			if e := p.remote.Events[p.eventsSeen]; e.Kind == crypto.SeriesExpired {
				p.connection.handleExpired(e.Expired)
			}
		}
		if p.world.stun && p.hears() {
			p.lastSTUN = now
		}
		data := max(p.lastData, p.remote.Activity.LastDataReceived)
		p.connection.advance(now, lookAt(now, p.remote.Peer, p.remote.Activity, data, p.lastSTUN))
		out, ok := p.connection.poll()
		for changed = ok; ok; out, ok = p.connection.poll() {
			p.obey(now, out)
		}
	}
}

// hears reports whether the peer still has the agent that ours talks to.
func (p *party) hears() bool {
	return p.connection.current.selected != 0 && p.connection.current.number != p.world.dead && p.other.agents[p.connection.current.number]
}

// noteVerdicts tells the connection what became of handshake messages. There is one path, so all are booked to it.
func (p *party) noteVerdicts(now time.Duration) {
	for r := range crypto.ReasonCount {
		for ; p.verdicts[r] < p.node.Verdicts[r]; p.verdicts[r]++ {
			switch r {
			case crypto.Accepted:
				p.connection.handleVerdict(now, crypto.Verdict{Peer: p.remote.Peer, Roam: true}) // no cookie replies here
			case crypto.Mac1Mismatch, crypto.UnknownStatic, crypto.UnknownIndex, crypto.NoPrivateKey:
				p.connection.handleVerdict(now, crypto.Verdict{Reason: r})
			}
		}
	}
}

func (p *party) obey(now time.Duration, out connectionOutput) {
	switch out.kind {
	case connectionStartAgent:
		p.agents[out.agent] = true
		if len(p.agents) > 2 {
			p.t.Fatalf("%s: %d agents", p.name, len(p.agents))
		}
		generation, number := p.connection.generation, out.agent
		p.signal(func() { p.other.offer(generation, number) })
		p.world.pairUp(number)
	case connectionCloseAgent:
		delete(p.agents, out.agent)
		p.connection.handleAgentGone(out.agent)
	case connectionPublishPath:
		p.remote.Endpoint = p.other.node.Addr
		if p.nominated == 0 {
			p.nominated = now
		}
	case connectionClearPath:
		p.remote.Endpoint = netip.AddrPort{}
	case connectionStartHandshake:
		p.remote.Peer.SetHandshakeLifetime(out.lifetime, true)
		if out.initiate {
			p.remote.Want()
		}
	case connectionKeepalive:
		p.remote.Send(nil)
	case connectionSendBye:
		bye := out.bye
		p.signal(func() {
			if p.other.connection != nil {
				p.other.connection.handleBye(bye)
			}
		})
	case connectionClearSession:
		p.remote.Peer.Clear(now)
		p.remote.Drain()
		p.remote.Activity, p.remote.Endpoint = crypto.Activity{}, netip.AddrPort{}
	case connectionClosed:
		p.closed, p.closedAt = append(p.closed, out.closed), append(p.closedAt, now)
		if out.closed.Reason.backsOff() {
			p.backoff.ended(now, out.closed.Up, 0)
		}
	case connectionPeerReports:
		p.reports = append(p.reports, out.closed)
	}
}

func (p *party) signal(f func()) {
	if p.world.signaling {
		p.world.plan(signalLatency, f)
	}
}

// offer arrives with the peer's agent and its candidates.
func (p *party) offer(generation, number uint32) {
	if p.connection != nil && generation < p.connection.generation {
		return
	}
	if p.connection == nil || generation > p.connection.generation {
		if number > 1 {
			p.signal(func() { p.other.connection.handleBye(Bye{Generation: generation, Reason: CloseUnknown}) })
			return
		}
		if p.connection != nil {
			p.connection.close(CloseReplaced)
			p.touch()
		}
		p.begin(generation)
	}
	p.connection.handleRemoteAgent(p.world.now(), number)
	p.touch()
	p.connection.handleCandidate(p.world.now(), number)
}

// pairUp has two agents of one number select each other.
func (w *desync) pairUp(number uint32) {
	if !w.stun || !w.a.agents[number] || !w.b.agents[number] {
		return
	}
	for p, after := range map[*party]time.Duration{w.a: controllerICE, w.b: controlledICE} {
		c := p.connection
		w.plan(after, func() {
			if w.stun && p.connection == c && p.other.agents[number] && p.agents[number] {
				c.handleCandidate(w.now(), number)
				c.handlePath(w.now(), number, pipeline.Path{Dst: p.other.node.Addr})
			}
		})
	}
}

// wantUp fails unless both have a session that carries data both ways.
func (w *desync) wantUp(t *testing.T) {
	t.Helper()
	for _, p := range []*party{w.a, w.b} {
		if p.connection == nil || p.connection.phase != PhaseUp {
			t.Fatalf("%s is not up: %+v", p.name, p.closed)
		}
		before := len(p.other.remote.Received)
		p.send()
		w.run(10 * time.Millisecond)
		if len(p.other.remote.Received) == before {
			t.Fatalf("nothing arrives from %s", p.name)
		}
	}
}

// wantNothingLeft fails if a closed connection left anything.
func (p *party) wantNothingLeft() {
	p.t.Helper()
	c := p.connection
	if c.phase != PhaseClosed || len(p.agents) != 0 || p.remote.Endpoint.IsValid() {
		p.t.Errorf("%s: phase %v, agents %v, endpoint %v", p.name, c.phase, p.agents, p.remote.Endpoint)
	}
	at, why := p.remote.Peer.NextTimeout(p.remote.Activity)
	if at != 0 || p.remote.Peer.Sending() != nil {
		p.t.Errorf("%s: the core waits for %v", p.name, why)
	}
	if at, why := c.nextTimeout(); at != 0 {
		p.t.Errorf("%s: the connection waits for %v", p.name, why)
	}
}

// wantHandshakeTimeout checks the newest close: after exactly 15 s, with its cause at once and, if the peer's bye tells more,
// afterwards.
func (p *party) wantHandshakeTimeout(cause, refined CloseCause) {
	p.t.Helper()
	if len(p.closed) == 0 {
		p.t.Fatalf("%s is not closed, but %v", p.name, p.connection.phase)
	}
	last := p.closed[len(p.closed)-1]
	if last.Reason != CloseHandshakeTimeout || last.Cause != cause {
		p.t.Errorf("%s: %v, %q, want %q; counters %+v", p.name, last.Reason, last.Cause, cause, last.Counters)
	}
	if got := p.closedAt[len(p.closedAt)-1] - p.nominated; got != handshakeLifetime || last.Waited != handshakeLifetime {
		p.t.Errorf("%s: closed after %v (%v)", p.name, got, last.Waited)
	}
	if got := p.connection.closed; got.Cause != refined || got.PeerReports == nil {
		p.t.Errorf("%s: with the peer's report %q, want %q", p.name, got.Cause, refined)
	}
	p.wantNothingLeft()
}

func isHandshake(d cryptotest.Datagram) bool { return d.Bytes[0] != byte(crypto.MessageTransport) }

// The case that the lifetimes exist for: ICE connects and the handshake cannot complete. Both sides clean up after exactly
// 15 s and name the cause; the responder, which is the first to know, names the likely one before it has the peer's report.
func TestDesync(t *testing.T) {
	for _, c := range []struct {
		name             string
		change           func(w *desync)
		a, b, refinedB   CloseCause
		initiationsOfAll int
	}{
		{"the gateway's key changed", func(w *desync) { w.b.rekey() },
			CauseWeHaveOldKey, CausePeerHasOldKey, CausePeerHasOldKey, 5},
		{"the client's key changed", func(w *desync) { w.a.rekey() },
			CauseOurKeyUnknown, CausePeerKeyUnknown, CausePeerKeyUnknown, 5},
		{"the preshared key differs", func(w *desync) { w.b.psk = crypto.PresharedKey{2} },
			CausePresharedKeys, CausePresharedKeys, CausePresharedKeys, 5},
		{"nothing arrives", func(w *desync) { w.net.Tap = isHandshake },
			CauseSilence, CauseSilence, CauseSilence, 5},
		{"nothing arrives at the initiator", func(w *desync) {
			w.net.Tap = func(d cryptotest.Datagram) bool { return d.To == w.a.node.Addr }
		}, CauseInboundLost, CausePresharedKeys, CauseOutboundLost, 5},
		{"nothing arrives at the responder", func(w *desync) {
			w.net.Tap = func(d cryptotest.Datagram) bool { return d.To == w.b.node.Addr }
		}, CauseSilence, CauseSilence, CauseSilence, 5},
		{"the gateway's key changes while candidates are checked", func(w *desync) {
			w.plan(20*time.Millisecond, w.b.rekey)
		}, CauseWeHaveOldKey, CausePeerHasOldKey, CausePeerHasOldKey, 5},
		{"the gateway's key changes while the handshake is lost", func(w *desync) {
			w.net.Tap = isHandshake
			w.plan(2*time.Second, func() { w.b.rekey(); w.net.Tap = nil })
		}, CauseWeHaveOldKey, CausePeerHasOldKey, CausePeerHasOldKey, 5},
		{"the client's key changes while the handshake is lost", func(w *desync) {
			w.net.Tap = isHandshake
			w.plan(2*time.Second, func() { w.a.rekey(); w.net.Tap = nil })
		}, CauseOurKeyUnknown, CausePeerKeyUnknown, CausePeerKeyUnknown, 5},
		{"the client has lost its key", func(w *desync) {
			w.a.node.Local.SetPrivateKey(w.now(), &crypto.PrivateKey{})
		}, CauseNoPrivateKey, CauseSilence, CauseSilence, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newDesync(t)
			c.change(w)
			w.a.want()
			w.run(20 * time.Second)
			w.a.wantHandshakeTimeout(c.a, c.a)
			w.b.wantHandshakeTimeout(c.b, c.refinedB)
			sent := w.a.remote.Initiations()
			if len(sent) != c.initiationsOfAll || len(w.b.remote.Initiations()) != 0 {
				t.Errorf("%d and %d initiations", len(sent), len(w.b.remote.Initiations()))
			}
			for _, at := range sent {
				if at >= w.a.closedAt[0] {
					t.Errorf("an initiation %v after the close", at-w.a.closedAt[0])
				}
			}
		})
	}
}

// Traffic goes on all the time and the keys never agree: attempts follow the back-off. Then they agree again, and the next
// attempt works at once.
func TestDesyncNoStorm(t *testing.T) {
	w := newDesync(t)
	w.b.rekey()
	start := w.now()
	for range 6000 {
		w.a.want()
		w.run(100 * time.Millisecond)
	}
	// An attempt takes 40 ms and 15 s; the pauses are 1, 2, 4, 8, 16, 32, 60, 60 ..
	const each = handshakeLifetime + signalLatency + controllerICE
	want := start
	for i, at := range w.a.attempts {
		if at != want {
			t.Fatalf("attempt %d after %v, want %v", i, at-start, want-start)
		}
		want += each + min(time.Second<<i, time.Minute)
	}
	if len(w.a.attempts) != 12 || len(w.b.attempts) != 12 {
		t.Errorf("%d attempts, %d seen by the peer", len(w.a.attempts), len(w.b.attempts))
	}
	w.run(20 * time.Second) // the one that was wanted last begins and ends; then a wish waits
	w.a.want()
	if !w.a.connection.over() {
		t.Fatal("an attempt began before its time")
	}
	w.agree()
	w.a.backoff.reset(w.now())
	w.run(100 * time.Millisecond)
	w.wantUp(t)
}

// One side restarts with a new key while there is a session. The other's connection is replaced, or ends when neither ICE nor
// WireGuard hears anything; the next attempt fails after 15 s, the one with the right keys works.
func TestDesyncRestart(t *testing.T) {
	for _, client := range []bool{true, false} {
		w := newDesync(t)
		w.a.want()
		w.run(time.Second)
		w.wantUp(t)
		if client {
			w.a.restart()
			w.a.want()
			w.run(20 * time.Second)
			if first := w.b.closed[0]; first.Reason != CloseReplaced || first.Up == 0 {
				t.Errorf("%+v", first)
			}
			w.a.wantHandshakeTimeout(CauseOurKeyUnknown, CauseOurKeyUnknown)
			w.b.wantHandshakeTimeout(CausePeerKeyUnknown, CausePeerKeyUnknown)
		} else {
			w.b.restart()
			w.run(14 * time.Second) // ICE is lost, what came lately still counts: a second agent learns that b has forgotten
			if len(w.a.closed) != 1 || w.a.closed[0].Reason != ClosePeerClosed || w.a.closed[0].PeerReports.Reason != CloseUnknown {
				t.Fatalf("%+v", w.a.closed)
			}
			w.a.want()
			w.run(20 * time.Second)
			w.a.wantHandshakeTimeout(CauseWeHaveOldKey, CauseWeHaveOldKey)
			w.b.wantHandshakeTimeout(CausePeerHasOldKey, CausePeerHasOldKey)
		}
		w.agree()
		w.a.backoff.reset(w.now())
		w.a.want()
		w.run(100 * time.Millisecond)
		w.wantUp(t)
	}
}

// A path that dies during the handshake is found out early enough for a second one to save the tunnel: that is why the timeouts
// of ICE are the shorter ones. But it does not give the handshake more time.
func TestDesyncPathChange(t *testing.T) {
	for _, saved := range []bool{true, false} {
		w := newDesync(t)
		w.dead = 1
		w.net.Tap = func(cryptotest.Datagram) bool { return !saved || w.a.connection.current.number == 1 }
		w.a.want()
		w.run(5500 * time.Millisecond)
		if w.a.connection.current.number != 2 || w.b.connection.current.number != 2 || len(w.a.agents) != 1 {
			t.Fatalf("agents %v and %v", w.a.agents, w.b.agents)
		}
		w.run(9600 * time.Millisecond)
		if saved {
			w.wantUp(t)
			continue
		}
		w.a.wantHandshakeTimeout(CauseSilence, CauseSilence)
		w.b.wantHandshakeTimeout(CauseSilence, CauseSilence)
	}
}

// While a session lives it is not closed because STUN is quiet, not even in an hour in which no second agent succeeds either.
// When nothing comes over it any more it ends.
func TestLiveSessionOutlivesICE(t *testing.T) {
	w := newDesync(t)
	w.a.want()
	w.run(time.Second)
	w.wantUp(t)
	w.stun, w.signaling = false, false
	keypairs := w.a.remote.Peer.LastHandshake()
	for range 720 {
		w.a.send()
		w.b.send()
		w.run(5 * time.Second)
	}
	w.wantUp(t)
	if w.a.remote.Peer.LastHandshake() == keypairs {
		t.Error("no rekey in an hour")
	}
	w.net.Tap = func(cryptotest.Datagram) bool { return true }
	last := w.now()
	w.run(16 * time.Second)
	for _, p := range []*party{w.a, w.b} {
		if len(p.closed) != 1 || p.closed[0].Reason != CloseICEDisconnected || p.closedAt[0]-last > liveFor {
			t.Fatalf("%s: %+v", p.name, p.closed)
		}
		p.wantNothingLeft()
	}
}

// A second agent takes over beside the first, and the session goes on with the same keys.
func TestPathChangeKeepsKeypairs(t *testing.T) {
	w := newDesync(t)
	w.a.want()
	w.run(time.Second)
	w.wantUp(t)
	before := [2]*crypto.Keypair{w.a.remote.Peer.Sending(), w.b.remote.Peer.Sending()}
	w.b.connection.wantAgent(w.now())
	w.run(100 * time.Millisecond)
	w.wantUp(t)
	if before != [2]*crypto.Keypair{w.a.remote.Peer.Sending(), w.b.remote.Peer.Sending()} {
		t.Error("other keypairs")
	}
	if w.a.connection.current.number != 2 || w.b.connection.current.number != 2 || len(w.a.agents)+len(w.b.agents) != 2 {
		t.Errorf("agents %v and %v", w.a.agents, w.b.agents)
	}
}

// Idle: without data the agents are closed and keepalives keep the session for hours, rekeys included. The next packet starts
// an agent on either side again, and none of it interrupts the session.
func TestIdle(t *testing.T) {
	w := newDesync(t)
	w.a.want()
	w.run(time.Second)
	w.wantUp(t)
	w.run(idleAfter)
	for _, p := range []*party{w.a, w.b} {
		if p.connection.phase != PhaseIdle || len(p.agents) != 0 || !p.remote.Endpoint.IsValid() {
			t.Fatalf("%s: %v, %v", p.name, p.connection.phase, p.agents)
		}
	}
	w.run(3 * time.Hour)
	if w.a.connection.phase != PhaseIdle || w.b.connection.phase != PhaseIdle || min(w.a.remote.Keepalives, w.b.remote.Keepalives) < 300 {
		t.Fatalf("%v, %v, %d and %d keepalives", w.a.connection.phase, w.b.connection.phase, w.a.remote.Keepalives, w.b.remote.Keepalives)
	}
	w.b.send()
	w.run(time.Second)
	w.wantUp(t)
	for _, p := range []*party{w.a, w.b} {
		if p.connection.current.number != 2 || len(p.closed) != 0 {
			t.Fatalf("%s: agent %d, %v", p.name, p.connection.current.number, p.closed)
		}
	}
	w.run(idleAfter)
	if w.a.connection.phase != PhaseIdle || w.b.connection.phase != PhaseIdle {
		t.Errorf("%v, %v", w.a.connection.phase, w.b.connection.phase)
	}
	w.a.connection.wantAgent(w.now()) // as when the network changes
	w.run(time.Second)
	if w.a.connection.current.number != 3 || w.b.connection.current.number != 3 || w.b.connection.phase != PhaseUp {
		t.Errorf("agents %v, %v", w.a.agents, w.b.agents)
	}
}

// An idle session whose signaling is down goes on without an agent when data passes again. If the peer is not there any more,
// WireGuard finds out, and it ends within its 15 s.
func TestIdleWithoutSignaling(t *testing.T) {
	w := newDesync(t)
	w.a.want()
	w.run(time.Second)
	w.wantUp(t)
	w.run(idleAfter)
	w.signaling = false
	for range 60 {
		w.a.send()
		w.b.send()
		w.run(time.Second)
	}
	w.run(time.Minute)
	if w.a.connection.phase != PhaseIdle || w.b.connection.phase != PhaseIdle || len(w.a.closed)+len(w.b.closed) != 0 {
		t.Fatalf("%v %+v, %v %+v", w.a.connection.phase, w.a.closed, w.b.connection.phase, w.b.closed)
	}
	w.net.Tap = func(cryptotest.Datagram) bool { return true }
	w.a.send()
	last := w.now()
	w.run(31 * time.Second) // 10 s + 5 s unanswered, then the lifetime of the series
	if len(w.a.closed) != 1 || w.a.closed[0].Reason != CloseICEDisconnected || w.a.closed[0].Cause != CauseNone {
		t.Fatalf("after %v: %v %+v", w.now()-last, w.a.connection.phase, w.a.closed)
	}
	w.a.wantNothingLeft()
}

// An idle path that dies in one direction, as when a NAT forgets its mapping, is replaced though nobody sends anything. One whose
// peer is gone ends with its session at the latest, and not for want of a handshake: ICE hears nothing either.
func TestIdlePathDies(t *testing.T) {
	for _, gone := range []bool{false, true} {
		w := newDesync(t)
		w.a.want()
		w.run(time.Second)
		w.wantUp(t)
		w.run(idleAfter + time.Minute)
		w.net.Tap = func(d cryptotest.Datagram) bool {
			return gone || d.To == w.b.node.Addr && w.b.connection.current.number == 0
		}
		if gone {
			w.stun, w.signaling = false, false
			w.run(crypto.RejectAfterTime + handshakeLifetime)
			for _, p := range []*party{w.a, w.b} {
				if len(p.closed) != 1 || p.closed[0].Reason != CloseICEDisconnected {
					t.Fatalf("%s: %v %+v", p.name, p.connection.phase, p.closed)
				}
				p.wantNothingLeft()
			}
			continue
		}
		for range 90 {
			w.run(time.Second)
			if w.a.connection.current.number == 2 && w.b.connection.current.number == 2 {
				break
			}
		}
		w.wantUp(t)
	}
}

// A preshared key that changes under a session makes the rekey fail. The connection stays while the old keypair carries
// traffic, and ends with its cause when that does no more.
func TestFailedRekey(t *testing.T) {
	w := newDesync(t)
	w.a.want()
	w.run(time.Second)
	w.wantUp(t)
	created := w.a.remote.Peer.Sending().Created
	w.b.remote.Peer.SetPresharedKey(&crypto.PresharedKey{2})
	for w.now() < created+crypto.RejectAfterTime-2*time.Second {
		w.a.send()
		w.b.send()
		w.run(time.Second)
	}
	if n := len(w.a.remote.Times(crypto.SeriesExpired)); n < 3 {
		t.Fatalf("%d series failed", n)
	}
	w.wantUp(t)
	for range 30 {
		if !w.a.connection.over() {
			w.a.send()
		}
		w.run(time.Second)
	}
	for _, p := range []*party{w.a, w.b} {
		if len(p.closed) != 1 || p.closed[0].Cause != CausePresharedKeys || p.closedAt[0] > created+crypto.RejectAfterTime+handshakeLifetime+time.Second {
			t.Fatalf("%s: %v %+v", p.name, p.connection.phase, p.closed)
		}
		p.wantNothingLeft()
	}
}

// 30 % of the datagrams are lost each way: nearly all handshakes complete, and those that do not end at 15 s.
func TestHandshakeUnderLoss(t *testing.T) {
	up := 0
	const runs = 60
	for seed := range uint64(runs) {
		w := newSeededDesync(t, seed)
		w.net.Link.Loss = 0.3
		w.a.want()
		w.run(16 * time.Second)
		if w.a.connection.phase == PhaseUp && w.b.connection.phase == PhaseUp {
			up++
		}
		for _, p := range []*party{w.a, w.b} {
			if p.connection.phase == PhaseHandshake {
				t.Fatalf("%s still tries", p.name)
			}
		}
	}
	if up < runs*9/10 {
		t.Errorf("%d of %d came up", up, runs)
	}
}
