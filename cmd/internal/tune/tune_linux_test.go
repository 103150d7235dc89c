package tune

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What could not be changed is not remembered as changed: in place of the setting there is one that not even root may write.
func TestRefused(t *testing.T) {
	u, _ := machine(t, "")
	path := u.path("net.core.rmem_max")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/sys/kernel/ngroups_max", path); err != nil {
		t.Fatal(err)
	}
	if err := u.Apply(); err == nil || !strings.Contains(err.Error(), "run this as root of the machine") {
		t.Errorf("refused: %v", err)
	}
	if list, err := u.Show(); err != nil || list[0].Changed || !list[0].Lacks() {
		t.Errorf("refused: %+v, %v", list, err)
	}
}
