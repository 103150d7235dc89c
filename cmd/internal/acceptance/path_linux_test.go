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

// A NAT that forgets its mapping gives the client another address; the gateway follows within seconds.
func TestRebinding(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	g, c := v.pair(lab.Cone, lab.Symmetric)
	c.awaitConnection(patience, "gate", "connected", isUp("direct"))
	s := openStream(t, c.site.Node, g.site.Node, g.overlay())
	s.awaitProgress(patience, "before")
	before := g.connection("laptop").Endpoint
	if err := c.site.Router.ForgetMappings(); err != nil {
		t.Fatal(err)
	}
	g.awaitConnection(patience, "laptop", "the gateway sends elsewhere", func(s edge.ConnectionStatus) bool {
		return s.State == "up" && s.Endpoint != before
	})
	took := s.awaitProgress(patience, "after the rebinding")
	t.Logf("TCP goes on after %v (longest gap %v)", took, s.longestGap())
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
