//go:build unix

package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// servePins makes a node with these pins, which answers trust with note, or refuses with it.
func servePins(t *testing.T, dir, name string, pins []edge.Pin, code int, note string) (trusted *[]edge.Pin) {
	t.Helper()
	l, err := status.Listen(status.PathIn(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	trusted = new([]edge.Pin)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /pins", func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(pins) })
	mux.HandleFunc("POST /trust", func(w http.ResponseWriter, r *http.Request) {
		var p edge.Pin
		if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
			t.Error(err)
		}
		*trusted = append(*trusted, p)
		if code != http.StatusOK {
			http.Error(w, note, code)
			return
		}
		json.NewEncoder(w).Encode(note)
	})
	server := &http.Server{Handler: mux}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return trusted
}

func TestTrust(t *testing.T) {
	dir := ownSockets(t)
	before, now := protocol.Identity{1}, protocol.Identity{2}
	pins := []edge.Pin{
		{Peer: "gate", Pinned: before, Offered: now, Distrust: "identity_changed"}, {Peer: "gone", Pinned: before},
		{Peer: "same", Pinned: now, Offered: now}, {Peer: "stripped", Pinned: now, Distrust: "identity_changed"},
	}
	trusted := servePins(t, dir, "sluice0", pins, http.StatusOK, "")
	stdout, stderr, code := call("", "trust")
	for _, want := range []string{
		"gate      " + before.Fingerprint() + "  " + now.Fingerprint() + "\n  no session: identity_changed\n",
		"gone      " + before.Fingerprint() + "  none\n  not known", "same      " + now.Fingerprint() + "  the same",
		"stripped  " + now.Fingerprint() + "  none\n  no session",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	if code != 0 || stderr != "" {
		t.Errorf("list: code %d, %q", code, stderr)
	}
	for _, tt := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{"trust", "same"}, 0, "same is trusted already: " + now.Fingerprint(), ""},
		{[]string{"trust", "nobody"}, 1, "", "there is no peer nobody"},
		{[]string{"trust", "stripped"}, 1, "", "nothing to trust"},
		{[]string{"trust", "gone"}, 1, "", "nothing to trust"},
		{[]string{"trust", "a", "b"}, 2, "", "one NAME at most"},
		{[]string{"trust", "gate"}, 0, "gate is trusted as " + now.Fingerprint() + " (it was " + before.Fingerprint() + ")", ""},
	} {
		stdout, stderr, code := call("", tt.args...)
		if code != tt.code || !strings.Contains(stdout, tt.stdout) || !strings.Contains(stderr, tt.stderr) || tt.code == 0 && stderr != "" {
			t.Errorf("%q: code %d, %q, %q", tt.args, code, stdout, stderr)
		}
	}
	if len(*trusted) != 1 || (*trusted)[0].Peer != "gate" || (*trusted)[0].Offered != now {
		t.Errorf("trusted %+v", *trusted)
	}
	servePins(t, dir, "full", pins, http.StatusOK, "the disk is full")
	if stdout, stderr, code := call("", "trust", "gate", "-interface", "full"); code != 1 || !strings.Contains(stdout, "is trusted as") || stderr != "sluice: the disk is full\n" {
		t.Errorf("full disk: code %d, %q, %q", code, stdout, stderr)
	}
	servePins(t, dir, "moved", pins, http.StatusConflict, "look again")
	if stdout, stderr, code := call("", "trust", "-interface", "moved", "gate"); code != 1 || stdout != "" || stderr != "sluice: look again\n" {
		t.Errorf("another one by now: code %d, %q, %q", code, stdout, stderr)
	}
	if _, stderr, code := call("", "trust", "gate"); code != 2 || !strings.Contains(stderr, "-interface") {
		t.Errorf("several nodes: code %d, %q", code, stderr)
	}
}
