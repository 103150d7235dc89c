package logs

import (
	"bufio"
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// numbered is one line of a log of numbers.
type numbered struct {
	N     int
	Lines int
}

// readNumbered reads lines until one is the last, and returns how many came and how many are said to be missing.
func readNumbered(t *testing.T, f *os.File, last int) (came, missing int) {
	t.Helper()
	_ = f.SetReadDeadline(time.Now().Add(10 * time.Second))
	before := -1
	for s := bufio.NewScanner(f); s.Scan(); {
		var line numbered
		if err := json.Unmarshal(s.Bytes(), &line); err != nil {
			t.Fatalf("%q: %v", s.Text(), err)
		}
		if line.Lines > 0 {
			missing += line.Lines
			continue
		}
		if line.N <= before {
			t.Fatalf("line %d after %d", line.N, before)
		}
		came++
		if before = line.N; line.N == last {
			return came, missing
		}
	}
	t.Fatalf("no line %d; the latest is %d", last, before)
	return 0, 0
}

// TestReaderStops: who logs does not wait for who reads; what is missing is counted and said, in its place, and the rest is whole.
func TestReaderStops(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	log := New(w, slog.LevelInfo)
	const sent = 4000
	begin := time.Now()
	for n := range sent {
		log.Info("a line", "N", n, "filler", strings.Repeat("x", 100))
	}
	if took := time.Since(begin); took > 30*time.Second { // a machine that is busy takes its time, who waits would for ever
		t.Fatalf("%d lines took %v, though nobody reads", sent, took)
	}
	result := make(chan [2]int, 1)
	go func() {
		came, missing := readNumbered(t, r, sent)
		result <- [2]int{came, missing}
	}()
	spool := spoolFor(w, nil)
	for full := true; full; time.Sleep(time.Millisecond) { // until there is room again
		spool.mu.Lock()
		full = spool.bytes > spoolBytes/2
		spool.mu.Unlock()
	}
	log.Info("it goes on", "N", sent)
	got := <-result
	if got[0]+got[1] != sent+1 || got[1] == 0 {
		t.Errorf("%d lines came and %d are said to be missing, want %d together, and some missing", got[0], got[1], sent+1)
	}
}

// shortFile takes a few bytes at a time and then has no room, until it is freed.
type shortFile struct {
	mu   sync.Mutex
	room int
	got  bytes.Buffer
}

func (f *shortFile) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := min(len(p), f.room)
	f.room -= n
	f.got.Write(p[:n])
	if n < len(p) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

// TestShortWrite: a line that was cut is finished before the next one.
func TestShortWrite(t *testing.T) {
	f := &shortFile{room: 7}
	s := &spool{file: f, encode: encodeJSON}
	for _, line := range []string{"first line\n", "second line\n"} {
		if n, err := s.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatalf("got %d, %v, want all of it", n, err)
		}
	}
	s.mu.Lock()
	idle := s.idle
	s.mu.Unlock()
	f.mu.Lock()
	f.room = 1 << 20
	f.mu.Unlock()
	select {
	case <-idle:
	case <-time.After(10 * time.Second):
		t.Fatal("it does not go on")
	}
	if got, want := f.got.String(), "first line\nsecond line\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestTakeBack: only what was written last is removed, and only from a file that nobody else has written to since.
func TestTakeBack(t *testing.T) {
	f, err := os.OpenFile(t.TempDir()+"/log", os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	must := func(_ int, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(f.WriteString("whole\n"))
	must(f.WriteString("cut"))
	if !takeBack(f, 3) {
		t.Error("the end of the file was not taken back")
	}
	must(f.WriteString("again\n"))
	other, err := os.OpenFile(f.Name(), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	must(other.WriteString("another's\n"))
	if takeBack(f, 3) {
		t.Error("another's line was cut")
	}
	got, err := os.ReadFile(f.Name())
	if want := "whole\nagain\nanother's\n"; string(got) != want || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if takeBack(w, 1) {
		t.Error("a pipe takes nothing back")
	}
}

// TestBrokenPipe: a reader that has gone ends nothing, and costs nothing.
func TestBrokenPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	log := New(w, slog.LevelInfo)
	log.Info("to nobody")
	begin := time.Now()
	Flush()
	if took := time.Since(begin); took > flushLimit/2 {
		t.Errorf("Flush took %v for a log that nobody reads", took)
	}
	log.Info("to nobody")
	s := spoolFor(w, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed || len(s.lines) != 0 || s.dropped != 2 {
		t.Errorf("closed %v, %d lines wait, %d dropped, want true, 0, 2", s.closed, len(s.lines), s.dropped)
	}
}
