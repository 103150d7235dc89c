package acceptance

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// A user that the machine does not have, as the unit's user sluice is to all that root owns.
const serviceUser = 64273

// asService runs what comes after it as the shipped units have it run: as a user of its own with CAP_NET_ADMIN and no way to other
// capabilities, with all of /proc/sys but net read-only, and with the folder of wg's sockets as tmpfiles.conf has it.
const asService = `mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys &&
	mount --bind /proc/sys/net /proc/sys/net && mount -o remount,bind,rw /proc/sys/net &&
	mkdir -p /run/wireguard && mount -t tmpfs -o mode=1775,gid=%[1]d tmpfs /run/wireguard &&
	exec setpriv --reuid %[1]d --regid %[1]d --clear-groups --no-new-privs --inh-caps -all,+net_admin --ambient-caps -all,+net_admin \
		--bounding-set -all,+net_admin -- "$@"`

// TestService: members with no right but the units' carry traffic, and the service manager hears that they are ready, how they are, that
// they live and that they end.
func TestService(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("SKIPPED: no member runs with the rights of a service: setpriv is not installed")
	}
	v := newVPN(t)
	if m, _ := os.ReadFile("/proc/self/uid_map"); !strings.Contains(string(m), "4294967295") {
		t.Skip("SKIPPED: this lab has one user only (it was made without root), so nobody with less rights can be tried")
	}
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{v.dir, filepath.Dir(path)} {
		if err := os.Chmod(folder, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	v.under = []string{"unshare", "--mount", "sh", "-ec", fmt.Sprintf(asService, serviceUser), "sh"}
	start := func(name, role string, site *lab.Site, args ...string) (*member, *notified) {
		token, err := v.run(v.internet.Hub, "portal", "node", "add", "-state", filepath.Join(v.dir, "state"), "-role", role, name)
		if err != nil {
			t.Fatal(err)
		}
		folder := filepath.Join(v.dir, name+"-service")
		file := filepath.Join(folder, "token")
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		told := newNotified(t, filepath.Join(folder, "notify"))
		for _, p := range []string{folder, file, told.path} {
			if err := os.Chown(p, serviceUser, serviceUser); err != nil {
				t.Fatal(err)
			}
		}
		in := func(name string) string { return filepath.Join(folder, name) }
		m := &member{sluice: &sluice{name: name}, site: site, socket: in("sock"), stats: in("stats")}
		m.args = append([]string{role, "-token-file", file, "-socket", m.socket, "-pins", in("pins")}, args...)
		m.sluice = v.start(site.Node, name, []string{"NOTIFY_SOCKET=" + told.path, "WATCHDOG_USEC=3000000", "LOGS_DIRECTORY=" + folder}, m.args...)
		return m, told
	}
	gs, cs := v.site("gate-site", lab.Restricted), v.site("client-site", lab.Cone)
	g, _ := start("gate", "gateway", gs, "-routes", "10.99.0.0/24")
	c, told := start("laptop", "client", cs)
	c.awaitConnection(patience, "gate", "connected", isUp(""))
	openStream(t, cs.Node, gs.Node, g.overlay()).awaitProgress(patience, "between two services")
	for _, m := range []*member{g, c} {
		if s := m.status(); s.Problem != "" {
			t.Errorf("%s: %s", m.name, s.Problem)
		}
		for _, l := range m.lines() {
			if text := strings.ToLower(fmt.Sprint(l)); strings.Contains(text, "permission") || strings.Contains(text, "not permitted") {
				t.Errorf("%s lacks a right: %v", m.name, l)
			}
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"CapPrm:\t0000000000001000\n", "CapBnd:\t0000000000001000\n", fmt.Sprintf("Uid:\t%d\t", serviceUser)} {
			if !strings.Contains(string(status), want) {
				t.Errorf("%s runs with other rights than %q:\n%s", m.name, want, status)
			}
		}
	}
	for _, want := range []string{"READY=1", "WATCHDOG=1", "STATUS=client laptop on sluice0: connected to 1 of 1 peers"} {
		await(t, patience, "the service manager is told "+want, func() bool { return told.has(want) })
	}
	if _, err := exec.LookPath("wg"); err == nil {
		show := exec.Command("nsenter", "--target", strconv.Itoa(c.cmd.Process.Pid), "--mount", "--net", "wg", "show", "sluice0")
		if out, err := show.CombinedOutput(); err != nil || !strings.Contains(string(out), "latest handshake: ") {
			t.Errorf("wg show, for root: %v, %s", err, out)
		}
	}
	c.end()
	await(t, patience, "the service manager is told of the end", func() bool { return told.has("STOPPING=1") })
}

// notified is the end of sd_notify(3) that listens.
type notified struct {
	path string
	mu   sync.Mutex
	said []string // guarded by mu
}

func newNotified(t *testing.T, path string) *notified {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	m := &notified{path: path}
	go func() {
		for buffer := make([]byte, 4096); ; {
			n, err := conn.Read(buffer)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.said = append(m.said, strings.Split(string(buffer[:n]), "\n")...)
			m.mu.Unlock()
		}
	}()
	return m
}

// has tells whether a word began like that.
func (m *notified) has(begin string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, word := range m.said {
		if strings.HasPrefix(word, begin) {
			return true
		}
	}
	return false
}
