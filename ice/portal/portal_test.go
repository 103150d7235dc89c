package portal

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/relay"
	"github.com/sluice-vpn/sluice/ice/signal"
)

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// open starts a portal on loopback, without nodes if folder is new.
func open(t *testing.T, folder string) *Portal {
	t.Helper()
	p, err := Start(Config{
		Folder: folder, Public: "127.0.0.1", Listen: loopback, Relay: relay.Config{Listen: []netip.AddrPort{loopback}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// sign signs a node in.
func sign(t *testing.T, token protocol.Token) *signal.Bus {
	t.Helper()
	parsed, err := protocol.ParseToken(token.Encode() + "\n")
	if err != nil || parsed.Encode() != token.Encode() {
		t.Fatalf("the token does not survive: %v", err)
	}
	cfg := parsed.SignalConfig()
	cfg.Filter.AllowLoopback = true
	bus, err := signal.Connect(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bus.Close() })
	return bus
}

func add(t *testing.T, p *Portal, name string, role protocol.Role, allow ...string) protocol.Token {
	t.Helper()
	token, err := p.AddNode(t.Context(), NewNode{Name: name, Role: role, Allow: allow})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func key(t *testing.T) (k protocol.Key) {
	t.Helper()
	rand.Read(k[:])
	return k
}

// signed is r with an identity, if it has none.
func signed(r protocol.SyncRequest) protocol.SyncRequest {
	if r.Identity == (protocol.Identity{}) {
		r.Identity, r.Signature = protocol.Identity{1}, protocol.Signature{1}
	}
	return r
}

func ask(t *testing.T, bus *signal.Bus, r protocol.SyncRequest) protocol.Sync {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	r = signed(r)
	for {
		s, err := protocol.Ask(ctx, bus, r)
		if err == nil {
			return s
		}
		if !errors.Is(err, signal.ErrDown) || ctx.Err() != nil { // down: it got other permissions meanwhile
			t.Fatal(err)
		}
	}
}

// Two nodes see one another's keys, share a preshared key that no third node gets, and hear of changes while they wait.
func TestSync(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	gate, laptop := sign(t, add(t, p, "gate", protocol.Gateway)), sign(t, add(t, p, "laptop", protocol.Client))
	routes := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}
	gateKey, laptopKey := key(t), key(t)
	ask(t, gate, protocol.SyncRequest{PublicKey: gateKey, Routes: routes})
	view := ask(t, laptop, protocol.SyncRequest{PublicKey: laptopKey})
	if len(view.Peers) != 1 || view.Peers[0].PublicKey != gateKey || view.Name != "laptop" || view.Role != protocol.Client {
		t.Fatalf("view %+v", view)
	}
	want := []netip.Prefix{netip.MustParsePrefix("100.64.0.1/32"), netip.MustParsePrefix("fd00:2021:1111::1/128"), routes[0]}
	if !slices.Equal(view.Peers[0].AllowedIPs, want) {
		t.Errorf("allowed IPs %v, want %v", view.Peers[0].AllowedIPs, want)
	}
	deadline := time.Now().Add(20 * time.Second)
	for len(view.Relays) == 0 || !view.Peers[0].Online {
		if time.Now().After(deadline) {
			t.Fatalf("no relay, or the peer is not online: %+v", view)
		}
		view = ask(t, laptop, protocol.SyncRequest{PublicKey: laptopKey, Known: view.Revision})
	}
	other := ask(t, gate, protocol.SyncRequest{PublicKey: gateKey, Routes: routes})
	if other.Peers[0].PresharedKey != view.Peers[0].PresharedKey || other.Peers[0].PresharedKey == (protocol.Key{}) {
		t.Error("the two have no preshared key, or different ones")
	}
	if len(other.Peers[0].AllowedIPs) != 2 {
		t.Errorf("the client has %v", other.Peers[0].AllowedIPs)
	}
	told := make(chan protocol.Sync, 1)
	go func() { told <- ask(t, laptop, protocol.SyncRequest{PublicKey: laptopKey, Known: view.Revision}) }()
	gateKey = key(t)
	time.Sleep(100 * time.Millisecond) // either way the answer must come; so the request mostly waits
	begin := time.Now()
	ask(t, gate, protocol.SyncRequest{PublicKey: gateKey, Routes: routes})
	select {
	case s := <-told:
		if s.Peers[0].PublicKey != gateKey || s.Revision == view.Revision {
			t.Errorf("told %+v", s)
		}
		if waited := time.Since(begin); waited > 5*time.Second {
			t.Errorf("told after %v", waited)
		}
	case <-time.After(30 * time.Second):
		t.Error("a change of key was not told")
	}
}

// What is wrong with a report is said in one line, and changes nothing.
func TestRefusals(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	g1, g2, c := sign(t, add(t, p, "g1", protocol.Gateway)), sign(t, add(t, p, "g2", protocol.Gateway)), sign(t, add(t, p, "c", protocol.Client))
	k := key(t)
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	if s := ask(t, g1, protocol.SyncRequest{PublicKey: k, Routes: prefixes("10.0.0.0/16", "0.0.0.0/0")}); s.Refused != "" {
		t.Fatal(s.Refused)
	}
	for _, tt := range []struct {
		bus  *signal.Bus
		r    protocol.SyncRequest
		want string
	}{
		{g2, protocol.SyncRequest{PublicKey: k}, "same public key"},
		{c, protocol.SyncRequest{PublicKey: key(t), Routes: prefixes("192.168.0.0/24")}, "only a gateway"},
		{c, protocol.SyncRequest{}, "no public key"},
	} {
		if s := ask(t, tt.bus, tt.r); !strings.Contains(s.Refused, tt.want) || strings.Contains(s.Refused, "\n") {
			t.Errorf("%v: refused %q, want %q", tt.r.Routes, s.Refused, tt.want)
		}
	}
	if s := ask(t, g2, protocol.SyncRequest{PublicKey: key(t), Routes: prefixes("172.16.0.0/24")}); s.Refused != "" {
		t.Error(s.Refused)
	}
}

// A wrong or revoked token is refused, also while its node is connected.
func TestTokens(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	token := add(t, p, "laptop", protocol.Client)
	bus := sign(t, token)
	gate, gateKey := sign(t, add(t, p, "gate", protocol.Gateway)), key(t)
	laptopKey := key(t)
	ask(t, bus, protocol.SyncRequest{PublicKey: laptopKey})
	before := ask(t, gate, protocol.SyncRequest{PublicKey: gateKey})
	if len(before.Peers) != 1 || before.Peers[0].PublicKey != laptopKey {
		t.Fatalf("%+v", before.Peers)
	}
	wrong := token
	wrong.Secret[0] ^= 1
	if why := refusal(t, sign(t, wrong)); !errors.Is(why, signal.ErrRefused) {
		t.Errorf("a wrong token: %v", why)
	}
	wrong = token
	wrong.Fingerprint[0] ^= 1
	if why := refusal(t, sign(t, wrong)); !errors.Is(why, signal.ErrFingerprint) {
		t.Errorf("a wrong fingerprint: %v", why)
	}
	next, err := p.RenewToken(t.Context(), "laptop")
	if err != nil {
		t.Fatal(err)
	}
	if why := refusal(t, bus); !errors.Is(why, signal.ErrRefused) {
		t.Errorf("a revoked token: %v", why)
	}
	// Its peers let go of who signed in with it, and share nothing with him any more.
	seen := ask(t, gate, protocol.SyncRequest{PublicKey: gateKey, Known: before.Revision})
	for len(seen.Peers) == 1 && seen.Peers[0].PublicKey == laptopKey {
		seen = ask(t, gate, protocol.SyncRequest{PublicKey: gateKey, Known: seen.Revision})
	}
	if len(seen.Peers) != 1 || seen.Peers[0].PublicKey != (protocol.Key{}) || seen.Peers[0].PresharedKey == before.Peers[0].PresharedKey {
		t.Errorf("%+v", seen.Peers)
	}
	laptopKey = key(t)
	now := ask(t, sign(t, next), protocol.SyncRequest{PublicKey: laptopKey})
	seen = ask(t, gate, protocol.SyncRequest{PublicKey: gateKey})
	if seen.Peers[0].PublicKey != laptopKey || seen.Peers[0].PresharedKey != now.Peers[0].PresharedKey {
		t.Errorf("%+v after %+v", seen.Peers, now.Peers)
	}
	if err := p.RemoveNode(t.Context(), "laptop"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.RenewToken(t.Context(), "laptop"); !errors.Is(err, ErrUnknown) {
		t.Errorf("a token for nobody: %v", err)
	}
}

// refusal waits until the portal has refused a node and returns why.
func refusal(t *testing.T, bus *signal.Bus) error {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		changed := bus.Changed()
		if s := bus.State(); !s.Up && s.Why != nil && (errors.Is(s.Why, signal.ErrRefused) || errors.Is(s.Why, signal.ErrFingerprint)) {
			return s.Why
		}
		select {
		case <-changed:
		case <-deadline:
			return bus.State().Why
		}
	}
}

// Everything survives a restart, and is nobody else's to read.
func TestRestart(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	p := open(t, folder)
	gate, laptop := add(t, p, "gate", protocol.Gateway), add(t, p, "laptop", protocol.Client)
	k := key(t)
	ask(t, sign(t, gate), protocol.SyncRequest{PublicKey: k})
	before := ask(t, sign(t, laptop), protocol.SyncRequest{PublicKey: key(t)})
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".", "portal.pem", "store"} {
		st, err := os.Stat(filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		if name != "store" && st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", name, st.Mode())
		}
	}
	p = open(t, folder)
	laptop.Portals = p.token("laptop", laptop.Secret).Portals // another free port
	if p.fingerprint != signal.Fingerprint(laptop.Fingerprint) {
		t.Fatal("another certificate")
	}
	after := ask(t, sign(t, laptop), protocol.SyncRequest{PublicKey: key(t)})
	if !slices.Equal(after.Addresses, before.Addresses) || after.Peers[0].PresharedKey != before.Peers[0].PresharedKey ||
		after.Peers[0].PublicKey != k {
		t.Errorf("after %+v, before %+v", after, before)
	}
	if _, err := p.AddNode(t.Context(), NewNode{Name: "gate", Role: protocol.Gateway}); !errors.Is(err, ErrExists) {
		t.Errorf("a name twice: %v", err)
	}
}

// meets names the nodes that a node is told of.
func meets(t *testing.T, p *Portal, name string) string {
	t.Helper()
	_, peers, err := p.state.peers(name, p.isOnline)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, peer := range peers {
		names = append(names, peer.Name)
	}
	return strings.Join(names, " ")
}

// Who may meet whom is the policy's, for what nodes are told and for what they may write.
func TestPolicy(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	add(t, p, "g1", protocol.Gateway)
	add(t, p, "g2", protocol.Gateway, "g3")
	add(t, p, "g3", protocol.Gateway)
	add(t, p, "every", protocol.Client)
	add(t, p, "one", protocol.Client, "g2")
	add(t, p, "nil", protocol.Client, AllowNone)
	for name, want := range map[string]string{
		"g1": "every", "g2": "every g3 one", "g3": "every g2", "every": "g1 g2 g3", "one": "g2", "nil": "",
	} {
		if got := meets(t, p, name); got != want {
			t.Errorf("%s meets %q, want %q", name, got, want)
		}
	}
	for _, bad := range []struct {
		name  string
		role  protocol.Role
		allow []string
	}{{"UPPER", protocol.Client, nil}, {"x", "boss", nil}, {"x", protocol.Client, []string{"no.dots"}},
		{"x", protocol.Client, []string{"g1", AllowAll}}, {"x", protocol.Gateway, []string{AllowAll}}, {AllowAll, protocol.Client, nil}} {
		if _, err := p.AddNode(t.Context(), NewNode{Name: bad.name, Role: bad.role, Allow: bad.allow}); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}

// Nodes are added while others are answered.
func TestAddWhileAsked(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	add(t, p, "gate", protocol.Gateway)
	added := make(chan struct{})
	go func() {
		defer close(added)
		for i := range 20 {
			if _, err := p.AddNode(context.Background(), NewNode{Name: fmt.Sprint("client-", i), Role: protocol.Client}); err != nil {
				t.Error(err)
			}
		}
	}()
	for {
		if s := p.view("gate", netip.Addr{}); s.Refused != "" || len(s.Relays) == 0 {
			t.Errorf("%q, %d relays", s.Refused, len(s.Relays))
		}
		select {
		case <-added:
			return
		default:
		}
	}
}

// A node of which the token is used twice is seen.
func TestTwice(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	token := add(t, p, "laptop", protocol.Client)
	for range 2 {
		ask(t, sign(t, token), protocol.SyncRequest{PublicKey: key(t)})
	}
	if n := p.Nodes(); len(n) != 1 || n[0].Connections != 2 || !n[0].Online || n[0].Seen.IsZero() {
		t.Errorf("%+v", n)
	}
}

// A damaged state is an error that names the folder, not an empty portal.
func TestDamaged(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	p := open(t, folder)
	p.Close()
	if err := os.WriteFile(filepath.Join(folder, "portal.pem"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Start(Config{Folder: folder, Public: "127.0.0.1", Listen: loopback, NoRelay: true})
	if err == nil || !strings.Contains(err.Error(), "portal.pem is damaged") {
		t.Errorf("error %v", err)
	}
}

// Addresses are counted through the whole overlay and not given twice.
func TestAddresses(t *testing.T) {
	for index, want := range map[uint32]string{1: "100.64.0.1/32", 256: "100.64.1.0/32", overlaySize: "100.95.255.254/32"} {
		list := addresses(protocol.DefaultOverlay(), index)
		if len(list) != 2 || list[0].String() != want || !protocol.DefaultOverlay()[1].Contains(list[1].Addr()) {
			t.Errorf("%d: %v, want %s", index, list, want)
		}
	}
	s := &state{nodes: map[string]*record{"a": {Index: 5}}, settings: settings{NextIndex: 5}}
	if got := s.freeIndex(); got != 6 {
		t.Errorf("free index %d", got)
	}
	s.settings.NextIndex = overlaySize + 1
	if got := s.freeIndex(); got != 1 {
		t.Errorf("free index %d at the end", got)
	}
}

// A node is online all the while that it connects anew since another one was added; one whose token was renewed is not.
func TestOnlineAcrossAddedNode(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	status := func(name string) NodeStatus {
		for _, n := range p.Nodes() {
			if n.Name == name {
				return n
			}
		}
		t.Fatalf("no node %s", name)
		return NodeStatus{}
	}
	gate := sign(t, add(t, p, "gate", protocol.Gateway))
	ask(t, gate, protocol.SyncRequest{PublicKey: key(t)})
	until(t, "the gateway is online", func() bool { return !status("gate").Since.IsZero() })
	since := status("gate").Since
	add(t, p, "laptop", protocol.Client) // which the gateway may meet, so that it gets other permissions
	if n := status("gate"); !n.Online || n.Since != since {
		t.Errorf("online %v since %v, want true since %v", n.Online, n.Since, since)
	}
	if _, err := p.RenewToken(t.Context(), "gate"); err != nil {
		t.Fatal(err)
	}
	if n := status("gate"); n.Online || !n.Since.IsZero() {
		t.Errorf("with a token that was renewed: online %v since %v", n.Online, n.Since)
	}
}
