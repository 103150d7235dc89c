//go:build unix

package status

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sluice-vpn/sluice/ice/edge"
)

func TestListen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	path := filepath.Join(dir, "sluice0.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{path: 0o600, dir: 0o755} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v, want %v", name, st.Mode(), err, want)
		}
	}
	if _, err := Listen(path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a socket that is served: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as if killed
	l.Close()
	if l, err = Listen(path); err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	l.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file: %v", err)
	}
}

func TestSockets(t *testing.T) {
	dir := t.TempDir()
	if list, err := Sockets(filepath.Join(dir, "absent")); err != nil || len(list) != 0 {
		t.Errorf("%q, %v", list, err)
	}
	var want []string
	for _, name := range []string{"a.sock", "b.sock"} {
		l, err := Listen(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		want = append(want, filepath.Join(dir, name))
	}
	if err := os.WriteFile(filepath.Join(dir, "c.sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if list, err := Sockets(dir); err != nil || !slices.Equal(list, want) {
		t.Errorf("%q, %v", list, err)
	}
}

func TestGet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	if _, err := NewNode(path).Get(context.Background()); err == nil || !strings.Contains(err.Error(), "no node is running there") {
		t.Errorf("absent: %v", err)
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	answer := func(w http.ResponseWriter) { json.NewEncoder(w).Encode(edge.Status{Name: "office", ListenPort: 7}) }
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/status" {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		answer(w)
	})}
	go server.Serve(l)
	defer server.Close()
	if s, err := NewNode(path).Get(context.Background()); err != nil || s.Name != "office" || s.ListenPort != 7 {
		t.Errorf("%+v, %v", s, err)
	}
	answer = func(w http.ResponseWriter) { http.Error(w, "not yet", http.StatusServiceUnavailable) }
	if _, err := NewNode(path).Get(context.Background()); err == nil || !strings.Contains(err.Error(), "503 Service Unavailable: not yet") {
		t.Errorf("unavailable: %v", err)
	}
	answer = func(w http.ResponseWriter) { w.Write([]byte("<html>")) }
	if _, err := NewNode(path).Get(context.Background()); err == nil || !strings.Contains(err.Error(), "not understood") {
		t.Errorf("no JSON: %v", err)
	}
}
