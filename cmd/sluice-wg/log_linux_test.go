package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// startLogging runs a program in the foreground with its standard error at f, and ends it with the test.
func startLogging(t *testing.T, ns *lab.Namespace, name string, f *os.File) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(program(t), "-f", name)
	cmd.Env = append(os.Environ(), "LOG_LEVEL=debug")
	cmd.Stderr = f
	if err := ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	owner(t, name)
	return cmd
}

// refuse has the program write a line of its log that tells of a request which it refuses.
func refuse(t *testing.T, name string) {
	t.Helper()
	if got, want := ask(t, name, "set=1\nbogus=1\n\n"), fmt.Sprintf("errno=%d\n\n", -int(unix.EINVAL)); got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}

// TestLogReaderStops: while nobody reads the log the interface works and can be configured, and the program ends when it is told to.
func TestLogReaderStops(t *testing.T) {
	need(t)
	ns, name := newNamespace(t, "a"), newName()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	cmd := startLogging(t, ns, name, w)
	for range 200 { // some 40 KiB
		refuse(t, name)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("got %v, want status 0", err)
		}
	case <-time.After(patient):
		t.Fatal("the program does not end, for want of a reader of its log")
	}
	gone(t, ns, name)
}

// TestLogDiskFull: on a disk that fills up and is freed, each line of the log is whole, and what is missing is told.
func TestLogDiskFull(t *testing.T) {
	need(t)
	ns, name, dir := newNamespace(t, "a"), newName(), t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	startLogging(t, ns, name, f)
	refuse(t, name)
	fill := filepath.Join(dir, "fill")
	if err := os.WriteFile(fill, make([]byte, 128<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	const refused = 60 // more than what is left of the log's last page
	for range refused {
		refuse(t, name)
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	var lines [][]byte
	for end := time.Now().Add(patient); len(lines) < refused; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if lines = bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n")); time.Now().After(end) {
			t.Fatalf("%d lines, want %d or more", len(lines), refused)
		}
	}
	for _, line := range lines {
		if !json.Valid(line) {
			t.Errorf("no whole line: %q", line)
		}
	}
}
