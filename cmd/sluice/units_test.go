package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// worstExposure is what systemd-analyze may find at most, of 10.
const worstExposure = 3.0

// TestFolders: gateway and client have state of their own, and both may make the sockets that wg looks for, beside those of root's programs.
func TestFolders(t *testing.T) {
	states := map[string]string{}
	for _, unit := range []string{"client", "gateway"} {
		text, err := os.ReadFile("deploy/systemd/sluice-" + unit + ".service")
		if err != nil {
			t.Fatal(err)
		}
		state := regexp.MustCompile(`(?m)^StateDirectory=(\S+)$`).FindSubmatch(text)
		if state == nil || states[string(state[1])] != "" {
			t.Fatalf("%s: state in %q, of others: %v", unit, state, states)
		}
		states[string(state[1])] = unit
		if !regexp.MustCompile(`(?m)^ReadWritePaths=.* -/run/wireguard$`).Match(text) {
			t.Errorf("%s: the folder of wg's sockets is read-only", unit)
		}
	}
	made, err := os.ReadFile("deploy/systemd/tmpfiles.conf")
	if want := "\nd /run/wireguard 1775 root sluice -\n"; err != nil || !strings.Contains(string(made), want) {
		t.Errorf("tmpfiles.conf: %v, want the line %q in\n%s", err, want, made)
	}
	if want := "\nd /var/lib/sluice-gateway 0700 sluice sluice -\n"; states["sluice-gateway"] != "gateway" || !strings.Contains(string(made), want) {
		t.Errorf("states %v, want the line %q in\n%s", states, want, made)
	}
}

// TestUnits: the shipped units are understood, and leave their services little.
func TestUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("SKIPPED: the units are not judged: systemd-analyze is not installed")
	}
	units, err := filepath.Glob("deploy/systemd/*.service")
	if err != nil || len(units) != 3 {
		t.Fatalf("units %q, %v", units, err)
	}
	self, err := os.Executable() // there must be a program where the unit says
	if err != nil {
		t.Fatal(err)
	}
	for _, unit := range units {
		t.Run(filepath.Base(unit), func(t *testing.T) {
			text, err := os.ReadFile(unit)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), filepath.Base(unit))
			if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "/usr/bin/sluice ", self+" ")), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("verify: %v, %s", err, out)
			}
			out, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", path).CombinedOutput()
			found := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindSubmatch(out)
			if err != nil || found == nil {
				t.Fatalf("security: %v\n%s", err, out)
			}
			if got, err := strconv.ParseFloat(string(found[1]), 64); err != nil || got >= worstExposure {
				t.Errorf("exposure %v, %v, want less than %v:\n%s", got, err, worstExposure, out)
			}
		})
	}
}
