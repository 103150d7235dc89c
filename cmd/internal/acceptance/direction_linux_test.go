package acceptance

import (
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/ice/edge"
)

// lostDirections are the two ways of the direct path between a gateway and its clients, one lost for each client.
func lostDirections(t *testing.T, v *vpn, kind lab.NAT) (g *member, clients map[string]*member, lose func()) {
	gs := v.site("gate-site", kind)
	g = v.add("gate", "gateway", gs)
	clients = map[string]*member{}
	var ways [][2]string
	for _, name := range []string{"hears-nothing", "is-not-heard"} {
		site := v.site(name+"-site", kind)
		clients[name] = v.add(name, "client", site)
		way := [2]string{gs.Port, site.Port}
		if name == "is-not-heard" {
			way = [2]string{site.Port, gs.Port}
		}
		ways = append(ways, way)
	}
	return g, clients, func() {
		for _, way := range ways {
			if _, err := v.internet.Hub.Drop(way[0], way[1], true); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// One direction of the direct path is lost, the other not: the tunnel moves to the relay, with its session, whoever it is that hears
// nothing.
func TestLostDirection(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	g, clients, lose := lostDirections(t, v, lab.Cone)
	streams, before := map[string]*stream{}, map[string]edge.ConnectionStatus{}
	for name, c := range clients {
		c.awaitConnection(patience, "gate", "connected", isUp("direct"))
		streams[name] = openStream(t, c.site.Node, g.site.Node, g.overlay())
		streams[name].awaitProgress(patience, "directly")
		before[name] = c.connection("gate")
	}
	lose()
	for name, c := range clients {
		took := c.awaitConnection(patience, "gate", "over the relay", isUp("relay"))
		g.awaitConnection(patience, name, "the gateway, too", isUp("relay"))
		streams[name].awaitProgress(patience, "over the relay")
		after := c.connection("gate")
		if after.Generation != before[name].Generation || !after.LastHandshake.Equal(before[name].LastHandshake) {
			t.Errorf("%s: another session: %+v, before %+v", name, after, before[name])
		}
		if !strings.Contains(after.Explanation, "relay") {
			t.Errorf("%s: status says %q", name, after.Explanation)
		}
		t.Logf("%s: relayed after %v, longest gap of TCP %v", name, took, streams[name].longestGap())
	}
	for _, m := range []*member{g, clients["hears-nothing"], clients["is-not-heard"]} {
		if lost := m.sessionsLost(); len(lost) != 0 {
			t.Errorf("%s has closed connections: %v", m.name, lost)
		}
	}
}

// lostWithin bounds the end of a connection that is lost: 15 s since the last authentic packet, and what a busy machine takes.
const lostWithin = 20 * time.Second

// The same without a relay: who hears nothing ends the connection and tells the other, nothing of it stays in use, and what is tried
// after that ends as what it is.
func TestLostDirectionWithoutRelay(t *testing.T) {
	t.Parallel()
	v := newVPN(t, "-relay-listen", "none")
	g, clients, lose := lostDirections(t, v, lab.NoNAT)
	for _, c := range clients {
		c.awaitConnection(patience, "gate", "connected", isUp("direct"))
		openStream(t, c.site.Node, g.site.Node, g.overlay()).awaitProgress(patience, "directly")
	}
	lost := time.Now()
	lose()
	for name, c := range clients {
		deaf, other, deafTo, otherTo := c, g, "gate", name
		if name == "is-not-heard" {
			deaf, other, deafTo, otherTo = g, c, name, "gate"
		}
		l := deaf.awaitLog("connection closed", 1, "peer="+deafTo, "reason=ice_disconnected")
		if took := l.at().Sub(lost); took > lostWithin {
			t.Errorf("%s has ended the connection after %v", deaf.name, took)
		}
		other.awaitLog("connection closed", 1, "peer="+otherTo, "reason=peer_closed", "peer_reports.reason=ice_disconnected")
		t.Logf("%s: ended after %v", name, l.at().Sub(lost))
	}
	for _, c := range clients {
		c.awaitConnection(patience, "gate", "the next attempt ends as well", func(s edge.ConnectionStatus) bool {
			return s.State == "waiting" && s.Via == "" && strings.Contains(s.Explanation, "tries again") &&
				(strings.Contains(s.Explanation, "after ice_timeout") || strings.Contains(s.Explanation, "after peer_closed, there ice_timeout"))
		})
	}
}
