package acceptance

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/net/proxy"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/ice/edge"
)

// wine is a Windows for one test.
type wine struct {
	v       *vpn
	ns      *lab.Namespace
	program string // sluice.exe
	command string // runs programs of Windows
	folder  string // of Windows
}

// newWine makes one in a namespace, which its sockets are then in: a server of each folder opens them.
func newWine(v *vpn, ns *lab.Namespace) *wine {
	v.t.Helper()
	program := os.Getenv("SLUICE_WINE")
	if program == "" {
		v.t.Skip("SKIPPED: only for the step of .ci/run that runs programs of Windows; SLUICE_WINE names sluice.exe")
	}
	command, err := filepath.Abs("../../../.ci/wine")
	if err != nil {
		v.t.Fatal(err)
	}
	w := &wine{v: v, ns: ns, program: program, command: command, folder: filepath.Join(v.dir, "Größe und Maß")}
	v.t.Cleanup(func() {
		end := exec.Command("wineserver", "-k", "-w")
		end.Env = w.environ()
		_ = end.Run() // there is none any more if all is well
	})
	return w
}

func (w *wine) environ() []string { return append(os.Environ(), "WINEPREFIX="+w.folder) }

// path is a file of this machine as Windows names it.
func (w *wine) path(name string) string { return "Z:" + strings.ReplaceAll(name, "/", `\`) }

// run runs sluice.exe to its end.
func (w *wine) run(stdin string, args ...string) (stdout string, err error) {
	cmd := exec.Command(w.command, append([]string{w.program}, args...)...)
	var out bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.Stdin = w.environ(), &out, &out, strings.NewReader(stdin)
	if err := w.ns.Start(cmd); err != nil {
		return "", err
	}
	err = cmd.Wait()
	return out.String(), err
}

// client starts a client without an interface that is signed in at the portal.
func (w *wine) client(name string, site *lab.Site, args ...string) *member {
	v := w.v
	v.t.Helper()
	token, err := v.run(v.internet.Hub, "portal", "node", "add", "-state", filepath.Join(v.dir, "state"), "-role", "client", name)
	if err != nil {
		v.t.Fatal(err)
	}
	if out, err := w.run(token, "sign-in"); err != nil || !strings.Contains(out, "signed in as "+name) {
		v.t.Fatalf("sluice.exe sign-in: %v: %s", err, out)
	}
	v.under = []string{"env", "WINEPREFIX=" + w.folder, "sh", "-c", `wine=$1 program=$2; shift 3; exec "$wine" "$program" "$@"`, "sh", w.command, w.program}
	defer func() { v.under = nil }()
	m := &member{sluice: &sluice{name: name}, site: site, stats: filepath.Join(v.dir, name+".stats")}
	m.ask = func() (s edge.Status) {
		out, err := w.run("", "status", "-json", "-interface", "userspace")
		if err != nil || json.Unmarshal([]byte(out), &s) != nil {
			return edge.Status{}
		}
		return s
	}
	m.args = append([]string{"client", "-userspace"}, args...)
	v.launch(m)
	v.t.Cleanup(m.kill) // a signal of this system is no end in order there
	return m
}

// TestWine: a whole client of Windows signs in with what sign-in has stored, connects by ICE through NATs to a gateway of Linux, and
// programs reach what is behind that; status, ping, why, logs and log-level ask it by its pipe. When the gateway's key is another one than
// the client knows, the attempt ends after 15 s with the cause, and the next one works.
func TestWine(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	gs, cs := v.site("gate-site", lab.Restricted), v.site("client-site", lab.Cone)
	w := newWine(v, cs.Node)
	g := v.add("gate", "gateway", gs)
	var l net.Listener
	if err := gs.Node.Run(func() (err error) { l, err = net.Listen("tcp", ":8080"); return err }); err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.Copy(w, fetchedBytes()) })}
	go web.Serve(l)
	defer web.Close()

	c := w.client("laptop", cs, "-socks5", "127.0.0.1:1080")
	c.awaitLog("node is up", 1)
	c.awaitConnection(patience, "gate", "connected", isUp(""))
	socks, err := proxy.SOCKS5("tcp", "127.0.0.1:1080", nil, insideOf{cs.Node})
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{Dial: socks.Dial}, Timeout: patience}
	defer client.CloseIdleConnections()
	for range 6 { // 100 MB and more
		fetch(t, "SOCKS5, a node's name", client, "gate.sluice:8080")
	}
	fetch(t, "SOCKS5, its address", client, netip.AddrPortFrom(g.overlay(), 8080).String())
	w.looks(c)
	v.restart(g)
	fetch(t, "SOCKS5, after the gateway's restart", client, "gate.sluice:8080")
	v.portal.end()
	v.startPortal()
	fetch(t, "SOCKS5, after the portal's restart", client, "gate.sluice:8080")

	g.hook("/test/private-key")
	keysCases["gateway's key"].check(t, g, c)
}

// looks tries what people ask of a client.
func (w *wine) looks(c *member) {
	w.v.t.Helper()
	for _, of := range []struct{ command, want string }{
		{"status -interface userspace", "client laptop on userspace: "},
		{"ping -count 1 -interface userspace gate", "1 sent, 1 came back"},
		{"why -interface userspace gate", "through the tunnel to gate"},
		{"log-level -interface userspace debug", "debug"},
		{"logs -level info", "connected to the portal"},
	} {
		out, err := w.run("", strings.Fields(of.command)...)
		if strings.HasPrefix(of.command, "ping") && (err != nil || !strings.Contains(out, of.want)) { // one may be lost while a path changes
			out, err = w.run("", strings.Fields(of.command)...)
		}
		if err != nil || !strings.Contains(strings.Join(strings.Fields(out), " "), of.want) {
			w.v.t.Errorf("sluice.exe %s: %v, want %q in\n%s", of.command, err, of.want, out)
		}
	}
	if s := c.status(); s.Problem != "" {
		w.v.t.Errorf("the client has a problem: %s", s.Problem)
	}
	for _, l := range c.lines() {
		if severity := l.text("severity"); severity == "ERROR" {
			w.v.t.Errorf("an error is logged: %v", l)
		}
	}
	for i, want := range []string{"started log", "version"} {
		if lines := c.lines(); len(lines) <= i || lines[i].text("event") != want {
			w.v.t.Errorf("line %d of the log is %v, want the event %q", i+1, lines, want)
		}
	}
}
