package link

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

const (
	portalLatency = 5 * time.Millisecond // from RequestAttempt to Begin
	stunInterval  = 2 * time.Second
)

// linkWorld is two nodes that reach one another by name, a (which controls) and b. Their edges are played by one goroutine:
// agents of one number on both sides find each other, the controlled side first, as long as STUN passes.
type linkWorld struct {
	t       *testing.T
	network *udptest.Network
	a, b    *side
	mail    chan func()
	quit    chan struct{}

	// Owned by the edges' goroutine; tests change it through edges.
	stun, signaling bool
	delay           time.Duration // more, from an agent to its path
	latency         time.Duration // of signaling
	generation      uint32
}

// side is one node with its edge. Owned by the edges' goroutine but for the node and log.
type side struct {
	*node
	world   *linkWorld
	name    string
	other   *side
	log     *logBuffer
	links   *Links
	uses    crypto.PublicKey // the other's key in the pipeline
	knows   crypto.PublicKey // the other's key and the preshared key, as the portal tells them
	psk     crypto.PresharedKey
	deaf    bool // to RequestAttempt: the portal is not reachable
	attempt *Attempt
	number  uint32 // generation of the attempt
	agents  map[uint32]bool
	using   uint32 // the agent that has selected a pair last
	seen    []seen
	sleeper
}

// seen is a request and when it was made.
type seen struct {
	Request
	at time.Time
}

// runLinks runs test with two nodes that know each other by name and have no connection, and checks what must hold at the end.
func runLinks(t *testing.T, v variant, test func(w *linkWorld)) {
	synctest.Test(t, func(t *testing.T) {
		w := &linkWorld{
			t: t, network: udptest.New(1), mail: make(chan func(), 4096), quit: make(chan struct{}), stun: true, signaling: true, latency: signalLatency,
		}
		w.a, w.b = w.join("a", v, 1), w.join("b", v, 2)
		w.a.other, w.b.other = w.b, w.a
		var ended sync.WaitGroup
		ended.Go(w.run)
		for _, s := range []*side{w.a, w.b} {
			s.knows, s.psk = s.other.key.Public(), crypto.PresharedKey{1}
			s.uses = s.knows
			s.edit(func(e *pipeline.Edit) {
				e.SetPrivateKey(&s.key)
				p := e.AddPeer(s.other.key.Public())
				p.SetName(s.other.name)
				p.SetPresharedKey(&s.psk)
				p.AddAllowedIP(netip.PrefixFrom(s.other.inner4, 32))
			})
		}
		defer func() {
			w.a.end()
			w.b.end()
			close(w.quit)
			ended.Wait()
		}()
		settle()
		test(w)
	})
}

func (w *linkWorld) join(name string, v variant, number byte) *side {
	s := &side{world: w, name: name, log: new(logBuffer), agents: make(map[uint32]bool)}
	s.node = newNode(w.t, w.network, v, number, func(cfg *pipeline.Config) {
		cfg.Logger = slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		s.links = New(Config{Edge: s.request, Logger: cfg.Logger})
		cfg.Connector, cfg.Clock = s.links, s.clock(cfg.Clock)
	})
	return s
}

// run is the edges' goroutine.
func (w *linkWorld) run() {
	stun := time.NewTicker(stunInterval)
	defer stun.Stop()
	for {
		select {
		case f := <-w.mail:
			f()
		case <-stun.C:
			for _, s := range []*side{w.a, w.b} {
				if w.stun && s.using != 0 && s.agents[s.using] && s.other.agents[s.using] {
					s.attempt.Heard()
				}
			}
		case <-w.quit:
			return
		}
	}
}

func (w *linkWorld) post(f func()) {
	select {
	case w.mail <- f:
	default:
		w.t.Error("the edges' mailbox is full")
	}
}

func (w *linkWorld) after(d time.Duration, f func()) { time.AfterFunc(d, func() { w.post(f) }) }

// edges runs f on the edges' goroutine and then lets everything settle.
func (w *linkWorld) edges(f func()) {
	done := make(chan struct{})
	w.post(func() { f(); close(done) })
	<-done
	settle()
}

// peer is the other in an edit.
func (s *side) peer(e *pipeline.Edit) *pipeline.PeerEdit { return e.Peer(s.uses) }

// request is Config.Edge.
func (s *side) request(r Request) {
	at := time.Now()
	s.world.post(func() {
		s.seen = append(s.seen, seen{r, at})
		s.obey(r)
	})
}

func (s *side) obey(r Request) {
	w, attempt := s.world, s.attempt
	switch r.Kind {
	case RequestAttempt:
		if !s.deaf {
			w.after(portalLatency, func() {
				w.generation++
				s.begin(w.generation)
			})
		}
		return
	case RequestBye:
		s.signal(func(o *side) {
			if o.attempt != nil {
				o.attempt.Bye(r.Bye)
			}
		})
		return
	case RequestCloseAgent:
		attempt.AgentGone(r.Agent)
	}
	if r.Generation != s.number {
		return // of an attempt that was replaced
	}
	switch r.Kind {
	case RequestAgent:
		s.agents[r.Agent] = true
		s.signal(func(o *side) { o.offer(r.Generation, r.Agent) })
		w.pairUp(r.Generation, r.Agent)
	case RequestCloseAgent:
		delete(s.agents, r.Agent)
	case RequestCheck:
		if attempt != nil && w.stun {
			attempt.Heard()
		}
	}
}

// begin begins an attempt with the keys that the portal has.
func (s *side) begin(generation uint32) {
	s.edit(func(e *pipeline.Edit) {
		if pe := s.peer(e); pe != nil {
			pe.SetPublicKey(s.knows)
			pe.SetPresharedKey(&s.psk)
			s.uses = s.knows
		}
	})
	clear(s.agents)
	s.number, s.using = generation, 0
	attempt, err := Begin(s.Pipeline, s.other.name, generation, Controls(s.name == "a", s.name == "b", s.name, s.other.name))
	if err != nil {
		s.number = 0
		return
	}
	s.attempt = attempt
}

// offer arrives with the peer's agent and its candidates.
func (s *side) offer(generation, number uint32) {
	if generation < s.number {
		return
	}
	if generation > s.number {
		s.begin(generation)
	}
	if s.number != generation {
		return
	}
	s.attempt.RemoteAgent(number)
	s.attempt.RemoteCandidate(number)
}

func (s *side) signal(f func(*side)) {
	if s.world.signaling {
		s.world.after(s.world.latency, func() { f(s.other) })
	}
}

// pairUp has two agents of one number select each other.
func (w *linkWorld) pairUp(generation, number uint32) {
	if !w.stun || w.a.number != w.b.number || !w.a.agents[number] || !w.b.agents[number] {
		return
	}
	for s, after := range map[*side]time.Duration{w.a: controllerICE, w.b: controlledICE} {
		attempt := s.attempt
		w.after(after+w.delay, func() {
			if w.stun && s.number == generation && s.agents[number] && s.other.agents[number] {
				s.using = number
				attempt.RemoteCandidate(number)
				attempt.Selected(number, pipeline.Path{Dst: s.other.outer})
			}
		})
	}
}

// send injects packet number i for the other node.
func (s *side) send(i int) { s.device.InjectData(s.packet(i)) }

func (s *side) packet(i int) []byte { return datagram(s.inner4, s.other.inner4, i) }

// status is the connection of the node's one peer.
func (s *side) status() (p struct {
	pipeline.PeerStatus
	Connection *ConnectionStatus
}) {
	s.world.t.Helper()
	all, err := s.Status()
	if err != nil || len(all.Peers) != 1 {
		s.world.t.Fatalf("%s: %d peers, %v", s.name, len(all.Peers), err)
	}
	p.PeerStatus = all.Peers[0]
	_ = s.Tell(p.Name, func(now time.Duration, l pipeline.Link) { p.Connection = StatusOf(now, l) })
	return p
}

// requests are those of a kind so far.
func (s *side) requests(kind RequestKind) (list []seen) {
	s.world.edges(func() {
		for _, r := range s.seen {
			if r.Kind == kind {
				list = append(list, r)
			}
		}
	})
	return list
}

// wantPhase fails the test unless both connections are in that phase.
func (w *linkWorld) wantPhase(phase Phase) {
	w.t.Helper()
	for _, s := range []*side{w.a, w.b} {
		if got := s.status().Connection; got.Phase != phase {
			w.t.Fatalf("%s: phase %v, want %v; closed %+v", s.name, got.Phase, phase, got.Closed)
		}
	}
}

// wantUp fails the test unless packets pass both ways.
func (w *linkWorld) wantUp() {
	w.t.Helper()
	w.wantPhase(PhaseUp)
	for i, s := range []*side{w.a, w.b} {
		s.other.device.TakeSegments()
		s.send(500 + i)
		sleep(time.Millisecond)
		s.other.node.wantPackets(s.packet(500 + i))
	}
}

// connect makes the connection by a's wish.
func (w *linkWorld) connect() {
	w.t.Helper()
	w.a.Want("b")
	sleep(200*time.Millisecond + w.delay)
	w.wantUp()
}

// wantNothingLeft fails the test if a node without a connection has anything of one.
func (s *side) wantNothingLeft() {
	t := s.world.t
	t.Helper()
	sleep(10 * time.Millisecond)
	if st := s.status(); st.Path != nil || s.counter("staged_packets") != 0 || st.Connection != nil && st.Connection.Phase != PhaseClosed {
		t.Errorf("%s: path %v, %d packets wait, connection %+v", s.name, st.Path, s.counter("staged_packets"), st.Connection)
	}
	_ = s.Tell(s.other.name, func(now time.Duration, l pipeline.Link) {
		if at, why := l.NextTimeout(now); at != 0 && why != "back_off" {
			t.Errorf("%s: waits for %s", s.name, why)
		}
	})
	s.world.edges(func() {
		if len(s.agents) != 0 {
			t.Errorf("%s: agents %v", s.name, s.agents)
		}
	})
	if made, wiped := s.ciphers(); made != wiped {
		t.Errorf("%s: %d ciphers were made, %d wiped", s.name, made, wiped)
	}
}

// ciphers counts; they are made and wiped by control.
func (s *side) ciphers() (made, wiped int) {
	_ = s.Edit(func(*pipeline.Edit) error { made, wiped = s.cipher.made, s.cipher.wiped; return nil })
	return made, wiped
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// lines are those with all of these words.
func (l *logBuffer) lines(words ...string) (list []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
next:
	for line := range strings.Lines(l.b.String()) {
		for _, word := range words {
			if !strings.Contains(line, word) {
				continue next
			}
		}
		list = append(list, line)
	}
	return list
}
