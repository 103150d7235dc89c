package logs

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// lockedBuffer may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

const (
	older = `{"time":"2026-11-29T10:00:00.000000000Z","severity":"INFO","message":"one"}` + "\n" +
		`{"time":"2026-11-29T10:00:02.000000000Z","severity":"WARNING","message":"three"}` + "\n" +
		"no record\x1b\n"
	newer = `{"time":"2026-11-29T10:00:01.000000000Z","severity":"DEBUG","message":"two"}` + "\n" +
		`{"time":"2026-11-29T10:00:03.000000000Z","severity":"ERROR","message":"four"}` + "\n" +
		`{"time":"2026-11-29T10:00:04.0000`
)

// TestReader: lines of all files in the order of time, from a level and a time on; what is not whole yet is not shown.
func TestReader(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for path, text := range map[string]string{
		filepath.Join(a, "2026-11-29T09-59-59.000Z.log"): older, filepath.Join(b, "2026-11-29T10-00-00.500Z.log"): newer,
		filepath.Join(a, "another.log"): older,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name  string
		level slog.Level
		since string
		want  string
	}{
		{"all", slog.LevelDebug, "", "INFO one|DEBUG two|WARNING three|ERROR no record\\x1b|ERROR four"},
		{"warnings", slog.LevelWarn, "", "WARNING three|ERROR no record\\x1b|ERROR four"},
		{"later", slog.LevelDebug, "2026-11-29T10:00:01.5Z", "WARNING three|ERROR no record\\x1b|ERROR four"},
	} {
		r := &Reader{Folders: []string{a, b, filepath.Join(a, "not")}, Level: tt.level}
		if tt.since != "" {
			r.Since, _ = time.Parse(time.RFC3339Nano, tt.since)
		}
		var out bytes.Buffer
		if err := r.Print(t.Context(), &out, false); err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.SplitSeq(strings.TrimSuffix(out.String(), "\n"), "\n") {
			_, rest, _ := strings.Cut(line, " ")
			got = append(got, rest)
		}
		if strings.Join(got, "|") != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	if err := (&Reader{Folders: []string{filepath.Join(a, "not")}}).Print(t.Context(), new(bytes.Buffer), false); !errors.Is(err, ErrNoLog) {
		t.Errorf("got %v, want that there is no log", err)
	}
}

// TestFollow: what comes is shown, in files that are there and in new ones, and a line only when it is whole.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "2026-11-29T10-00-00.500Z.log")
	if err := os.WriteFile(path, []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var out lockedBuffer
	ended := make(chan error, 1)
	go func() { ended <- (&Reader{Folders: []string{dir}, Level: slog.LevelDebug}).Print(ctx, &out, true) }()
	await := func(want string) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !strings.HasSuffix(out.String(), want); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("got %q, want it to end with %q", out.String(), want)
			}
		}
	}
	await("ERROR four\n")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(`00000Z","severity":"INFO","message":"five"}` + "\n"); err != nil {
		t.Fatal(err)
	}
	await("INFO five\n")
	next := `{"time":"2026-11-29T10:00:09.000000000Z","severity":"INFO","message":"six"}` + "\n"
	if err := os.WriteFile(filepath.Join(dir, "2026-11-29T10-00-08.000Z.log"), []byte(next), 0o600); err != nil {
		t.Fatal(err)
	}
	await("INFO six\n")
	if got := strings.Count(out.String(), "\n"); got != 4 {
		t.Errorf("%d lines, want 4: %q", got, out.String())
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("got %v, want nil", err)
	}
}
