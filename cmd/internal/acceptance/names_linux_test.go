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
	"golang.org/x/net/proxy"

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

// TestGatewayNameServer: a client whose default route leads to a gateway asks the gateway's name server, once the route is approved, and no
// longer than the route is there.
func TestGatewayNameServer(t *testing.T) {
	t.Parallel()
	if info, err := os.Stat("/etc/resolv.conf"); err != nil || !info.Mode().IsRegular() {
		t.Skipf("SKIPPED: the system's resolver is not asked: it has no /etc/resolv.conf: %v", err)
	}
	v := newVPN(t)
	gs, cs := v.site("gate-site", lab.Cone), v.site("client-site", lab.Cone)
	var server net.PacketConn
	behind := exec.Command("ip", "address", "add", "10.9.0.53/32", "dev", "lo")
	err := gs.Node.Start(behind)
	if err == nil {
		err = behind.Wait()
	}
	if err == nil {
		err = gs.Node.Run(func() (err error) { server, err = net.ListenPacket("udp", "10.9.0.53:53"); return err })
	}
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go answerAll(server, netip.MustParseAddr("192.0.2.80"))
	g := v.add("gate", "gateway", gs, "-names", "off", "-routes", "0.0.0.0/0", "-dns", "10.9.0.53")
	c := v.add("laptop", "client", cs, "-names", "serve")
	u := v.userspace("box", "client", v.site("box-site", lab.Cone), "-socks5", "1080")
	c.awaitConnection(patience, "gate", "connected", isUp("direct"))
	c.awaitLog("peers have names", 1)
	if got := v.resolves(c, "www.example.org"); got != "" {
		t.Errorf("before the route is approved a name is %q, want nothing", got)
	}
	if notes := strings.Join(g.status().Notes, " "); !strings.Contains(notes, "name servers of -dns are given to nobody") {
		t.Errorf("the gateway's notes are %q", notes)
	}
	if _, err := v.run(v.internet.Hub, "portal", "node", "routes", "-state", filepath.Join(v.dir, "state"), "-approve", "0.0.0.0/0", "gate"); err != nil {
		t.Fatal(err)
	}
	await(t, patience, "the gateway's name server is asked", func() bool { return strings.Contains(v.resolves(c, "www.example.org"), "192.0.2.80 ") })
	if got := v.resolves(c, "gate.sluice"); !strings.Contains(got, g.overlay().String()+" ") {
		t.Errorf("a node's name is %q, want %v", got, g.overlay())
	}
	socks, err := proxy.SOCKS5("tcp", "127.0.0.1:1080", nil, insideOf{u.site.Node})
	if err != nil {
		t.Fatal(err)
	}
	await(t, patience, "a node without an interface asks it too, for where nobody listens", func() bool {
		conn, err := socks.Dial("tcp", "www.example.org:80")
		if err == nil {
			conn.Close()
		}
		return err != nil && !strings.Contains(err.Error(), "host unreachable") || err == nil
	})
	if _, err := v.run(v.internet.Hub, "portal", "node", "routes", "-state", filepath.Join(v.dir, "state"), "-refuse", "0.0.0.0/0", "gate"); err != nil {
		t.Fatal(err)
	}
	await(t, patience, "the gateway's name server is not asked any more", func() bool { return v.resolves(c, "www.example.org") == "" })
}

// answerAll is a name server that has one address for all names.
func answerAll(conn net.PacketConn, a netip.Addr) {
	buffer := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buffer[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		m.Response, m.Additionals = true, nil
		if m.Questions[0].Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 1}, Body: &dnsmessage.AResource{A: a.As4()},
			}}
		}
		if text, err := m.Pack(); err == nil {
			conn.WriteTo(text, from)
		}
	}
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
