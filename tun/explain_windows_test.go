package tun

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNoDriver: without wintun.dll, and with one that is no program, the error says where it comes from.
func TestNoDriver(t *testing.T) {
	if _, err := os.Stat(filepath.Join(os.Getenv("SystemRoot"), "System32", "wintun.dll")); err == nil {
		t.Skip("SKIPPED: this machine has a wintun.dll")
	}
	if _, err := Open(Options{Name: "sluice-test"}); !errors.Is(err, ErrNoDriver) || !strings.Contains(err.Error(), "there is no wintun.dll; put that") {
		t.Errorf("without a DLL: %v", err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	library := filepath.Join(filepath.Dir(program), "wintun.dll")
	if err := os.WriteFile(library, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(library)
	if _, err := Open(Options{Name: "sluice-test"}); !errors.Is(err, ErrNoDriver) || !strings.Contains(err.Error(), "for another processor") {
		t.Errorf("with another DLL: %v", err)
	}
}
