package portal

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// TestDiskFull runs a portal on a disk that fills up: a clear error, and what was stored before is there when there is room again and
// the portal goes on by itself; a restart finds all.
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
		_, err = p.AddNode(t.Context(), NewNode{Name: "x" + strings.Repeat("y", added%60), Role: protocol.Client})
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
	if got := ready(p); !strings.HasPrefix(got, "not ready: ") || !strings.Contains(got, "written") && !strings.Contains(got, "no space") {
		t.Errorf("/readyz says %s", got)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	// It goes on by itself, with what the failed changes may have left in the store made right.
	until(t, "the state can be written again", func() bool { return p.Trouble() == nil })
	add(t, p, "next", protocol.Client)
	if n := p.Nodes(); ready(p) != "ready" || len(n) < 2 {
		t.Errorf("/readyz says %s, and there are %d nodes", ready(p), len(n))
	}
	want := names(p)
	p.Close()
	p, err = start(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if got := names(p); !slices.Equal(got, want) {
		t.Errorf("after a restart there are %v, want %v", got, want)
	}
	add(t, p, "last", protocol.Client)
}

func names(p *Portal) (list []string) {
	for _, n := range p.Nodes() {
		list = append(list, n.Name)
	}
	return list
}

// ready is "ready", or why the portal is not.
func ready(p *Portal) string {
	if err := p.Unready(); err != nil {
		return "not ready: " + err.Error()
	}
	return "ready"
}

// TestStoreLost: what befalls the state folder of a running portal has a name, in /readyz too, and what can be mended is.
func TestStoreLost(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	p := open(t, folder)
	add(t, p, "first", protocol.Client)
	if got := ready(p); got != "ready" {
		t.Fatalf("/readyz: %s", got)
	}
	tend := func() { p.note(p.tend(t.Context())) }
	if err := os.RemoveAll(filepath.Join(folder, storeName)); err != nil {
		t.Fatal(err)
	}
	tend()
	add(t, p, "second", protocol.Client)
	for name, want := range map[string]string{certificateName: "portal.pem: no such file", "": "was removed or replaced"} {
		path := filepath.Join(folder, name)
		if err := os.Rename(path, folder+".away"); err != nil {
			t.Fatal(err)
		}
		tend()
		if got := ready(p); !strings.HasPrefix(got, "not ready: ") || !strings.Contains(got, want) {
			t.Errorf("without %q /readyz says %s, want 503 and %q", name, got, want)
		}
		if err := os.Rename(folder+".away", path); err != nil {
			t.Fatal(err)
		}
		tend()
		if got := ready(p); got != "ready" {
			t.Errorf("with %q again /readyz says %s", name, got)
		}
	}
	p.Close()
	p = open(t, folder)
	if got := names(p); !slices.Equal(got, []string{"first", "second"}) {
		t.Errorf("after a restart there are %v", got)
	}
}
