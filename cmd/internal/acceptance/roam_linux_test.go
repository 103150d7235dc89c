package acceptance

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/ice/edge"
)

const networkChanged = "the network has changed: looking for other paths"

// The client moves: another lease, another uplink from which only a relay leads on, home again, the cable out for a while. Its
// system tells at once. Then its router gets another public address, of which SIGHUP tells, and once more, of which nobody does.
// Connection, session and TCP go on.
func TestRoaming(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	g, c := v.pair(lab.Restricted, lab.Restricted)
	home := c.site
	away, err := v.internet.AddUplink(home, "away", lab.Symmetric)
	if err != nil {
		t.Fatal(err)
	}
	c.awaitConnection(patience, "gate", "connected", isUp("direct"))
	s := openStream(t, c.site.Node, g.site.Node, g.overlay())
	s.awaitProgress(patience, "at home")
	for _, step := range []struct {
		what, why, via string
		pause          time.Duration // without any link
		moves          []func() error
	}{
		{"another lease", "the system says so", "direct", 0, []func() error{home.Readdress}},
		{"another uplink", "the system says so", "relay", 0, []func() error{home.Leave, away.Join}},
		{"home again", "the system says so", "direct", 0, []func() error{away.Leave, home.Join}},
		{"the cable out", "the system says so", "direct", 3 * time.Second, []func() error{home.Leave, home.Join}},
		{"another public address", "asked to", "direct", 0, []func() error{home.Renumber, func() error {
			return c.cmd.Process.Signal(syscall.SIGHUP)
		}}},
		{"another one, untold", "", "direct", 0, []func() error{home.Renumber}},
	} {
		time.Sleep(2 * time.Second) // what the step before has begun is over
		before, told := c.connection("gate"), len(c.find(networkChanged, "why="+step.why))
		begin := time.Now()
		s.newGap()
		for i, move := range step.moves {
			if i > 0 {
				time.Sleep(step.pause)
			}
			if err := move(); err != nil {
				t.Fatalf("%s: %v", step.what, err)
			}
		}
		noticed := "by nobody"
		if step.why != "" {
			at := c.awaitLog(networkChanged, told+1, "why="+step.why).at()
			noticed = fmt.Sprint("after ", at.Sub(begin).Round(time.Millisecond))
		}
		c.awaitConnection(patience, "gate", step.what, isUp(step.via))
		g.awaitConnection(patience, "laptop", step.what, func(s edge.ConnectionStatus) bool {
			return s.State == "up" && s.Via == step.via && (step.via == "relay" || s.Endpoint.Addr() == home.Public)
		})
		s.awaitProgress(patience, step.what)
		after := c.connection("gate")
		t.Logf("%-22s noticed %s, longest gap of TCP %v", step.what, noticed, s.longestGap().Round(time.Millisecond))
		if after.Generation != before.Generation || !after.LastHandshake.Equal(before.LastHandshake) {
			t.Errorf("%s: another session: %+v, before %+v", step.what, after, before)
		}
	}
	if lost := append(c.sessionsLost(), g.sessionsLost()...); len(lost) != 0 {
		t.Errorf("connections were closed: %v", lost)
	}
}
