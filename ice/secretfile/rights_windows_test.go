package secretfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func othersRead(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	others, remedy, err := OthersRead(f)
	if err != nil {
		t.Fatal(err)
	}
	if others && !strings.Contains(remedy, path) {
		t.Errorf("%s: remedy %q does not name it", path, remedy)
	}
	return others
}

// TestLists: what Write makes is its user's alone, in folders with spaces and umlauts too, and lists that let others read are seen.
func TestLists(t *testing.T) {
	user, err := self()
	if err != nil {
		t.Fatal(err)
	}
	ours, err := own("")
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(t.TempDir(), "Größe und Maß", "state")
	if err := MakeFolder(folder); err != nil {
		t.Fatal(err)
	}
	if err := MakeFolder(folder); err != nil {
		t.Errorf("a folder that is there: %v", err)
	}
	path := filepath.Join(folder, "token")
	if err := Write(path, []byte("secret")); err != nil {
		t.Fatal(err)
	}
	if othersRead(t, path) {
		t.Error("others may read what was written")
	}
	if err := MakeFolder(path); err == nil {
		t.Error("a file was taken for a folder")
	}
	for text, want := range map[string]bool{
		ours:                  false,
		ours + "(A;;FR;;;WD)": true, // everyone
		"O:" + user.String() + "D:P(A;;FA;;;" + user.String() + ")":      false,
		"O:" + user.String() + "D:P(A;;FA;;;BA)(A;;FA;;;SY)(A;;GR;;;WD)": true,
	} {
		if err := describe(path, text); err != nil {
			t.Fatal(err)
		}
		if got := othersRead(t, path); got != want {
			t.Errorf("%s: others may read it: %v, want %v", text, got, want)
		}
	}
}
