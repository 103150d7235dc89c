package edge

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// TestChoose: what a node refuses is neither the pipeline's nor the host's, and both status and, once, the log say why; when the
// network changes, it is decided anew.
func TestChoose(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		if s := c.status(); len(s.Routes) == 0 || s.Routes[0] != (RouteStatus{Prefix: s.Connections[0].AllowedIPs[0], Peer: "gate", State: RouteUsed}) {
			t.Errorf("routes %+v, want that of %v first", s.Routes, s.Connections[0].AllowedIPs)
		}
		var applied []netip.Prefix
		why := "it may not"
		c.owner(func(e *Edge) {
			e.config.Apply = func(s protocol.Sync) error { applied = s.Peers[0].AllowedIPs; return nil }
			e.config.Choose = func(s protocol.Sync) []RouteStatus {
				routes := RoutesIn(s)
				for i := range routes {
					if why != "" {
						routes[i].State, routes[i].Why = RouteRefused, why
					}
				}
				return routes
			}
		})
		for _, tt := range []struct {
			why  string
			left bool
		}{{"it may not", false}, {"", true}, {"it may not", false}} {
			c.owner(func(e *Edge) { why = tt.why; e.networkChanged("a test") })
			s := c.status()
			allowed := s.Connections[0].AllowedIPs
			if (len(allowed) > 0) != tt.left || !slices.Equal(allowed, applied) {
				t.Errorf("because %q: allowed IPs %v, applied %v", tt.why, allowed, applied)
			}
			if r := s.Routes[0]; r.Why != tt.why || (r.State == RouteUsed) != tt.left {
				t.Errorf("because %q: the status says %+v", tt.why, r)
			}
		}
		if got := c.log.count("a route is refused"); got != len(c.status().Routes) {
			t.Errorf("logged %d times, want once each of %v:\n%s", got, c.status().Routes, c.log)
		}
		if !strings.Contains(c.log.String(), "it may not") {
			t.Error("the log does not say why")
		}
	})
}
