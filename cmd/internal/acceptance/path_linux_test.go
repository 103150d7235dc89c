package acceptance

import (
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/ice/edge"
)

// A firewall forces the connection over the relay; when it opens, the connection becomes direct. TCP does not notice.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	restore, err := v.internet.Hub.Drop("", "", true)
	if err != nil {
		t.Fatal(err)
	}
	g, c := v.pair(lab.NoNAT, lab.NoNAT)
	c.awaitConnection(patience, "gate", "relayed", isUp("relay"))
	s := openStream(t, c.site.Node, g.site.Node, g.overlay())
	s.awaitProgress(patience, "relayed")
	before := c.connection("gate")
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	took := c.awaitConnection(3*time.Minute, "gate", "direct", isUp("direct"))
	s.awaitProgress(patience, "direct")
	if after := c.connection("gate"); after.Generation != before.Generation {
		t.Errorf("another connection: %+v, before %+v", after, before)
	}
	t.Logf("direct %v after the firewall was opened", took)
}

// The cable is cut for 10 s: the tunnel is kept, or made again at once.
func TestCableCut(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	g, c := v.pair(lab.Cone, lab.Restricted)
	c.awaitConnection(patience, "gate", "connected", isUp("direct"))
	s := openStream(t, c.site.Node, g.site.Node, g.overlay())
	s.awaitProgress(patience, "before the cut")
	restore, err := c.site.Router.Drop("", "", false)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Second)
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	took := s.awaitProgress(patience, "after the cut")
	if lost := c.sessionsLost(); len(lost) != 0 {
		t.Errorf("connections were closed: %v", lost)
	}
	t.Logf("TCP goes on %v after the cable was joined", took)
}

// A NAT that forgets its mapping gives the node behind it another address; the other one follows within a second (rebound leaves room
// for a busy machine; without following it takes 11 s), whoever of the two it is, and again.
func TestRebinding(t *testing.T) {
	const rebound = 4 * time.Second
	for name, c := range map[string]struct {
		gateway, client lab.NAT
		behind          int // whose NAT forgets: 0 the gateway's, 1 the client's
	}{
		"the client's": {lab.Cone, lab.Symmetric, 1}, "the gateway's": {lab.Symmetric, lab.Cone, 0}, "without another": {lab.NoNAT, lab.Symmetric, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVPN(t)
			g, c1 := v.pair(c.gateway, c.client)
			c1.awaitConnection(patience, "gate", "connected", isUp("direct"))
			s := openStream(t, c1.site.Node, g.site.Node, g.overlay())
			s.awaitProgress(patience, "before")
			behind, far, peer := c1, g, "laptop"
			if c.behind == 0 {
				behind, far, peer = g, c1, "gate"
			}
			for range 2 {
				before := far.connection(peer).Endpoint
				if err := behind.site.Router.ForgetMappings(); err != nil {
					t.Fatal(err)
				}
				took := far.awaitConnection(rebound, peer, "the other sends elsewhere", func(s edge.ConnectionStatus) bool {
					return s.State == "up" && s.Via == "direct" && s.Endpoint != before
				})
				t.Logf("followed after %v; TCP goes on after %v", took, s.awaitProgress(patience, "after the rebinding"))
			}
			if n := far.find("connection closed"); len(n) != 0 {
				t.Errorf("connections were closed: %v", n)
			}
		})
	}
}

// A third of all packets is lost: connections still come up and carry data.
func TestLoss(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	g, c := v.pair(lab.NoNAT, lab.Cone)
	restore, err := v.internet.Hub.Lose(30)
	if err != nil {
		t.Fatal(err)
	}
	c.awaitConnection(2*patience, "gate", "connected", isUp(""))
	s := openStream(t, c.site.Node, g.site.Node, g.overlay())
	s.awaitProgress(2*patience, "with losses")
	time.Sleep(30 * time.Second)
	if n := len(c.find("connection closed", "peer=gate", "reason=ice_disconnected")); n != 0 {
		t.Errorf("ICE ended a connection that carried data, %d times", n)
	}
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	s.awaitProgress(2*patience, "without losses")
}
