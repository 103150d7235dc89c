package edge

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// world is some nodes, a network in memory with 50 ms of round trip, and a portal that is a map.
type world struct {
	t         *testing.T
	network   *udptest.Network
	signaling *signal.Network
	portal    *portal
	nodes     []*node
	start     time.Time
	ends      []func() // for the end of the test
	off       sync.Map // names of nodes that are cut off from the portal
	relayOnly bool     // see direct
	severed   map[*node]bool
	relayless *node // whose datagrams no relay takes
	// lose says which messages are lost, nil: none. Frozen when the first node starts.
	lose func(to string, msg signal.Message) bool
}

// node is one whole node: pipeline and edge.
type node struct {
	w        *world
	name     string
	role     protocol.Role
	number   uint16
	place    atomic.Uint32 // its outer address is outer(place)
	host     *udptest.Host
	device   *tuntest.Device
	pipeline *pipeline.Pipeline
	edge     *Edge
	memory   *signal.Memory
	log      *record
	apply    func(protocol.Sync) error
	state    func() signal.State
	token    string                       // of its identity, beside its name; the portal's entry has the same
	pins     map[string]protocol.Identity // as saved, frozen; guarded by mu
	saves    int                          // guarded by mu
	mu       sync.Mutex
	slept    atomic.Int64 // how much of its clock it was not there to see
	stop     context.CancelFunc
	ran      chan error
}

// record keeps the log lines.
type record struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *record) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(b)
}

// count is how many lines have this text in them.
func (r *record) count(text string) (n int) {
	for line := range strings.Lines(r.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// portal knows the keys that were reported and answers as the real one does, but holds no request for long.
type portal struct {
	mu       sync.Mutex
	revision uint64
	changed  chan struct{}
	down     error
	lease    int64
	nodes    map[string]*entry
	relays   []protocol.Relay
	psk      protocol.Key // of every pair, if not zero
	overlay  []netip.Prefix
	asked    int           // answers that were wanted at once
	slow     time.Duration // before an answer at once
	ahead    time.Duration // its clock
}

type entry struct {
	role   protocol.Role
	number uint16
	key    protocol.Key
	lie    *protocol.Key          // told to others instead of key
	token  string                 // of its identity, beside its name
	tamper func(p *protocol.Peer) // with what is told to others
	psk    protocol.Key           // told to this node alone
	hidden bool                   // not told to others
	refuse string                 // told to this node
	other  bool                   // another program is this node
	thief  bool                   // its key is not what it reports
	away   bool                   // not online
}

func newPortal() *portal {
	return &portal{revision: 1, changed: make(chan struct{}), nodes: map[string]*entry{}}
}

// change edits the portal's state and tells who waits.
func (p *portal) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.revision++
	close(p.changed)
	p.changed = make(chan struct{})
}

// set edits what is no news to anybody.
func (p *portal) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// name is that of the present revision: like the real portal's it has no order.
func (p *portal) name() uint64 { return p.revision*0x9E3779B97F4A7C15 | 1 }

// questions is how many answers were wanted at once.
func (p *portal) questions() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

func (p *portal) sync(ctx context.Context, self string, r protocol.SyncRequest) (protocol.Sync, error) {
	p.mu.Lock()
	if p.down != nil {
		defer p.mu.Unlock()
		return protocol.Sync{}, p.down
	}
	if e := p.nodes[self]; e.key != r.PublicKey && !e.thief {
		p.mu.Unlock()
		p.change(func() { e.key = r.PublicKey })
		p.mu.Lock()
	}
	if r.Known == 0 {
		p.asked++
		slow := p.slow
		p.mu.Unlock()
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return protocol.Sync{}, ctx.Err()
		}
		p.mu.Lock()
	}
	if r.Known == p.name() {
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-time.After(protocol.SyncHold):
		case <-ctx.Done():
			return protocol.Sync{}, ctx.Err()
		}
		p.mu.Lock()
	}
	defer p.mu.Unlock()
	me := p.nodes[self]
	s := protocol.Sync{Revision: p.name(), Name: self, Role: me.role, Time: time.Now().Add(p.ahead).Unix(), Relays: p.relays, Lease: p.lease}
	s.Refused, s.Displaced, s.Overlay = me.refuse, me.other, p.overlay
	s.Addresses = []netip.Prefix{netip.PrefixFrom(inner(me.number), 32)}
	for name, e := range p.nodes {
		if name == self || e.role == me.role || e.hidden {
			continue
		}
		key := e.key
		if e.lie != nil {
			key = *e.lie
		}
		psk := me.psk
		if psk == (protocol.Key{}) {
			psk = p.psk
		}
		id := identityOf(name + e.token)
		peer := protocol.Peer{
			Name: name, Role: e.role, PublicKey: key, PresharedKey: psk, Online: e.key != protocol.Key{} && !e.away,
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(inner(e.number), 32)},
			Identity:   protocol.IdentityOf(id), Signature: protocol.SignKey(id, name, key),
		}
		if e.tamper != nil {
			e.tamper(&peer)
		}
		s.Peers = append(s.Peers, peer)
	}
	return s, nil
}

func inner(number uint16) netip.Addr {
	return netip.AddrFrom4([4]byte{100, 64, byte(number >> 8), byte(number)})
}

func outer(number uint16) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 51, 100 + byte(number>>8), byte(number)})
}

// run runs test in a bubble of virtual time; at its end all nodes end, and nothing may be left.
func run(t *testing.T, faults signal.Faults, test func(w *world)) { runSeed(t, 1, faults, test) }

func runSeed(t *testing.T, seed uint64, faults signal.Faults, test func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			t: t, network: udptest.New(seed), signaling: signal.NewNetwork(seed, faults), portal: newPortal(), start: time.Now(),
		}
		w.network.Impair(func(_, _ netip.AddrPort) udptest.Impairment {
			return udptest.Impairment{Delay: 25 * time.Millisecond}
		})
		defer func() {
			for _, n := range w.nodes {
				n.close()
			}
			for _, end := range w.ends {
				end()
			}
			if t.Failed() {
				for _, n := range w.nodes {
					t.Logf("log of %s:\n%s", n.name, n.log)
				}
			}
		}()
		test(w)
	})
}

// node adds a node and starts it.
func (w *world) node(name string, role protocol.Role) *node {
	w.t.Helper()
	n := &node{w: w, name: name, role: role, number: uint16(len(w.nodes) + 1), log: &record{}}
	w.nodes = append(w.nodes, n)
	w.portal.change(func() { w.portal.nodes[name] = &entry{role: role, number: n.number} })
	n.place.Store(uint32(n.number))
	n.host = w.network.Host(n.outer())
	n.start()
	return n
}

// identityOf is a node's, by its name.
func identityOf(name string) ed25519.PrivateKey {
	return protocol.Token{Secret: sha256.Sum256([]byte(name))}.Identity()
}

func (n *node) start() {
	t := n.w.t
	t.Helper()
	var err error
	if n.memory, err = n.w.signaling.Join(n.name, signal.Filter{}); err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	n.edge, err = New(Config{
		Name: n.name, Role: n.role, Identity: identityOf(n.name + n.token), Pins: maps.Clone(n.saved()), SavePins: n.save, Signaler: line{n.memory, n}, Logger: logger,
		Sync: func(ctx context.Context, r protocol.SyncRequest) (protocol.Sync, error) {
			return n.w.portal.sync(ctx, n.name, r)
		},
		Addresses: func() []netip.Addr { return []netip.Addr{n.outer()} }, Apply: n.apply, PortalState: n.state,
	})
	if err != nil {
		t.Fatal(err)
	}
	n.device = tuntest.New(tuntest.Config{})
	n.pipeline, err = pipeline.New(pipeline.Config{
		Device: n.device, Listen: n.host.Listen, UDP: udp.Config{}, Logger: logger, Stray: n.edge.Stray, Connector: n.edge.Connector(),
		Clock: n.clock, Wall: time.Now, Rand: rand.NewChaCha8([32]byte{byte(n.number), byte(n.number >> 8)}),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.stop, n.ran = cancel, make(chan error, 2)
	go func() { n.ran <- n.pipeline.Run(context.Background()) }()
	go func() { n.ran <- n.edge.Run(ctx, n.pipeline) }()
}

func (n *node) save(pins map[string]protocol.Identity) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pins, n.saves = pins, n.saves+1
}

// saved are the pins of the node.
func (n *node) saved() map[string]protocol.Identity {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pins
}

// clock is what the node's clock says, which also runs while the node sleeps.
func (n *node) clock() time.Duration {
	return time.Since(n.w.start) + time.Hour + time.Duration(n.slept.Load())
}

func (n *node) outer() netip.Addr { return outer(uint16(n.place.Load())) }

// close ends the node in order: byes leave, then the pipeline ends.
func (n *node) close() {
	if n.stop == nil {
		return
	}
	n.stop()
	if err := <-n.ran; err != nil {
		n.w.t.Error(n.name, "Run:", err)
	}
	_ = n.pipeline.Close()
	if err := <-n.ran; err != nil {
		n.w.t.Error(n.name, "Run:", err)
	}
	_ = n.memory.Close()
	n.stop = nil
}

// owner runs f on the goroutine that owns n's edge.
func (n *node) owner(f func(e *Edge)) {
	done := make(chan struct{})
	n.edge.posts <- func() { defer close(done); f(n.edge) }
	<-done
}

// mute is a node that the portal knows and that says only what the test sends.
type mute struct {
	w    *world
	name string
	*signal.Memory
	got []signal.Msg
}

func (w *world) mute(name string, role protocol.Role) *mute {
	w.t.Helper()
	memory, err := w.signaling.Join(name, signal.Filter{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.ends = append(w.ends, func() { _ = memory.Close() })
	w.portal.change(func() {
		w.portal.nodes[name] = &entry{role: role, number: 200, key: protocol.Key{200, 1}}
	})
	return &mute{w: w, name: name, Memory: memory}
}

// say sends a message that is complete but for what msg says.
func (m *mute) say(to string, msg signal.Message) {
	m.w.t.Helper()
	if msg.Kind != signal.Bye {
		msg.PublicKey, msg.Agent = crypto.PrivateKey{200}.Public(), max(msg.Agent, 1)
		msg.Ufrag, msg.Pwd = "abcdefgh", "abcdefghijklmnopqrstuvwxyz"
	}
	if err := m.Send(context.Background(), to, msg); err != nil && !errors.Is(err, signal.ErrUnanswered) {
		m.w.t.Fatal(err)
	}
}

// heard are the messages of a kind that have come so far.
func (m *mute) heard(kind signal.Kind) (list []signal.Msg) {
	synctest.Wait()
	for {
		select {
		case msg := <-m.Recv():
			m.got = append(m.got, msg)
			continue
		default:
		}
		break
	}
	for _, msg := range m.got {
		if msg.Kind == kind {
			list = append(list, msg)
		}
	}
	return list
}

func (n *node) status() Status {
	n.w.t.Helper()
	s, err := n.edge.Status(context.Background())
	if err != nil {
		n.w.t.Fatal(err)
	}
	return s
}

// connection is what n's status says of a peer.
func (n *node) connection(peer string) ConnectionStatus {
	n.w.t.Helper()
	for _, c := range n.status().Connections {
		if c.Peer == peer {
			return c
		}
	}
	return ConnectionStatus{}
}

// await lets virtual time pass until f holds, and fails after limit.
func (w *world) await(limit time.Duration, what string, f func() bool) time.Duration {
	w.t.Helper()
	begin := time.Now()
	for !f() {
		if time.Since(begin) > limit {
			w.t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
	}
	return time.Since(begin)
}

// generation is that of n's newest attempt with a peer.
func (n *node) generation(peer string) uint64 { return uint64(n.connection(peer).Generation) }

// agent is the number of the agent that has found the path to the peer, 0 if there is none.
func (n *node) agent(peer string) link.AgentNumber { return n.link(peer).Agent }

// link is what n's link to a peer says.
func (n *node) link(peer string) (s link.Status) {
	n.edge.tell(peer, func(now time.Duration, l *link.Link) { s = l.Status(now) })
	return s
}

// end has n end its connection with a peer.
func (n *node) end(peer string, reason link.CloseReason) {
	n.edge.tell(peer, func(_ time.Duration, l *link.Link) { l.Close(reason) })
}

// skip has n leave out so many numbers of attempts with a peer.
func (n *node) skip(peer string, numbers int) {
	n.edge.tell(peer, func(time.Duration, *link.Link) {
		for range numbers {
			n.edge.links.Generations.Next(peer)
		}
	})
}

// up reports whether both nodes say that they are connected.
func up(a, b *node) bool {
	return a.connection(b.name).State == "up" && b.connection(a.name).State == "up"
}

// carries sends packets both ways and fails unless they arrive.
func (w *world) carries(a, b *node) {
	w.t.Helper()
	for _, d := range []struct{ from, to *node }{{a, b}, {b, a}} {
		d.to.device.Take()
		packet := ipPacket(inner(d.from.number), inner(d.to.number), "hello")
		d.from.device.InjectData(packet)
		w.await(20*time.Second, fmt.Sprintf("a packet from %s to %s", d.from.name, d.to.name), func() bool {
			for _, got := range d.to.device.TakeSegments() {
				if bytes.Equal(got, packet) {
					return true
				}
			}
			return false
		})
	}
}

// carriesAgain is carries for a path that may just be found dead: packets are repeated for a minute.
func (w *world) carriesAgain(a, b *node) {
	w.t.Helper()
	for _, d := range []struct{ from, to *node }{{a, b}, {b, a}} {
		d.to.device.Take()
		packet := ipPacket(inner(d.from.number), inner(d.to.number), "hello again")
		var sent time.Time
		w.await(time.Minute, fmt.Sprintf("a packet from %s to %s", d.from.name, d.to.name), func() bool {
			if time.Since(sent) > time.Second {
				sent = time.Now()
				d.from.device.InjectData(packet)
			}
			for _, got := range d.to.device.TakeSegments() {
				if bytes.Equal(got, packet) {
					return true
				}
			}
			return false
		})
	}
}

// ipPacket makes an IPv4 packet of protocol 253 (RFC 3692).
func ipPacket(src, dst netip.Addr, payload string) []byte {
	b := make([]byte, 20+len(payload))
	copy(b, []byte{0x45, 0, 0, byte(len(b)), 0, 0, 0x40, 0, 64, 253})
	from, to := src.As4(), dst.As4()
	copy(b[12:], from[:])
	copy(b[16:], to[:])
	copy(b[20:], payload)
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	b[10], b[11] = byte(^sum>>8), byte(^sum)
	return b
}

var errAway = errors.New("the portal is away")
