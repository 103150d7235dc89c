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

// needWine skips a test where there is no sluice.exe to run.
func needWine(t *testing.T) {
	t.Helper()
	if os.Getenv("SLUICE_WINE") == "" {
		t.Skip("SKIPPED: only for the step of .ci/run that runs programs of Windows; SLUICE_WINE names sluice.exe")
	}
}

// newWine makes one in a namespace, which its sockets are then in: a server of each folder opens them.
func newWine(v *vpn, ns *lab.Namespace) *wine {
	v.t.Helper()
	command, err := filepath.Abs("../../../.ci/wine")
	if err != nil {
		v.t.Fatal(err)
	}
	w := &wine{v: v, ns: ns, program: os.Getenv("SLUICE_WINE"), command: command, folder: filepath.Join(v.dir, "Größe und Maß")}
	// One program stays, and with it the service manager, which else would end after each of ours.
	stays := exec.Command(command, "cmd.exe", "/c", "pause")
	stays.Env = w.environ()
	hold, err := stays.StdinPipe()
	if err == nil {
		err = ns.Start(stays)
	}
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() {
		defer stays.Wait()
		defer hold.Close()
		end := exec.Command("wineserver", "-k", "-w")
		end.Env = w.environ()
		_ = end.Run() // there is none any more if all is well
	})
	return w
}

func (w *wine) environ() []string { return append(os.Environ(), "WINEPREFIX="+w.folder) }

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

// token is that of a new client.
func (w *wine) token(name string) string {
	w.v.t.Helper()
	token, err := w.v.run(w.v.internet.Hub, "portal", "node", "add", "-state", filepath.Join(w.v.dir, "state"), "-role", "client", name)
	if err != nil {
		w.v.t.Fatal(err)
	}
	return token
}

// says runs sluice.exe, which is to succeed, or not, with some words.
func (w *wine) says(want, stdin string, succeeds bool, args ...string) {
	w.v.t.Helper()
	if out, err := w.run(stdin, args...); (err == nil) != succeeds || !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
		w.v.t.Errorf("sluice.exe %v: %v, want %q in\n%s", args, err, want, out)
	}
}

// member is a client without an interface.
func (w *wine) member(name string, site *lab.Site) *member {
	m := &member{sluice: &sluice{t: w.v.t, name: name}, site: site, stats: filepath.Join(w.v.dir, name+".stats")}
	m.ask = func() (s edge.Status) {
		out, err := w.run("", "status", "-json", "-interface", "userspace")
		if err != nil || json.Unmarshal([]byte(out), &s) != nil {
			return edge.Status{}
		}
		return s
	}
	return m
}

// client starts a client that is signed in at the portal.
func (w *wine) client(name string, site *lab.Site, args ...string) *member {
	v := w.v
	v.t.Helper()
	w.says("signed in as "+name, w.token(name), true, "sign-in")
	v.under = []string{"env", "WINEPREFIX=" + w.folder, "sh", "-c", `wine=$1 program=$2; shift 3; exec "$wine" "$program" "$@"`, "sh", w.command, w.program}
	defer func() { v.under = nil }()
	m := w.member(name, site)
	m.args = append([]string{"client", "-userspace"}, args...)
	v.launch(m)
	v.t.Cleanup(m.kill) // a signal of this system is no end in order there
	return m
}

// web serves what fetch gets, on a site.
func (v *vpn) web(site *lab.Site) {
	v.t.Helper()
	var l net.Listener
	if err := site.Node.Run(func() (err error) { l, err = net.Listen("tcp", ":8080"); return err }); err != nil {
		v.t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.Copy(w, fetchedBytes()) })}
	go server.Serve(l)
	v.t.Cleanup(func() { server.Close() })
}

// bySOCKS goes by port 1080 of a site.
func (v *vpn) bySOCKS(site *lab.Site) *http.Client {
	v.t.Helper()
	socks, err := proxy.SOCKS5("tcp", "127.0.0.1:1080", nil, insideOf{site.Node})
	if err != nil {
		v.t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: socks.(proxy.ContextDialer).DialContext}, Timeout: patience}
	v.t.Cleanup(client.CloseIdleConnections)
	return client
}

// TestWineService: the service manager starts a client that has no token yet, which follows what sign-in stores, and stops it in order.
func TestWineService(t *testing.T) {
	needWine(t)
	t.Parallel()
	v := newVPN(t)
	gs, cs := v.site("gate-site", lab.Restricted), v.site("client-site", lab.Cone)
	w := newWine(v, cs.Node)
	g := v.add("gate", "gateway", gs)
	v.web(gs)
	w.says("the service is not installed; sluice service install does that", "", false, "service", "start")
	w.says("installed as SluiceClient", "", true, "service", "install", "--", "-userspace", "-socks5", "127.0.0.1:1080")
	w.says("installed already", "", false, "service", "install")
	await(t, patience, "the service starts", func() bool { // its manager may be busy with the others
		out, err := w.run("", "service", "start")
		return err == nil && strings.Contains(out, "started")
	})
	await(t, patience, "it tells that it is signed out", func() bool {
		out, err := w.run("", "status", "-interface", "userspace")
		return err == nil && strings.Contains(out, "signed out")
	})
	w.says("signed in as laptop", w.token("laptop"), true, "sign-in")
	w.member("laptop", cs).awaitConnection(patience, "gate", "connected", isUp(""))
	fetch(t, "SOCKS5, by a service", v.bySOCKS(cs), "gate.sluice:8080")
	w.says("stopped", "", true, "service", "stop")
	g.awaitLog("connection closed", 1, "peer=laptop", "reason=peer_closed")
	w.says("no node is running there", "", false, "status", "-interface", "userspace")
	w.says("laptop on userspace has ended", "", true, "logs")
	w.says("removed", "", true, "service", "remove")
}

// TestWine: a whole client of Windows signs in with what sign-in has stored, connects by ICE through NATs to a gateway of Linux, and
// programs reach what is behind that; status, ping, why, logs and log-level ask it by its pipe. When the gateway's key is another one than
// the client knows, the attempt ends after 15 s with the cause, and the next one works.
func TestWine(t *testing.T) {
	needWine(t)
	t.Parallel()
	v := newVPN(t)
	gs, cs := v.site("gate-site", lab.Restricted), v.site("client-site", lab.Cone)
	w := newWine(v, cs.Node)
	g := v.add("gate", "gateway", gs)
	v.web(gs)
	c := w.client("laptop", cs, "-socks5", "127.0.0.1:1080")
	c.awaitLog("node is up", 1)
	c.awaitConnection(patience, "gate", "connected", isUp(""))
	client := v.bySOCKS(cs)
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
