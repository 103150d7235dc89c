//go:build rewrite

package acceptance

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/ice/edge"
)

// TestRecordStories makes the logs in the testdata of cmd/internal/logs anew, each by a client in a real network:
//
//	go test -tags rewrite -run TestRecordStories ./cmd/internal/acceptance
func TestRecordStories(t *testing.T) {
	for name, story := range map[string]func(v *vpn) *member{
		"good-day": func(v *vpn) *member {
			g, c := v.pair(lab.Restricted, lab.Cone)
			c.awaitConnection(patience, "gate", "connected", isUp("direct"))
			defer knock(t, c.site.Node, g.overlay())()
			time.Sleep(2 * time.Second)
			return c
		},
		"wrong-key": func(v *vpn) *member {
			g, c := v.pair(lab.Restricted, lab.Cone)
			c.awaitConnection(patience, "gate", "connected", isUp(""))
			defer knock(t, c.site.Node, g.overlay())()
			g.hook("/test/private-key")
			c.awaitLog("connection closed", 1, "reason=handshake_timeout")
			c.awaitLog("the peer reports after the close", 1)
			return c
		},
		"udp-blocked": func(v *vpn) *member {
			v.add("gate", "gateway", v.site("gate-site", lab.Restricted))
			site := v.site("client-site", lab.Restricted)
			if _, err := site.Router.Drop("", "", true); err != nil {
				t.Fatal(err)
			}
			c := v.add("laptop", "client", site)
			c.awaitLog("connection closed", 1)
			return c
		},
		"dead-relay": func(v *vpn) *member {
			_, c := v.pair(lab.Symmetric, lab.Symmetric)
			c.awaitConnection(patience, "gate", "connected", isUp("relay"))
			v.portal.kill()
			c.awaitLog("the relay is lost", 1)
			c.awaitLog("connection closed", 1)
			v.startPortal()
			c.awaitLog("connection up", 2)
			return c
		},
		"revoked-token": func(v *vpn) *member {
			_, c := v.pair(lab.Restricted, lab.Cone)
			c.awaitConnection(patience, "gate", "connected", isUp(""))
			if _, err := v.run(v.internet.Hub, "portal", "node", "remove", "-state", filepath.Join(v.dir, "state"), "laptop"); err != nil {
				t.Fatal(err)
			}
			c.awaitConnection(patience, "gate", "ended", func(s edge.ConnectionStatus) bool { return s.State != "up" })
			time.Sleep(3 * time.Second)
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := story(newVPN(t))
			c.end()
			text, err := os.ReadFile(filepath.Join(filepath.Dir(c.log), "laptop.logs", "latest"))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile("../logs/testdata/"+name+".log", text, 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}
