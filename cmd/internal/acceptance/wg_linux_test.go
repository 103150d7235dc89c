package acceptance

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// wg runs the real wg in a node's namespace.
func (m *member) wg(args ...string) (stdout, stderr string, err error) {
	m.t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command("wg", args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := m.site.Node.Start(cmd); err != nil {
		m.t.Fatal(err)
	}
	err = cmd.Wait()
	return out.String(), errs.String(), err
}

// wg looks at the interfaces of client and gateway, and changes nothing.
func TestWgShows(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("wg"); err != nil {
		t.Skip("SKIPPED: wg is not installed")
	}
	v := newVPN(t)
	gs, cs := v.site("gate-site", lab.Cone), v.site("client-site", lab.Cone)
	g, c := v.add("gate", "gateway", gs, "-interface", "wgshow0", "-routes", "10.9.0.0/24"), v.add("laptop", "client", cs, "-interface", "wgshow1")
	defer knock(t, cs.Node, g.overlay())()
	c.awaitConnection(patience, "gate", "connected", isUp(""))
	for name, m := range map[string]*member{"wgshow0": g, "wgshow1": c} {
		if st, err := os.Stat("/var/run/wireguard/" + name + ".sock"); err != nil || st.Mode().Perm() != 0o600 {
			t.Fatalf("%s: %v, %v, want a socket of mode 0600", name, st, err)
		}
		show, errs, err := m.wg("show", name)
		for _, want := range []string{"interface: " + name, "public key: ", "latest handshake: ", "endpoint: ", "allowed ips: ", "transfer: "} {
			if err != nil || !strings.Contains(show, want) {
				t.Errorf("wg show %s: %v, %s, %q is missing:\n%s", name, err, errs, want, show)
			}
		}
		if strings.Contains(show, "preshared key") {
			t.Errorf("wg show %s tells of a preshared key:\n%s", name, show)
		}
		if all, errs, err := m.wg("show", "all", "dump"); err != nil || !strings.Contains(all, name+"\t") {
			t.Errorf("wg show all: %v, %s:\n%s", err, errs, all)
		}
		conf, errs, err := m.wg("showconf", name)
		if err != nil || !strings.Contains(conf, "[Peer]") || strings.Contains(conf, "PresharedKey") {
			t.Errorf("wg showconf %s: %v, %s", name, err, errs)
		}
		_, errs, err = m.wg("set", name, "listen-port", "7777")
		if err == nil || !strings.Contains(errs, "Operation not permitted") {
			t.Errorf("wg set %s: %v, %q, want that it is not permitted", name, err, errs)
		}
		if l := m.awaitLog("wg may not change this interface", 1); l.text("severity") != "WARNING" || !strings.Contains(l.text("message"), "the portal decides") {
			t.Errorf("the refusal is logged as %v", l)
		}
		if after, _, _ := m.wg("show", name, "listen-port"); strings.TrimSpace(after) == "7777" {
			t.Errorf("%s has another port now", name)
		}
	}
	c.end()
	if _, err := os.Stat("/var/run/wireguard/wgshow1.sock"); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	// Without its socket a node goes on.
	if err := os.Remove("/var/run/wireguard/wgshow0.sock"); err != nil {
		t.Fatal(err)
	}
	g.awaitLog("wg cannot show this interface", 1)
	if s := g.status(); s.Name != "gate" {
		t.Errorf("the gateway does not answer any more: %+v", s)
	}
}
