//go:build unix

package uapi

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

const soon = 5 * time.Millisecond // how often the tests' sockets look for their file

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "uapi") // t.TempDir may be too long a path for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "wireguard", "wg0.sock")
}

func mustListen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := listen(path, soon)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestSocketModes(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := socketPath(t)
	l := mustListen(t, path)
	for path, want := range map[string]os.FileMode{path: os.ModeSocket | 0o600, filepath.Dir(path): os.ModeDir | 0o755} {
		st, err := os.Stat(path)
		if err != nil || st.Mode() != want {
			t.Errorf("%s: mode %v, want %v (%v)", path, st.Mode(), want, err)
		}
	}
	if mask := syscall.Umask(0); mask != 0 {
		t.Errorf("the mask was left at %#o", mask)
	}
	l.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left after Close: %v", err)
	}
}

func TestSocketStaleAndLive(t *testing.T) {
	path := socketPath(t)
	first := mustListen(t, path)
	if _, err := listen(path, soon); !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("a served socket was taken over: %v", err)
	}
	// A crash: the descriptor is gone, the file is not.
	first.(*listener).UnixListener.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	second := mustListen(t, path)
	second.Close()

	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(path, soon); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a plain file: %v", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error("the plain file was removed")
	}
}

func TestSocketGone(t *testing.T) {
	for name, remove := range map[string]func(path string) error{
		"removed": os.Remove,
		"replaced": func(path string) error {
			if err := os.WriteFile(path+".new", nil, 0o600); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := socketPath(t)
			l := mustListen(t, path)
			served := make(chan error)
			go func() { served <- testServer(newRecorder(), slog.New(slog.DiscardHandler)).serve(l) }()
			if err := remove(path); err != nil {
				t.Fatal(err)
			}
			if err := <-served; !errors.Is(err, ErrGone) {
				t.Errorf("serve returned %v", err)
			}
			if _, err := os.Lstat(path); name == "replaced" && err != nil {
				t.Error("the replacement was removed")
			}
		})
	}
}

func TestAdopt(t *testing.T) {
	path := socketPath(t)
	l := mustListen(t, path)
	f, err := l.(*listener).File()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Dup(int(f.Fd()))
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	l.(*listener).UnixListener.Close() // the parent is gone
	adopted, err := Adopt(uintptr(fd))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- testServer(newRecorder(), slog.New(slog.DiscardHandler)).serve(adopted) }()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "get=1\n\n")
	answer := make([]byte, 9)
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "errno=0\n\n" {
		t.Errorf("answer %q, %v", answer, err)
	}
	adopted.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left after Close: %v", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	fd, err = syscall.Dup(int(null.Fd()))
	null.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Adopt(uintptr(fd)); err == nil {
		t.Error("/dev/null was adopted")
	}
}

// TestUAPISlowClients: clients in the middle of a request hold up nobody, and are gone after the end.
func TestSlowClients(t *testing.T) {
	before := runtime.NumGoroutine()
	path := socketPath(t)
	l := mustListen(t, path)
	r := newRecorder()
	served := make(chan error)
	go func() { served <- testServer(r, slog.New(slog.DiscardHandler)).serve(l) }()
	dial := func(request string) net.Conn {
		t.Helper()
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	slow := []net.Conn{
		dial("set=1\npublic_key=" + keyA + "\nallowed_ip=10."), dial("get=1\n"), dial("s"), dial(""),
	}
	for i := range 20 {
		conn := dial(fmt.Sprintf("set=1\nlisten_port=%d\n\n", i))
		answer := make([]byte, 9)
		if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "errno=0\n\n" {
			t.Fatalf("beside slow clients: %q, %v", answer, err)
		}
		conn.Close()
	}
	io.WriteString(slow[0], "0.0.0/8\n\n")
	answer := make([]byte, 9)
	if _, err := io.ReadFull(slow[0], answer); err != nil || string(answer) != "errno=0\n\n" {
		t.Fatalf("the slow client at last: %q, %v", answer, err)
	}
	if got, want := r.ops[20:], "[peer aaaa add 10.0.0.0/8]"; fmt.Sprint(got) != want {
		t.Errorf("edits %v, want %v", got, want)
	}
	l.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	for range 200 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(soon)
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}

// TestUAPIManyClients: hundreds that ask at once are all answered in turn, and those that never hang up lock out nobody: for one more
// the one gives way that is silent longest, not one that goes on to ask.
func TestManyClients(t *testing.T) {
	path := socketPath(t)
	l := mustListen(t, path)
	go testServer(newRecorder(), slog.New(slog.DiscardHandler)).serve(l)
	ask := func(conn net.Conn) error {
		if _, err := io.WriteString(conn, "get=1\n\n"); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, make([]byte, len("errno=0\n\n")))
		return err
	}
	dial := func() net.Conn {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		return conn
	}
	const many = 5 * maxClients
	failed := make(chan error, many)
	for range many {
		conn := dial()
		go func() { failed <- errors.Join(ask(conn), conn.Close()) }()
	}
	for range many {
		if err := <-failed; err != nil {
			t.Errorf("one of %d at once: %v, want an answer", many, err)
		}
	}
	first, busy := dial(), dial()
	for range maxClients - 2 {
		dial()
	}
	if err := ask(busy); err != nil {
		t.Fatal(err)
	}
	if err := ask(dial()); err != nil {
		t.Errorf("beside %d silent clients: %v, want an answer", maxClients, err)
	}
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the one that is silent longest: %v, want it closed", err)
	}
	if err := ask(busy); err != nil {
		t.Errorf("the one that has asked last: %v, want an answer", err)
	}
}
