package acceptance

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/ice/edge"
)

// The portal is killed and comes back: tunnels do not notice, a node that starts meanwhile says what it waits for, and new nodes can
// join.
func TestPortalRestart(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	g, c := v.pair(lab.Cone, lab.Cone)
	early := v.add("early", "client", v.site("early-site", lab.Restricted))
	c.awaitConnection(patience, "gate", "connected", isUp("direct"))
	early.awaitConnection(patience, "gate", "connected", isUp("direct"))
	early.end()
	s := openStream(t, c.site.Node, g.site.Node, g.overlay())
	v.portal.kill()
	v.launch(early)
	for _, m := range []*member{c, early} {
		await(t, patience, m.name+": status says that the portal is away", func() bool {
			text, err := v.run(m.site.Node, "status", "-socket", m.socket)
			return err == nil && strings.Contains(text, "not connected") && strings.Contains(oneLine(text), "refused") // by the system
		})
	}
	early.awaitLog("the portal is not reachable; tunnels that are up stay so", 1)
	s.awaitProgress(patience, "without a portal")
	v.startPortal()
	early.awaitConnection(patience, "gate", "connected", isUp("direct"))
	late := v.add("late", "client", v.site("late-site", lab.Restricted))
	late.awaitConnection(patience, "gate", "connected", isUp("direct"))
	s.awaitProgress(patience, "with the portal again")
	if lost := c.sessionsLost(); len(lost) != 0 {
		t.Errorf("connections were closed: %v", lost)
	}
}

// The portal hangs for 20 s while tunnels are up and while a client connects, and goes on: tunnels do not notice, and the client
// connects then. (The relay is another process.)
func TestPortalHangs(t *testing.T) {
	t.Parallel()
	v := newVPNWith(t, func(v *vpn) []string {
		flag, _ := v.coturn("one", lab.HubAddr)
		return []string{"-relay-listen", "none", "-relay", flag}
	})
	g, c := v.pair(lab.Symmetric, lab.Cone)
	far := v.add("far", "client", v.site("far-site", lab.Symmetric))
	streams := map[*member]*stream{}
	for m, via := range map[*member]string{c: "direct", far: "relay"} {
		m.awaitConnection(patience, "gate", "connected", isUp(via))
		streams[m] = openStream(t, m.site.Node, g.site.Node, g.overlay())
		streams[m].awaitProgress(patience, "before")
		streams[m].newGap()
	}
	late := v.add("late", "client", v.site("late-site", lab.Restricted))
	late.awaitLog("signing in", 1)
	if err := v.portal.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Second)
	if err := v.portal.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	took := late.awaitConnection(patience, "gate", "connected", isUp(""))
	t.Logf("connected %v after the portal went on", took)
	for _, m := range []*member{g, c, far} {
		await(t, patience, m.name+" hears of the portal", func() bool { return m.status().Portal.Up })
		if lost := m.sessionsLost(); len(lost) != 0 {
			t.Errorf("%s has closed connections: %v", m.name, lost)
		}
	}
	for m, s := range streams {
		s.awaitProgress(patience, m.name)
		t.Logf("%s: longest gap %v", m.name, s.longestGap())
	}
}

// A node is removed while it is connected: its peers end their connections with it at once, and it says itself why it is alone. It
// stays, in signed-out state.
func TestNodeRemoved(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	g, c := v.pair(lab.Cone, lab.Cone)
	other := v.add("other", "client", v.site("other-site", lab.Cone))
	for _, m := range []*member{c, other} {
		m.awaitConnection(patience, "gate", "connected", isUp("direct"))
	}
	s := openStream(t, other.site.Node, g.site.Node, g.overlay())
	v.portalRemoves(c)
	l := g.awaitLog("connection closed", 1, "peer=laptop")
	t.Logf("the gateway: %s; the node: %s", l.text("reason"), c.awaitLog("connection closed", 1, "phase=up").text("reason"))
	const refused = "the portal refuses the token: it was renewed or the node was removed; make another one with sluice portal node token, or node add"
	c.awaitLog(refused, 1)
	out := c.awaitLog("signed out", 1, "reason=refused")
	if got := out.text("severity") + " " + out.text("message"); got != "WARNING laptop is signed out: "+refused {
		t.Errorf("%s, want a warning that says why", got)
	}
	await(t, patience, "signed-out state", func() bool { return c.status().SignIn.Reason == edge.SignedOutRefused })
	text, err := v.run(c.site.Node, "status", "-socket", c.socket)
	if text = oneLine(text); err != nil || !strings.Contains(text, "signed out for") || !strings.Contains(text, "refuses the token") {
		t.Errorf("status: %v\n%s", err, text)
	}
	s.awaitProgress(patience, "of another node")
}

// Two programs with one token: the later one is the node, the other one says so, and they do not take turns. When the later one ends,
// the first is the node again.
func TestTokenTwice(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	g, first := v.pair(lab.Cone, lab.Cone)
	first.awaitConnection(patience, "gate", "connected", isUp("direct"))
	token, err := os.ReadFile(first.token)
	if err != nil {
		t.Fatal(err)
	}
	second := v.join("laptop-again", "client", string(token), v.site("second-site", lab.Cone))
	second.awaitConnection(patience, "gate", "connected", isUp("direct"))
	s := openStream(t, second.site.Node, g.site.Node, g.overlay())
	s.awaitProgress(patience, "of the second")
	await(t, patience, "the first says why it is alone", func() bool {
		return strings.Contains(first.status().Portal.Refused, "another program has signed in later")
	})
	before := len(g.find("connection up"))
	time.Sleep(15 * time.Second)
	s.awaitProgress(patience, "of the second")
	t.Logf("%d connections came up within 15 s, longest gap %v", len(g.find("connection up"))-before, s.longestGap())
	if n := len(g.find("connection up")) - before; n != 0 {
		t.Errorf("%d connections came up while both were there", n)
	}
	text, err := v.run(v.internet.Hub, "portal", "node", "list", "-state", v.dir+"/state")
	if err != nil || !strings.Contains(oneLine(text), "the token is in use twice") {
		t.Errorf("node list: %v\n%s", err, text)
	}
	second.end()
	first.awaitConnection(patience, "gate", "the first again", isUp("direct"))
	if r := first.status().Portal.Refused; r != "" {
		t.Errorf("still refused: %s", r)
	}
}

// A gateway offers a part of what another one has: nobody is given it, and both sides say why; the first one keeps the network.
func TestOverlappingRoutes(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	g := v.add("gate", "gateway", v.site("gate-site", lab.NoNAT), "-routes", "10.20.0.0/16")
	c := v.add("laptop", "client", v.site("client-site", lab.NoNAT))
	c.awaitConnection(patience, "gate", "connected", isUp("direct"))
	second := v.add("second", "gateway", v.site("second-site", lab.NoNAT), "-routes", "10.20.30.0/24")
	const why = "it is part of 10.20.0.0/16, which gateway gate has"
	c.awaitConnection(patience, "second", "the second gateway, which is good for itself", isUp("direct"))
	text, err := v.run(second.site.Node, "status", "-socket", second.socket)
	if err != nil || !strings.Contains(oneLine(text), why) {
		t.Errorf("status: %v\n%s", err, text)
	}
	text, err = v.run(v.internet.Hub, "portal", "node", "list", "-state", v.dir+"/state")
	if err != nil || !strings.Contains(oneLine(text), why) {
		t.Errorf("node list: %v\n%s", err, text)
	}
	openStream(t, c.site.Node, g.site.Node, g.overlay()).awaitProgress(patience, "to the first")
	for _, s := range c.status().Connections {
		if of := fmt.Sprint(s.AllowedIPs); strings.Contains(of, "10.20.") != (s.Peer == "gate") {
			t.Errorf("%s has %s", s.Peer, of)
		}
	}
	v.portalRemoves(g)
	c.awaitConnection(patience, "second", "the second gateway's network, once the first was removed", func(s edge.ConnectionStatus) bool {
		return strings.Contains(fmt.Sprint(s.AllowedIPs), "10.20.30.0/24")
	})
}

// portalRemoves removes a node at the portal.
func (v *vpn) portalRemoves(m *member) {
	v.t.Helper()
	if _, err := v.run(v.internet.Hub, "portal", "node", "remove", "-state", v.dir+"/state", m.name); err != nil {
		v.t.Fatal(err)
	}
}

// What is wrong with a token is one line that says what to do.
func TestBadTokens(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	site := v.site("site", lab.NoNAT)
	m := v.add("laptop", "client", site)
	m.awaitLog("signing in", 1)
	m.end()
	good, err := os.ReadFile(m.token)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		args []string
		text string
		want string
	}{
		"on the command line": {[]string{"client", strings.TrimSpace(string(good))}, "", "token"},
		"damaged":             {[]string{"client", "-token-file", "FILE"}, string(good[:40]), "damaged"},
		"something else":      {[]string{"client", "-token-file", "FILE"}, "hello", "begin with sluice1-"},
		"no file":             {[]string{"client", "-token-file", v.dir + "/none"}, "", "no such file"},
		"of another role":     {[]string{"gateway", "-token-file", "FILE", "-socket", v.dir + "/x.sock"}, string(good), "client"},
	} {
		file := fmt.Sprintf("%s/%x", v.dir, name)
		if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		for i := range tt.args {
			tt.args[i] = strings.ReplaceAll(tt.args[i], "FILE", file)
		}
		_, err := v.run(site.Node, tt.args...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "panic") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), string(good[:60])) {
			t.Errorf("%s: the error quotes the token", name)
		}
	}
}
