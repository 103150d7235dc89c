package acceptance

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/bench/speedtest"
)

// serveSpeed starts a server of speed tests at a node.
func (v *vpn) serveSpeed(m *member, args ...string) *sluice {
	v.t.Helper()
	p := v.start(m.site.Node, "serve-"+m.name, nil, append([]string{"speedtest", "-serve", "-socket", m.socket}, args...)...)
	await(v.t, patience, "the server on "+m.name, func() bool { return strings.Contains(p.said(), "serving speed tests") })
	return p
}

// said is what a program has written to its standard error.
func (p *sluice) said() string {
	text, _ := os.ReadFile(p.log)
	return string(text)
}

// tested measures from a node.
func (v *vpn) tested(m *member, args ...string) (r speedtest.Report) {
	v.t.Helper()
	text, err := v.run(m.site.Node, append([]string{"speedtest", "-socket", m.socket, "-json", "-duration", "150ms"}, args...)...)
	if err == nil {
		err = json.Unmarshal([]byte(text), &r)
	}
	if err != nil {
		v.t.Fatalf("speedtest on %s: %v", m.name, err)
	}
	return r
}

// checkLive checks what must hold however slow the machine is.
func checkLive(t *testing.T, r speedtest.Report, cases int) {
	t.Helper()
	if len(r.Results) != cases || r.Peer == nil || r.Settings.Topology != speedtest.TopologyLive || r.Peer.Machine.CPUs == 0 || r.Peer.Sluice.Version == "" {
		t.Fatalf("%d results of %+v with %+v, want %d", len(r.Results), r.Settings, r.Peer, cases)
	}
	for _, one := range r.Results {
		t.Logf("%s: %.3f Gbit/s, %.1f kpps, %d of %d packets, rtt %.6f s, drops %v", one.Case, one.GbitPerS, one.KPPS, one.PacketsReceived, one.PacketsSent,
			one.RTTMeanS, one.Drops)
		switch {
		case strings.HasPrefix(one.Case, "tcp") && (one.GbitPerS <= 0 || one.BytesReceived == 0 || one.BytesReceived != one.BytesSent),
			one.Case == "tcp-bidir" && (one.ForwardGbit <= 0 || one.BackwardGbit <= 0),
			one.Case == "rtt-loaded" && one.BytesReceived == 0,
			strings.HasPrefix(one.Case, "rtt") && (one.RTTMeanS <= 0 || one.RTTP50S > one.RTTMaxS || one.PacketsReceived == 0),
			strings.HasPrefix(one.Case, "udp") && (one.KPPS <= 0 || one.PacketsReceived > one.PacketsSent || one.UnaccountedPackets == nil),
			len(one.Samples) == 0, len(one.Counters) != 2:
			t.Errorf("%s: %+v", one.Case, one)
		}
		// The counters are of all that the nodes carry, so some packets of others are among them.
		if left := one.UnaccountedPackets; left != nil && max(*left, -*left) > int64(one.PacketsSent)/100+20 {
			t.Errorf("%s: %d of %d packets are not accounted for: %d received, %v", one.Case, *left, one.PacketsSent, one.PacketsReceived, one.Drops)
		}
	}
}

// The cases go over a tunnel that is up, with a server on either role, by IPv4 and IPv6. The server is there for peers, for one at a time, and
// ends by itself; who finds none is told what to do.
func TestSpeedtestLive(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	g := v.add("gate", "gateway", v.site("gate-site", lab.Cone))
	c := v.add("laptop", "client", v.site("client-site", lab.Cone), "-accept-incoming")
	shy := v.add("shy", "client", v.site("shy-site", lab.Cone))
	c.awaitConnection(patience, "gate", "connected", isUp(""))
	shy.awaitConnection(patience, "gate", "connected", isUp(""))

	fails := func(m *member, want string, args ...string) {
		t.Helper()
		if _, err := v.run(m.site.Node, append([]string{"speedtest", "-socket", m.socket}, args...)...); err == nil || !strings.Contains(oneLine(err.Error()), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
	fails(c, "nobody serves a speed test on gate ("+g.overlay().String()+":4431): start sluice speedtest -serve there", "-connect", "gate")
	fails(c, `no peer is called "nobody"; there are gate`, "-connect", "nobody")
	fails(c, "10.1.2.3 is no peer's own address", "-connect", "10.1.2.3")
	fails(shy, "this client lets no connections in", "-serve")
	fails(g, "-for 1s is out of range; use 10s to 24h0m0s", "-serve", "-for", "1s")

	server := v.serveSpeed(g)
	fails(g, "is another speedtest -serve running?", "-serve")
	checkLive(t, v.tested(c, "-connect", "gate"), len(speedtest.Cases()))
	var six netip.Addr
	for _, p := range g.status().Addresses {
		if p.Addr().Is6() {
			six = p.Addr()
		}
	}
	page := filepath.Join(v.dir, "report.html")
	checkLive(t, v.tested(c, "-connect", six.String(), "-cases", "tcp-bidir,udp-1200,rtt-loaded", "-html", page), 3)
	if text, err := os.ReadFile(page); err != nil || !strings.Contains(string(text), "B is gate") || !strings.Contains(string(text), "<svg") {
		t.Errorf("the page: %v: %s", err, text)
	}
	busy := v.start(c.site.Node, "busy", nil, "speedtest", "-socket", c.socket, "-connect", "gate", "-cases", "tcp-1", "-duration", "1m")
	await(t, patience, "laptop is served", func() bool { return strings.Count(server.said(), "serving laptop") == 3 })
	fails(shy, "gate refuses: a speed test with laptop is running there", "-connect", "gate")
	busy.kill()
	await(t, patience, "laptop has gone", func() bool { return strings.Count(server.said(), "laptop has ") == 3 })
	fails(shy, "does not fit: the server there ends in", "-connect", "gate", "-cases", "tcp-1", "-duration", "11m")
	v.strangers(g)
	server.end()

	server = v.serveSpeed(c, "-for", "10s", "-port", "4000")
	checkLive(t, v.tested(g, "-connect", "laptop", "-port", "4000", "-cases", "tcp-bidir,udp-100,rtt-idle"), 3)
	select {
	case <-server.done:
		if code := server.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("the server has ended with status %d: %s", code, server.said())
		}
	case <-time.After(patience):
		t.Error("the server does not end by itself")
	}
}

// strangers: who is no peer gets no answer, also on the machine itself.
func (v *vpn) strangers(g *member) {
	v.t.Helper()
	at := netip.AddrPortFrom(g.overlay(), speedtest.LivePort).String()
	var said []byte
	_ = g.site.Node.Run(func() error {
		conn, err := net.DialTimeout("tcp", at, time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		fmt.Fprintln(conn, `{"sluice_speedtest":1}`)
		said, err = io.ReadAll(conn)
		return err
	})
	if len(said) > 0 {
		v.t.Errorf("the server tells one who is no peer %q", said)
	}
}
