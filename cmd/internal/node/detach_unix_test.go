//go:build unix

package node

import (
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestAwaitReadiness(t *testing.T) {
	wait := func() error { return errors.New("exit status 2") }
	for said, want := range map[string]string{
		"ready\n":                "",
		"tun: no\n":              "tun: no",
		"":                       "the background process ended before it was ready (exit status 2): run it with -f to see why",
		strings.Repeat("x", 1e4): strings.Repeat("x", 4096),
	} {
		got := ""
		if err := awaitReadiness(strings.NewReader(said), wait); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%.20q: %q, want %q", said, got, want)
		}
	}
}

func TestReadiness(t *testing.T) {
	var nobody *readiness
	nobody.succeed()
	if nobody.fail(errors.New("x")) {
		t.Error("nobody was told")
	}
	for name, tell := range map[string]func(*readiness) bool{
		"ready\n":  func(r *readiness) bool { r.succeed(); return !r.fail(errors.New("late")) },
		"a; b c\n": func(r *readiness) bool { return r.fail(errors.New("a\nb c")) && !r.fail(errors.New("again")) },
	} {
		report, told, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fd, err := syscall.Dup(int(told.Fd()))
		told.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv(readyVariable, strconv.Itoa(fd))
		r := openReadiness()
		if os.Getenv(readyVariable) != "" {
			t.Error("children would inherit the descriptor's name")
		}
		if !tell(r) {
			t.Errorf("%q: told wrongly", name)
		}
		if text, err := io.ReadAll(report); string(text) != name || err != nil {
			t.Errorf("%q was told, want %q (%v)", text, name, err)
		}
		report.Close()
	}
}
