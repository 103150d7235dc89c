package link

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/pipeline"
)

// TestTrouble: whatever happens, and in whatever order, no attempt lasts longer than its deadlines (see remote.check), there is no storm,
// and when all is well again all are connected soon with keys that agree, and nothing is left of what was. The same seed gives the same
// transcript. LINK_SEEDS=FROM-TO runs other seeds than the first few; one that fails writes what happened.
func TestTrouble(t *testing.T) {
	from, to := uint64(0), uint64(seeds)
	if a, b, ok := strings.Cut(os.Getenv("LINK_SEEDS"), "-"); ok {
		from, _ = strconv.ParseUint(a, 10, 64)
		to, _ = strconv.ParseUint(b, 10, 64)
	}
	for seed := from; seed < to; seed++ {
		r := newTrouble(t, seed)
		if r.run(); t.Failed() {
			t.Fatalf("seed %d:\n%s", seed, strings.Join(r.lines, "\n"))
		}
		if seed%10 != 0 {
			continue
		}
		again := newTrouble(t, seed)
		again.run()
		wantSame(t, strings.Join(again.lines, "\n"), strings.Join(r.lines, "\n"))
	}
}

// TestTroubleIsTheSame: a transcript does not depend on the machine, the race detector or the day. What is kept of each is its sum;
// -rewrite writes them anew.
func TestTroubleIsTheSame(t *testing.T) {
	const file = "testdata/trouble.txt"
	var got strings.Builder
	for seed := range uint64(3) {
		r := newTrouble(t, seed)
		r.run()
		fmt.Fprintf(&got, "seed %d: %d lines, SHA-256 %x\n", seed, len(r.lines), sha256.Sum256([]byte(strings.Join(r.lines, "\n"))))
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	wantSame(t, got.String(), string(want))
}

// trouble is two gateways and three clients, and what happens to them.
type trouble struct {
	*world
	wrong map[*node]bool // has another key than the portal knows
}

func newTrouble(t testing.TB, seed uint64) *trouble {
	r := &trouble{world: newWorld(t, seed), wrong: map[*node]bool{}}
	r.loss, r.reorder, r.wanted = 0.1, 0.2, true
	for _, name := range []string{"east", "west"} {
		r.join(name, false)
	}
	for _, name := range []string{"ann", "bob", "cyd"} {
		r.join(name, true)
	}
	return r
}

func (r *trouble) run() {
	for range 50 {
		r.happen()
		r.world.run(time.Duration(r.random.Int64N(int64(4 * time.Second))))
	}
	r.heal()
	deadline := r.now() + 3*time.Minute
	for !r.flows() || !r.connected() { // the path of an idle connection may have died unnoticed, which costs the first packets
		if r.now() > deadline {
			r.state()
			r.t.Errorf("not all are connected")
			return
		}
	}
	before := r.count("connection attempt")
	r.world.run(2 * time.Minute)
	if after := r.count("connection attempt"); after != before {
		r.t.Errorf("%d attempts while all is well", after-before)
	}
	for range 40 { // a relayed one may just be looking for a direct path
		if r.agents() == 0 {
			break
		}
		r.world.run(time.Second)
	}
	r.wantNothingLeft()
	r.wantNoStorm()
}

// agents are how many there are.
func (w *world) agents() (n int) {
	for _, node := range w.nodes {
		for _, p := range node.peers {
			n += p.link.Status(w.now()).Agents
		}
	}
	return n
}

// count is how many lines have this text in them.
func (w *world) count(text string) (n int) {
	for _, line := range w.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// happen lets one thing happen.
func (r *trouble) happen() {
	n, gate := r.nodes[r.random.IntN(5)], r.nodes[r.random.IntN(2)]
	on := r.random.IntN(2) == 0
	is := map[bool]string{true: "is there", false: "is gone"}[on]
	choices := []string{
		n.name + " moves", "direct " + is, "relay " + is, "portal " + is, "signaling " + is, "both want", n.name + " sends", n.name + " sends",
		n.name + " sends 30", n.name + map[bool]string{true: " cable is joined", false: " cable is cut"}[on],
		n.name + map[bool]string{true: " hears again", false: " hears nothing"}[on], "desync", "psk", "restart", "sleep",
		n.name + map[bool]string{true: " goes up", false: " goes down"}[on], "close", gate.name + " closes", "keys agree",
	}
	what := choices[r.random.IntN(len(choices))]
	if n.run == 0 { // all that can happen to it
		what = n.name + " starts"
	}
	r.write(n, "(%s, %v)", what, on)
	switch what {
	case "desync":
		n.rekey()
	case "psk":
		r.psk[n.name] = byte(1 + r.random.IntN(2))
		r.newsOfPortal()
	case "restart":
		n.halt(on)
	case "sleep":
		d := time.Duration(r.random.Int64N(int64(map[bool]time.Duration{true: time.Minute, false: time.Hour}[on])))
		r.must(n.name + " sleeps for " + d.Round(time.Second).String())
	case "close":
		reason := []CloseReason{CloseICEDisconnected, CloseReplaced, CloseShutdown}[r.random.IntN(3)]
		for _, p := range n.peers {
			p.link.Close(reason)
			p.touch()
		}
	default:
		if what == n.name+" starts" || n.run != 0 && (gate.run != 0 || !strings.HasPrefix(what, gate.name)) {
			r.must(what)
		}
	}
}

func (r *trouble) must(command string) {
	if err := r.command(command); err != nil {
		r.t.Fatal(err)
	}
}

// heal ends all trouble.
func (r *trouble) heal() {
	r.direct, r.portal, r.signaling, r.loss, r.reorder, r.psk = true, true, true, 0, 0, map[string]byte{}
	for _, n := range r.nodes {
		n.cut, n.deaf, n.machine.Asleep = false, false, false
		if n.run == 0 {
			n.boot()
		}
		for _, p := range n.peers {
			p.change(pipeline.ChangeUp)
		}
		n.report()
	}
	r.world.run(time.Second)
	r.newsOfPortal()
}

// connected reports whether each client has a session with each gateway, of one attempt.
func (r *trouble) connected() bool {
	for _, n := range r.nodes {
		for _, o := range r.nodes {
			if n.client == o.client {
				continue
			}
			p, q := n.peer(o), o.peer(n)
			if p == nil || q == nil {
				return false
			}
			s, k := p.link.Status(r.now()), q.link.Status(r.now())
			if s.Up == 0 || k.Up == 0 || s.Attempt != k.Attempt || !p.Peer.PublicKey().Equal(o.machine.Local.PublicKey()) {
				return false
			}
		}
	}
	return true
}

// flows sends a packet each way, and reports whether all have come a second later.
func (r *trouble) flows() bool {
	all := true
	before := map[*remote]int{}
	for _, n := range r.nodes {
		for _, p := range n.peers {
			before[p] = len(p.Received)
			p.send()
		}
	}
	r.world.run(time.Second)
	for p, n := range before { // they are only looked at
		all = all && len(p.Received) > n
	}
	return all
}

// wantNothingLeft fails if an idle node keeps anything that it does not need.
func (r *trouble) wantNothingLeft() {
	for _, n := range r.nodes {
		if len(n.finders) != len(n.peers) {
			r.t.Errorf("%s has %d finders for %d peers", n.name, len(n.finders), len(n.peers))
		}
		for _, p := range n.peers {
			if s := p.link.Status(r.now()); s.Agents > 0 || s.Waiting > 0 || s.Wanted {
				r.t.Errorf("%s keeps with %s %d agents, %d messages, wanted %v", n.name, p.other.name, s.Agents, s.Waiting, s.Wanted)
			}
		}
	}
}

// wantNoStorm fails if a node begins attempts with a peer too often. Each of the things that happen may cause a few.
func (r *trouble) wantNoStorm() {
	const most, within = 20, 20
	recent := map[string][]float64{}
	for _, line := range r.lines {
		if !strings.Contains(line, "connection attempt") {
			continue
		}
		fields := strings.Fields(line)
		at, err := strconv.ParseFloat(fields[0], 64)
		if err != nil {
			r.t.Fatal(err)
		}
		who := fmt.Sprint(fields[1], fields[4])
		list := append(recent[who], at)
		if len(list) > most {
			if list = list[1:]; at-list[0] < within {
				r.t.Errorf("%s: %d attempts in %v s until %v", who, most, at-list[0], at)
			}
		}
		recent[who] = list
	}
}
