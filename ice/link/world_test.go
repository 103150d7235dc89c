package link

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/cryptotest"
	"github.com/sluice-vpn/sluice/pipeline"
)

// The world of these tests: some nodes with links and real protocol cores, and all that is around them played, on one goroutine in
// virtual time. Nothing in it depends on the machine, so the same seed, or the same commands, give the same transcript each time.
//
// ICE is played so: two agents of one number find each other once each has the other's credentials and datagrams pass, the
// controlled side first, direct if that goes and over the relay if not.

const (
	signalLatency = 4 * time.Millisecond
	portalLatency = 5 * time.Millisecond
	controlledICE = 30 * time.Millisecond
	controllerICE = 40 * time.Millisecond
	checkEvery    = 200 * time.Millisecond // while agents do not find each other
	stunEvery     = 2 * time.Second
	stunFailed    = 11 * time.Second
)

type world struct {
	t      testing.TB
	net    *cryptotest.Net
	random *rand.Rand
	start  time.Duration
	nodes  []*node
	plans  []plan
	lines  []string // the transcript

	signaling, portal bool // they are there
	byesLost, twice   bool // byes are lost; messages come twice
	loss, reorder     float64
	direct, relay     bool
	wanted            bool            // clients want gateways without traffic
	psk               map[string]byte // told to this node instead of the others'
}

// plan is something that happens later.
type plan struct {
	at  time.Duration
	who *node // that it happens to if it is there and the same run; nil: always
	run uint64
	f   func()
}

// node is one machine, and what the portal knows of it.
type node struct {
	w        *world
	name     string
	client   bool
	machine  *cryptotest.Node
	run      uint64 // 0: it is down
	runs     uint64
	links    *Links
	peers    []*remote
	finders  []*finder // that are there
	reported crypto.PublicKey
	cut      bool // its cable
	deaf     bool // nothing that is sent to it arrives
	slept    bool // it has, so that deadlines may have passed unnoticed
	place    int  // where it is: a path that was found elsewhere is dead
}

// remote is a node's half of a peer.
type remote struct {
	*cryptotest.Remote
	node, other *node
	link        *Link
	psk         byte
	seen        int // events of Remote
	lastData    time.Duration
	got         int // packets that were counted
	path        *pipeline.Path
	places      [2]int // of both when the path was found
	due         time.Duration
	why         string
}

// finder plays ICE for one attempt.
type finder struct {
	remote *remote
	serial uint64
	number AttemptNumber
	agents []*fakeAgent
	using  *fakeAgent
	paths  pipeline.PathNumber
	heard  time.Duration
}

type fakeAgent struct {
	finder    *finder
	number    AgentNumber
	ufrag     string
	peerUfrag string
	selected  bool
	relayed   bool
}

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{
		t: t, net: cryptotest.NewNet(seed, cryptotest.Link{Latency: time.Millisecond}), random: rand.New(rand.NewPCG(seed, 3)),
		signaling: true, portal: true, direct: true, psk: map[string]byte{},
	}
	w.start = w.net.Now()
	w.net.Tap = func(d cryptotest.Datagram) bool { return w.tapped(d) }
	return w
}

func (w *world) now() time.Duration { return w.net.Now() }

// write adds a line to the transcript.
func (w *world) write(n *node, format string, args ...any) {
	at := (w.now() - w.start).Round(10 * time.Millisecond).Seconds()
	w.lines = append(w.lines, strings.TrimRight(fmt.Sprintf("%9.2f  %-7s %s", at, n.name, fmt.Sprintf(format, args...)), " "))
}

func (w *world) plan(d time.Duration, who *node, f func()) {
	p := plan{at: w.now() + d, who: who, f: f}
	if who != nil {
		p.run = who.run
	}
	i, _ := slices.BinarySearchFunc(w.plans, p.at+1, func(q plan, t time.Duration) int { return int(min(1, max(-1, q.at-t))) })
	w.plans = slices.Insert(w.plans, i, p)
}

// join adds a node and starts it.
func (w *world) join(name string, client bool) *node {
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(len(w.nodes) + 1)}), 51820)
	n := &node{w: w, name: name, client: client, machine: w.net.Join(name, addr)}
	n.machine.Verdict = n.verdict
	n.machine.Home = func(r *cryptotest.Remote, from netip.AddrPort) netip.AddrPort { return n.home(r, from) }
	w.nodes = append(w.nodes, n)
	n.boot()
	return n
}

// boot starts a program that knows nothing but its key, which it reports.
func (n *node) boot() {
	n.runs++
	n.run = n.runs
	n.links = New(Config{
		Name: n.name, Client: n.client, Task: n.task, Logger: slog.New(lines{n}), Wall: n.w.net.Wall, Random: n.w.random.Uint32,
		Signaling: func() bool { return n.w.signaling }, Reachable: func() bool { return n.w.portal && n.w.signaling },
	})
	n.links.Facts.RelaysUp = n.relays()
	n.report()
}

func (n *node) relays() int {
	if n.w.relay {
		return 1
	}
	return 0
}

// report tells the portal the node's key, and the portal tells all.
func (n *node) report() {
	n.reported = n.machine.Local.PublicKey()
	for _, o := range n.w.nodes {
		if o.run != 0 {
			n.w.plan(portalLatency, o, func() {
				if n.w.portal {
					o.apply()
				}
			})
		}
	}
}

// halt ends the program; in order: byes leave.
func (n *node) halt(inOrder bool) {
	for _, r := range slices.Clone(n.peers) {
		if inOrder {
			r.link.HandleChange(n.w.now(), pipeline.ChangeRemoved)
			r.touch()
		}
		n.machine.Local.RemovePeer(n.w.now(), r.Peer)
		r.Drain()
	}
	n.run, n.peers, n.finders, n.links = 0, nil, nil, nil
}

// rekey gives the node another key, behind the portal's back.
func (n *node) rekey() {
	key, err := crypto.GeneratePrivateKey(n.w.net)
	if err != nil {
		n.w.t.Fatal(err)
	}
	for _, r := range n.peers {
		r.change(pipeline.ChangeKeys)
		r.change(pipeline.ChangeRetry)
	}
	n.machine.Local.SetPrivateKey(n.w.now(), &key)
	for _, r := range n.peers {
		r.Drain()
		r.touch()
	}
}

// apply configures the node by what the portal says now.
func (n *node) apply() {
	for _, o := range n.w.nodes {
		if o == n || o.client == n.client || o.reported == (crypto.PublicKey{}) {
			continue
		}
		r := n.peer(o)
		if r == nil {
			r = &remote{node: n, other: o, link: n.links.Link(o.name).(*Link)}
			r.Remote = n.machine.AddKey(netip.AddrPort{}, crypto.PeerConfig{PublicKey: o.reported})
			n.peers = append(n.peers, r)
			r.link.HandleChange(n.w.now(), pipeline.ChangeUp)
		}
		if !r.Peer.PublicKey().Equal(o.reported) {
			r.change(pipeline.ChangeKeys)
			r.change(pipeline.ChangeRetry)
			n.machine.Local.RemovePeer(n.w.now(), r.Peer)
			r.Drain()
			staged := r.Staged()
			r.Remote, r.seen, r.got = n.machine.AddKey(netip.AddrPort{}, crypto.PeerConfig{PublicKey: o.reported}), 0, 0
			for range staged {
				r.Stage([]byte("data"))
			}
			r.psk = 0
		}
		psk := byte(1)
		if other, ok := n.w.psk[n.name]; ok {
			psk = other
		}
		if psk != r.psk {
			if r.psk != 0 {
				r.change(pipeline.ChangeKeys)
				r.change(pipeline.ChangeRetry)
			}
			r.psk = psk
			r.Peer.SetPresharedKey(&crypto.PresharedKey{psk})
		}
		r.link.HandlePeer(Peer{PublicKey: o.reported, Client: o.client, Wanted: n.w.wanted && n.client && o.run != 0}, o.run != 0)
		r.link.HandlePortal(n.w.now())
		r.touch()
	}
}

func (n *node) peer(o *node) *remote {
	for _, r := range n.peers {
		if r.other == o {
			return r
		}
	}
	return nil
}

// passes reports whether datagrams go from n to o, directly or over the relay.
func (w *world) passes(n, o *node, relayed bool) bool {
	return !n.cut && !o.cut && !o.deaf && n.run != 0 && o.run != 0 && !n.machine.Asleep && !o.machine.Asleep &&
		(relayed && w.relay || !relayed && w.direct)
}

// tapped reports whether a datagram of WireGuard is lost.
func (w *world) tapped(d cryptotest.Datagram) bool {
	var from, to *node
	for _, n := range w.nodes {
		switch n.machine.Addr {
		case d.From:
			from = n
		case d.To:
			to = n
		}
	}
	r := from.peer(to)
	if r == nil {
		return true
	}
	relayed := r.path != nil && r.path.Relayed
	return !w.passes(from, to, relayed) || r.path != nil && r.places != [2]int{from.place, to.place}
}

// home keeps a peer where its link says, or where it is first heard from.
func (n *node) home(c *cryptotest.Remote, from netip.AddrPort) netip.AddrPort {
	for _, r := range n.peers {
		if r.Remote == c && (r.path != nil || !r.link.alive()) {
			return c.Endpoint
		}
	}
	return from
}

// verdict tells a link what became of a handshake message.
func (n *node) verdict(from netip.AddrPort, v crypto.Verdict) {
	for _, r := range n.peers {
		if v.Peer == r.Peer || v.Peer == nil && r.path != nil && r.Endpoint == from {
			r.link.HandleVerdict(n.w.now(), v)
		}
	}
}

// change tells the link of a change.
func (r *remote) change(c pipeline.Change) {
	r.link.HandleChange(r.node.w.now(), c)
	r.touch()
}

// send is a packet to the peer.
func (r *remote) send() {
	now := r.node.w.now()
	r.lastData = now
	if k := r.Peer.Sending(); k != nil && k.Usable(now) {
		r.Send([]byte("data"))
	} else {
		if r.link.Stance(now).Reach == pipeline.ReachStage && r.Staged() < 100 {
			r.Stage([]byte("data"))
		}
		r.link.HandleWant(now)
	}
	r.touch()
}

// touch lets the link draw its conclusions, as control does.
func (r *remote) touch() {
	now := r.node.w.now()
	for again := true; again; {
		again = false
		r.Drain()
		for ; r.seen < len(r.Events); r.seen++ {
			if e := r.Events[r.seen]; e.Kind == crypto.SeriesExpired {
				r.link.HandleExpired(now, e.Expired)
			}
		}
		v := pipeline.View{Tally: r.Peer.Tally(), Activity: r.Activity, LastData: max(r.lastData, r.Activity.LastDataReceived), Path: r.path}
		v.SeriesSince, _, v.SeriesRunning = r.Peer.Series()
		if k := r.Peer.Sending(); k != nil && k.Usable(now) {
			v.Usable, v.Created = true, k.Created
		}
		r.link.HandleView(now, v)
		for o, ok := r.link.Poll(); ok; o, ok = r.link.Poll() {
			r.execute(now, o)
			again = true
		}
	}
	if r.due, r.why = r.link.NextTimeout(now); r.due != 0 && r.due <= now {
		r.node.w.t.Fatalf("%s: %s was due %v ago", r.node.name, r.why, now-r.due)
	}
	r.check()
}

func (r *remote) execute(now time.Duration, o pipeline.Order) {
	switch o.Kind {
	case pipeline.OrderPath:
		if r.path = o.Path; o.Path == nil {
			r.Endpoint = netip.AddrPort{}
			return
		}
		r.Endpoint = r.other.machine.Addr
		r.Peer.Retry(now)
	case pipeline.OrderForget:
		r.Peer.Clear(now)
		r.Drain()
		r.Activity, r.lastData, r.path, r.Endpoint = crypto.Activity{}, 0, nil, netip.AddrPort{}
	case pipeline.OrderPurge:
		r.Purge()
	case pipeline.OrderHandshake:
		r.Peer.SetHandshakeLifetime(o.Lifetime, true)
		if !o.Initiate {
			return
		}
		fallthrough
	case pipeline.OrderSession:
		if k := r.Peer.Sending(); k == nil || !k.Usable(now) || k.RekeyOnSend(now) {
			r.Peer.Want(now)
		}
	case pipeline.OrderKeepalive:
		r.Send(nil)
	}
}

// check watches what must always hold.
func (r *remote) check() {
	c := r.link.connection
	if c == nil {
		return
	}
	t, now := r.node.w.t, r.node.w.now()
	switch lasted := now - c.began; {
	case c.over():
		if len(c.list()) > 0 || r.path != nil || r.Peer.Sending() != nil {
			t.Fatalf("%s keeps something of %s: %d agents, path %v, session %v", r.node.name, r.other.name, len(c.list()), r.path, r.Peer.Sending())
		}
	case c.phase == PhaseCandidates && lasted > candidateTimeout, c.phase == PhaseChecking && lasted > candidateTimeout+iceTimeout,
		c.phase == PhaseHandshake && now > c.handshake.deadline():
		t.Fatalf("%s with %s: %v in phase %v", r.node.name, r.other.name, lasted, c.phase)
	}
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	end := w.now() + d
	for {
		w.act()
		at := w.next(end)
		w.net.RunUntil(at, func() bool {
			w.touch()
			return w.next(end) < at
		})
		if w.now() >= end && w.next(end+1) > end {
			return
		}
	}
}

// next is when something of ours happens, end at the latest.
func (w *world) next(end time.Duration) time.Duration {
	if len(w.plans) > 0 {
		end = min(end, w.plans[0].at)
	}
	for _, n := range w.nodes {
		for _, r := range n.peers {
			if r.due != 0 && !n.machine.Asleep {
				end = min(end, max(r.due, w.now()))
			}
		}
	}
	return end
}

// act does what is due.
func (w *world) act() {
	for len(w.plans) > 0 && w.plans[0].at <= w.now() {
		p := w.plans[0]
		w.plans = w.plans[1:]
		switch {
		case p.who != nil && (p.run == 0 || p.who.run != p.run):
		case p.who != nil && p.who.machine.Asleep: // what a node has under way goes on when it wakes
			w.plan(100*time.Millisecond, p.who, p.f)
		default:
			p.f()
		}
	}
	for _, n := range w.nodes {
		for _, r := range n.peers {
			if r.due != 0 && r.due <= w.now() && !n.machine.Asleep {
				r.link.HandleTimeout(w.now())
				r.touch()
			}
		}
	}
}

func (w *world) touch() {
	for _, n := range w.nodes {
		for _, r := range n.peers {
			if !n.machine.Asleep {
				r.touch()
			}
		}
	}
}

// lines writes a link's log to the transcript.
type lines struct{ node *node }

func (l lines) Enabled(context.Context, slog.Level) bool { return true }
func (l lines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l lines) WithGroup(string) slog.Handler            { return l }

func (l lines) Handle(_ context.Context, r slog.Record) error {
	var b bytes.Buffer
	h := slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		switch {
		case a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey || a.Key == "endpoint":
			return slog.Attr{}
		case a.Value.Kind() == slog.KindDuration:
			return slog.String(a.Key, a.Value.Duration().Round(10*time.Millisecond).String())
		}
		return a
	}})
	if err := h.Handle(context.Background(), r); err != nil {
		return err
	}
	text := strings.TrimSpace(b.String())
	if len(l.node.w.nodes) == 2 { // there is only one peer
		_, text, _ = strings.Cut(text, " ")
	}
	if r.Message == "deadline" && slices.ContainsFunc([]string{"=keepalive", "=send", "=quiet"}, func(s string) bool { return strings.HasSuffix(text, s) }) {
		return nil // there are many, and what follows says as much
	}
	l.node.w.write(l.node, "%s %s", r.Message, text)
	return nil
}
