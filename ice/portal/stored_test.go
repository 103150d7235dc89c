package portal

import (
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/relay"
	"github.com/sluice-vpn/sluice/ice/secretfile"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline/count"
)

// start is Start on loopback with a relay of its own.
func start(folder string) (*Portal, error) {
	return Start(Config{
		Folder: folder, Public: "127.0.0.1", Listen: loopback, Relay: relay.Config{Listen: []netip.AddrPort{loopback}},
	})
}

// TestDamagedState: what is not whole is one error that says what to do, and never an empty portal.
func TestDamagedState(t *testing.T) {
	put := func(key, value string) func(*testing.T, string, *Portal) {
		return func(t *testing.T, _ string, p *Portal) {
			if _, err := p.state.kv.(*kvStore).kv.PutString(t.Context(), key, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	hash := strings.Repeat("00", 32)
	for name, tt := range map[string]struct {
		before func(*testing.T, string, *Portal) // while it runs
		after  func(*testing.T, string)
		want   string
	}{
		"node":          {put("node.b", `{`), nil, `"node.b" is damaged`},
		"empty node":    {put("node.b", `{}`), nil, `"node.b" is damaged`},
		"other name":    {put("node.b", `{"name":"c","role":"client","key_hash":"`+hash+`","index":9}`), nil, "wrong name"},
		"no index":      {put("node.b", `{"name":"b","role":"client","key_hash":"`+hash+`"}`), nil, "no address"},
		"same index":    {put("node.b", `{"name":"b","role":"client","key_hash":"`+hash+`","index":1}`), nil, "addresses of"},
		"no hash":       {put("node.b", `{"name":"b","role":"client","key_hash":"","index":9}`), nil, "no hash"},
		"settings":      {put("settings", `{"relay_secret":"short"}`), nil, `"settings" is damaged`},
		"half settings": {put("settings", `{"relay_secret":"of quite enough length"}`), nil, `"settings" is damaged`},
		"no store":      {nil, func(t *testing.T, f string) { remove(t, filepath.Join(f, "store")) }, "lost or damaged"},
		"no settings":   {func(t *testing.T, _ string, p *Portal) { purge(t, p, keySettings) }, nil, "lost or damaged"},
		"no pem":        {nil, func(t *testing.T, f string) { remove(t, filepath.Join(f, "portal.pem")) }, "portal.pem is missing"},
		"store a file":  {nil, storeAFile, "store"},
		"blocks gone":   {nil, func(t *testing.T, f string) { eachBlock(t, f, func(p string) { remove(t, p) }) }, "lost or damaged"},
		"blocks zero": {nil, func(t *testing.T, f string) {
			eachBlock(t, f, func(p string) {
				st, err := os.Stat(p)
				if err == nil {
					err = os.WriteFile(p, make([]byte, st.Size()), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			})
		}, "lost or damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			folder := filepath.Join(t.TempDir(), "state")
			p := open(t, folder)
			add(t, p, "a", protocol.Client)
			if tt.before != nil {
				tt.before(t, folder, p)
			}
			p.Close()
			if tt.after != nil {
				tt.after(t, folder)
			}
			p, err := start(folder)
			if err == nil {
				t.Errorf("started with %d nodes", len(p.Nodes()))
				p.Close()
				return
			}
			if text := err.Error(); !strings.Contains(text, tt.want) || !strings.Contains(text, folder) || strings.Contains(text, "\n") {
				t.Errorf("error %q, want %q", text, tt.want)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func purge(t *testing.T, p *Portal, key string) {
	t.Helper()
	if err := p.state.kv.(*kvStore).kv.Purge(t.Context(), key); err != nil {
		t.Fatal(err)
	}
}

func storeAFile(t *testing.T, folder string) {
	store := filepath.Join(folder, "store")
	remove(t, store)
	if err := os.WriteFile(store, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestFlippedBits: a record that the disk has changed is missed, not forgotten.
func TestFlippedBits(t *testing.T) {
	for _, part := range []string{`"name":"a"`, "node.a", `"relay_secret"`, "$KV.sluice"} {
		for _, index := range []bool{true, false} {
			if index && (part != "node.a" || testing.Short()) {
				continue // each takes readTime
			}
			folder := filepath.Join(t.TempDir(), "state")
			p := open(t, folder)
			for _, name := range []string{"a", "b"} {
				add(t, p, name, protocol.Client)
			}
			p.Close()
			found := 0
			eachBlock(t, folder, func(path string) {
				text, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if i := strings.LastIndex(string(text), part); i >= 0 && strings.HasSuffix(path, ".blk") {
					found++
					text[i+len(part)-2] ^= 1
					if err := os.WriteFile(path, text, 0o600); err != nil {
						t.Fatal(err)
					}
				} else if !index && strings.HasSuffix(path, "index.db") {
					remove(t, path)
				}
			})
			if found == 0 {
				t.Fatalf("%s is not in the store", part)
			}
			p, err := start(folder)
			if err != nil {
				if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), folder) {
					t.Errorf("%s: %v", part, err)
				}
				continue
			}
			if n := len(p.Nodes()); n != 2 {
				t.Errorf("%s changed, index %v: started with %d nodes of 2", part, index, n)
			}
			p.Close()
		}
	}
}

// eachBlock calls f for the files in which the store keeps the messages and what it knows of them.
func eachBlock(t *testing.T, folder string, f func(path string)) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(filepath.Join(folder, "store"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && (strings.HasSuffix(path, ".blk") || d.Name() == "index.db") {
			n++
			f(path)
		}
		return err
	})
	if err != nil || n == 0 {
		t.Fatalf("%d blocks, %v", n, err)
	}
}

// TestFolder: one process at a time, and nobody else's.
func TestFolder(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(folder, 0o755); err != nil { // as systemd makes it
		t.Fatal(err)
	}
	p := open(t, folder)
	for _, name := range []string{".", "store"} {
		if st, err := os.Stat(filepath.Join(folder, name)); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	if second, err := start(folder); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("a second portal: %v", err)
		if err == nil {
			second.Close()
		}
	}
	add(t, p, "a", protocol.Client) // the second one has broken nothing
	if err := errors.Join(p.Close(), p.Close()); err != nil {
		t.Error(err)
	}
	if n := len(open(t, folder).Nodes()); n != 1 {
		t.Errorf("%d nodes", n)
	}
	other := t.TempDir()
	if err := errors.Join(os.Chmod(other, 0o755), os.WriteFile(filepath.Join(other, "letter"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := start(other); err == nil || !strings.Contains(err.Error(), "other files") {
		t.Errorf("somebody else's folder: %v", err)
	}
	if st, err := os.Stat(other); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("its mode is now %v, %v", st.Mode(), err)
	}
}

// TestStartErrors: what cannot work fails at the start, not later.
func TestStartErrors(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	at := []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:3478")}
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no folder":        {func(c *Config) { c.Folder = "" }, "Folder"},
		"no public":        {func(c *Config) { c.Public = "" }, "Public"},
		"public with port": {func(c *Config) { c.Public = "203.0.113.7:1" }, "without a port"},
		"public a URL":     {func(c *Config) { c.Public = "https://a/" }, "no host name"},
		"port in use":      {func(c *Config) { c.Listen = p.Addr() }, "in use"},
		"relay in use":     {func(c *Config) { c.Relay.Listen = p.relay.Addrs() }, "in use"},
		"relay's config":   {func(c *Config) { c.Relay.MinPort = 1 }, "MinPort"},
		"relay's name":     {func(c *Config) { c.Relays = []OtherRelay{{Name: "A B", Addrs: at, Secret: "s"}} }, "A B"},
		"relay's secret":   {func(c *Config) { c.Relays = []OtherRelay{{Name: "a", Addrs: at}} }, "secret"},
		"relay's address":  {func(c *Config) { c.Relays = []OtherRelay{{Name: "a", Secret: "s"}} }, "address"},
		"relays":           {func(c *Config) { c.Relays = slices.Repeat([]OtherRelay{{Name: "a", Addrs: at, Secret: "s"}}, 8) }, "more than 7"},
	} {
		cfg := Config{
			Folder: filepath.Join(t.TempDir(), "state"), Public: "127.0.0.1", Listen: loopback, Relay: relay.Config{Listen: []netip.AddrPort{loopback}},
		}
		tt.change(&cfg)
		second, err := Start(cfg)
		if err == nil {
			second.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// TestClocks: the portal's certificate is known by its fingerprint, whatever the clocks say.
func TestClocks(t *testing.T) {
	for name, now := range map[string]time.Time{
		"node's clock is behind": time.Now().AddDate(50, 0, 0), "node's clock is ahead": time.Now().AddDate(-150, 0, 0),
	} {
		folder := filepath.Join(t.TempDir(), "state")
		open(t, folder).Close()
		text, err := makeCertificate(now)
		if err == nil {
			err = secretfile.Write(filepath.Join(folder, "portal.pem"), text)
		}
		if err != nil {
			t.Fatal(err)
		}
		p := open(t, folder)
		token := add(t, p, "laptop", protocol.Client)
		bare := tls.Config{InsecureSkipVerify: true}
		conn, err := tls.Dial("tcp", p.Addr().String(), &bare)
		if err != nil {
			t.Fatal(err)
		}
		leaf := conn.ConnectionState().PeerCertificates[0]
		conn.Close()
		if time.Now().After(leaf.NotBefore) && time.Now().Before(leaf.NotAfter) {
			t.Fatalf("%s: the certificate is valid from %v to %v", name, leaf.NotBefore, leaf.NotAfter)
		}
		if s := ask(t, sign(t, token), protocol.SyncRequest{PublicKey: key(t)}); s.Refused != "" {
			t.Errorf("%s: %s", name, s.Refused)
		}
	}
}

// failing is a store that takes nothing.
type failing struct{ store }

var errNoSpace = errors.New("no space left on device")

func (failing) write(context.Context, string, []byte, uint64, bool) (uint64, error) {
	return 0, errNoSpace
}

// TestStoreFirst: what could not be stored did not happen, and is said.
func TestStoreFirst(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	p := open(t, folder)
	gate := sign(t, add(t, p, "gate", protocol.Gateway))
	token := add(t, p, "laptop", protocol.Client)
	laptop := sign(t, token)
	k := key(t)
	ask(t, gate, protocol.SyncRequest{PublicKey: k})
	if err := os.Remove(filepath.Join(folder, certificateName)); err != nil { // so that the store is not mended
		t.Fatal(err)
	}
	p.state.mu.Lock()
	p.state.kv = failing{p.state.kv}
	p.state.mu.Unlock()
	_, err1 := p.AddNode(t.Context(), NewNode{Name: "more", Role: protocol.Client})
	_, err2 := p.RenewToken(t.Context(), "laptop")
	for i, err := range []error{err1, err2, p.RemoveNode(t.Context(), "laptop")} {
		if !errors.Is(err, errNoSpace) || !strings.Contains(err.Error(), "if the disk is full") {
			t.Errorf("change %d: %v", i, err)
		}
	}
	if n := p.Nodes(); len(n) != 2 {
		t.Errorf("%d nodes", len(n))
	}
	// The old token is good still; the node is told, not left alone.
	if s := ask(t, laptop, protocol.SyncRequest{PublicKey: key(t)}); !strings.Contains(s.Refused, "if the disk is full") {
		t.Errorf("a new key: %q", s.Refused)
	}
	// Who changes nothing is served.
	if s := ask(t, gate, protocol.SyncRequest{PublicKey: k}); s.Refused != "" || len(s.Peers) != 1 {
		t.Errorf("%q, %d peers", s.Refused, len(s.Peers))
	}
}

func TestOps(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	ask(t, sign(t, add(t, p, "laptop", protocol.Client)), protocol.SyncRequest{PublicKey: key(t)})
	if err := p.Unready(); err != nil || p.Failed() {
		t.Errorf("not ready: %v, failed %t", err, p.Failed())
	}
	var set count.Set
	set.Add(p.Counters()...)
	values := set.Values()
	for name, want := range map[string]uint64{
		"portal_nodes": 1, "portal_connections": 1, "portal_requests": 1, "portal_requests_limited": 0, "relay_ready": 1,
	} {
		if got, ok := values[name]; got != want || !ok {
			t.Errorf("%s is %d (%t), want %d", name, got, ok, want)
		}
	}
	p.fail(errors.New("the relay is gone"))
	if !p.Failed() {
		t.Error("a broken portal does not say so")
	}
	if err := p.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "the relay is gone") {
		t.Errorf("Wait: %v", err)
	}
	p.Close()
	if err := p.Unready(); !errors.Is(err, ErrBroker) {
		t.Errorf("a closed portal is not ready for %v, want %v", err, ErrBroker)
	}
}

// TestSignaling: who may write to whom, enforced by the broker, also after a change.
func TestSignaling(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	names := map[string]protocol.Token{
		"gate": add(t, p, "gate", protocol.Gateway), "other": add(t, p, "other", protocol.Gateway),
		"c1": add(t, p, "c1", protocol.Client), "c2": add(t, p, "c2", protocol.Client, "other"),
	}
	buses := map[string]*signal.Bus{}
	for name, token := range names {
		buses[name] = sign(t, token)
		ask(t, buses[name], protocol.SyncRequest{PublicKey: key(t)})
	}
	bye := signal.Message{Kind: signal.Bye, Generation: 1, Reason: "closed"}
	for _, tt := range []struct {
		from, to string
		want     error
	}{
		{"c1", "gate", nil}, {"gate", "c1", nil}, {"c1", "other", nil}, {"c2", "other", nil}, {"other", "c2", nil},
		{"c1", "c2", signal.ErrForbidden}, {"c2", "c1", signal.ErrForbidden}, {"c2", "gate", signal.ErrForbidden},
		{"gate", "c2", signal.ErrForbidden}, {"gate", "other", signal.ErrForbidden},
	} {
		if err := buses[tt.from].Send(t.Context(), tt.to, bye); !errors.Is(err, tt.want) {
			t.Errorf("%s to %s: %v, want %v", tt.from, tt.to, err, tt.want)
		}
	}
	// A gateway that is added may be written to by who was connected before, and one that is removed may not.
	late := sign(t, add(t, p, "late", protocol.Gateway, "gate"))
	k := key(t)
	ask(t, late, protocol.SyncRequest{PublicKey: k})
	for _, from := range []string{"c1", "gate"} {
		until(t, from+" may write to the new gateway", func() bool { return buses[from].Send(t.Context(), "late", bye) == nil })
		if err := late.Send(t.Context(), from, bye); err != nil && !errors.Is(err, signal.ErrAbsent) {
			t.Errorf("the new gateway to %s: %v", from, err)
		}
	}
	k1 := key(t)
	if s := ask(t, buses["c1"], protocol.SyncRequest{PublicKey: k1}); len(s.Peers) != 3 {
		t.Errorf("%d peers", len(s.Peers))
	}
	if err := p.RemoveNode(t.Context(), "late"); err != nil {
		t.Fatal(err)
	}
	until(t, "the removed gateway may not be written to", func() bool {
		return errors.Is(buses["c1"].Send(t.Context(), "late", bye), signal.ErrForbidden)
	})
	if s := ask(t, buses["c1"], protocol.SyncRequest{PublicKey: k1}); len(s.Peers) != 2 || s.Refused != "" {
		t.Errorf("after the removal: %d peers, %s", len(s.Peers), s.Refused)
	}
}

// TestRelays: credentials are those of each relay's secret, for the node, and good for longer than a day.
func TestRelays(t *testing.T) {
	at := []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:3478"), netip.MustParseAddrPort("[2001:db8::1]:3478")}
	secret := strings.Repeat("s", 20)
	p, err := Start(Config{
		Folder: filepath.Join(t.TempDir(), "state"), Public: "127.0.0.1", Listen: loopback,
		Relay: relay.Config{Listen: []netip.AddrPort{loopback}}, Relays: []OtherRelay{{Name: "coturn", Addrs: at, Secret: secret}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s := ask(t, sign(t, add(t, p, "laptop", protocol.Client)), protocol.SyncRequest{PublicKey: key(t)})
	if len(s.Relays) != 2 || s.Relays[0].Addrs[0] != p.relay.Addrs()[0] || !slices.Equal(s.Relays[1].Addrs, at) {
		t.Fatalf("%+v", s.Relays)
	}
	for i, key := range []string{p.state.settings.RelaySecret, secret} {
		r := s.Relays[i]
		username, password := relay.Credential(key, time.Unix(r.Expires, 0), p.state.nodes["laptop"].relayUser())
		if r.Username != username || r.Password != password || r.Expires < time.Now().Add(24*time.Hour).Unix() || r.Expires >= 1<<31 {
			t.Errorf("%s: %q until %v", r.Name, r.Username, time.Unix(r.Expires, 0))
		}
	}
}
