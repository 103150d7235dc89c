package acceptance

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// debian is a root file system without a service manager.
type debian struct {
	t    *testing.T
	root string
	nfpm string // the program that makes packages
}

// newDebian unpacks the clean root file system that deploy/package/debian has made; there is no way out of the lab to fetch it.
func newDebian(t *testing.T, root string) *debian {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(cache, "sluice-debian", "bookworm.tar")
	if _, err := os.Stat(image); err != nil {
		t.Skipf("SKIPPED: no package is installed: there is no root file system; cmd/sluice/deploy/package/debian makes one, as root: %v", err)
	}
	d := &debian{t, root, filepath.Join(cache, "sluice-debian", "nfpm")}
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-C", root, "-xf", image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// What the scripts ask of systemd is written down. It runs, they are told.
	d.write("usr/bin/systemctl", "#!/bin/sh\necho \"$@\" >>/systemctl.log\n", 0o755)
	if err := os.MkdirAll(d.path("run/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *debian) path(name string) string { return filepath.Join(d.root, name) }

func (d *debian) write(name, text string, mode os.FileMode) {
	d.t.Helper()
	if err := os.MkdirAll(filepath.Dir(d.path(name)), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.path(name), []byte(text), mode); err != nil {
		d.t.Fatal(err)
	}
}

func (d *debian) exists(name string) bool {
	_, err := os.Lstat(d.path(name))
	return err == nil
}

// run runs a command in it and returns what it prints.
func (d *debian) run(words ...string) string {
	d.t.Helper()
	cmd := exec.Command("chroot", append([]string{d.root, "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"}, words...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.t.Fatalf("%q: %v: %s", words, err, out)
	}
	return string(out)
}

// asked are the calls of systemctl since the last time.
func (d *debian) asked() string {
	text, _ := os.ReadFile(d.path("systemctl.log"))
	_ = os.Remove(d.path("systemctl.log"))
	return strings.TrimSpace(string(text))
}

// inside runs the program of the package in place of the one that it is given, with the devices and settings that it needs.
const inside = `mount -t proc proc "$0/proc"; shift; exec chroot "$0" /usr/bin/sluice "$@"`

const allUnits = "sluice-portal.service sluice-gateway.service sluice-client.service"

// TestPackage: the .deb goes into a clean root file system, enables nothing, works, takes the place of an older one without touching what
// the administrator changed, while its tunnel is away for less than a second, and goes; what it kept goes only on demand.
func TestPackage(t *testing.T) {
	if m, _ := os.ReadFile("/proc/self/uid_map"); !strings.Contains(string(m), "4294967295") {
		t.Skip("SKIPPED: no package is installed: this lab has one user only (it was made without root)")
	}
	if race {
		t.Skip("SKIPPED: no package is installed: a package has no program with the race detector")
	}
	t.Parallel()
	v := newVPN(t)
	d := newDebian(t, filepath.Join(v.dir, "debian"))
	packages := filepath.Join(v.dir, "packages")
	for _, version := range []string{"1.0.0", "1.0.1"} {
		build := exec.Command("../../sluice/deploy/package/build", version, packages)
		build.Env = append(os.Environ(), "NFPM="+d.nfpm)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build: %v: %s", err, out)
		}
	}
	install := func(version string) {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(packages, "sluice_"+version+"*.deb"))
		if err != nil || len(found) != 1 {
			t.Fatalf("packages of %s: %q, %v", version, found, err)
		}
		text, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		d.write("sluice.deb", string(text), 0o644)
		d.run("dpkg", "--force-unsafe-io", "-i", "/sluice.deb")
	}

	install("1.0.0")
	if got, want := d.asked(), "daemon-reload"; got != want {
		t.Errorf("systemd was asked for %q by the installation, want %q", got, want)
	}
	if out := d.run("getent", "passwd", "sluice"); !strings.Contains(out, "nologin") {
		t.Errorf("the user: %s", out)
	}
	if out := d.run("sluice", "version"); !strings.HasPrefix(out, "sluice ") {
		t.Errorf("version: %s", out)
	}
	files := strings.Fields(d.run("dpkg", "-L", "sluice"))
	for _, want := range []string{
		"/usr/bin/sluice-wg", "/usr/lib/systemd/system/sluice-portal.service", "/usr/share/man/man8/sluice-client.8.gz", "/etc/sluice/client.env",
		"/usr/share/bash-completion/completions/sluice", "/usr/share/zsh/vendor-completions/_sluice", "/usr/share/fish/vendor_completions.d/sluice.fish",
	} {
		if !slices.Contains(files, want) {
			t.Errorf("the package lacks %s", want)
		}
	}

	v.checkContainer(d)
	v.under = nil
	gs, cs := v.site("gate-site", lab.Restricted), v.site("client-site", lab.Cone)
	c := v.add("laptop", "client", cs)
	g := v.startInside(d, "gate", gs)
	b := openBeat(t, cs.Node, gs.Node, g.overlay())
	best := time.Hour
	for i := range 3 { // a machine that is busy with other tests has three tries
		c.awaitConnection(patience, "gate", "direct", isUp("direct"))
		b.longest(t, "before")
		d.write("etc/sluice/gateway.env", "ARGS=-routes 10.0.0.0/24\n", 0o644)
		install([]string{"1.0.1", "1.0.0"}[i%2])
		if got, want := d.asked(), "daemon-reload\ndaemon-reload\ntry-restart "+allUnits; got != want {
			t.Errorf("systemd was asked for %q by the upgrade, want %q", got, want)
		}
		v.restart(g) // as systemd then does
		best = min(best, b.longest(t, "the upgrade"))
		t.Logf("upgrade: nothing arrived for %v", best.Round(time.Millisecond))
		if best <= longestUpgrade {
			break
		}
	}
	if best > longestUpgrade {
		t.Errorf("an upgrade: nothing arrived for %v, want at most %v", best, longestUpgrade)
	}
	if text, _ := os.ReadFile(d.path("etc/sluice/gateway.env")); string(text) != "ARGS=-routes 10.0.0.0/24\n" {
		t.Errorf("the upgrade has changed the administrator's file: %s", text)
	}
	g.end()

	d.write("var/lib/sluice/pins-gate.json", "{}", 0o600)
	d.splitsState(install)
	d.run("dpkg", "-r", "sluice")
	if got, want := d.asked(), "--no-reload disable --now sluice-client.service sluice-gateway.service sluice-portal.service\ndaemon-reload"; got != want {
		t.Errorf("systemd was asked for %q by the removal, want %q", got, want)
	}
	for name, want := range map[string]bool{
		"usr/bin/sluice": false, "usr/lib/systemd/system/sluice-client.service": false, "etc/sluice/gateway.env": true, "var/lib/sluice/pins-gate.json": true,
	} {
		if got := d.exists(name); got != want {
			t.Errorf("after the removal %s is there: %v, want %v", name, got, want)
		}
	}
	d.run("dpkg", "-P", "sluice")
	for _, name := range []string{"etc/sluice", "var/lib/sluice", "var/lib/sluice-gateway"} {
		if d.exists(name) {
			t.Errorf("after the purge there is still %s", name)
		}
	}
	checkRPM(t, packages)
}

// splitsState tries an upgrade from when gateway and client had one folder.
func (d *debian) splitsState(install func(version string)) {
	d.t.Helper()
	if d.exists("var/lib/sluice-gateway") {
		d.run("rm", "-r", "/var/lib/sluice-gateway")
	}
	install("1.0.0")
	if d.exists("var/lib/sluice-gateway/pins-gate.json") {
		d.t.Error("a gateway that is not enabled has got a copy of the state")
	}
	d.run("rm", "-rf", "/var/lib/sluice-gateway")
	d.write("etc/systemd/system/multi-user.target.wants/sluice-gateway.service", "", 0o644)
	install("1.0.1")
	if !d.exists("var/lib/sluice-gateway/pins-gate.json") || !d.exists("var/lib/sluice/pins-gate.json") {
		d.t.Error("a gateway that is enabled has not kept its state")
	}
	d.asked()
}

// startInside adds a gateway at the portal and starts it in the root file system.
func (v *vpn) startInside(d *debian, name string, site *lab.Site) *member {
	v.t.Helper()
	token, err := v.run(v.internet.Hub, "portal", "node", "add", "-state", filepath.Join(v.dir, "state"), "-role", "gateway", name)
	if err != nil {
		v.t.Fatal(err)
	}
	d.write("srv/token", token, 0o600)
	if err := os.MkdirAll(d.path("dev/net"), 0o755); err != nil {
		v.t.Fatal(err)
	}
	if out, err := exec.Command("mknod", "-m", "666", d.path("dev/net/tun"), "c", "10", "200").CombinedOutput(); err != nil {
		v.t.Fatalf("mknod: %v: %s", err, out)
	}
	m := &member{sluice: &sluice{name: name}, site: site, socket: d.path("run/gate.sock"), stats: d.path("srv/stats")}
	m.args = []string{"gateway", "-token-file", "/srv/token", "-socket", "/run/gate.sock", "-pins", "/srv/pins"}
	v.under = []string{"unshare", "--mount", "sh", "-ec", inside, d.root}
	v.launch(m)
	return m
}

// checkRPM reads what the .rpm holds.
func checkRPM(t *testing.T, packages string) {
	t.Helper()
	if _, err := exec.LookPath("rpm"); err != nil {
		t.Log("SKIPPED: the .rpm is not read: rpm is not installed")
		return
	}
	found, err := filepath.Glob(filepath.Join(packages, "sluice-1.0.1*.rpm"))
	if err != nil || len(found) != 1 {
		t.Fatalf("packages: %q, %v", found, err)
	}
	out, err := exec.Command("rpm", "-qp", "--list", "--scripts", found[0]).CombinedOutput()
	if err != nil {
		t.Fatalf("rpm: %v: %s", err, out)
	}
	for _, want := range []string{
		"/usr/bin/sluice\n", "/usr/bin/sluice-wg\n", "/usr/lib/systemd/system/sluice-client.service\n", "/usr/share/man/man8/sluice.8.gz\n",
		"/usr/share/zsh/site-functions/_sluice\n", "try-restart", "disable --now",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the .rpm lacks %q", want)
		}
	}
	configured, err := exec.Command("rpm", "-qp", "--configfiles", found[0]).CombinedOutput()
	if want := "/etc/sluice/client.env\n/etc/sluice/gateway.env\n/etc/sluice/portal.env\n"; err != nil || string(configured) != want {
		t.Errorf("configuration files %q, %v, want %q", configured, err, want)
	}
}

// checkContainer: the program needs nothing but itself and a folder for its state, as in the image that Containerfile makes: no root, no
// capability, no other file.
func (v *vpn) checkContainer(d *debian) {
	v.t.Helper()
	recipe, err := os.ReadFile("../../sluice/deploy/Containerfile")
	if err != nil {
		v.t.Fatal(err)
	}
	for _, want := range []string{"FROM scratch\n", "USER 65532:65532\n", "CGO_ENABLED=0 go build"} {
		if !strings.Contains(string(recipe), want) {
			v.t.Errorf("the recipe lacks %q", want)
		}
	}
	program, err := os.ReadFile(d.path("usr/bin/sluice"))
	if err != nil {
		v.t.Fatal(err)
	}
	image := &debian{t: v.t, root: filepath.Join(v.dir, "image")}
	image.write("usr/bin/sluice", string(program), 0o755)
	state := image.path("var/lib/sluice-portal")
	if err := errors.Join(os.MkdirAll(filepath.Dir(state), 0o755), os.Mkdir(state, 0o700), os.Chown(state, 65532, 65532)); err != nil {
		v.t.Fatal(err)
	}
	site := v.site("container-site", lab.NoNAT)
	v.under = []string{"sh", "-ec", `shift; exec chroot --userspec 65532:65532 "$0" /usr/bin/sluice "$@"`, image.root}
	p := v.start(site.Node, "container", nil, "portal", "-public", "198.18.0.9")
	p.awaitLog("portal is ready", 1)
	if status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid)); !strings.Contains(string(status), "CapEff:\t0000000000000000\n") {
		v.t.Errorf("the portal has rights:\n%s", status)
	}
	p.end()
}
