package acceptance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	_ "github.com/sluice-vpn/sluice/cmd/internal/member" // so that a change of it makes the tests run again
	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/edge"
	_ "github.com/sluice-vpn/sluice/ice/portal" // likewise
)

// atOnce is how many of these tests run at once, unless go test says otherwise. They mostly wait, so it may be more than there are
// processors.
const atOnce = "6"

func TestMain(m *testing.M) {
	testing.Init()
	if err := flag.Set("test.parallel", atOnce); err != nil {
		panic(err)
	}
	lab.Main(cleaning{m})
}

// cleaning removes the program after the tests.
type cleaning struct{ *testing.M }

func (c cleaning) Run() int {
	defer func() { os.RemoveAll(programDir) }()
	return c.M.Run()
}

// programDir is where program has built it, "" before.
var programDir string

// program builds sluice once.
var program = sync.OnceValues(func() (string, error) {
	// go test reuses a result unless a file that was read has changed.
	sources, err := filepath.Glob("../../sluice/*.go")
	if err != nil || len(sources) == 0 {
		return "", fmt.Errorf("no sources: %w", err)
	}
	for _, name := range sources {
		if _, err := os.ReadFile(name); err != nil {
			return "", err
		}
	}
	if programDir, err = os.MkdirTemp("", "sluice-acceptance"); err != nil {
		return "", err
	}
	path := filepath.Join(programDir, "sluice")
	args := []string{"build", "-o", path}
	if race {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "github.com/sluice-vpn/sluice/cmd/sluice")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return path, nil
})

// sluice is one that runs in the background.
type sluice struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	out  string // path; a file, so that the portal prints its tokens
	log  string // path
	done chan struct{}
}

// vpn is a portal in the hub, and nodes on sites.
type vpn struct {
	t        *testing.T
	dir      string
	internet *lab.Internet
	portal   *sluice
	args     []string // of the portal
	starts   int      // of the portal
	under    []string // begins the command line of what is started from now on, and runs the rest of it
}

// member is a gateway or client.
type member struct {
	*sluice
	site   *lab.Site
	socket string
	token  string
	stats  string // where its counters go
	args   []string
	ask    func() edge.Status // in place of the socket, where that is none of this system; nil: the socket
}

func newVPN(t *testing.T, portalArgs ...string) *vpn {
	t.Helper()
	return newVPNWith(t, func(*vpn) []string { return portalArgs })
}

// newVPNWith is newVPN where something must be there before the portal starts.
func newVPNWith(t *testing.T, before func(v *vpn) (portalArgs []string)) *vpn {
	t.Helper()
	lab.NeedTUN(t)
	// The path of a socket has 108 bytes (unix(7)): too few for the test's name in it, where the folder for such things has a long one.
	dir, err := os.MkdirTemp("", "vpn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	v := &vpn{t: t, dir: dir}
	if v.internet, err = lab.NewInternet(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.internet.Close() })
	v.args = append([]string{"portal", "-public", lab.HubAddr.String(), "-state", filepath.Join(v.dir, "state"),
		"-relay-allow", lab.PublicNet.String()}, before(v)...)
	v.startPortal()
	return v
}

func (v *vpn) startPortal() {
	v.t.Helper()
	v.portal = v.start(v.internet.Hub, "portal", nil, v.args...)
	v.starts++
	v.portal.awaitLog("portal is ready", v.starts)
}

// start runs sluice in a namespace until the test ends.
func (v *vpn) start(ns *lab.Namespace, name string, env []string, args ...string) *sluice {
	v.t.Helper()
	path, err := program()
	if err != nil {
		v.t.Fatal(err)
	}
	base := filepath.Join(v.dir, name)
	p := &sluice{t: v.t, name: name, out: base + ".out", log: base + ".log", done: make(chan struct{})}
	words := slices.Concat(v.under, []string{path}, args)
	p.cmd = exec.Command(words[0], words[1:]...)
	for path, stream := range map[string]*io.Writer{p.out: &p.cmd.Stdout, p.log: &p.cmd.Stderr} {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			v.t.Fatal(err)
		}
		defer f.Close()
		*stream = f
	}
	p.cmd.Env = append(append(os.Environ(), "SLUICE_TEST_HOOKS=1", "GORACE=halt_on_error=1 atexit_sleep_ms=0",
		"DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent"), env...)
	if err := ns.Start(p.cmd); err != nil {
		v.t.Fatal(err)
	}
	go func() { defer close(p.done); p.cmd.Wait() }()
	v.t.Cleanup(func() {
		p.end()
		if v.t.Failed() {
			text, _ := os.ReadFile(p.log)
			v.t.Logf("log of %s:\n%s", name, text)
		}
	})
	return p
}

// end ends the process in order; if it takes too long that is an error.
func (p *sluice) end() {
	select {
	case <-p.done:
		return
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		if code := p.cmd.ProcessState.ExitCode(); code != 0 {
			p.t.Errorf("%s ended with status %d", p.name, code)
		}
	case <-time.After(30 * time.Second):
		p.t.Errorf("%s does not end", p.name)
		_ = p.cmd.Process.Signal(syscall.SIGQUIT)
		time.Sleep(time.Second)
		p.kill()
	}
}

func (p *sluice) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// line is one line of a log.
type line map[string]any

// lines reads the log of a process: each must be a JSON object.
func (p *sluice) lines() (list []line) {
	p.t.Helper()
	f, err := os.Open(p.log)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		l := line{}
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			continue // the last may not be complete; others are seen by who reads the test's output
		}
		list = append(list, l)
	}
	return list
}

func (l line) text(key string) string { s, _ := l[key].(string); return s }

func (l line) at() time.Time {
	t, _ := time.Parse(time.RFC3339Nano, l.text("time"))
	return t
}

// find lists the lines with this event and these attributes ("key=value").
func (p *sluice) find(event string, attrs ...string) (found []line) {
	p.t.Helper()
next:
	for _, l := range p.lines() {
		if l.text("event") != event {
			continue
		}
		for _, a := range attrs {
			key, want, _ := strings.Cut(a, "=")
			if fmt.Sprint(l[key]) != want {
				continue next
			}
		}
		found = append(found, l)
	}
	return found
}

// patience is how long tests wait for what should be there at once, on a machine that may be busy.
const patience = 60 * time.Second

// awaitLog waits for the nth line with this event.
func (p *sluice) awaitLog(event string, n int, attrs ...string) line {
	p.t.Helper()
	await(p.t, patience, fmt.Sprintf("%s logs %q %v", p.name, event, attrs), func() bool { return len(p.find(event, attrs...)) >= n })
	return p.find(event, attrs...)[n-1]
}

func await(t *testing.T, limit time.Duration, what string, f func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	for !f() {
		if time.Since(begin) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(begin)
}

// run runs sluice to its end.
func (v *vpn) run(ns *lab.Namespace, args ...string) (stdout string, err error) {
	v.t.Helper()
	path, err := program()
	if err != nil {
		v.t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := ns.Start(cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, errs.String())
	}
	return out.String(), nil
}

// add makes a node at the portal, which may reach what the portal lets every node of its role, and starts it on a site.
func (v *vpn) add(name, role string, site *lab.Site, args ...string) *member {
	v.t.Helper()
	return v.addAllowed(name, role, "", site, args...)
}

// addAllowed is add with -allow.
func (v *vpn) addAllowed(name, role, allow string, site *lab.Site, args ...string) *member {
	v.t.Helper()
	more := []string{"portal", "node", "add", "-state", filepath.Join(v.dir, "state"), "-role", role}
	if allow != "" {
		more = append(more, "-allow", allow)
	}
	token, err := v.run(v.internet.Hub, append(more, name)...)
	if err != nil {
		v.t.Fatal(err)
	}
	return v.join(name, role, token, site, args...)
}

// join starts a node that has a token.
func (v *vpn) join(name, role, token string, site *lab.Site, args ...string) *member {
	v.t.Helper()
	path := func(kind string) string { return filepath.Join(v.dir, name+"."+kind) }
	m := &member{sluice: &sluice{name: name}, site: site, socket: path("sock"), token: path("token"), stats: path("stats")}
	if err := os.WriteFile(m.token, []byte(token), 0o600); err != nil {
		v.t.Fatal(err)
	}
	m.args = append([]string{role, "-token-file", m.token, "-socket", m.socket, "-pins", path("pins"), "-log-dir", path("logs")}, args...)
	v.launch(m)
	return m
}

// launch starts a node that does not run.
func (v *vpn) launch(m *member) {
	v.t.Helper()
	m.sluice = v.start(m.site.Node, m.name, []string{"SLUICE_STATS=" + m.stats}, m.args...)
}

// restart ends a node and starts it again.
func (v *vpn) restart(m *member) {
	v.t.Helper()
	m.end()
	v.launch(m)
}

func (v *vpn) site(name string, kind lab.NAT) *lab.Site {
	v.t.Helper()
	s, err := v.internet.AddSite(name, kind, lab.Cable{})
	if err != nil {
		v.t.Fatal(err)
	}
	return s
}

// pair is the usual case: a gateway and a client, each behind its NAT.
func (v *vpn) pair(gateway, client lab.NAT, args ...string) (g, c *member) {
	v.t.Helper()
	gs, cs := v.site("gate-site", gateway), v.site("client-site", client)
	return v.add("gate", "gateway", gs, args...), v.add("laptop", "client", cs)
}

// status is what a node says of itself, the zero value if it does not answer.
func (m *member) status() edge.Status {
	if m.ask != nil {
		return m.ask()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := status.NewNode(m.socket).Get(ctx)
	if err != nil {
		return edge.Status{}
	}
	return s
}

// connection is what a node's status says of its peer.
func (m *member) connection(peer string) (c edge.ConnectionStatus) {
	s := m.status()
	for _, c := range s.Connections {
		if c.Peer == peer {
			return c
		}
	}
	return c
}

// awaitConnection waits until the status of a connection fits.
func (m *member) awaitConnection(limit time.Duration, peer, what string, fits func(edge.ConnectionStatus) bool) time.Duration {
	m.t.Helper()
	var last edge.ConnectionStatus
	begin := time.Now()
	for {
		if last = m.connection(peer); fits(last) {
			return time.Since(begin)
		}
		if time.Since(begin) > limit {
			m.t.Fatalf("%s not within %v: %s; last %+v", m.name, limit, what, last)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func isUp(via string) func(edge.ConnectionStatus) bool {
	return func(c edge.ConnectionStatus) bool { return c.State == "up" && (via == "" || c.Via == via) }
}

// sessionsLost lists the closes of connections that had a session. An attempt may fail before: the portal has nodes connect to it anew
// when others are added.
func (m *member) sessionsLost() []line {
	m.t.Helper()
	return append(m.find("connection closed", "phase=up"), m.find("connection closed", "phase=idle")...)
}

// hook asks for a test hook of a node.
func (m *member) hook(path string) {
	m.t.Helper()
	r, err := status.Client(m.socket, 10*time.Second).Post("http://node"+path, "", nil)
	if err != nil {
		m.t.Fatal(err)
	}
	defer r.Body.Close()
	if text, _ := io.ReadAll(r.Body); r.StatusCode >= 300 {
		m.t.Fatalf("%s: %s", path, text)
	}
}

// overlay is a node's IPv4 address in the tunnel.
func (m *member) overlay() netip.Addr {
	m.t.Helper()
	var addr netip.Addr
	await(m.t, patience, m.name+" has an address", func() bool {
		s := m.status()
		if len(s.Addresses) > 0 {
			addr = s.Addresses[0].Addr()
		}
		return addr.IsValid()
	})
	return addr
}

// counters has a node write its counters, and reads them.
func (m *member) counters() (list map[string]uint64) {
	m.t.Helper()
	_ = os.Remove(m.stats)
	if err := m.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		m.t.Fatal(err)
	}
	await(m.t, patience, m.name+" writes its counters", func() bool {
		text, err := os.ReadFile(m.stats)
		return err == nil && json.Unmarshal(text, &list) == nil
	})
	return list
}
