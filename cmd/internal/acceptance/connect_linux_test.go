package acceptance

import (
	"encoding/json"
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
	out, err := os.ReadFile(v.portal.out)
	found := tokens.FindAllString(string(out), -1)
	if err != nil || len(found) != 2 {
		t.Fatalf("the first start prints %d tokens, want 2: %v\n%s", len(found), err, out)
	}
	v.startPortal()
	g := v.join("gateway", "gateway", found[0], gs, "-routes", network.String())
	c := v.join("client", "client", found[1], cs)
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
	switch got := up.text("via"); {
	case want == "direct" && got == "relay":
		// On a busy machine the checks of a direct path may come too late to be the first. The upgrade finds it.
		took := c.awaitConnection(2*patience, peer, "direct", isUp("direct"))
		t.Logf("%s to %s: over the relay first, direct %v later", ck, gk, took)
	case got != want:
		t.Errorf("%s to %s: %s, want %s", ck, gk, got, want)
	}
	after, err := time.ParseDuration(up.text("after"))
	if err != nil {
		t.Error(err)
	}
	t.Logf("%-10s to %-10s: %-6s after %v", ck, gk, up.text("via"), after)
	return connectTime{ck.String(), gk.String(), up.text("via"), after.Seconds()}
}
