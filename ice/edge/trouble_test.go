package edge

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

// Whatever happens, and in whatever order: no attempt lasts longer than its deadlines, there is no storm, and when all is well
// again all are connected soon with keys that agree, and nothing is left of what was. EDGE_SEEDS=FROM-TO runs other seeds than
// the first few.
func TestTrouble(t *testing.T) {
	from, to := uint64(0), uint64(6)
	if race { // which takes ten times as long, for the same course of events
		to = 2
	}
	if a, b, ok := strings.Cut(os.Getenv("EDGE_SEEDS"), "-"); ok {
		from, _ = strconv.ParseUint(a, 10, 64)
		to, _ = strconv.ParseUint(b, 10, 64)
	}
	for seed := from; seed < to; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			faults := signal.Faults{Loss: 0.1, LostAck: 0.1, Repeat: 0.1, Reorder: 0.2, Delay: 60 * time.Millisecond}
			runSeed(t, seed, faults, func(w *world) { newTrouble(w, seed).run() })
		})
	}
}

// trouble is two gateways, three clients and two relays, and what happens to them.
type trouble struct {
	*world
	random         *rand.Rand
	one, two       protocol.Relay
	gates, clients []*node
	all            []*node
	loss           float64
	wrongKey       map[*node]bool // has another key than it told the portal
	slept          map[*node]bool
	places         byte // the last one that somebody moved to
	events         []string
}

func newTrouble(w *world, seed uint64) *trouble {
	r := &trouble{world: w, random: rand.New(rand.NewPCG(seed, 1)), wrongKey: make(map[*node]bool), slept: make(map[*node]bool), places: 99}
	r.one, _ = w.relayNamed("north", 1)
	r.two, _ = w.relayNamed("south", 2)
	w.portal.relays = []protocol.Relay{r.one, r.two}
	for _, name := range []string{"east", "west"} {
		r.gates = append(r.gates, w.node(name, protocol.Gateway))
	}
	for _, name := range []string{"ann", "bob", "cyd"} {
		r.clients = append(r.clients, w.node(name, protocol.Client))
	}
	r.all = slices.Concat(r.gates, r.clients)
	return r
}

func (r *trouble) run() {
	r.impair(0)
	for range 50 {
		r.happen()
		time.Sleep(r.upTo(4 * time.Second))
	}
	r.heal()
	time.Sleep(2 * syncRetryMax) // until all have the portal's news, which may end what is up once more
	r.await(3*time.Minute, "all connected", r.connected)
	for _, c := range r.clients { // the path of an idle connection may have died unnoticed, which costs the first packets
		r.carriesAgain(c, r.gates[0])
		r.carriesAgain(c, r.gates[1])
	}
	before := r.lines("connection attempt")
	time.Sleep(2 * time.Minute)
	if after := r.lines("connection attempt"); after != before {
		r.t.Errorf("%d attempts while all is well", after-before)
	}
	r.wantKeysAgree()
	for _, n := range r.all {
		r.wantNothingLeft(n)
		r.wantDeadlines(n)
		r.wantNoStorm(n)
	}
	if r.t.Failed() {
		r.t.Log(strings.Join(r.events, "\n"))
	}
}

func (r *trouble) upTo(d time.Duration) time.Duration {
	return time.Duration(r.random.Int64N(int64(d)))
}

func (r *trouble) coin() bool { return r.random.IntN(2) == 0 }

func (r *trouble) impair(loss float64) {
	r.loss = loss
	r.network.Impair(func(_, _ netip.AddrPort) udptest.Impairment {
		return udptest.Impairment{Delay: 25 * time.Millisecond, Loss: loss}
	})
}

// note remembers what happens, for the log of a run that fails.
func (r *trouble) note(format string, args ...any) {
	r.events = append(r.events, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// happen lets one thing happen.
func (r *trouble) happen() {
	n, g, c, on := r.all[r.random.IntN(len(r.all))], r.gates[r.random.IntN(2)], r.clients[r.random.IntN(3)], r.coin()
	choices := []func(){
		func() { r.note("%s notices a network", n.name); n.edge.NetworkChanged() },
		func() { r.note("direct %v", on); r.direct(on) },
		func() { r.restart(n, on) },
		func() {
			r.note("portal %v", on)
			r.portal.set(func() { r.portal.down = map[bool]error{false: errAway}[on] })
		},
		func() { r.note("signaling %v", on); r.signaling.SetDown(map[bool]error{false: errAway}[on]) },
		func() {
			r.note("%s and %s want another", g.name, c.name)
			g.pipeline.Want(c.name)
			c.pipeline.Want(g.name)
		},
		func() {
			r.note("another preshared key")
			key := protocol.Key{byte(r.random.Uint32())}
			r.portal.change(func() { r.portal.psk = key })
		},
		func() {
			list := [][]protocol.Relay{{r.one}, {r.two}, {r.one, r.two}, nil}[r.random.IntN(4)]
			r.note("%d relays", len(list))
			r.portal.change(func() { r.portal.relays = list })
		},
		func() { r.note("loss %v", on); r.impair(map[bool]float64{true: 0.2}[on]) },
		func() { r.talk(c, g) },
		func() { r.talk(c, g) },
		func() { r.note("cable of %s cut: %v", n.name, on); r.cut(n, on) },
		func() { r.note("%s cut off the portal: %v", n.name, on); r.cutOff(n.name, on) },
		func() { r.note("%s moves", n.name); r.places++; n.move(uint16(r.places)) },
		func() { r.desync(n) },
		func() { r.note("interface of %s up: %v", n.name, on); n.device.SetUp(on) },
		func() { r.sleep(n) },
		func() {
			reason := []link.CloseReason{link.CloseICEDisconnected, link.CloseReplaced, link.CloseShutdown}[r.random.IntN(3)]
			r.note("%s ends its connection with %s: %v", g.name, c.name, reason)
			g.end(c.name, reason)
		},
	}
	choices[r.random.IntN(len(choices))]()
}

// restart ends a node, in order or not, and starts it again, with another key as always.
func (r *trouble) restart(n *node, inOrder bool) {
	r.note("%s restarts, in order: %v", n.name, inOrder)
	if inOrder {
		n.close()
	} else {
		n.crash()
	}
	time.Sleep(r.upTo(3 * time.Second))
	n.start()
	delete(r.wrongKey, n)
}

// talk sends a packet each way.
func (r *trouble) talk(a, b *node) {
	a.device.InjectData(ipPacket(inner(a.number), inner(b.number), "hello"))
	b.device.InjectData(ipPacket(inner(b.number), inner(a.number), "hello"))
}

// desync gives a node another key behind the portal's back, or the right one again.
func (r *trouble) desync(n *node) {
	key := n.edge.key
	if r.wrongKey[n] = !r.wrongKey[n]; r.wrongKey[n] {
		key = crypto.PrivateKey{77, byte(r.random.Uint32())}
	}
	r.note("%s has a wrong key: %v", n.name, r.wrongKey[n])
	_ = n.pipeline.Edit(func(e *pipeline.Edit) error { e.SetPrivateKey(&key); return nil })
}

// sleep has the node's clock move on as in suspend. What the others have done meanwhile other happenings stand for.
func (r *trouble) sleep(n *node) {
	d := r.upTo([]time.Duration{time.Minute, time.Hour}[r.random.IntN(2)])
	r.note("%s sleeps for %v", n.name, d)
	n.slept.Add(int64(d))
	r.slept[n] = true
}

// heal ends all trouble.
func (r *trouble) heal() {
	r.note("all is well")
	r.impair(0)
	r.direct(true)
	for _, n := range r.all {
		r.cut(n, false)
		r.cutOff(n.name, false)
		n.device.SetUp(true)
		if r.wrongKey[n] {
			r.desync(n)
		}
	}
	r.signaling.SetDown(nil)
	r.portal.change(func() { r.portal.down = nil })
}

// connected reports whether each client has a session with each gateway.
func (r *trouble) connected() bool {
	for _, g := range r.gates {
		for _, c := range r.clients {
			for _, s := range []ConnectionStatus{c.connection(g.name), g.connection(c.name)} {
				if s.State != "up" && s.State != "idle" {
					return false
				}
			}
		}
	}
	return true
}

// lines is how many lines of all logs have this text in them.
func (r *trouble) lines(text string) (n int) {
	for _, node := range r.all {
		n += node.log.count(text)
	}
	return n
}

// wantKeysAgree fails unless both sides of each connection know each other's key and count alike.
func (r *trouble) wantKeysAgree() {
	for _, g := range r.gates {
		for _, c := range r.clients {
			s, k := c.connection(g.name), g.connection(c.name)
			if s.PublicKey != g.edge.PublicKey().Encode() || k.PublicKey != c.edge.PublicKey().Encode() || s.Generation != k.Generation {
				r.t.Errorf("%s and %s: keys or generations differ: %+v, %+v", c.name, g.name, s, k)
			}
		}
	}
}

// wantNothingLeft fails if an idle node keeps anything that it does not need.
func (r *trouble) wantNothingLeft(n *node) {
	for _, c := range n.edge.Counters() {
		if c.Name == "ice_agents" && c.Value != 0 {
			r.t.Errorf("%s keeps %d agents", n.name, c.Value)
		}
	}
	n.owner(func(e *Edge) {
		if len(e.agents) != 0 || len(e.byICE) != 0 || len(e.ways) > len(e.peers) {
			r.t.Errorf("%s keeps %d agents, %d by ICE's, %d ways", n.name, len(e.agents), len(e.byICE), len(e.ways))
		}
		for peer := range e.peers {
			if s := n.link(peer); s.Agents > 0 || s.Waiting > 0 {
				r.t.Errorf("%s keeps with %s %d agents, %d messages", n.name, peer, s.Agents, s.Waiting)
			}
		}
	})
}

// logged is one line of a log, by key.
type logged map[string]string

func (l logged) duration(key string) time.Duration {
	d, _ := time.ParseDuration(l[key])
	return d
}

// entries are a node's log lines of this message.
func (n *node) entries(message string) (list []logged) {
	lines := bufio.NewScanner(strings.NewReader(n.log.String()))
	for lines.Scan() {
		if !strings.Contains(lines.Text(), "msg="+strconv.Quote(message)) {
			continue
		}
		l := logged{}
		for _, word := range strings.Fields(lines.Text()) {
			if key, value, ok := strings.Cut(word, "="); ok {
				l[key] = value
			}
		}
		list = append(list, l)
	}
	return list
}

// wantDeadlines fails if an attempt lasted longer than it may. A node that has slept was not there to end it in time.
func (r *trouble) wantDeadlines(n *node) {
	if r.slept[n] {
		return
	}
	for _, l := range n.entries("connection closed") {
		late, lasted, handshake := false, l.duration("lasted"), l.duration("handshake")
		switch l["phase"] {
		case "candidates":
			late = lasted > 10*time.Second
		case "checking":
			late = lasted > 22*time.Second
		case "handshake":
			late = handshake > 15*time.Second || l["reason"] == "handshake_timeout" && handshake != 15*time.Second
		}
		if late {
			r.t.Errorf("%s: closed late: %v", n.name, l)
		}
	}
}

// wantNoStorm fails if a node begins attempts with a peer too often. Each of the things that happen may cause a few.
func (r *trouble) wantNoStorm(n *node) {
	const most = 20
	recent := make(map[string][]time.Time)
	for _, l := range n.entries("connection attempt") {
		at, _ := time.Parse(time.RFC3339, l["time"])
		list := append(recent[l["peer"]], at)
		if len(list) > most {
			list = list[1:]
			if d := at.Sub(list[0]); d < 20*time.Second {
				r.t.Errorf("%s: %d attempts with %s in %v until %v", n.name, most, l["peer"], d, l["time"])
			}
		}
		recent[l["peer"]] = list
	}
}
