package acceptance

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/ice/edge"
)

// keysCase is one way in which keys can be out of step, with what either side must name as the cause.
type keysCase struct {
	wrong                     func(v *vpn, g, c *member)
	gatewayCause, clientCause string
}

const (
	peerHasOldKey = "the peer uses an old public key of ours"
	weHaveOldKey  = "we use an old public key of the peer"
	presharedKeys = "preshared keys differ"
)

var keysCases = map[string]keysCase{
	"gateway's key": {func(_ *vpn, g, _ *member) { g.hook("/test/private-key") }, peerHasOldKey, weHaveOldKey},
	"client's key": {func(_ *vpn, _, c *member) { c.hook("/test/private-key") },
		"the peer has a key we do not know", "the peer does not know our public key"},
	"preshared key": {func(_ *vpn, g, _ *member) { g.hook("/test/preshared-key?peer=laptop") }, presharedKeys, presharedKeys},
	"gateway's key, while ICE looks for a path": {func(v *vpn, g, c *member) {
		restore, err := c.site.Router.Drop("", "", true)
		if err != nil {
			v.t.Fatal(err)
		}
		v.restart(c)
		c.awaitConnection(patience, "gate", "checking", func(s edge.ConnectionStatus) bool { return s.State == "checking" })
		g.hook("/test/private-key")
		if err := restore(); err != nil {
			v.t.Fatal(err)
		}
	}, peerHasOldKey, weHaveOldKey},
	"both keys, the client's while the handshake runs": {func(_ *vpn, g, c *member) {
		g.hook("/test/private-key")
		c.awaitConnection(patience, "gate", "handshake", func(s edge.ConnectionStatus) bool { return s.State == "handshake" })
		c.hook("/test/private-key")
	}, peerHasOldKey, weHaveOldKey},
}

// TestKeysOutOfStep is the case that Sluice exists for: ICE connects, the keys do not fit. Both sides end the attempt 15 s
// after its first initiation, name the cause, keep nothing and do not storm; when the keys agree again, the next attempt works.
func TestKeysOutOfStep(t *testing.T) {
	t.Parallel()
	for _, name := range slices.Sorted(maps.Keys(keysCases)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVPN(t)
			g, c := v.pair(lab.Restricted, lab.Cone)
			c.awaitConnection(patience, "gate", "connected", isUp(""))
			silence := knock(t, c.site.Node, g.overlay())
			keysCases[name].wrong(v, g, c)
			keysCases[name].check(t, g, c)
			silence()
			v.portal.end() // nothing is attempted without it
			left := map[*member]map[string]uint64{g: nothingLeft(g, "laptop"), c: nothingLeft(c, "gate")}
			if left[c]["drop_staged_expired"] == 0 {
				t.Error("no packet has waited for a session in vain")
			}
			v.startPortal()
			for _, m := range []*member{g, c} { // sign in with keys that the portal hears of
				v.restart(m)
			}
			c.awaitConnection(patience, "gate", "connected again", isUp(""))
			openStream(t, c.site.Node, g.site.Node, g.overlay()).awaitProgress(patience, "after the keys agree")
			for m, counters := range left {
				if was, with := counters["goroutines"], m.counters()["goroutines"]; was >= with {
					t.Errorf("%s: %d goroutines were left, as many as there are with a connection (%d)", m.name, was, with)
				}
			}
		})
	}
}

func (tt keysCase) check(t *testing.T, g, c *member) {
	for _, side := range []struct {
		m           *member
		peer, cause string
	}{{g, "laptop", tt.gatewayCause}, {c, "gate", tt.clientCause}} {
		l := side.m.awaitLog("connection closed", 1, "peer="+side.peer, "reason=handshake_timeout")
		took, err := time.ParseDuration(l.text("handshake"))
		if err != nil || took < 15*time.Second || took > 16*time.Second {
			t.Errorf("%s: the handshake was given %q (%v), want 15 to 16 s", side.m.name, l.text("handshake"), err)
		}
		// Where only the peer can know the cause, its bye tells, which may come a moment later.
		side.m.awaitConnection(patience, side.peer, "the cause is named", func(s edge.ConnectionStatus) bool {
			return s.LastClose != nil && s.LastClose.Reason == "handshake_timeout" && s.LastClose.Cause == side.cause
		})
		if len(side.m.find("connection closed", "cause="+side.cause))+len(side.m.find("the peer reports after the close", "cause="+side.cause)) == 0 {
			t.Errorf("%s: the log does not name the cause %q", side.m.name, side.cause)
		}
		if s := side.m.connection(side.peer); s.State != "handshake" && (s.Via != "" || s.Endpoint.IsValid()) {
			t.Errorf("%s: there is still a path: %+v", side.m.name, s)
		}
	}
	// No storm: the attempts back off.
	time.Sleep(time.Until(c.find("connection closed", "reason=handshake_timeout")[0].at().Add(20 * time.Second)))
	if n := len(c.find("connection closed", "peer=gate", "reason=handshake_timeout")); n > 2 {
		t.Errorf("%d attempts have failed within 20 s of the first", n)
	}
}

// nothingLeft waits until a node has nothing of its connection to the peer any more, and returns its counters then.
func nothingLeft(m *member, peer string) (counters map[string]uint64) {
	m.t.Helper()
	m.awaitConnection(patience, peer, "is over", func(s edge.ConnectionStatus) bool {
		return (s.State == "none" || s.State == "waiting") && s.Via == "" && !s.Endpoint.IsValid()
	})
	gauges := []string{"ice_agents", "turn_agents", "staged_packets"}
	await(m.t, patience, m.name+" has let go of everything", func() bool {
		counters = m.counters()
		return !slices.ContainsFunc(gauges, func(name string) bool { return counters[name] != 0 })
	})
	return counters
}

// knock sends a datagram into the tunnel every 100 ms until the returned function is called.
func knock(t *testing.T, from *lab.Namespace, at netip.Addr) (stop func()) {
	t.Helper()
	var conn net.Conn
	err := from.Run(func() (err error) { conn, err = net.Dial("udp", netip.AddrPortFrom(at, 9).String()); return err })
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, err := conn.Write([]byte("knock")); errors.Is(err, net.ErrClosed) {
				return // other errors say that there is no way now
			}
			time.Sleep(100 * time.Millisecond)
		}
	}()
	return func() { conn.Close(); <-ended }
}

// A side that starts anew has another key, whether it could say goodbye or not. The other learns the key from the portal, and both
// connect at once: no handshake is waited for in vain, and TCP goes on.
func TestNewKey(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	g, c := v.pair(lab.Restricted, lab.Cone)
	c.awaitConnection(patience, "gate", "connected", isUp(""))
	s := openStream(t, c.site.Node, g.site.Node, g.overlay())
	for _, step := range []struct {
		what string
		end  func(p *sluice)
		m    *member
	}{
		{"the gateway ends and starts", (*sluice).end, g}, {"the gateway is killed and starts", (*sluice).kill, g},
		{"the client ends and starts", (*sluice).end, c}, {"the client is killed and starts", (*sluice).kill, c},
	} {
		s.awaitProgress(patience, "before "+step.what)
		s.newGap()
		joined, ups, closes := len(step.m.find("connected to the portal")), len(c.find("connection up")), len(c.find("connection closed"))
		step.end(step.m.sluice)
		v.launch(step.m)
		there := step.m.awaitLog("connected to the portal", joined+1).at()
		took := c.awaitLog("connection up", ups+1).at().Sub(there)
		s.awaitProgress(patience, "after "+step.what)
		closes = len(c.find("connection closed")) - closes
		t.Logf("%-33s connected after %v, %d closes, longest gap of TCP %v", step.what, took.Round(time.Millisecond), closes,
			s.longestGap().Round(time.Millisecond))
		if took > 10*time.Second {
			t.Errorf("%s: connected %v after it was there", step.what, took)
		}
		if closes > 3 {
			t.Errorf("%s: %d connections were closed", step.what, closes)
		}
	}
	for _, m := range []*member{g, c} {
		if n := len(m.find("connection closed", "reason=handshake_timeout")); n != 0 {
			t.Errorf("%s: %d handshakes were waited for in vain", m.name, n)
		}
	}
}
