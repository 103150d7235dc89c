package portal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
)

const patience = 60 * time.Second

// until polls.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// crowd speaks for many nodes over the portal's own connection, as the broker would let them.
type crowd struct {
	*Portal
	answers *nats.Subscription
}

func newCrowd(t *testing.T, p *Portal) *crowd {
	t.Helper()
	s, err := p.conn.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetPendingLimits(-1, -1); err != nil {
		t.Fatal(err)
	}
	return &crowd{p, s}
}

func (c *crowd) ask(t *testing.T, name string, r protocol.SyncRequest) {
	t.Helper()
	text, err := json.Marshal(signed(r))
	if err != nil {
		t.Fatal(err)
	}
	c.publish(t, name, signal.InboxPrefix(name)+".s.1", text)
}

func (c *crowd) publish(t *testing.T, name, reply string, data []byte) {
	t.Helper()
	m := &nats.Msg{Subject: signal.PortalSubject(name, protocol.Verb), Reply: reply, Data: data}
	if err := c.conn.PublishMsg(m); err != nil {
		t.Fatal(err)
	}
}

// next returns the next answer and whose it is.
func (c *crowd) next(t *testing.T) (name string, s protocol.Sync) {
	t.Helper()
	for {
		m, err := c.answers.NextMsg(patience)
		if err != nil {
			t.Fatal(err)
		}
		inbox, ok := strings.CutPrefix(m.Subject, signal.InboxPrefix(""))
		if !ok {
			continue
		}
		if s, err = protocol.DecodeSync(m.Data); err != nil {
			t.Fatal(err)
		}
		name, _, _ = strings.Cut(inbox, ".")
		return name, s
	}
}

func (c *crowd) holding() int { return len(c.waiting(func(*hold) bool { return true })) }

// Two programs with one token: the newer one is served, the older one is told, and serves again when the other has gone.
func TestTwiceUsed(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	gate, token := sign(t, add(t, p, "gate", protocol.Gateway)), add(t, p, "laptop", protocol.Client)
	gateKey, oldKey, newKey := key(t), key(t), key(t)
	older := sign(t, token)
	view := ask(t, older, protocol.SyncRequest{PublicKey: oldKey})
	told := make(chan protocol.Sync, 1)
	go func() { // waits until it is displaced, whatever else there is to tell meanwhile
		for s := view; ; {
			if s = ask(t, older, protocol.SyncRequest{PublicKey: oldKey, Known: s.Revision}); s.Refused != "" || t.Context().Err() != nil {
				told <- s
				return
			}
		}
	}()
	newer := sign(t, token)
	if s := ask(t, newer, protocol.SyncRequest{PublicKey: newKey}); s.Refused != "" {
		t.Fatalf("the newer one is refused: %s", s.Refused)
	}
	if s := <-told; !s.Displaced || !strings.Contains(s.Refused, "signed in later") || strings.Contains(s.Refused, "\n") {
		t.Errorf("the older one is told %q", s.Refused)
	}
	before := p.counters.Requests.Load()
	for range 3 {
		if s := ask(t, older, protocol.SyncRequest{PublicKey: oldKey}); s.Refused == "" {
			t.Error("the older one is served beside the newer one")
		}
	}
	if s := ask(t, gate, protocol.SyncRequest{PublicKey: gateKey}); s.Peers[0].PublicKey != newKey {
		t.Error("the gateway does not have the newer one's key")
	}
	if n := p.counters.Requests.Load() - before; n != 4 {
		t.Errorf("%d requests: somebody takes turns", n)
	}
	if n := p.Nodes(); n[1].Connections != 2 {
		t.Errorf("%d connections are listed", n[1].Connections)
	}
	newer.Close()
	until(t, "the older one is served again", func() bool {
		return ask(t, older, protocol.SyncRequest{PublicKey: oldKey}).Refused == ""
	})
}

// An answer, which holds keys, goes nowhere but to the node's own inbox.
func TestAnswerElsewhere(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	add(t, p, "evil", protocol.Client)
	add(t, p, "gate", protocol.Gateway)
	c := newCrowd(t, p)
	text, err := json.Marshal(signed(protocol.SyncRequest{PublicKey: key(t)}))
	if err != nil {
		t.Fatal(err)
	}
	bad := []string{
		"", "sig.gate.evil", "_INBOX_gate.x.1", "_INBOX_evi.x", "_INBOX_evil", "_INBOX_evilx.1", "_INBOX_evil-2.x", "portal.evil.sync", "x",
		"_INBOX_evil." + strings.Repeat("x", 200),
	}
	for _, reply := range bad {
		c.publish(t, "evil", reply, text)
	}
	c.publish(t, "evil", "_INBOX_evil.x.1", text)
	if name, s := c.next(t); name != "evil" || s.Refused != "" {
		t.Errorf("%s: %s", name, s.Refused)
	}
	if n := p.counters.Misaddressed.Load(); n != uint64(len(bad)) {
		t.Errorf("%d of %d were dropped", n, len(bad))
	}
	if r := p.state.list()[0]; r.Name != "evil" || r.PublicKey == (protocol.Key{}) {
		t.Errorf("%+v", r)
	}
}

// Whatever a node sends, it gets one line, and no other node is hurt.
func TestHostileRequests(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	add(t, p, "evil", protocol.Client)
	c := newCrowd(t, p)
	k := key(t)
	text, _ := k.MarshalText()
	for _, data := range []string{
		"", "\x00", "null", "[]", "{", `{}`, `{"public_key":""}`, `{"public_key":"` + string(text) + `"}{}`, strings.Repeat("[", 16000),
		`{"public_key":"` + string(text) + `","routes":["10.0.0.0/8` + "\\n" + `"]}`, `{"public_key":"` + string(text) + `","program":"` + strings.Repeat("x", 300) + `"}`,
		`{"public_key":"` + string(text) + `","program":"\u001b[2J"}`, `{"public_key":"` + string(text) + `","x":"` + strings.Repeat("x", 20_000) + `"}`,
		`{"public_key":"` + string(text) + `","routes":[` + strings.Repeat(`"10.0.0.0/8",`, 64) + `"10.0.0.0/8"]}`, strings.Repeat("x", 1<<20),
	} {
		c.publish(t, "evil", "_INBOX_evil.x.1", []byte(data))
		if _, s := c.next(t); s.Refused == "" { // DecodeSync has checked that it is one line
			t.Errorf("%.60q is taken", data)
		}
	}
	if r := p.state.list()[0]; r.PublicKey != (protocol.Key{}) || len(r.Routes) > 0 {
		t.Errorf("the state has %+v", r)
	}
	if n := p.Nodes(); n[0].Refused == "" || n[0].Seen.IsZero() {
		t.Errorf("the operator is told %+v", n)
	}
}

// TestRefusalTold: a node that must change something is told what; only what is no request of ours is "not understood".
func TestRefusalTold(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	add(t, p, "gate", protocol.Gateway)
	c := newCrowd(t, p)
	k := key(t)
	text, _ := k.MarshalText()
	routes := func(n int) string {
		return `{"public_key":"` + string(text) + `","routes":[` + strings.Repeat(`"10.0.0.0/8",`, n-1) + `"10.0.0.0/8"]}`
	}
	for data, want := range map[string]string{
		routes(65):    "65 routes are more than the 64 that one gateway may offer",
		routes(900):   "900 routes are more than the 64",
		routes(5_000): "offer fewer routes",
		`{"public_key":"` + string(text) + `","routes":["fe80::/64"]}`: "fe80::/64 has a meaning on one machine or link only",
		`{}`:   "no public key",
		`[]`:   "does not understand this program",
		"\x00": "update the older of the two",
	} {
		c.publish(t, "gate", "_INBOX_gate.x.1", []byte(data))
		_, s := c.next(t)
		understood := !strings.Contains(want, "understand") && !strings.Contains(want, "update")
		if !strings.Contains(s.Refused, want) || understood == strings.Contains(s.Refused, "understand") {
			t.Errorf("%.60q is told %q, want %q in it", data, s.Refused, want)
		}
		if n := p.Nodes(); n[0].Refused != s.Refused {
			t.Errorf("the operator is told %q, the node %q", n[0].Refused, s.Refused)
		}
	}
}

// A node that floods the portal is dropped; others are served.
func TestFlood(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	add(t, p, "evil", protocol.Client)
	good := sign(t, add(t, p, "good", protocol.Client))
	k := key(t)
	ask(t, good, protocol.SyncRequest{PublicKey: k})
	c := newCrowd(t, p)
	for i := range 20_000 {
		c.ask(t, "evil", protocol.SyncRequest{PublicKey: protocol.Key{1, byte(i), byte(i >> 8)}})
	}
	ask(t, good, protocol.SyncRequest{PublicKey: k})
	until(t, "the flood is over", func() bool { return p.counters.Requests.Load() >= 20_002 })
	if n := p.counters.Limited.Load(); n < 10_000 {
		t.Errorf("%d were dropped", n)
	}
	if p.counters.Refused.Load() == 0 {
		t.Error("a node may change its key as often as it asks")
	}
}

// A node that goes on asking is disconnected.
func TestFloodEnds(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	evil := add(t, p, "evil", protocol.Client)
	conn, err := nats.Connect("tls://"+p.Addr().String(), nats.Token(evil.Credential()), nats.Secure(evil.SignalConfig().TLS),
		nats.TLSHandshakeFirst(), nats.NoReconnect(), nats.Timeout(patience),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for sent := 0; !conn.IsClosed(); sent++ {
		if sent > 10_000_000 {
			t.Fatal("it may go on for ever")
		}
		_ = conn.PublishRequest(signal.PortalSubject("evil", protocol.Verb), signal.InboxPrefix("evil")+".s.1", nil)
	}
	until(t, "what had come is through", func() bool {
		before := p.counters.Requests.Load()
		time.Sleep(200 * time.Millisecond)
		return p.counters.Requests.Load() == before
	})
	ask(t, sign(t, evil), protocol.SyncRequest{PublicKey: key(t)}) // he may come back
}

// A node that changes its key again and again is told to wait, and its peers are not.
func TestChangesTooOften(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	bus := sign(t, add(t, p, "laptop", protocol.Client))
	refused := 0
	for range 3 * changesAtOnce {
		if s := ask(t, bus, protocol.SyncRequest{PublicKey: key(t)}); strings.Contains(s.Refused, "too often") {
			refused++
		}
	}
	if refused == 0 {
		t.Error("no change was refused")
	}
	k := p.state.list()[0].PublicKey
	if s := ask(t, bus, protocol.SyncRequest{PublicKey: k}); s.Refused != "" {
		t.Errorf("the key that it has: %s", s.Refused)
	}
}

// Of one node, one request is held; the one before is answered.
func TestHeldBound(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	add(t, p, "laptop", protocol.Client)
	c := newCrowd(t, p)
	k := key(t)
	c.ask(t, "laptop", protocol.SyncRequest{PublicKey: k})
	_, view := c.next(t)
	const many = 30
	for range many {
		c.ask(t, "laptop", protocol.SyncRequest{PublicKey: k, Known: view.Revision})
	}
	for range many - 1 {
		if _, s := c.next(t); s.Revision != view.Revision {
			t.Errorf("%+v", s)
		}
	}
	if n := c.holding(); n != 1 {
		t.Errorf("%d requests are held", n)
	}
	p.mu.Lock()
	v := p.visitors["laptop"]
	over := *v.held // which is frozen
	over.until = time.Now()
	v.held = &over // as after SyncHold
	p.mu.Unlock()
	p.tell(func(*hold) bool { return true })
	if _, s := c.next(t); s.Revision != view.Revision || c.holding() != 0 {
		t.Errorf("revision %d, %d held", s.Revision, c.holding())
	}
}

// 500 nodes: a change is told to those whom it concerns and to nobody else, once.
func TestManyNodes(t *testing.T) {
	gateways, clients := 50, 450
	if testing.Short() || race { // which makes each answer ten times as dear
		gateways, clients = 10, 50
	}
	p := open(t, filepath.Join(t.TempDir(), "state"))
	keys := map[string]protocol.Key{}
	for i := range gateways + clients {
		name, role := fmt.Sprintf("g%d", i), protocol.Gateway
		if i >= gateways {
			name, role = fmt.Sprintf("c%d", i), protocol.Client
		}
		if _, err := p.state.add(t.Context(), NewNode{Name: name, Role: role}); err != nil {
			t.Fatal(err)
		}
		keys[name] = key(t)
	}
	c := newCrowd(t, p)
	known := map[string]uint64{}
	for name, k := range keys {
		c.ask(t, name, protocol.SyncRequest{PublicKey: k})
	}
	for len(known) < len(keys) || c.holding() < len(keys) {
		name, s := c.next(t)
		want := gateways
		if s.Role == protocol.Gateway {
			want = clients
		}
		if s.Refused != "" || len(s.Peers) != want {
			t.Fatalf("%s: %q, %d peers", name, s.Refused, len(s.Peers))
		}
		known[name] = s.Revision
		c.ask(t, name, protocol.SyncRequest{PublicKey: keys[name], Known: s.Revision})
		if len(known) == len(keys) {
			// Those that asked first hear of the others; after that it is quiet.
			c.drain(t, func() bool { return c.holding() == len(keys) }, keys, known)
		}
	}
	keys["g0"] = key(t)
	c.ask(t, "g0", protocol.SyncRequest{PublicKey: keys["g0"], Known: known["g0"]})
	heard := map[string]bool{}
	for len(heard) < clients+1 { // and g0's older request
		name, s := c.next(t)
		switch again := s.Revision == known[name]; {
		case again && (name != "g0" || heard[name]): // a slow machine: it was held for SyncHold
			c.ask(t, name, protocol.SyncRequest{PublicKey: keys[name], Known: s.Revision})
		case heard[name] || name != "g0" && s.Role != protocol.Client:
			t.Fatalf("%s was told %d after %d", name, s.Revision, known[name])
		default:
			heard[name] = true
		}
	}
	until(t, "the requests of the gateways are held, and no others", func() bool { return c.holding() == gateways })
}

// drain answers answers with the next request until all is quiet.
func (c *crowd) drain(t *testing.T, quiet func() bool, keys map[string]protocol.Key, known map[string]uint64) {
	t.Helper()
	for deadline := time.Now().Add(2 * patience); ; {
		m, err := c.answers.NextMsg(100 * time.Millisecond)
		switch {
		case errors.Is(err, nats.ErrTimeout) && quiet():
			return
		case errors.Is(err, nats.ErrTimeout) && time.Now().Before(deadline):
			continue
		case err != nil:
			t.Fatal(err)
		}
		inbox, ok := strings.CutPrefix(m.Subject, signal.InboxPrefix(""))
		if !ok {
			continue
		}
		s, err := protocol.DecodeSync(m.Data)
		if err != nil || s.Refused != "" {
			t.Fatalf("%v, %s", err, s.Refused)
		}
		name, _, _ := strings.Cut(inbox, ".")
		known[name] = s.Revision
		c.ask(t, name, protocol.SyncRequest{PublicKey: keys[name], Known: s.Revision})
	}
}

// A new node that may meet many costs no more writes than one that may meet few, so a slow disk holds nobody up.
func TestNewNodeAmongMany(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	p.state.mu.Lock()
	for i := range 1000 {
		name := fmt.Sprintf("c%d", i)
		p.state.nodes[name] = &record{Name: name, Role: protocol.Client, Index: uint32(i + 2), KeyHash: hashKey([32]byte{byte(i)})}
	}
	p.state.mu.Unlock()
	gate := sign(t, add(t, p, "gate", protocol.Gateway))
	writes := &counting{store: p.state.kv}
	p.state.mu.Lock()
	p.state.kv = writes
	p.state.mu.Unlock()
	s := ask(t, gate, protocol.SyncRequest{PublicKey: key(t)})
	if s.Refused != "" || len(s.Peers) != 1000 {
		t.Fatalf("refused %q, %d peers", s.Refused, len(s.Peers))
	}
	p.state.mu.Lock()
	defer p.state.mu.Unlock()
	if writes.n != 1 { // its key
		t.Errorf("%d writes", writes.n)
	}
	keys := map[protocol.Key]bool{}
	for _, peer := range s.Peers {
		keys[peer.PresharedKey] = true
	}
	if len(keys) != 1000 || keys[protocol.Key{}] {
		t.Errorf("%d preshared keys", len(keys))
	}
}

// counting counts writes. Guarded by state.mu.
type counting struct {
	store
	n int
}

func (c *counting) write(ctx context.Context, key string, value []byte, after uint64, own bool) (uint64, error) {
	c.n++
	return c.store.write(ctx, key, value, after, own)
}

// What no answer has room for is said, instead of an answer that never comes.
func TestTooMuchToAnswer(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	add(t, p, "laptop", protocol.Client)
	p.state.mu.Lock()
	for i := range 1500 {
		r := &record{Name: fmt.Sprintf("g%d", i), Role: protocol.Gateway, Index: uint32(i + 2)}
		for j := range protocol.MaxRoutes {
			r.Granted = append(r.Granted, netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0xaa, 0xbb, byte(i >> 8), byte(i), 0xcc, byte(j), 0, 1}), 96))
		}
		p.state.nodes[r.Name] = r
	}
	p.state.mu.Unlock()
	if s := p.view("laptop", netip.Addr{}); !strings.Contains(s.Refused, "-allow") || s.Validate() != nil {
		t.Errorf("refused %q", s.Refused)
	}
}

func TestLatest(t *testing.T) {
	var v visitor
	for i, step := range []struct {
		session     string
		connections int
		want        bool
	}{
		{"a", 1, true}, {"a", 2, true}, {"b", 2, true}, {"a", 2, false}, {"b", 2, true}, {"c", 3, true}, {"b", 3, false}, {"a", 3, false},
		{"a", 1, true}, {"c", 2, false}, {"b", 1, true},
	} {
		if got := v.latest(step.session, step.connections); got != step.want {
			t.Errorf("step %d, %s of %d: %v", i, step.session, step.connections, got)
		}
	}
	for i := range 100 {
		v.latest(fmt.Sprint(i), 2)
	}
	if len(v.older) > maxOlder {
		t.Errorf("%d sessions are kept", len(v.older))
	}
}
