//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/edge"
)

// serveStatus makes a node that tells s; the folder of sockets is the test's until it ends.
func serveStatus(t *testing.T, dir string, s edge.Status) (asked *atomic.Int32) {
	t.Helper()
	l, err := status.Listen(status.PathIn(dir, s.Interface))
	if err != nil {
		t.Fatal(err)
	}
	asked = new(atomic.Int32)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/echo" { // as a node with an interface
			http.NotFound(w, r)
			return
		}
		asked.Add(1)
		json.NewEncoder(w).Encode(s)
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return asked
}

func ownSockets(t *testing.T) string {
	t.Helper()
	dir, before := t.TempDir(), socketDirectories
	socketDirectories = []string{dir}
	t.Cleanup(func() { socketDirectories = before })
	return dir
}

func office() edge.Status {
	return edge.Status{
		Name: "office", Role: "gateway", Interface: "sluice0", Since: time.Now(),
		Connections: []edge.ConnectionStatus{
			{Peer: "alice", State: "up", Via: "direct", Endpoint: netip.MustParseAddrPort("198.51.100.7:4"), Explanation: "fine",
				AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("100.64.0.77/32")}},
			{Peer: "bob", State: "none", Explanation: "the peer is not connected to the portal"},
		},
	}
}

func TestStatus(t *testing.T) {
	dir := ownSockets(t)
	if _, stderr, code := call("", "status"); code != 1 || !strings.Contains(stderr, "no node runs on this machine") {
		t.Errorf("no node: code %d, %q", code, stderr)
	}
	serveStatus(t, dir, office())
	stdout, stderr, code := call("", "status")
	if code != 0 || stderr != "" || !strings.Contains(stdout, "gateway office on sluice0") || !strings.Contains(stdout, "alice  up     direct") {
		t.Errorf("code %d, %q, %q", code, stdout, stderr)
	}
	for _, args := range [][]string{{"status", "-json"}, {"status", "-json", "-interface", "sluice0"},
		{"status", "-json", "-socket", filepath.Join(dir, "sluice0.sock")}} {
		var got edge.Status
		stdout, _, code = call("", args...)
		if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != 0 || got.Name != "office" || len(got.Connections) != 2 {
			t.Errorf("%q: code %d, %q, %v", args, code, stdout, err)
		}
	}
	home := office()
	home.Name, home.Interface = "home", "sluice1"
	serveStatus(t, dir, home)
	stdout, _, code = call("", "status")
	if code != 0 || strings.Index(stdout, "office on sluice0") > strings.Index(stdout, "home on sluice1") || !strings.Contains(stdout, "home") {
		t.Errorf("two nodes: code %d, %q", code, stdout)
	}
	if _, stderr, code := call("", "status", "-interface", "sluice9"); code != 1 || !strings.Contains(stderr, "no node is running there") {
		t.Errorf("absent: code %d, %q", code, stderr)
	}
	if _, stderr, code := call("", "status", "-interface", "a", "-socket", "b"); code != 2 {
		t.Errorf("both: code %d, %q", code, stderr)
	}
}

func TestStatusWatch(t *testing.T) {
	dir := ownSockets(t)
	asked := serveStatus(t, dir, office())
	for _, redraw := range []bool{false, true} {
		var out, diagnostics bytes.Buffer
		asked.Store(0)
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		v := &viewer{nodes: []*status.Node{status.NewNode(filepath.Join(dir, "sluice0.sock"))}, rates: true,
			out: &out, diagnostics: &diagnostics, before: map[string]status.Sample{}}
		if redraw {
			v.size = func() (int, int) { return 80, 24 }
		}
		go func() { ended <- v.watch(ctx, 10*time.Millisecond) }()
		for deadline := time.Now().Add(30 * time.Second); asked.Load() < 4; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("not asked again")
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		text := out.String()
		if n := strings.Count(text, "gateway office on sluice0"); n < 3 {
			t.Errorf("%d blocks: %q", n, text)
		}
		if strings.Count(text, " IN ") < 3 || !strings.Contains(text, "0 bit/s") {
			t.Errorf("no rates: %q", text)
		}
		if strings.Contains(text, "\x1b[") != redraw || strings.Count(text, "\x1b[J") < 3 && redraw {
			t.Errorf("redraw %v: %q", redraw, text)
		}
	}
}

// TestScreenful: a page never scrolls, or the next one would be drawn in the wrong place.
func TestScreenful(t *testing.T) {
	page := strings.Repeat("x\n", 10)
	for height, want := range map[int]int{0: 10, 11: 10, 24: 10, 10: 9, 5: 4, 1: 2} {
		got := screenful(page, height)
		if n := strings.Count(got, "\n"); n != want || strings.Count(got, "\x1b[K\n") != n || !strings.HasPrefix(got, "\x1b[H") {
			t.Errorf("height %d: %d lines, want %d: %q", height, n, want, got)
		}
		if cut := strings.Contains(got, "lines more"); cut != (want < 10) {
			t.Errorf("height %d: %q", height, got)
		}
	}
}

func TestPingNames(t *testing.T) {
	dir := ownSockets(t)
	serveStatus(t, dir, office())
	for args, want := range map[string]string{
		"ping": "the name of one peer", "ping a b": "the name of one peer", "ping -count 0 alice": "-count 0",
		"ping carol": `no peer is called "carol"; there are alice, bob`, "ping bob": "no tunnel address yet",
	} {
		stdout, stderr, code := call("", strings.Fields(args)...)
		if code == 0 || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("%q: code %d, %q, %q", args, code, stdout, stderr)
		}
	}
	home := office()
	home.Interface = "sluice1"
	serveStatus(t, dir, home)
	if _, stderr, code := call("", "ping", "alice"); code != 1 || !strings.Contains(stderr, "several nodes") {
		t.Errorf("code %d, %q", code, stderr)
	}
}

func TestTunnelAddress(t *testing.T) {
	for list, want := range map[string]string{
		"10.0.0.5/32 100.64.0.1/32": "100.64.0.1", "10.0.0.0/8 fd00:2021:1111::1/128": "fd00:2021:1111::1", "10.0.0.5/32": "10.0.0.5",
		"10.0.0.0/8": "invalid IP", "": "invalid IP",
	} {
		var prefixes []netip.Prefix
		for _, s := range strings.Fields(list) {
			prefixes = append(prefixes, netip.MustParsePrefix(s))
		}
		if got, err := tunnelAddress(prefixes); got.String() != want || (err == nil) != got.IsValid() {
			t.Errorf("%q: %v, %v", list, got, err)
		}
	}
}
