package acceptance

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// TestLogFolder: a node keeps its log in a folder, which sluice logs prints; the level is changed while it runs, and the folder may be
// removed under it.
func TestLogFolder(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	c := v.add("laptop", "client", v.site("client-site", lab.Restricted))
	c.awaitLog("node is up", 1)
	dir := filepath.Join(v.dir, "laptop.logs")
	logs := func(args ...string) string {
		t.Helper()
		out, err := v.run(c.site.Node, append([]string{"logs", "-dir", dir}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	text := logs()
	first := slices.DeleteFunc(strings.Split(text, "\n"), func(line string) bool { return strings.Contains(line, "test hooks are on") })
	for i, want := range []string{" INFO started log " + dir + "/", " INFO sluice client version ", " INFO signing in at "} {
		if len(first) < 3 || !strings.Contains(first[i], want) {
			t.Fatalf("line %d lacks %q:\n%s", i+1, want, text)
		}
	}
	level := func(args ...string) string {
		t.Helper()
		out, err := v.run(c.site.Node, append([]string{"log-level", "-socket", c.socket}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	if got, want := level("debug"), c.socket+": debug, before info"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := level(), c.socket+": debug"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if text := logs(); !strings.Contains(text, "the log level is debug now, before info") {
		t.Errorf("the change is not in the log:\n%s", text)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	level("warning")
	await(t, patience, "the folder is there again", func() bool {
		_, err := os.Stat(filepath.Join(dir, "latest"))
		return err == nil
	})
	if text := logs("-level", "info"); !strings.Contains(text, "the log level is warning now") {
		t.Errorf("the line after is not there:\n%s", text)
	}
}
