package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/ice/portal"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// portalArguments has the test binary be the program, so that a portal is a process and ends by a signal.
const portalArguments = "SLUICE_TEST_PORTAL"

func TestPortalProgram(t *testing.T) {
	text := os.Getenv(portalArguments)
	if text == "" {
		t.Skip("only for the other tests")
	}
	var args []string
	if err := json.Unmarshal([]byte(text), &args); err != nil {
		t.Fatal(err)
	}
	os.Exit(run(args, os.Stdin, os.Stdout, os.Stderr))
}

// runningPortal is a portal that runs as a process.
type runningPortal struct {
	cmd    *exec.Cmd
	folder string
	log    string // path of its standard error
	ended  chan struct{}
}

// startPortal runs a portal on loopback and returns when it answers on its socket.
func startPortal(t *testing.T, folder string, more ...string) *runningPortal {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	out, err := os.Create(log.Name() + ".out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	p := startPortalWith(t, folder, out, log, more...)
	p.log = log.Name()
	p.until(t, "is ready", func() bool { return strings.Contains(p.logged(), "portal is ready") })
	return p
}

// startPortalWith runs a portal that writes to out and log.
func startPortalWith(t *testing.T, folder string, out, log *os.File, more ...string) *runningPortal {
	t.Helper()
	args, err := json.Marshal(append([]string{
		"sluice", "portal", "-public", "127.0.0.1", "-listen", "127.0.0.1:0", "-relay-listen", "127.0.0.1:0", "-state", folder,
	}, more...))
	if err != nil {
		t.Fatal(err)
	}
	p := &runningPortal{folder: folder, ended: make(chan struct{})}
	p.cmd = exec.Command(os.Args[0], "-test.run=^TestPortalProgram$")
	p.cmd.Env = append(os.Environ(), portalArguments+"="+string(args))
	p.cmd.Stdout, p.cmd.Stderr = out, log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill(); <-p.ended })
	go func() { p.cmd.Wait(); close(p.ended) }()
	return p
}

func (p *runningPortal) logged() string {
	text, _ := os.ReadFile(p.log)
	return string(text)
}

func (p *runningPortal) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.ended:
			t.Fatalf("the portal has ended before it %s\n%s", what, p.logged())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s\n%s", what, p.logged())
		}
	}
}

// stop ends the portal as systemd would and returns what it printed.
func (p *runningPortal) stop(t *testing.T) string {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.awaitEnd(t)
	if _, err := os.Stat(filepath.Join(p.folder, deskName)); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
	out, _ := os.ReadFile(p.log + ".out")
	return string(out)
}

func (p *runningPortal) awaitEnd(t *testing.T) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(time.Minute):
		t.Fatalf("the portal does not end\n%s", p.logged())
	}
}

// node runs sluice portal node.
func (p *runningPortal) node(args ...string) (stdout, stderr string, code int) {
	return call("", append([]string{"portal", "node", args[0], "-state", p.folder}, args[1:]...)...)
}

func (p *runningPortal) list(t *testing.T) map[string]portal.NodeStatus {
	t.Helper()
	stdout, stderr, code := p.node("list", "-json")
	var list []portal.NodeStatus
	if err := json.Unmarshal([]byte(stdout), &list); err != nil || code != 0 || stderr != "" {
		t.Fatalf("%v, %q, code %d", err, stderr, code)
	}
	byName := map[string]portal.NodeStatus{}
	for _, n := range list {
		byName[n.Name] = n
	}
	return byName
}

// tokenOf reads the one token that text is.
func tokenOf(t *testing.T, text string) protocol.Token {
	t.Helper()
	token, err := protocol.ParseToken(text)
	if err != nil || strings.TrimSpace(text) != token.Encode() || strings.Count(text, "\n") != 1 {
		t.Fatalf("%d bytes are no token on one line: %v", len(text), err)
	}
	return token
}

// signedBy is a report of the node with that token.
func signedBy(token protocol.Token, r protocol.SyncRequest) protocol.SyncRequest {
	r.Identity, r.Signature = protocol.IdentityOf(token.Identity()), protocol.SignKey(token.Identity(), token.Name, r.PublicKey)
	return r
}

// signIn connects a node and reports a key.
func signIn(t *testing.T, token protocol.Token, k protocol.Key) (*signal.Bus, protocol.Sync) {
	t.Helper()
	bus, err := signal.Connect(token.SignalConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bus.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := protocol.Ask(ctx, bus, signedBy(token, protocol.SyncRequest{PublicKey: k, Program: "test 1.2"}))
	if err != nil || s.Refused != "" {
		t.Fatalf("%v %s", err, s.Refused)
	}
	return bus, s
}

// TestPortalFirstStart: the first start prints lines that work, later ones print none, and no secret is in the log or open to others.
func TestPortalFirstStart(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	p := startPortal(t, folder)
	p.until(t, "two nodes", func() bool { return len(p.list(t)) == 2 })
	err := filepath.WalkDir(folder, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		rel, _ := filepath.Rel(folder, path)
		// The store is behind a folder that only the owner may enter.
		if err == nil && st.Mode().Perm()&0o077 != 0 && !strings.HasPrefix(rel, "store"+string(filepath.Separator)) {
			t.Errorf("%s has mode %v", rel, st.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	out := p.stop(t)
	tokens := regexp.MustCompile(protocol.TokenPrefix+`[\w-]+`).FindAllString(out, -1)
	if len(tokens) != 2 || !strings.Contains(out, "sluice gateway -token-file gateway.token") || !strings.Contains(out, "sluice client -token-file client.token") {
		t.Fatalf("%d tokens in %d bytes", len(tokens), len(out))
	}
	again := startPortal(t, folder)
	for i, name := range []string{"gateway", "client"} {
		token := tokenOf(t, tokens[i]+"\n")
		if token.Name != name {
			t.Errorf("the token of %s is for %s", name, token.Name)
		}
		now := tokenOf(t, first(again.node("token", name))) // for the port, which is another one
		if now.Fingerprint != token.Fingerprint || now.Secret == token.Secret {
			t.Errorf("%s: another certificate, or the same secret", name)
		}
		if strings.Contains(p.logged(), tokens[i]) || strings.Contains(p.logged(), token.Credential()) {
			t.Error("a token is in the log")
		}
	}
	if out := again.stop(t); out != "" {
		t.Errorf("a later start prints %d bytes", len(out))
	}
	for _, line := range strings.Split(strings.TrimSpace(p.logged()), "\n") {
		if !json.Valid([]byte(line)) || strings.Contains(line, `"WARNING"`) || strings.Contains(line, `"ERROR"`) {
			t.Errorf("log: %s", line)
		}
	}
}

func first(stdout, _ string, _ int) string { return stdout }

// TestPortalFirstStartJournal: where a first start writes to what is no terminal and no file, as a service or in a container, it
// prints no token, but commands that make them.
func TestPortalFirstStartJournal(t *testing.T) {
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	folder := filepath.Join(t.TempDir(), "state")
	p := startPortalWith(t, folder, w, w)
	w.Close()
	var out strings.Builder
	for lines := bufio.NewScanner(pipe); lines.Scan() && !strings.Contains(lines.Text(), "portal is ready"); {
		out.WriteString(lines.Text() + "\n")
	}
	if strings.Contains(out.String(), protocol.TokenPrefix) {
		t.Error("the output holds a token")
	}
	commands := regexp.MustCompile(`sluice (portal node token .*) > .*\.token\)`).FindAllStringSubmatch(out.String(), -1)
	if len(commands) != 2 {
		t.Fatalf("%d commands that make tokens, want 2:\n%s", len(commands), out.String())
	}
	for i, name := range []string{"gateway", "client"} {
		stdout, stderr, code := call("", strings.Fields(commands[i][1])...)
		if token := tokenOf(t, stdout); token.Name != name || code != 0 {
			t.Errorf("%s gives a token of %q, want %s: code %d, %s", commands[i][1], token.Name, name, code, stderr)
		}
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.awaitEnd(t)
}

// TestKeepsSecrets: a token is printed unasked to a file, and to nothing that a journal or a log collector reads.
func TestKeepsSecrets(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	device, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	socket, err := conn.(*net.TCPConn).File()
	if err != nil {
		t.Skipf("no file of a socket: %v", err)
	}
	defer socket.Close()
	for _, tt := range []struct {
		name string
		out  io.Writer
		want bool
	}{{"a file", file, true}, {"a device", device, false}, {"a socket", socket, false}, {"no file", new(bytes.Buffer), false}} {
		if got := keepsSecrets(tt.out); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestPortalNode(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("a shared secret of coturn\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startPortal(t, filepath.Join(t.TempDir(), "state"), "-relay", "coturn=203.0.113.1:3478,"+secret,
		"-relay-allow", "127.0.0.0/8,10.0.0.0/8", "-relay-allow", "192.168.0.0/16")
	p.until(t, "two nodes", func() bool { return len(p.list(t)) == 2 })
	stdout, stderr, code := p.node("add", "-role", "gateway", "-allow", "gateway,client", "g2")
	if token := tokenOf(t, stdout); code != 0 || stderr != "" || token.Name != "g2" {
		t.Errorf("add: %q, code %d", stderr, code)
	}
	stdout, stderr, code = p.node("add", "laptop", "-role", "client", "-allow", "g2") // flags may follow
	laptop := tokenOf(t, stdout)
	if code != 0 || stderr != "" {
		t.Errorf("add: %q, code %d", stderr, code)
	}
	if stdout, stderr, code = p.node("add", "-allow", "g2,nobody", "guest"); code != 0 || tokenOf(t, stdout).Name != "guest" ||
		stderr != "sluice: warning: there is no node called nobody yet\n" {
		t.Errorf("add: %q, code %d", stderr, code)
	}
	if stdout, stderr, code = p.node("remove", "guest"); stdout != "" || stderr != "" || code != 0 {
		t.Errorf("remove: %q %q %d", stdout, stderr, code)
	}
	k := protocol.Key{1}
	_, s := signIn(t, laptop, k)
	if len(s.Peers) != 1 || s.Peers[0].Name != "g2" || len(s.Relays) != 2 || s.Relays[1].Name != "coturn" {
		t.Errorf("%d peers, %d relays", len(s.Peers), len(s.Relays))
	}
	p.until(t, "the node is online", func() bool { return !p.list(t)["laptop"].Since.IsZero() })
	list := p.list(t)
	if n := list["laptop"]; len(list) != 4 || !n.Online || n.Program != "test 1.2" || len(n.From) != 1 || len(n.Addresses) != 2 || n.Role != protocol.Client {
		t.Errorf("%+v", n)
	}
	signIn(t, laptop, k) // its token is in use twice
	table, _, _ := p.node("list")
	for _, want := range []string{`^NAME +ROLE +ONLINE +ADDRESSES\n`, `\nlaptop +client +for [\d.]+ m?s +100\.64\.\d+\.\d+ fd00:\S+\n  from 127\.0\.0\.1:\d+ 127\.0\.0\.1:\d+, test 1\.2\n  may reach g2\n  2 connections: the token`} {
		if !regexp.MustCompile(want).MatchString(table) {
			t.Errorf("no %s in\n%s", want, table)
		}
	}
	stdout, stderr, code = p.node("token", "laptop")
	if code != 0 || !strings.HasSuffix(stderr, "until each has run sluice trust laptop\n") {
		t.Errorf("token: %q, code %d", stderr, code)
	}
	renewed := tokenOf(t, stdout)
	if renewed.Secret == laptop.Secret || renewed.Name != laptop.Name {
		t.Error("the token is the old one")
	}
	signIn(t, renewed, k)
	for _, tt := range []struct{ args, stdout string }{
		{"set laptop -allow g2,gateway", ""}, {"set laptop -allow none", ""},
		{"routes g2", "g2 offers no network yet.\n"},
		{"routes g2 -approve 0.0.0.0/0,10.0.0.0/24", "g2 offers no network yet.\n"},
		{"routes g2 -refuse 10.0.0.0/24", "g2 offers no network yet.\n"},
	} {
		if stdout, stderr, code = p.node(strings.Fields(tt.args)...); stdout != tt.stdout || stderr != "" || code != 0 {
			t.Errorf("%s: %q %q %d", tt.args, stdout, stderr, code)
		}
	}
	g2 := tokenOf(t, first(p.node("token", "g2")))
	bus, _ := signIn(t, g2, protocol.Key{2})
	offered := signedBy(g2, protocol.SyncRequest{
		PublicKey: protocol.Key{2}, Routes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("8.8.8.8/32")},
	})
	if _, err := protocol.Ask(t.Context(), bus, offered); err != nil {
		t.Fatal(err)
	}
	const waits = "8.8.8.8/32 pending: it is not among the networks that the operator of the portal\n  has approved\n" +
		"  sluice portal node routes g2 -approve 8.8.8.8/32\n"
	if stdout, _, _ = p.node("routes", "g2"); stdout != "0.0.0.0/0 approved\n"+waits {
		t.Errorf("routes: %q", stdout)
	}
	if table, _, _ = p.node("list"); !strings.Contains(table, "\n  offers 8.8.8.8/32 pending: it is not among the networks that the operator of\n    the portal has approved\n"+
		"    sluice portal node routes g2 -approve 8.8.8.8/32\n") {
		t.Errorf("nothing is said of a network that waits:\n%s", table)
	}
	if stdout, stderr, code = p.node("remove", "laptop"); stdout != "" || stderr != "" || code != 0 {
		t.Errorf("remove: %q %q %d", stdout, stderr, code)
	}
	if _, there := p.list(t)["laptop"]; there {
		t.Error("the node is still there")
	}
	for _, tt := range []struct {
		args   string
		code   int
		stderr string
	}{
		{"set g2", 2, "allow"}, {"set g2 -allow all", 1, "is for clients"}, {"set nobody -allow g2", 1, "no node of this name"},
		{"set client -allow No", 1, `"No" cannot be a node's name`}, {"add all", 1, "cannot be a name"},
		{"routes client -approve 10.0.0.0/8", 1, "is a client"}, {"routes nobody", 1, "no node of this name"},
		{"routes g2 -approve 10.0.0.1/8", 2, "did you mean 10.0.0.0/8"}, {"add -role gateway -routes x g9", 2, "is no prefix"},
		{"add -routes 10.0.0.0/8 c9", 1, "is for gateways"},
		{"add g2", 1, "a node of this name exists: g2"}, {"add G2", 1, "cannot be a name"}, {"add -role boss x", 1, "no role; use client or gateway"},
		{"add -allow No x", 1, `"No" cannot be a node's name`}, {"remove laptop", 1, "no node of this name: laptop"}, {"token laptop", 1, "no node of this name"},
		{"add", 2, "takes one NAME"}, {"add a b", 2, "takes one NAME"}, {"add a/b", 2, "takes one NAME"}, {"remove", 2, "takes one NAME"}, {"list x", 2, "takes no argument"},
	} {
		stdout, stderr, code := p.node(strings.Fields(tt.args)...)
		if stdout != "" || code != tt.code || !strings.Contains(stderr, tt.stderr) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: stdout %q, stderr %q, code %d", tt.args, stdout, stderr, code)
		}
	}
}

// TestTokenUnwritten: a node whose token nobody has got is not there.
func TestTokenUnwritten(t *testing.T) {
	p := startPortal(t, filepath.Join(t.TempDir(), "state"))
	p.until(t, "two nodes", func() bool { return len(p.list(t)) == 2 })
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close() // nothing can be written
	var stderr bytes.Buffer
	code := run([]string{"sluice", "portal", "node", "add", "lost", "-state", p.folder}, nil, w, &stderr)
	if got := stderr.String(); code != 1 || !strings.Contains(got, "the token could not be written") || strings.Count(got, "\n") != 1 {
		t.Errorf("code %d, stderr %q; want 1 and a line", code, got)
	}
	if _, there := p.list(t)["lost"]; there {
		t.Error("the node is there without a token")
	}
	p.stop(t)
}

// TestPortalOps: what operators ask is served, also without a relay.
func TestPortalOps(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := free.Addr().String()
	free.Close()
	p := startPortal(t, filepath.Join(t.TempDir(), "state"), "-relay-listen", "none", "-ops", at)
	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": "ready\nbroker: ok\nrelay: ok\nstore: ok\n", "/metrics": "\nsluice_portal_nodes 2\n"} {
		answer, err := http.Get("http://" + at + path)
		if err != nil {
			t.Fatalf("%v\n%s", err, p.logged())
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != 200 || !strings.Contains(string(text), want) {
			t.Errorf("%s: %d %s", path, answer.StatusCode, text)
		}
	}
}

// TestPortalTwice: a second portal leaves the state of the first alone; one that was killed leaves nothing in the way.
func TestPortalTwice(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	p := startPortal(t, folder)
	_, stderr, code := call("", "portal", "-public", "127.0.0.1", "-listen", "127.0.0.1:0", "-relay-listen", "none", "-state", folder)
	if code != 1 || !strings.Contains(stderr, "a portal runs already") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("a second portal: %q, code %d", stderr, code)
	}
	if len(p.list(t)) != 2 {
		t.Error("the first one is hurt")
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.awaitEnd(t)
	if _, stderr, _ := p.node("list"); !strings.Contains(stderr, "no portal runs with -state "+folder+"; start it: sluice portal") {
		t.Errorf("%q", stderr)
	}
	if again := startPortal(t, folder); len(again.list(t)) != 2 {
		t.Error("nodes are gone after a kill")
	}
}

// TestPortalLogReaderGone: a portal whose log nobody reads any more lives on, and no portal leaves its keys in a core dump.
func TestPortalLogReaderGone(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := startPortalWith(t, filepath.Join(t.TempDir(), "state"), nil, writer)
	writer.Close()
	lines := bufio.NewScanner(reader)
	for lines.Scan() && !strings.Contains(lines.Text(), "portal is ready") {
	}
	reader.Close()
	for _, name := range []string{"one", "two"} { // each writes to the log
		if _, stderr, code := p.node("add", name); code != 0 {
			t.Fatalf("%s, code %d", stderr, code)
		}
	}
	if n := len(p.list(t)); n != 4 {
		t.Errorf("%d nodes", n)
	}
	if runtime.GOOS == "linux" {
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.cmd.Process.Pid))
		if err != nil || !regexp.MustCompile(`Max core file size +0 +0`).Match(limits) {
			t.Errorf("core dumps: %v\n%s", err, limits)
		}
	}
	p.stop(t)
}

// TestPortalRelayFlags: what the flags say of the relay is what it gets.
func TestPortalRelayFlags(t *testing.T) {
	cmd := portalCommand()
	var cfg portal.Config
	cmd.Action = func(_ context.Context, cmd *cli.Command) (err error) {
		cfg, err = portalConfig(cmd, nil, resolve)
		return err
	}
	args := "portal -public 127.0.0.1 -relay-allow 10.0.0.0/8 -relay-deny 10.1.0.0/16,203.0.113.0/24 -relay-deny 2001:db8::/32 -relay-rate 50"
	if err := cmd.Run(t.Context(), strings.Fields(args)); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(cfg.Relay.AllowedPeers, cfg.Relay.DeniedPeers, cfg.Relay.BytesPerSecondPerUser)
	if want := "[10.0.0.0/8] [10.1.0.0/16 203.0.113.0/24 2001:db8::/32] 6250000"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestPortalUsage(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("a shared secret of coturn\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args   string
		code   int
		stderr string
	}{
		{"", 2, "-public is missing"},
		{"-public 127.0.0.1 x", 2, `unknown command "x"; sluice portal -h lists them`},
		{"node x", 2, `unknown command "x"; sluice portal node -h lists them`},
		{"-public 127.0.0.1:1", 2, "give the address without a port, 127.0.0.1;"},
		{"-public 127.0.0.1 -listen x", 2, "-listen"},
		{"-public 127.0.0.1 -listen 127.0.0.1:99999", 2, "-listen"},
		{"-public 127.0.0.1 -relay-listen 3478", 2, "-relay-listen"},
		{"-public 127.0.0.1 -relay-other-port 70000", 2, "-relay-other-port 70000: use 1 to 65535, or 0"},
		{"-public 127.0.0.1 -relay-other-port 3478", 2, "is the port of -relay-listen"},
		{"-public 127.0.0.1 -relay-other-address moon", 2, `-relay-other-address "moon": use an address`},
		{"-public 127.0.0.1 -relay-other-address 127.0.0.2 -relay-other-port 0", 2, "with -relay-other-port"},
		{"-public 127.0.0.1 -relay-allow 10.0.0.0", 2, "-relay-allow"},
		{"-public 127.0.0.1 -relay-deny 10.0.0.0", 2, "-relay-deny"},
		{"-public 127.0.0.1 -relay-rate -1", 2, "-relay-rate"},
		{"-public 127.0.0.1 -relay a", 2, "-relay"},
		{"-public 127.0.0.1 -relay a=127.0.0.1:0," + secret, 2, "-relay"},
		{"-public 127.0.0.1 -relay a=127.0.0.1:1," + secret + ".not", 1, "-relay a"},
		{"-public 127.0.0.1 -relay A=127.0.0.1:1," + secret, 1, `relay "A"`},
		{"-public 127.0.0.1 -log-level loud", 2, "-log-level"},
		{"-public 127.0.0.1 -nope", 2, "-nope"},
	} {
		stdout, stderr, code := call("", append([]string{"portal", "-state", folder}, strings.Fields(tt.args)...)...)
		if stdout != "" || code != tt.code || !strings.Contains(stderr, tt.stderr) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: stdout %q, stderr %q, code %d", tt.args, stdout, stderr, code)
		}
	}
	if _, err := os.Stat(folder); !os.IsNotExist(err) {
		t.Errorf("what was refused has made a folder: %v", err)
	}
	for args, want := range map[string]string{
		"portal -h": "-relay-listen", "portal node -h": "token", "portal node add -h": "-role", "portal node list -h": "-json",
	} {
		if stdout, stderr, code := call("", strings.Fields(args)...); code != 0 || stderr != "" || !strings.Contains(stdout, want) {
			t.Errorf("%s: %q %q %d", args, stdout, stderr, code)
		}
	}
}

// TestPortalPorts: a port that is taken is named once, with the flag that chooses another.
func TestPortalPorts(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for flag, addresses := range map[string][2]string{
		"-listen": {tcp.Addr().String(), "127.0.0.1:0"}, "-relay-listen": {"127.0.0.1:0", udp.LocalAddr().String()},
	} {
		_, stderr, code := call("", "portal", "-state", filepath.Join(t.TempDir(), "state"), "-public", "127.0.0.1",
			"-listen", addresses[0], "-relay-listen", addresses[1])
		taken := addresses[0]
		if flag == "-relay-listen" {
			taken = addresses[1]
		}
		if code != 1 || strings.Count(stderr, taken) != 1 || !strings.HasSuffix(stderr, "give another one with "+flag+"\n") {
			t.Errorf("%s: %q, code %d", flag, stderr, code)
		}
	}
}

func TestOtherRelay(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("a shared secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]string{"203.0.113.1:3478": "203.0.113.1:3478", "[2001:db8::1]:3478": "[2001:db8::1]:3478", "[::ffff:203.0.113.1]:1": "203.0.113.1:1"} {
		r, err := otherRelay("coturn="+at+","+secret, resolve)
		if err != nil || r.Name != "coturn" || r.Secret != "a shared secret" || len(r.Addrs) != 1 || r.Addrs[0].String() != want {
			t.Errorf("%s: %v, %v", at, r.Addrs, err)
		}
	}
	if r, err := otherRelay("local=localhost:3478,"+secret, resolve); err != nil || len(r.Addrs) == 0 || !r.Addrs[0].Addr().IsLoopback() {
		t.Errorf("a name: %v, %v", r.Addrs, err)
	}
}
