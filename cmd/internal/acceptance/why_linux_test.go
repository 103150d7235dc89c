package acceptance

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/tun/host"
)

// why asks a node, and returns what it says to people and to programs.
func (v *vpn) why(m *member, subject string) (text string, w status.Why) {
	v.t.Helper()
	text, _ = v.run(m.site.Node, "why", "-socket", m.socket, subject) // exit status 1 where nothing goes through
	facts, _ := v.run(m.site.Node, "why", "-json", "-socket", m.socket, subject)
	if err := json.Unmarshal([]byte(facts), &w); err != nil {
		v.t.Errorf("why %s: %v: %q", subject, err, facts)
	}
	for line := range strings.Lines(text) {
		if len(strings.TrimSuffix(line, "\n")) > status.Columns {
			v.t.Errorf("why %s: more than %d columns: %s", subject, status.Columns, line)
		}
	}
	v.t.Logf("why %s\n%s", subject, text)
	return text, w
}

// What becomes of packets is told for a peer that is up, for addresses behind it and elsewhere, for a route that is refused, after somebody
// has led the kernel past the tunnel, and when the peer is gone.
func TestWhy(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	g := v.add("gate", "gateway", v.site("gate-site", lab.Cone), "-routes", "10.20.0.0/16")
	c := v.add("laptop", "client", v.site("client-site", lab.Cone))
	c.awaitConnection(patience, "gate", "connected", isUp("direct"))
	text, w := v.why(c, "gate")
	if w.Verdict != status.VerdictUp || w.Address != g.overlay() || w.Connection == nil || w.Connection.Via != "direct" || w.Kernel == nil ||
		w.Kernel.Interface != w.Interface || w.MTU.Tunnel != 1416 || w.MTU.Outer != 1500 || w.MTU.Overhead != 60 {
		t.Errorf("a peer that is up: %+v", w)
	}
	if !strings.Contains(text, "gate: packets go through the tunnel to gate, direct ") {
		t.Errorf("a peer that is up:\n%s", text)
	}
	if _, w = v.why(c, "10.20.3.4"); w.Verdict != status.VerdictUp || w.Peer != "gate" || w.Route != netip.MustParsePrefix("10.20.0.0/16") {
		t.Errorf("an address behind it: %+v", w)
	}
	if _, w = v.why(c, "192.0.2.77"); w.Verdict != status.VerdictNoRoute || w.Kernel == nil || w.Kernel.Interface == w.Interface {
		t.Errorf("an address elsewhere: %+v", w)
	}
	if err := c.site.Node.Run(func() error {
		return host.AddRule(host.Rule{Table: 254, Priority: 1, To: netip.MustParsePrefix("10.20.9.0/24")})
	}); err != nil {
		t.Fatal(err)
	}
	if text, w = v.why(c, "10.20.9.1"); w.Verdict != status.VerdictNotTunneled || !strings.Contains(text, "the kernel sends packets elsewhere") {
		t.Errorf("a rule that leads past the tunnel: %+v", w)
	}
	if _, err := v.run(c.site.Node, "why", "-socket", c.socket, "nobody"); err == nil || !strings.Contains(err.Error(), "no peer is called") {
		t.Errorf("nobody: %v", err)
	}
	await(t, patience, "a round trip is in the status", func() bool { // of the one that checks
		return len(append(c.connection("gate").History, g.connection("laptop").History...)) > 0
	})
	g.end()
	await(t, patience, "the peer is gone", func() bool { return c.connection("gate").State == "none" || c.connection("gate").State == "waiting" })
	if text, w = v.why(c, "gate"); w.Verdict != status.VerdictNotConnected || w.Connection.LastClose == nil || !strings.Contains(text, "last close ") {
		t.Errorf("a peer that is gone: %+v\n%s", w, text)
	}
	defer knock(t, c.site.Node, w.Address)()
	await(t, patience, "packets to the peer are dropped", func() bool { d := c.connection("gate").LastDrop; return d != nil && d.Dst.Addr() == w.Address })
	if text, w = v.why(c, "gate"); len(w.Connection.Drops) == 0 || !strings.Contains(oneLine(text), "last dropped of gate:") || !strings.Contains(oneLine(text), "UDP "+c.overlay().String()) {
		t.Errorf("packets to a peer that is gone: %+v\n%s", w.Connection, text)
	}
}
