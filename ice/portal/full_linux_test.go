package portal

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// TestDiskFull runs a portal on a disk that fills up: a clear error, and what was stored before is there when there is room again and
// the portal is restarted.
func TestDiskFull(t *testing.T) {
	const variable = "SLUICE_TEST_DISK"
	if os.Getenv(variable) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestDiskFull$", "-test.v")
		cmd.Env = append(os.Environ(), variable+"="+t.TempDir())
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
		out, err := cmd.CombinedOutput()
		if _, ran := err.(*exec.ExitError); err != nil && !ran || strings.Contains(string(out), "--- SKIP") {
			t.Skipf("SKIPPED: a full disk is not tried: no namespace of our own (%v)", err)
		}
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	disk := os.Getenv(variable)
	if err := syscall.Mount("none", disk, "tmpfs", 0, "size=16m"); err != nil {
		t.Skip(err)
	}
	folder := filepath.Join(disk, "state")
	p := open(t, folder)
	add(t, p, "first", protocol.Client)
	ballast := filepath.Join(disk, "ballast")
	f, err := os.Create(ballast)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	f.Close() // or its space is not given back
	err = nil
	added := 0
	for ; err == nil && added < 10_000; added++ {
		_, err = p.AddNode(t.Context(), "x"+strings.Repeat("y", added%60), protocol.Client, nil)
		if err == nil {
			err = p.RemoveNode(t.Context(), "x"+strings.Repeat("y", added%60))
		}
	}
	t.Logf("after %d nodes: %v", added, err)
	if err == nil || !strings.Contains(err.Error(), "disk is full") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v", err)
	}
	if n := p.Nodes(); len(n) == 0 || n[0].Name != "first" {
		t.Errorf("%+v", n)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	p.Close()
	p, err = start(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if n := p.Nodes(); len(n) == 0 || n[0].Name != "first" {
		t.Errorf("%+v", n)
	}
	add(t, p, "last", protocol.Client)
}
