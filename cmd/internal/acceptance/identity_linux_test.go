package acceptance

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/ice/edge"
)

// Whoever has the portal can make another token for a gateway, and run one of his own with it. The client that has met the gateway
// notices and does not speak to that one, over a restart too, until its owner says that it is the same; a gateway that only starts
// again is the same all along.
func TestIdentity(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	g := v.add("gate", "gateway", v.site("gate-site", lab.Cone))
	c := v.add("laptop", "client", v.site("laptop-site", lab.Cone))
	c.awaitConnection(patience, "gate", "connected", isUp(""))
	was := g.status().Identity
	for range 2 { // another WireGuard key each time
		v.restart(g)
		c.awaitConnection(patience, "gate", "connected again", func(s edge.ConnectionStatus) bool {
			return s.State == "up" && s.PublicKey == g.status().PublicKey
		})
	}
	if s := c.connection("gate"); s.Distrust != "" || len(c.find("the peer is trusted again")) > 0 || g.status().Identity != was || s.Pinned != was {
		t.Errorf("after restarts: %+v; the gateway is %s, was %s", s, g.status().Identity, was)
	}
	g.end()
	token, err := v.run(v.internet.Hub, "portal", "node", "token", "-state", filepath.Join(v.dir, "state"), "gate")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(g.token, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	v.launch(g)
	g.awaitLog("connected to the portal", 4)
	changed := func(s edge.ConnectionStatus) bool { return s.Distrust == "identity_changed" }
	c.awaitConnection(patience, "gate", "is noticed", changed)
	v.restart(c)
	c.awaitConnection(patience, "gate", "is noticed after a restart", changed)
	s, now := c.connection("gate"), g.status().Identity
	if s.Identity != now || s.Pinned != was || now == was || !strings.Contains(s.Explanation, "sluice trust gate") {
		t.Errorf("%+v; the gateway is %s, was %s", s, now, was)
	}
	// The other gateway is wanted, and asks for a connection itself.
	if out, err := v.run(c.site.Node, "ping", "-socket", c.socket, "-count", "2", "gate"); err == nil {
		t.Errorf("it answers: %s", out)
	}
	if s := c.connection("gate"); !s.LastHandshake.IsZero() || s.LastClose == nil || s.LastClose.Reason != "identity_changed" {
		t.Errorf("after a ping: %+v, close %+v", s, s.LastClose)
	}
	list, err := v.run(c.site.Node, "trust", "-socket", c.socket)
	if err != nil || !strings.Contains(list, was) || !strings.Contains(list, now+"\n  no session: identity_changed") {
		t.Errorf("trust lists %q, %v", list, err)
	}
	if out, err := v.run(c.site.Node, "trust", "-socket", c.socket, "gate"); err != nil || !strings.Contains(out, "gate is trusted as "+now+" (it was "+was+")") {
		t.Fatalf("trust: %q, %v", out, err)
	}
	c.awaitConnection(patience, "gate", "connected with trust", isUp(""))
	v.restart(c)
	c.awaitConnection(patience, "gate", "connected with trust after a restart", isUp(""))
	if out, err := v.run(c.site.Node, "ping", "-socket", c.socket, "-count", "2", "gate"); err != nil {
		t.Errorf("ping: %q, %v", out, err)
	}
}
