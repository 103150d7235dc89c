package acceptance

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// opsAt is where the processes of a test serve their metrics, each in a namespace of its own.
const opsAt = "127.0.0.1:9090"

// ask reads a page of -ops in a namespace; code 0: nobody answers.
func ask(ns *lab.Namespace, path string) (code int, text string) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
			err = ns.Run(func() (err error) { conn, err = net.Dial(network, address); return err })
			return conn, err
		},
	}}
	r, err := client.Get("http://" + opsAt + path)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	all, err := io.ReadAll(r.Body)
	if err != nil {
		return 0, err.Error()
	}
	return r.StatusCode, string(all)
}

// TestOps: client, gateway and portal serve metrics that promtool takes and that tell of the connection; they are ready when all is there,
// and say that it is the portal where that is gone.
func TestOps(t *testing.T) {
	t.Parallel()
	v := newVPN(t, "-ops", opsAt)
	gs, cs := v.site("gate-site", lab.Restricted), v.site("client-site", lab.Restricted)
	g, c := v.add("gate", "gateway", gs, "-ops", opsAt), v.add("laptop", "client", cs, "-ops", opsAt)
	c.awaitConnection(patience, "gate", "connected", isUp(""))
	g.awaitConnection(patience, "laptop", "connected", isUp(""))
	for name, ns := range map[string]*lab.Namespace{"client": cs.Node, "gateway": gs.Node, "portal": v.internet.Hub} {
		if code, text := ask(ns, "/healthz"); code != 200 || text != "ok\n" {
			t.Errorf("%s: healthz is %d %q, want 200 ok", name, code, text)
		}
		await(t, patience, name+" is ready", func() bool { code, _ := ask(ns, "/readyz"); return code == 200 })
		code, page := ask(ns, "/metrics")
		want := []string{`sluice_build_info{role="` + name + `"`, "\nsluice_relay_ready 1\n", "\nsluice_portal_nodes_online 2\n"}
		if name != "portal" {
			want = []string{want[0], "\nsluice_connect_seconds_count ", "\nsluice_ice_rtt_seconds_count ", "\nsluice_receive_seconds_count ", `sluice_dropped_packets_total{reason="queue_full",stage="tun_read"} `}
		}
		for _, w := range want {
			if code != 200 || !strings.Contains(page, w) {
				t.Errorf("%s: no %q in %d %s", name, w, code, page)
			}
		}
		if up := strings.Contains(page, `sluice_connections{path="direct",state="up"} 1`) || strings.Contains(page, `sluice_connections{path="relay",state="up"} 1`); up != (name != "portal") {
			t.Errorf("%s: that one connection is up is told: %t", name, up)
		}
		promtool(t, name, page)
	}
	if _, err := v.run(cs.Node, "client", "-token-file", c.token, "-socket", c.socket+"2", "-interface", "other", "-ops", opsAt); err == nil ||
		!strings.Contains(err.Error(), "another program has this port") {
		t.Errorf("a port in use: %v", err)
	}
	v.portal.end()
	await(t, patience, "the client is not ready without the portal", func() bool {
		code, text := ask(cs.Node, "/readyz")
		return code == 503 && strings.HasPrefix(text, "not ready\ntun: ok\nsocket: ok\nportal: not ready: ")
	})
}

// promtool has a page checked, where there is promtool.
func promtool(t *testing.T, name, page string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("SKIPPED: needs promtool (Debian: prometheus) to check the page of", name)
		return
	}
	cmd := exec.Command(path, "check", "metrics")
	cmd.Stdin = strings.NewReader(page)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil || out.Len() > 0 {
		t.Errorf("%s: promtool check metrics: %v\n%s", name, err, out.String())
	}
}
