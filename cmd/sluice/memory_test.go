package main

import (
	"runtime/debug"
	"strings"
	"testing"

	"github.com/urfave/cli/v3"
)

// TestMemory: -memory is the runtime's limit in all three roles, and what is too little is refused. It changes the limit of the process,
// so it runs alone.
func TestMemory(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	for _, c := range []struct {
		args  []string
		limit int64 // after limitMemory; 0: as before
	}{{[]string{"x", "-memory", "64"}, 64 << 20}, {[]string{"x"}, 0}, {[]string{"x", "-memory", "0"}, 0}} {
		debug.SetMemoryLimit(before)
		cmd := &cli.Command{Name: "x", Flags: []cli.Flag{memoryFlag(false)}, Action: nil}
		if err := cmd.Run(t.Context(), c.args); err != nil {
			t.Fatal(err)
		}
		if err := checkMemory(cmd); err != nil {
			t.Errorf("%q: %v", c.args, err)
		}
		limitMemory(cmd)
		want := c.limit
		if want == 0 {
			want = before
		}
		if got := debug.SetMemoryLimit(-1); got != want {
			t.Errorf("%q: the limit is %d, want %d", c.args, got, want)
		}
	}
	for _, role := range [][]string{{"client"}, {"gateway"}, {"portal", "-public", "192.0.2.1"}} {
		for _, n := range []string{"-1", "31", "2000000"} {
			if _, text, code := call("", append(role, "-memory", n, "-check")...); code != 2 || !strings.Contains(text, "-memory "+n+": want MiB, 32 or more") {
				t.Errorf("%q with %s MiB: status %d, %q; want 2 and what to give", role, n, code, text)
			}
		}
	}
}
