package tune

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// machine makes the setting with a value, none if it is "".
func machine(t *testing.T, value string) (u *Tuning, now func() string) {
	t.Helper()
	dir := t.TempDir()
	u = &Tuning{Root: filepath.Join(dir, "sys"), Memory: filepath.Join(dir, "state", "tune.json")}
	path := u.path("net.core.rmem_max")
	if value != "" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return u, func() string {
		text, _ := os.ReadFile(path) // "": it is not there
		return strings.TrimSpace(string(text))
	}
}

// What was there before the first of several runs is what comes back, and only once.
func TestApplyRevert(t *testing.T) {
	u, now := machine(t, "212992")
	for range 2 {
		if err := u.Apply(); err != nil {
			t.Fatal(err)
		}
		if now() != "4194304" {
			t.Errorf("applied: %s", now())
		}
	}
	if list, err := u.Show(); err != nil || !list[0].Changed || list[0].Before != 212992 || list[0].Lacks() {
		t.Errorf("applied: %+v, %v", list, err)
	}
	for range 2 {
		if err := u.Revert(); err != nil {
			t.Fatal(err)
		}
		if now() != "212992" {
			t.Errorf("reverted: %s", now())
		}
	}
	if _, err := os.Stat(u.Memory); !os.IsNotExist(err) {
		t.Errorf("something is remembered still: %v", err)
	}
}

// A higher value is left alone, as is one that somebody else has set since; a kernel without the setting is no error.
func TestLeftAlone(t *testing.T) {
	u, now := machine(t, "8388608")
	if err := u.Apply(); err != nil || now() != "8388608" {
		t.Errorf("a higher one: %s, %v", now(), err)
	}
	if err := u.Revert(); err != nil || now() != "8388608" {
		t.Errorf("a higher one, reverted: %s, %v", now(), err)
	}
	u, now = machine(t, "212992")
	if err := u.Apply(); err != nil {
		t.Fatal(err)
	}
	if err := u.write("net.core.rmem_max", 9999999); err != nil {
		t.Fatal(err)
	}
	if err := u.Revert(); err != nil || now() != "9999999" {
		t.Errorf("changed by somebody else: %s, %v", now(), err)
	}
	u, now = machine(t, "")
	if list, err := u.Show(); err != nil || !list[0].Missing || list[0].Lacks() {
		t.Errorf("no such setting: %+v, %v", list, err)
	}
	if err := u.Apply(); err != nil || now() != "" {
		t.Errorf("no such setting: %q, %v", now(), err)
	}
	if err := u.Revert(); err != nil {
		t.Error(err)
	}
}

func TestDamage(t *testing.T) {
	u, now := machine(t, "212992")
	if err := os.MkdirAll(filepath.Dir(u.Memory), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(u.Memory, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := u.Apply(); err == nil || !strings.Contains(err.Error(), "damaged") || now() != "212992" {
		t.Errorf("damaged: %v, %s", err, now())
	}
	u, _ = machine(t, "many")
	if _, err := u.Show(); err == nil || !strings.Contains(err.Error(), "is no number") {
		t.Errorf("no number: %v", err)
	}
}
