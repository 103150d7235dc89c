package status

import (
	"net/netip"
	"testing"

	"github.com/sluice-vpn/sluice/ice/edge"
)

func TestLine(t *testing.T) {
	serving := edge.Status{Name: "laptop", Role: "client", Interface: "sluice0", ListenPort: 7, Addresses: []netip.Prefix{netip.MustParsePrefix("100.64.0.2/32")}}
	with := func(change func(*edge.Status)) edge.Status {
		s := serving
		change(&s)
		return s
	}
	for want, s := range map[string]edge.Status{
		"client laptop: signing in":                                     {Name: "laptop", Role: "client"},
		"client laptop: not signed in, tries again: connection refused": {Name: "laptop", Role: "client", Portal: edge.PortalStatus{Why: "connection refused"}},
		"client laptop on sluice0: connected to 0 of 0 peers":           serving,
		"client laptop on sluice0: connected to 2 of 3 peers, 1 of them over a relay": with(func(s *edge.Status) {
			s.Connections = []edge.ConnectionStatus{{State: "up", Via: "direct"}, {State: "idle", Via: "relay"}, {State: "checking"}}
		}),
		"client laptop on sluice0: connected to 0 of 0 peers; the portal: refused; PROBLEM: no nftables": with(func(s *edge.Status) {
			s.Portal.Why, s.Problem = "refused", "no nftables"
		}),
	} {
		if got := Line(s); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}
