package secretfile

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// A file is replaced as a whole, is its owner's alone, and nothing else is left beside it.
func TestWrite(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "file")
	if err := os.WriteFile(path, []byte("what was there before, and longer"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"a secret", ""} {
		if err := Write(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != text {
			t.Errorf("got %q, %v, want %q", got, err, text)
		}
		st, err := os.Stat(path)
		if err != nil || runtime.GOOS != "windows" && st.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v, want 0600", st.Mode(), err)
		}
	}
	if err := Write(filepath.Join(folder, "none", "file"), nil); !os.IsNotExist(err) {
		t.Errorf("into a folder that is not there: %v", err)
	}
	if err := os.Mkdir(filepath.Join(folder, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(folder, "taken"), []byte("x")); err == nil {
		t.Error("a folder was replaced by a file")
	}
	entries, err := os.ReadDir(folder)
	if err != nil || len(entries) != 2 {
		t.Errorf("left beside the file: %v, %v", entries, err)
	}
}
