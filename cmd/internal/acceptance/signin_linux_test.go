package acceptance

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/edge"
)

// within is how soon a program follows the token on disk. The tests give it more where the race detector or a full machine slows it.
const within = time.Second

// stored starts a node that follows the token of a state folder of its own.
func (v *vpn) stored(name, role string, site *lab.Site, args ...string) (m *member, folder string) {
	v.t.Helper()
	path := func(kind string) string { return filepath.Join(v.dir, name+"."+kind) }
	folder = path("state")
	m = &member{sluice: &sluice{name: name}, site: site, socket: path("sock"), token: filepath.Join(folder, "token"), stats: path("stats")}
	m.args = append([]string{role, "-state", folder, "-socket", m.socket}, args...)
	v.launch(m)
	return m, folder
}

// newToken makes a node at the portal and returns its token.
func (v *vpn) newToken(name, role string) string {
	v.t.Helper()
	token, err := v.run(v.internet.Hub, "portal", "node", "add", "-state", filepath.Join(v.dir, "state"), "-role", role, name)
	if err != nil {
		v.t.Fatal(err)
	}
	return token
}

// asked is the status of a node; what does not answer fails the test.
func (m *member) asked() edge.Status {
	m.t.Helper()
	s, err := status.NewNode(m.socket).Get(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

// awaitSignIn waits until a node is in the state, and says how long that took.
func (m *member) awaitSignIn(reason string) {
	m.t.Helper()
	took := await(m.t, patience, m.name+" is in state "+reason, func() bool {
		s := m.status()
		return s.Role != "" && s.SignIn.Reason == reason && (reason != "" || s.Portal.Up && len(s.Addresses) > 0)
	})
	m.t.Logf("%s: %q after %v", m.name, reason, took)
}

// TestSignInWhileRunning: a client starts without a token and says so; it takes the one that sign-in stores within a second, and lets go of
// it as soon when it is signed out. Nothing is left of it then but the program.
func TestSignInWhileRunning(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	v.add("gate", "gateway", v.site("gate-site", lab.Cone))
	site := v.site("client-site", lab.Cone)
	c, folder := v.stored("laptop", "client", site)
	c.awaitLog("No token on disk, starting in signed-out state", 1, "file="+c.token)
	await(t, patience, "signed-out state", func() bool { return c.status().SignIn.Reason == edge.SignedOutNoToken })
	text, err := v.run(site.Node, "status", "-socket", c.socket)
	if err != nil || !strings.Contains(text, "client on sluice0: signed out for") || !strings.Contains(oneLine(text), "sluice sign-in") {
		t.Errorf("status: %v\n%s", err, text)
	}
	text, err = v.run(site.Node, "status", "-json", "-socket", c.socket)
	var s edge.Status
	if err != nil || json.Unmarshal([]byte(text), &s) != nil || s.SignIn.SignedIn || s.SignIn.Reason != "no_token" || s.SignIn.Token != c.token {
		t.Errorf("status -json: %v\n%s", err, text)
	}
	for _, args := range [][]string{{"ping", "-socket", c.socket, "gate"}, {"trust", "-socket", c.socket, "gate"}} {
		if _, err := v.run(site.Node, args...); err == nil || !strings.Contains(err.Error(), "signed out") {
			t.Errorf("%v: %v, want that this node is signed out", args, err)
		}
	}

	file := filepath.Join(v.dir, "laptop.token")
	if err := os.WriteFile(file, []byte(v.newToken("laptop", "client")), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err = v.run(site.Node, "sign-in", "-token-file", file, "-state", folder)
	if want := "signed in as laptop, a client, at the portal " + lab.HubAddr.String() + ":4430\n"; err != nil || !strings.HasPrefix(text, want) {
		t.Errorf("sign-in: %v, %q, want %q", err, text, want)
	}
	if st, err := os.Stat(c.token); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("the stored token: %v, %v", st, err)
	}
	stored, _ := os.Stat(c.token)
	signing := c.awaitLog("signing in", 1, "name=laptop")
	if late := signing.at().Sub(stored.ModTime()); late > within && !race {
		t.Errorf("the client has followed after %v", late)
	}
	c.awaitSignIn("")
	c.awaitConnection(patience, "gate", "connected", isUp(""))

	text, err = v.run(site.Node, "sign-out", "-state", folder)
	if want := "signed out as laptop; the token is removed from " + folder + "\n"; err != nil || text != want {
		t.Errorf("sign-out: %v, %q, want %q", err, text, want)
	}
	took := await(t, patience, "signed-out state", func() bool { return c.status().SignIn.Reason == edge.SignedOutNoToken })
	t.Logf("signed out after %v", took)
	if took > within && !race {
		t.Errorf("the client has followed after %v", took)
	}
	if _, err := site.Node.Netlink().LinkByName("sluice0"); err == nil {
		t.Error("the interface is still there")
	}
	await(t, patience, "node list says so", func() bool {
		text, err = v.run(v.internet.Hub, "portal", "node", "list", "-state", filepath.Join(v.dir, "state"))
		return err == nil && strings.Contains(oneLine(text), "no, signed out ")
	})
	if text, err = v.run(site.Node, "sign-out", "-state", folder); err != nil || !strings.HasPrefix(text, "signed out already") {
		t.Errorf("the second sign-out: %v, %q", err, text)
	}
}

// TestBadTokenWhileRunning: a token that is half-written, empty, for others to read, of another role or unknown to the portal is one clear
// warning, and the node stays what it is, signed out or in; then the good one is taken.
func TestBadTokenWhileRunning(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	c, folder := v.stored("laptop", "client", v.site("client-site", lab.NoNAT))
	c.awaitLog("No token on disk, starting in signed-out state", 1)
	good, next, gate := v.newToken("laptop", "client"), v.newToken("other", "client"), v.newToken("gate", "gateway")
	gone := v.newToken("gone", "client")
	if _, err := v.run(v.internet.Hub, "portal", "node", "remove", "-state", filepath.Join(v.dir, "state"), "gone"); err != nil {
		t.Fatal(err)
	}
	write := func(text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(c.token, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(c.token, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	warned := func(part string) (n int) {
		for _, l := range c.find("the token is not taken", "severity=WARNING") {
			if strings.Contains(l.text("message"), part) {
				n++
			}
		}
		return n
	}
	bad := []struct {
		text string
		mode os.FileMode
		want string
	}{
		{next[:60], 0o600, "is damaged: copy the whole line"}, {"\n", 0o600, "is empty"}, {next, 0o644, "chmod 600"}, {next, 0o640, "chmod 600"},
		{gate, 0o600, "run sluice gateway"}, {gone, 0o600, "it was renewed or the node was removed"},
	}
	all := func(round int, reason, stays string) {
		t.Helper()
		for _, b := range bad {
			before := warned(b.want)
			write(b.text, b.mode)
			await(t, patience, "a problem with "+b.want, func() bool { return strings.Contains(c.status().SignIn.Problem, b.want) })
			if b.mode != 0o640 { // the same as before is not told again
				await(t, patience, "a warning of "+b.want, func() bool { return warned(b.want) > before })
			}
			if n := warned(b.want) - before; n > 1 {
				t.Errorf("round %d: %d warnings of %q, want one", round, n, b.want)
			}
			if s := c.asked(); s.SignIn.Reason != reason || s.Name != stays {
				t.Errorf("round %d, %s: %q as %q, want %q as %q", round, b.want, s.SignIn.Reason, s.Name, reason, stays)
			}
		}
	}
	all(1, edge.SignedOutNoToken, "")
	write(good, 0o600)
	c.awaitSignIn("")
	all(2, "", "laptop")
	if lost := c.find("has ended"); len(lost) != 0 {
		t.Errorf("the node has ended: %v", lost)
	}
	write(next, 0o600)
	await(t, patience, "signed in with the next token", func() bool { s := c.status(); return s.Name == "other" && s.Portal.Up })
	if s := c.asked(); s.SignIn.Problem != "" || !s.SignIn.SignedIn {
		t.Errorf("%+v", s.SignIn)
	}
	for _, l := range c.lines() {
		for _, token := range []string{good, next, gate, gone} {
			if text, _ := json.Marshal(l); strings.Contains(string(text), token[:60]) {
				t.Errorf("the log has a token: %s", text)
			}
		}
	}
	// sign-in stores nothing that the portal does not take.
	before, _ := os.ReadFile(c.token)
	file := filepath.Join(v.dir, "gone.token")
	if err := os.WriteFile(file, []byte(gone), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := v.run(c.site.Node, "sign-in", "-token-file", file, "-state", folder); err == nil || !strings.Contains(err.Error(), "nothing was stored") {
		t.Errorf("sign-in: %v", err)
	}
	if after, _ := os.ReadFile(c.token); string(after) != string(before) {
		t.Error("the stored token was changed")
	}
}

// TestRevokedThenSignedIn: a stored token that the portal revokes signs the node out with the reason; another one signs it in again, in the
// same process. Two nodes on one machine have a state folder each, and only the one whose it is follows.
func TestRevokedThenSignedIn(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	site := v.site("client-site", lab.NoNAT)
	c, folder := v.stored("laptop", "client", site)
	other, otherFolder := v.stored("office", "client", site, "-interface", "sluice1", "-table", "5201", "-mark", "5201")
	signIn := func(token, folder string) {
		t.Helper()
		file := filepath.Join(v.dir, "given.token")
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		if text, err := v.run(site.Node, "sign-in", "-json", "-token-file", file, "-state", folder); err != nil || !json.Valid([]byte(text)) {
			t.Fatalf("sign-in: %v, %s", err, text)
		}
	}
	signIn(v.newToken("laptop", "client"), folder)
	signIn(v.newToken("office", "client"), otherFolder)
	c.awaitSignIn("")
	other.awaitSignIn("")
	token, err := v.run(v.internet.Hub, "portal", "node", "token", "-state", filepath.Join(v.dir, "state"), "laptop")
	if err != nil {
		t.Fatal(err)
	}
	c.awaitSignIn(edge.SignedOutRefused)
	signIn(token, folder)
	c.awaitSignIn("")
	if s := c.asked(); s.Name != "laptop" {
		t.Errorf("signed in as %q", s.Name)
	}
	if s := other.asked(); s.Name != "office" || !s.SignIn.SignedIn || len(other.find("signing in")) != 1 {
		t.Errorf("the other node is %+v", s.SignIn)
	}
	if out, err := v.run(site.Node, "sign-out", "-state", otherFolder); err != nil {
		t.Errorf("%v, %s", err, out)
	}
	other.awaitSignIn(edge.SignedOutNoToken)
	if s := c.asked(); !s.SignIn.SignedIn {
		t.Errorf("the first node is %+v", s.SignIn)
	}
}

// TestSignedOutFailsClosed: with -fail-closed nothing leaves the machine past the tunnel while nobody is signed in either, but for the
// question of sign-in; what is released stays so when the node signs in again.
func TestSignedOutFailsClosed(t *testing.T) {
	t.Parallel()
	for name, calmly := range map[string]bool{"calmly": true, "at once": false} {
		t.Run(name, func(t *testing.T) { t.Parallel(); signedOutFailsClosed(t, calmly) })
	}
}

func signedOutFailsClosed(t *testing.T, calmly bool) {
	v := newVPN(t)
	site := v.site("client-site", lab.NoNAT)
	portal := net.JoinHostPort(lab.HubAddr.String(), "4430")
	leaves := func() error {
		return site.Node.Run(func() error {
			conn, err := net.DialTimeout("tcp", portal, 5*time.Second)
			if err == nil {
				conn.Close()
			}
			return err
		})
	}
	if err := leaves(); err != nil {
		t.Fatalf("before: %v", err)
	}
	c, folder := v.stored("laptop", "client", site, "-fail-closed")
	c.awaitLog("No token on disk, starting in signed-out state", 1)
	closed := func(when string) {
		t.Helper()
		var err error
		for deadline := time.Now().Add(patience / 4); !errors.Is(err, syscall.ENETUNREACH); err = leaves() {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v, want that no network is reached", when, err)
			}
		}
		await(t, patience, when+": status says so", func() bool {
			return strings.Contains(strings.Join(c.status().Notes, " "), "this machine fails closed")
		})
	}
	closed("signed out")
	file := filepath.Join(v.dir, "laptop.token")
	if err := os.WriteFile(file, []byte(v.newToken("laptop", "client")), 0o600); err != nil {
		t.Fatal(err)
	}
	signIn := func() {
		t.Helper()
		if text, err := v.run(site.Node, "sign-in", "-token-file", file, "-state", folder); err != nil {
			t.Fatalf("sign-in: %v, %s", err, text)
		}
		c.awaitSignIn("")
	}
	signIn()
	closed("signed in")
	if text, err := v.run(site.Node, "sign-out", "-state", folder); err != nil {
		t.Fatalf("sign-out: %v, %s", err, text)
	}
	c.awaitSignIn(edge.SignedOutNoToken)
	if calmly { // else it is released while it may be closed just then
		closed("signed out again")
	}
	if text, err := v.run(site.Node, "client", "-release", "-socket", c.socket); err != nil {
		t.Fatalf("release: %v, %s", err, text)
	}
	await(t, patience, "it is released", func() bool { return leaves() == nil })
	signIn()
	if err := leaves(); err != nil {
		t.Errorf("the machine is closed anew: %v", err)
	}
}
