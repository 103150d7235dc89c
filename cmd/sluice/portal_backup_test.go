package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A backup of a running portal, restored elsewhere, is that portal.
func TestBackupRestore(t *testing.T) {
	t.Parallel()
	p := startPortal(t, filepath.Join(t.TempDir(), "state"))
	file, other := filepath.Join(t.TempDir(), "backup"), filepath.Join(t.TempDir(), "restored")
	backup := func(file string) (stdout, stderr string, code int) {
		return call("", "portal", "backup", "-state", p.folder, file)
	}
	for range 2 { // over an earlier one, too
		if out, text, code := backup(file); code != 0 || !strings.Contains(out, "keep it secret") {
			t.Fatalf("%d: %s%s", code, out, text)
		}
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; want mode 0600", st, err)
	}
	foreign := filepath.Join(t.TempDir(), "notes")
	if err := os.WriteFile(foreign, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, text, code := backup(foreign); code == 0 || !strings.Contains(text, "is no backup; give another FILE") {
		t.Errorf("over another file: %d, %s", code, text)
	}
	if _, text, code := call("", "portal", "restore", "-state", p.folder, file); code == 0 || !strings.Contains(text, "is not empty") {
		t.Errorf("into a folder that is in use: %d, %s", code, text)
	}
	if _, text, code := call("", "portal", "restore", "-state", other, foreign); code == 0 || !strings.Contains(text, "no backup of a portal") {
		t.Errorf("of another file: %d, %s", code, text)
	}
	want := p.list(t)
	p.stop(t)
	if out, text, code := call("", "portal", "restore", "-state", other, file); code != 0 || !strings.Contains(out, "with 2 nodes") {
		t.Fatalf("%d: %s%s", code, out, text)
	}
	got := startPortal(t, other).list(t)
	if len(got) != 2 || got["client"].Created != want["client"].Created || got["gateway"].Addresses[0] != want["gateway"].Addresses[0] {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, text, code := call("", "portal", "backup", "-state", p.folder, file); code == 0 || !strings.Contains(text, "no portal runs") {
		t.Errorf("without a portal: %d, %s", code, text)
	}
}
