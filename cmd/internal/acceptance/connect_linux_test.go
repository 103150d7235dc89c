package acceptance

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/ice/edge"
)

// As a new user: a portal whose first start prints what to do, a gateway behind a symmetric NAT, a client behind another NAT,
// a host behind the gateway; status and ping explain the path, and afterwards all is as it was.
func TestNewUser(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	tokens := regexp.MustCompile(`sluice1-[A-Za-z0-9_-]+`)
	gs, cs := v.site("gate-site", lab.Symmetric), v.site("client-site", lab.Restricted)
	machine, network, err := gs.AddHost("machine")
	if err != nil {
		t.Fatal(err)
	}
	defer machine.Close()
	v.portal.end()
	if n := len(tokens.FindAllString(v.portal.out.String(), -1)); n != 2 {
		t.Fatalf("the first start prints %d tokens:\n%s", n, v.portal.out)
	}
	found := tokens.FindAllString(v.portal.out.String(), -1)
	v.startPortal()
	join := func(name, role, token string, site *lab.Site, args ...string) *member {
		m := &member{site: site, socket: v.dir + "/" + name + ".sock", token: v.dir + "/" + name + ".token"}
		if err := os.WriteFile(m.token, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		m.args = append([]string{role, "-token-file", m.token, "-socket", m.socket}, args...)
		m.sluice = v.start(site.Node, name, nil, m.args...)
		return m
	}
	g := join("gateway", "gateway", found[0], gs, "-routes", network.String())
	c := join("client", "client", found[1], cs)
	c.awaitConnection(patience, "gateway", "connected over the relay", isUp("relay"))
	s := openStream(t, cs.Node, machine, network.Addr().Next().Next())
	s.awaitProgress(patience, "to a host behind the gateway")
	text, err := v.run(cs.Node, "status", "-socket", c.socket)
	if err != nil || !strings.Contains(text, "relayed") || !strings.Contains(text, "gateway") {
		t.Errorf("status does not explain the path: %v\n%s", err, text)
	}
	text, err = v.run(cs.Node, "ping", "-socket", c.socket, "-count", "2", "gateway")
	if err != nil || !strings.Contains(text, "relay") {
		t.Errorf("ping: %v\n%s", err, text)
	}
	text, err = v.run(v.internet.Hub, "portal", "node", "list", "-state", v.dir+"/state")
	if err != nil || strings.Count(text, "from ") != 2 {
		t.Errorf("node list: %v\n%s", err, text)
	}
	if text := v.logs(g.sluice, c.sluice, v.portal); strings.Contains(text, "sluice1-") {
		t.Error("a log holds a token")
	}
}

// Two networks, each behind a gateway that may reach the other: machines that know nothing of it exchange data.
func TestTwoNetworks(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	ws, es := v.site("west-site", lab.Restricted), v.site("east-site", lab.Cone)
	west, westNet, err := ws.AddHost("west-machine")
	if err != nil {
		t.Fatal(err)
	}
	defer west.Close()
	east, eastNet, err := es.AddHost("east-machine")
	if err != nil {
		t.Fatal(err)
	}
	defer east.Close()
	everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	for machine, network := range map[*lab.Namespace]netip.Prefix{west: westNet, east: eastNet} {
		if err := machine.AddRoute(everywhere, "eth0", network.Addr().Next()); err != nil {
			t.Fatal(err)
		}
	}
	w := v.add("west", "gateway", ws, "-routes", westNet.String())
	e := v.addAllowed("east", "gateway", "west", es, "-routes", eastNet.String())
	machineOf := func(p netip.Prefix) netip.Addr { return p.Addr().Next().Next() }
	s := openStream(t, west, east, machineOf(eastNet)) // traffic asks for the connection
	s.awaitProgress(patience, "from west to east")
	openStream(t, east, west, machineOf(westNet)).awaitProgress(patience, "from east to west")
	w.awaitConnection(patience, "east", "direct", isUp("direct"))
	e.awaitConnection(patience, "west", "direct", isUp("direct"))
}

func (v *vpn) logs(list ...*sluice) string {
	var b strings.Builder
	for _, p := range list {
		text, err := os.ReadFile(p.log)
		if err != nil {
			v.t.Fatal(err)
		}
		b.Write(text)
	}
	return b.String()
}

// connectTimes names a file into which TestNATGrid writes how long each connection took, of connectRounds rounds.
const (
	connectTimes  = "SLUICE_CONNECT_TIMES"
	connectRounds = 10
)

// connectTime is one line of that file.
type connectTime struct {
	Client  string  `json:"client_nat"`
	Gateway string  `json:"gateway_nat"`
	Via     string  `json:"via"`
	Seconds float64 `json:"seconds"` // from the attempt's begin to the first session
}

// The grid of NATs, with 50 ms of round trip between any two nodes and 25 ms to the portal: everything connects, and directly
// where that is possible.
func TestNATGrid(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	kinds := []lab.NAT{lab.NoNAT, lab.Cone, lab.Restricted, lab.Symmetric}
	clients := map[lab.NAT]*member{}
	for _, kind := range kinds {
		for _, role := range []string{"gateway", "client"} {
			name := role[:1] + "-" + kind.String()
			site, err := v.internet.AddDistantSite(name, kind, lab.Impairment{Delay: 12500 * time.Microsecond})
			if err != nil {
				t.Fatal(err)
			}
			if m := v.add(name, role, site); role == "client" {
				clients[kind] = m
			}
		}
	}
	rounds := 1
	if os.Getenv(connectTimes) != "" {
		rounds = connectRounds
	}
	var times []connectTime
	for round := range rounds {
		for _, ck := range kinds {
			if round > 0 {
				v.restart(clients[ck])
			}
			for _, gk := range kinds {
				times = append(times, v.gridCell(clients[ck], round, ck, gk))
			}
		}
	}
	if file := os.Getenv(connectTimes); file != "" {
		text, err := json.MarshalIndent(times, "", "\t")
		if err == nil {
			err = os.WriteFile(file, text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// gridCell waits for one connection and checks how it is made.
func (v *vpn) gridCell(c *member, round int, ck, gk lab.NAT) connectTime {
	t, peer, want := v.t, "g-"+gk.String(), "direct"
	if ck == lab.Symmetric && gk >= lab.Restricted || gk == lab.Symmetric && ck >= lab.Restricted {
		want = "relay"
	}
	c.awaitConnection(2*patience, peer, "connected", func(s edge.ConnectionStatus) bool {
		return s.State == "up" || s.State == "idle"
	})
	up := c.awaitLog("connection up", round+1, "peer="+peer)
	if got := up.text("via"); got != want {
		t.Errorf("%s to %s: %s, want %s", ck, gk, got, want)
	}
	after, err := time.ParseDuration(up.text("after"))
	if err != nil {
		t.Error(err)
	}
	t.Logf("%-10s to %-10s: %-6s after %v", ck, gk, want, after)
	return connectTime{ck.String(), gk.String(), up.text("via"), after.Seconds()}
}

// keysCase is one way in which keys can be out of step, with what either side must name as the cause.
type keysCase struct {
	wrong                     func(g, c *member)
	gatewayCause, clientCause string
}

var keysCases = map[string]keysCase{
	"gateway's key": {func(g, _ *member) { g.hook("/test/private-key") },
		"the peer uses an old public key of ours", "we use an old public key of the peer"},
	"client's key": {func(_, c *member) { c.hook("/test/private-key") },
		"the peer has a key we do not know", "the peer does not know our public key"},
	"preshared key": {func(g, _ *member) { g.hook("/test/preshared-key?peer=laptop") },
		"preshared keys differ", "preshared keys differ"},
}

// TestKeysOutOfStep is the case that Sluice exists for: ICE connects, the keys do not fit. Both sides end the attempt 15 s
// after its first initiation, name the cause, keep nothing and do not storm; when the keys agree again, the next attempt works.
func TestKeysOutOfStep(t *testing.T) {
	t.Parallel()
	for name, tt := range keysCases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVPN(t)
			g, c := v.pair(lab.Restricted, lab.Cone)
			c.awaitConnection(patience, "gate", "connected", isUp(""))
			tt.wrong(g, c)
			for _, side := range []struct {
				m           *member
				peer, cause string
			}{{g, "laptop", tt.gatewayCause}, {c, "gate", tt.clientCause}} {
				l := side.m.awaitLog("connection closed", 1, "peer="+side.peer, "reason=handshake_timeout")
				// Where only the peer can know the cause, its bye tells, which may come a moment later.
				side.m.awaitConnection(patience, side.peer, "the cause is named", func(s edge.ConnectionStatus) bool {
					return s.LastClose != nil && s.LastClose.Reason == "handshake_timeout" && s.LastClose.Cause == side.cause
				})
				took, err := time.ParseDuration(l.text("handshake"))
				if err != nil || took < 15*time.Second || took > 16*time.Second {
					t.Errorf("%s: the handshake was given %q (%v), want 15 to 16 s", side.m.name, l.text("handshake"), err)
				}
			}
			// Nothing is left: no path, no session; and no storm: the attempts back off.
			time.Sleep(time.Until(c.find("connection closed", "reason=handshake_timeout")[0].at().Add(20 * time.Second)))
			if n := len(c.find("connection closed", "peer=gate", "reason=handshake_timeout")); n > 2 {
				t.Errorf("%d attempts have failed within 20 s of the first", n)
			}
			v.restart(g) // signs in with a key that the portal hears of
			v.restart(c)
			c.awaitConnection(patience, "gate", "connected again", isUp(""))
			openStream(t, c.site.Node, g.site.Node, g.overlay()).awaitProgress(patience, "after the keys agree")
		})
	}
}

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
	if n := len(c.find("connection closed", "peer=gate")); n != 0 {
		t.Errorf("the connection was closed %d times", n)
	}
	t.Logf("TCP goes on %v after the cable was joined", took)
}

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

func (s *stream) longestGap() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gap
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
