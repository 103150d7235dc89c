package edge

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// What keeps ICE from finding anything is named on both sides, in either role: while it looks, in the close, and once in the log of
// whoever can do something about it. When it is over, the connection comes up.
func TestObstacles(t *testing.T) {
	for _, c := range []struct {
		name, cut          string // whose UDP is blocked; "": the relay refuses both
		gate, laptop       link.CloseCause
		gateLog, laptopLog int // lines in the log of the gateway and of the client
	}{
		{"blocked at the client", "laptop", link.CausePeerUDPBlocked, link.CauseUDPBlocked, 0, 1},
		{"blocked at the gateway", "gate", link.CauseUDPBlocked, link.CausePeerUDPBlocked, 1, 0},
		{"the relay refuses", "", link.CauseRelayCredentials, link.CauseRelayCredentials, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, signal.Faults{}, func(w *world) {
				one, _ := w.relayNamed("north", 1)
				if c.cut == "" {
					one.Username = "stranger"
					w.direct(false)
				}
				w.portal.relays = []protocol.Relay{one}
				nodes := make(map[string]*node)
				for _, name := range []string{"gate", "laptop"} {
					role := map[string]protocol.Role{"gate": protocol.Gateway, "laptop": protocol.Client}[name]
					nodes[name] = w.node(name, role)
					if name == c.cut {
						w.cut(nodes[name], true)
					}
				}
				g, l := nodes["gate"], nodes["laptop"]
				time.Sleep(blockedAfter + 4*time.Second)
				for _, s := range []struct {
					got  ConnectionStatus
					want link.CloseCause
				}{{g.connection("laptop"), c.gate}, {l.connection("gate"), c.laptop}} {
					if s.got.Obstacle != s.want.String() || !strings.Contains(s.got.Explanation, s.want.String()) {
						t.Errorf("obstacle %q (%s), want %q", s.got.Obstacle, s.got.Explanation, s.want)
					}
				}
				time.Sleep(6 * time.Second)
				for _, s := range []struct {
					got  *CloseStatus
					want link.CloseCause
				}{{g.connection("laptop").LastClose, c.gate}, {l.connection("gate").LastClose, c.laptop}} {
					if s.got == nil || s.got.Cause != s.want.String() {
						t.Errorf("closed %+v, want the cause %q", s.got, s.want)
					}
				}
				for _, s := range []struct {
					n    *node
					of   link.CloseCause
					want int
				}{{g, c.gate, c.gateLog}, {l, c.laptop, c.laptopLog}} {
					if got := s.n.log.count("level=WARN msg=\"" + s.of.String()); got != s.want {
						t.Errorf("%s: %d warnings %q, want %d", s.n.name, got, s.of, s.want)
					}
				}
				w.severed = nil
				w.direct(true)
				w.await(2*time.Minute, "connected", func() bool { return up(g, l) })
				if got := l.connection("gate"); got.Obstacle != "" {
					t.Errorf("connected, and %q", got.Obstacle)
				}
			})
		})
	}
}

// A relay that is down is no reason to think that UDP is blocked, where a pair of addresses works.
func TestDeadRelayIsNoObstacle(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		w.portal.relays = []protocol.Relay{{Name: "gone", Addrs: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.9:3478")}, Username: "node", Password: "p"}}
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		time.Sleep(3 * blockedAfter)
		for _, n := range []*node{g, c} {
			if got := n.log.count(link.CauseUDPBlocked.String()); got != 0 {
				t.Errorf("%s: %d lines that UDP is blocked", n.name, got)
			}
		}
		// But it is told, once, with its address.
		time.Sleep(2 * time.Hour)
		for _, n := range []*node{g, c} {
			if got := n.log.count(`level=WARN msg="the relay is of no use" relay=gone server=203.0.113.9:3478 trouble="does not answer: `); got != 1 || n.log.count("server=203.0.113.9:3478") != 1 {
				t.Errorf("%s: %d warnings of the relay, want 1", n.name, got)
			}
			s, err := n.edge.Status(context.Background())
			if err != nil || len(s.Notes) != 1 || !strings.HasPrefix(s.Notes[0], "the relay gone at 203.0.113.9:3478 does not answer: ") {
				t.Errorf("%s: notes %q, %v", n.name, s.Notes, err)
			}
		}
		one, _ := w.relayNamed("north", 1)
		w.portal.change(func() { w.portal.relays = []protocol.Relay{one} })
		time.Sleep(3 * blockedAfter)
		if s, err := c.edge.Status(context.Background()); err != nil || len(s.Notes) != 0 {
			t.Errorf("notes %q, %v", s.Notes, err)
		}
	})
}
