package member

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/cmd/internal/logs"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

var somePins = map[string]protocol.Identity{"gate": {1}, "laptop": {2}}

// openTestPins is openPins of portal 1, and its log.
func openTestPins(t *testing.T, path string) (*pinsFile, map[string]protocol.Identity, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	f, pins := openPins(path, [32]byte{1}, slog.New(logs.NewText(&log, slog.LevelInfo)))
	t.Cleanup(f.saving.Wait) // before what holds the file goes
	return f, pins, &log
}

// TestStateFolder: the service manager's folder, else root's, else the user's.
func TestStateFolder(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("SKIPPED: this system has no such variables")
	}
	own := "/me/.local/state/sluice"
	if os.Geteuid() == 0 {
		own = "/var/lib/sluice"
	}
	for state, want := range map[string]string{"": own, "/var/lib/a": "/var/lib/a", "/var/lib/a:/var/lib/b": "/var/lib/a"} {
		environ := map[string]string{"STATE_DIRECTORY": state, "HOME": "/me"}
		o := Options{Getenv: func(name string) string { return environ[name] }}.withDefaults()
		if got := filepath.ToSlash(defaultPins(o.State, "gate")); got != want+"/pins-gate.json" {
			t.Errorf("STATE_DIRECTORY %q: %s, want it in %s", state, got, want)
		}
	}
}

func TestPinsFile(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "deep", "state")
	path := filepath.Join(folder, "pins.json")
	f, pins, _ := openTestPins(t, path)
	if len(pins) != 0 || f.notes() != nil {
		t.Fatalf("there are pins %v, notes %q", pins, f.notes())
	}
	f.save(map[string]protocol.Identity{"gate": {9}})
	f.save(somePins)
	f.write() // what save has begun may be under way
	for path, want := range map[string]os.FileMode{path: 0o600, folder: 0o700} {
		if st, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && st.Mode().Perm() != want { // see TestLists
			t.Errorf("%s: %v, %v, want %v", path, st.Mode(), err, want)
		}
	}
	if entries, err := os.ReadDir(folder); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v beside the file", entries, err)
	}
	if _, pins, _ = openTestPins(t, path); !maps.Equal(pins, somePins) {
		t.Errorf("read back %v, want %v", pins, somePins)
	}
	// Another portal's nodes are others.
	other, pins := openPins(path, [32]byte{2}, slog.New(slog.DiscardHandler))
	if len(pins) != 0 || other.notes() != nil {
		t.Errorf("of another portal: %v, notes %q", pins, other.notes())
	}
	other.save(somePins)
	other.write()
	if _, pins, _ = openTestPins(t, path); len(pins) != 0 {
		t.Errorf("of another portal: %v", pins)
	}
}

// What cannot be read is told in one sentence and left as it is; the node begins without pins.
func TestPinsDamaged(t *testing.T) {
	good := `{"portal":"` + fmt.Sprintf("%064x", 1) + `","peers":{}}`
	for name, write := range map[string]func(t *testing.T, path string) error{
		"empty":      func(t *testing.T, path string) error { return os.WriteFile(path, nil, 0o600) },
		"half":       func(t *testing.T, path string) error { return os.WriteFile(path, []byte(good[:20]), 0o600) },
		"other JSON": func(t *testing.T, path string) error { return os.WriteFile(path, []byte(`{"a":1}`), 0o600) },
		"bad key": func(t *testing.T, path string) error {
			return os.WriteFile(path, []byte(`{"portal":"00","peers":{"a":"b"}}`), 0o600)
		},
		"zeros":  func(t *testing.T, path string) error { return os.WriteFile(path, make([]byte, 4096), 0o600) },
		"long":   func(t *testing.T, path string) error { return os.WriteFile(path, make([]byte, maxPinsFile+1), 0o600) },
		"folder": func(t *testing.T, path string) error { return os.Mkdir(path, 0o700) },
		"writable": func(t *testing.T, path string) error {
			if runtime.GOOS == "windows" {
				t.Skip("SKIPPED: this system's files have no modes; see TestLists of package secretfile")
			}
			if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
				return err
			}
			return os.Chmod(path, 0o666)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "pins.json")
			if err := write(t, path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.ReadFile(path)
			f, pins, log := openTestPins(t, path)
			if len(pins) != 0 {
				t.Errorf("pins %v", pins)
			}
			if n := f.notes(); len(n) != 1 || !strings.Contains(n[0], path) || !strings.Contains(n[0], "restore the file, or remove it") || strings.Contains(n[0], "\n") {
				t.Errorf("notes %q", n)
			}
			f.save(somePins)
			f.write()
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Errorf("%q has become %q", before, after)
			}
			if n := strings.Count(log.String(), "cannot be read"); n != 1 {
				t.Errorf("told %d times, want once", n)
			}
		})
	}
}

// Where nothing can be written the node is told so, once, and what was to be written is when it can be.
func TestPinsNotWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, pins, log := openTestPins(t, filepath.Join(file, "pins.json")) // below a file
	if len(pins) != 0 {
		t.Errorf("pins %v", pins)
	}
	f.broken = false // nothing is there that could be lost
	*log = bytes.Buffer{}
	for range 2 {
		f.next.Store(&somePins)
		f.write()
	}
	if n := f.notes(); len(n) != 1 || !strings.Contains(n[0], "-pins") || strings.Contains(n[0], "\n") {
		t.Errorf("notes %q", n)
	}
	if n := strings.Count(log.String(), "known only until"); n != 1 {
		t.Errorf("told %d times, want once:\n%s", n, log)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	f.write()
	if f.notes() != nil || !strings.Contains(log.String(), "on disk") {
		t.Errorf("notes %q, log %s", f.notes(), log)
	}
	if _, pins, _ := openTestPins(t, f.path); !maps.Equal(pins, somePins) {
		t.Errorf("read back %v, want %v", pins, somePins)
	}
}
