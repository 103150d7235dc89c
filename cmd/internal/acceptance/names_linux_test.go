package acceptance

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// resolves asks the system's resolver of a machine whose only name server is the node's own.
func (v *vpn) resolves(m *member, name string) (addrs string) {
	v.t.Helper()
	file := filepath.Join(v.dir, "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver "+m.overlay().String()+"\noptions timeout:2 attempts:1\n"), 0o644); err != nil {
		v.t.Fatal(err)
	}
	var out strings.Builder
	cmd := exec.Command("unshare", "--mount", "sh", "-ec", `mount --bind "$1" "$(readlink -f /etc/resolv.conf)"; exec getent ahosts "$2"`, "sh", file, name)
	cmd.Stdout = &out
	if err := m.site.Node.Start(cmd); err != nil {
		v.t.Fatal(err)
	}
	_ = cmd.Wait() // status 2: there is no such name
	return out.String()
}

// TestNames: on a client, NAME.sluice is a peer for every program, as soon as the portal knows it, and nobody else may ask.
func TestNames(t *testing.T) {
	t.Parallel()
	if info, err := os.Stat("/etc/resolv.conf"); err != nil || !info.Mode().IsRegular() {
		t.Skipf("SKIPPED: the system's resolver is not asked: it has no /etc/resolv.conf: %v", err)
	}
	v := newVPN(t)
	g := v.add("gate", "gateway", v.site("gate-site", lab.Cone), "-names", "serve")
	c := v.add("laptop", "client", v.site("client-site", lab.Cone), "-names", "serve")
	c.awaitConnection(patience, "gate", "connected", isUp("direct"))
	for _, m := range []*member{g, c} {
		m.awaitLog("peers have names", 1)
	}
	for name, want := range map[string]netip.Addr{"gate.sluice": g.overlay(), "laptop.sluice": c.overlay()} {
		await(t, patience, name+" is "+want.String(), func() bool { return strings.Contains(v.resolves(c, name), want.String()+" ") })
	}
	if got := v.resolves(c, "east.sluice"); got != "" {
		t.Errorf("a node that is not there yet is %q, want nothing", got)
	}
	if _, err := v.run(v.internet.Hub, "portal", "node", "add", "-state", filepath.Join(v.dir, "state"), "-role", "gateway", "east"); err != nil {
		t.Fatal(err)
	}
	await(t, patience, "a node that was added has a name", func() bool { return v.resolves(c, "east.sluice") != "" })

	q := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("gate.sluice."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	packed, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	ask := func(m *member) error {
		var conn net.Conn
		if err := m.site.Node.Run(func() (err error) { conn, err = net.Dial("udp", g.overlay().String()+":53"); return err }); err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(packed); err != nil {
			return err
		}
		_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		_, err := conn.Read(make([]byte, 1500))
		return err
	}
	if err := ask(c); err == nil {
		t.Error("the gateway answers a client, want only programs on its own machine")
	}
	await(t, patience, "the gateway answers its own machine", func() bool { return ask(g) == nil })
}
