package acceptance

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// The portal is killed and comes back: tunnels do not notice, and new nodes can join.
func TestPortalRestart(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	g, c := v.pair(lab.Cone, lab.Cone)
	c.awaitConnection(patience, "gate", "connected", isUp("direct"))
	s := openStream(t, c.site.Node, g.site.Node, g.overlay())
	v.portal.kill()
	await(t, patience, "status says that the portal is away", func() bool {
		text, err := v.run(c.site.Node, "status", "-socket", c.socket)
		return err == nil && strings.Contains(text, "not connected")
	})
	s.awaitProgress(patience, "without a portal")
	v.startPortal()
	late := v.add("late", "client", v.site("late-site", lab.Restricted))
	late.awaitConnection(patience, "gate", "connected", isUp("direct"))
	s.awaitProgress(patience, "with the portal again")
	if n := len(c.find("connection closed")); n != 0 {
		t.Errorf("the connection was closed %d times", n)
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
