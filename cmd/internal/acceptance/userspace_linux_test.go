package acceptance

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/proxy"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/ice/edge"
)

// withoutRights runs what comes after it as somebody who may nothing, where there is no TUN device.
const withoutRights = `mount --bind /dev/null /dev/net/tun && exec setpriv %s --no-new-privs --inh-caps -all --bounding-set -all -- "$@"`

// insideOf dials in a namespace.
type insideOf struct{ ns *lab.Namespace }

func (w insideOf) Dial(network, to string) (conn net.Conn, err error) {
	return conn, w.ns.Run(func() error { var e error; conn, e = net.Dial(network, to); return e })
}

func (w insideOf) DialContext(_ context.Context, network, to string) (net.Conn, error) {
	return w.Dial(network, to)
}

// fetch gets 16 MiB and compares it with what was sent.
func fetch(t *testing.T, what string, client *http.Client, at string) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		r, err := client.Get("http://" + at + "/")
		if err == nil && r.StatusCode != http.StatusOK {
			text, _ := io.ReadAll(r.Body)
			err = fmt.Errorf("%s: %s", r.Status, text)
		}
		if err != nil {
			if time.Since(begin) > patience {
				t.Fatalf("%s: %v", what, err)
			}
			continue
		}
		got := sha256.New()
		n, err := io.Copy(got, r.Body)
		r.Body.Close()
		if err != nil || n != fetched || string(got.Sum(nil)) != string(fetchedSum()) {
			t.Errorf("%s: %d bytes (%v), want %d, and those that were sent", what, n, err, fetched)
		}
		return
	}
}

const fetched = 16 << 20

func fetchedBytes() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{3}), fetched) }

func fetchedSum() []byte {
	h := sha256.New()
	io.Copy(h, fetchedBytes())
	return h.Sum(nil)
}

// TestUserspace: a client with no rights, on a machine without a TUN device, reaches what is behind a gateway by SOCKS5, by HTTP and by a port,
// and nothing past the tunnel; it is looked at as any other.
func TestUserspace(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("SKIPPED: no client runs without rights: setpriv is not installed")
	}
	v := newVPN(t)
	gs, cs := v.site("gate-site", lab.Restricted), v.site("client-site", lab.Cone)
	behind := exec.Command("ip", "address", "add", "10.9.0.7/24", "dev", "lo")
	if err := gs.Node.Start(behind); err != nil {
		t.Fatal(err)
	}
	if err := behind.Wait(); err != nil {
		t.Fatal(err)
	}
	g := v.add("gate", "gateway", gs, "-routes", "10.9.0.0/24")
	var l net.Listener
	if err := gs.Node.Run(func() (err error) { l, err = net.Listen("tcp", ":8080"); return err }); err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.Copy(w, fetchedBytes()) })}
	go web.Serve(l)
	defer web.Close()

	c := v.userspace("laptop", "client", cs, "-socks5", "127.0.0.1:1080", "-http-proxy", "8118", "-forward", "8008=10.9.0.7:8080", "-ops", "9090")
	c.awaitConnection(patience, "gate", "connected or idle", func(e edge.ConnectionStatus) bool { return e.State != "" })
	here := insideOf{cs.Node}
	socks, err := proxy.SOCKS5("tcp", "127.0.0.1:1080", nil, here)
	if err != nil {
		t.Fatal(err)
	}
	bySOCKS := &http.Client{Transport: &http.Transport{DialContext: socks.(proxy.ContextDialer).DialContext}, Timeout: patience}
	byHTTP := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: "127.0.0.1:8118"}), DialContext: here.DialContext}, Timeout: patience}
	byPort := &http.Client{Transport: &http.Transport{DialContext: here.DialContext}, Timeout: patience}
	for _, client := range []*http.Client{bySOCKS, byHTTP, byPort} {
		defer client.CloseIdleConnections()
	}
	g.overlay() // waits until it has its addresses, which the client may be told first
	var six netip.Addr
	for _, p := range g.status().Addresses {
		if p.Addr().Is6() {
			six = p.Addr()
		}
	}
	fetch(t, "SOCKS5, a node's name", bySOCKS, "gate.sluice:8080")
	fetch(t, "SOCKS5, behind the gateway", bySOCKS, "10.9.0.7:8080")
	fetch(t, "SOCKS5, IPv6", bySOCKS, netip.AddrPortFrom(six, 8080).String())
	fetch(t, "HTTP proxy", byHTTP, "gate.sluice:8080")
	fetch(t, "forwarded port", byPort, "127.0.0.1:8008")
	for to, want := range map[string]string{
		lab.HubAddr.String() + ":4430": "not allowed", "gate.sluice:81": "connection refused", "nobody.sluice:80": "host unreachable",
	} {
		if conn, err := socks.Dial("tcp", to); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("SOCKS5 to %s: %v, want %s", to, err, want)
			if conn != nil {
				conn.Close()
			}
		}
	}
	v.looksUserspace(c, g)
	v.restart(g)
	fetch(t, "SOCKS5, after the gateway's restart", bySOCKS, "gate.sluice:8080")
	out, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil || !strings.Contains(string(out), "CapEff:\t0000000000000000\n") {
		t.Errorf("the client has rights (%v):\n%s", err, out)
	}
}

// TestUserspaceGateway: a gateway with no rights, on a machine without a TUN device, leads clients to its approved network and to nothing else.
func TestUserspaceGateway(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("SKIPPED: no gateway runs without rights: setpriv is not installed")
	}
	v := newVPN(t)
	gs, cs := v.site("gate-site", lab.Restricted), v.site("client-site", lab.Cone)
	behind := exec.Command("ip", "address", "add", "10.9.0.7/24", "dev", "lo")
	err := gs.Node.Start(behind)
	if err == nil {
		err = behind.Wait()
	}
	var l net.Listener
	var udp net.PacketConn
	if err == nil {
		err = gs.Node.Run(func() (err error) {
			if l, err = net.Listen("tcp", ":8080"); err == nil {
				udp, err = net.ListenPacket("udp", ":8080")
			}
			return err
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.Copy(w, fetchedBytes()) })}
	go web.Serve(l)
	defer web.Close()
	go func() {
		buffer := make([]byte, 1500)
		for {
			n, from, err := udp.ReadFrom(buffer)
			if err != nil {
				return
			}
			udp.WriteTo(buffer[:n], from)
		}
	}()
	g := v.userspace("gate", "gateway", gs, "-routes", "10.9.0.0/24,198.51.100.0/24")
	c := v.add("laptop", "client", cs)
	c.awaitConnection(patience, "gate", "known", func(e edge.ConnectionStatus) bool { return e.State != "" })
	here := insideOf{cs.Node}
	client := &http.Client{Transport: &http.Transport{DialContext: here.DialContext}, Timeout: patience}
	defer client.CloseIdleConnections()
	await(t, patience, "the network behind the gateway is routed", func() bool {
		for _, r := range c.status().Routes {
			if r.Prefix.String() == "10.9.0.0/24" {
				return true
			}
		}
		return false
	})
	fetch(t, "behind the gateway", client, "10.9.0.7:8080")
	conn, err := here.Dial("udp", "10.9.0.7:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	await(t, patience, "a datagram comes back", func() bool {
		conn.Write([]byte("hello"))
		conn.SetReadDeadline(time.Now().Add(time.Second))
		answer := make([]byte, 10)
		n, err := conn.Read(answer)
		return err == nil && string(answer[:n]) == "hello"
	})
	for _, to := range []string{"10.9.0.7:81", g.overlay().String() + ":8080"} { // nobody listens; the machine itself is none of the networks
		begin := time.Now()
		conn, err := here.Dial("tcp", to)
		if err == nil {
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "refused") || time.Since(begin) > 30*time.Second {
			t.Errorf("%s: %v after %v, want that it is refused", to, err, time.Since(begin))
		}
	}
	if out, err := v.run(cs.Node, "ping", "-socket", c.socket, "-count", "2", "gate"); err != nil {
		t.Errorf("ping of the gateway: %v, %s", err, out)
	}
	if out, err := exec.Command("nsenter", "--target", fmt.Sprint(c.cmd.Process.Pid), "--net", "ping", "-c", "1", "-W", "1", "10.9.0.7").CombinedOutput(); err == nil {
		t.Errorf("the gateway answers an echo in the place of others: %s", out)
	}
	if notes := strings.Join(g.status().Notes, " "); !strings.Contains(notes, "dialed from here") || !strings.Contains(notes, "198.51.100.0/24 is offered to nobody") {
		t.Errorf("the gateway's notes are %q", notes)
	}
}

// userspace starts a node without rights and without an interface.
func (v *vpn) userspace(name, role string, site *lab.Site, args ...string) *member {
	v.t.Helper()
	path, err := program()
	if err != nil {
		v.t.Fatal(err)
	}
	token, err := v.run(v.internet.Hub, "portal", "node", "add", "-state", filepath.Join(v.dir, "state"), "-role", role, name)
	if err != nil {
		v.t.Fatal(err)
	}
	folder := filepath.Join(v.dir, name+"-files")
	in := func(file string) string { return filepath.Join(folder, file) }
	if err := os.Mkdir(folder, 0o700); err != nil {
		v.t.Fatal(err)
	}
	if err := os.WriteFile(in("token"), []byte(token), 0o600); err != nil {
		v.t.Fatal(err)
	}
	other := ""
	if m, _ := os.ReadFile("/proc/self/uid_map"); strings.Contains(string(m), "4294967295") { // else this lab has one user only
		other = fmt.Sprintf("--reuid %d --regid %[1]d --clear-groups", serviceUser)
		for _, p := range []string{v.dir, filepath.Dir(path)} {
			if err := os.Chmod(p, 0o711); err != nil {
				v.t.Fatal(err)
			}
		}
		for _, p := range []string{folder, in("token")} {
			if err := os.Chown(p, serviceUser, serviceUser); err != nil {
				v.t.Fatal(err)
			}
		}
	}
	v.under = []string{"unshare", "--mount", "sh", "-ec", fmt.Sprintf(withoutRights, other), "sh"}
	defer func() { v.under = nil }()
	m := &member{sluice: &sluice{name: name}, site: site, socket: in("sock"), stats: in("stats")}
	m.args = append([]string{role, "-userspace", "-token-file", in("token"), "-socket", m.socket, "-pins", in("pins"), "-log-dir", in("logs")}, args...)
	v.launch(m)
	return m
}

// looksUserspace tries what people ask of a client.
func (v *vpn) looksUserspace(c, g *member) {
	v.t.Helper()
	for _, of := range []struct{ command, want string }{
		{"status", "client laptop on userspace: "},
		{"status", "there is no interface; programs reach the tunnel by: SOCKS5 at 127.0.0.1:1080, HTTP proxy at 127.0.0.1:8118, 10.9.0.7:8080 at 127.0.0.1:8008"},
		{"ping -count 1 gate", "1 sent, 1 came back"},
		{"why gate", "through the tunnel to gate"},
		{"why 10.9.0.7", "gate"},
		{"log-level debug", "debug"},
	} {
		words := strings.Fields(of.command)
		out, err := v.run(c.site.Node, append([]string{words[0], "-socket", c.socket}, words[1:]...)...)
		if words[0] == "ping" && (err != nil || !strings.Contains(out, of.want)) { // one may be lost while a path changes
			out, err = v.run(c.site.Node, append([]string{words[0], "-socket", c.socket}, words[1:]...)...)
		}
		if err != nil || !strings.Contains(strings.Join(strings.Fields(out), " "), of.want) {
			v.t.Errorf("sluice %s: %v, want %q in\n%s", of.command, err, of.want, out)
		}
	}
	if s := c.status(); s.Problem != "" {
		v.t.Errorf("the client has a problem: %s", s.Problem)
	}
	operator := http.Client{Transport: &http.Transport{DialContext: insideOf{c.site.Node}.DialContext}, Timeout: patience}
	defer operator.CloseIdleConnections()
	await(v.t, patience, "the client is ready", func() bool {
		r, err := operator.Get("http://127.0.0.1:9090/readyz")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	if n := c.counters()["tun_write_packets"]; n == 0 {
		v.t.Errorf("no packet was counted: %v", c.counters())
	}
	for _, l := range c.lines() {
		if severity := l.text("severity"); severity == "ERROR" {
			v.t.Errorf("an error is logged: %v", l)
		}
	}
}
