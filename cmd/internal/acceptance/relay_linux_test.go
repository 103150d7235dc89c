package acceptance

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/ice/edge"
)

const coturnSecret = "shared by the portal and coturn"

// coturn starts coturn's turnserver at an address of the hub, and returns the portal's flag for it and the process.
func (v *vpn) coturn(name string, at netip.Addr) (flag string, cmd *exec.Cmd) {
	v.t.Helper()
	program, err := exec.LookPath("turnserver")
	if err != nil {
		v.t.Skip("SKIPPED: coturn's turnserver is not installed")
	}
	dir := v.t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte(coturnSecret), 0o600); err != nil {
		v.t.Fatal(err)
	}
	cmd = exec.Command(program, "-n", "--use-auth-secret", "--static-auth-secret="+coturnSecret, "--listening-ip="+at.String(),
		"--relay-ip="+at.String(), "--listening-port=3478", "--realm=example.org", "--fingerprint", "--no-tls", "--no-dtls", "--no-tcp",
		"--no-tcp-relay", "--no-cli", "--relay-threads=1", "--userdb="+filepath.Join(dir, "db"), "--pidfile="+filepath.Join(dir, "pid"),
		"--log-file="+filepath.Join(dir, "log"), "--simple-log")
	cmd.Dir = dir
	if err := v.internet.Hub.Start(cmd); err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if v.t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "log"))
			v.t.Logf("log of %s:\n%s", name, text)
		}
	})
	return name + "=" + netip.AddrPortFrom(at, 3478).String() + "," + secret, cmd
}

// Two nodes behind symmetric NATs, two relays (coturn, by the REST convention): the one in use is killed, and the connection
// moves to the other. The session stays and TCP goes on.
func TestRelayDeath(t *testing.T) {
	t.Parallel()
	relays := map[string]*exec.Cmd{}
	v := newVPNWith(t, func(v *vpn) []string {
		args := []string{"-relay-listen", "none"}
		for name, at := range map[string]netip.Addr{"one": lab.HubAddr, "two": lab.HubAddr2} {
			flag, cmd := v.coturn(name, at)
			relays[at.String()] = cmd
			args = append(args, "-relay", flag)
		}
		return args
	})
	g, c := v.pair(lab.Symmetric, lab.Symmetric)
	c.awaitConnection(patience, "gate", "connected", isUp("relay"))
	s := openStream(t, c.site.Node, g.site.Node, g.overlay())
	s.awaitProgress(patience, "relayed")
	before := c.connection("gate")
	used := before.Endpoint.Addr().String() // a relay's own address, whether it is our relay or the peer's
	if relays[used] == nil {
		t.Fatalf("the path leads to %v, which is no relay", before.Endpoint)
	}
	if err := relays[used].Process.Kill(); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	c.awaitConnection(patience, "gate", "moved to the other relay", func(s edge.ConnectionStatus) bool {
		return s.State == "up" && s.Endpoint.Addr().IsValid() && s.Endpoint.Addr().String() != used
	})
	moved := time.Since(killed)
	s.awaitProgress(patience, "over the other relay")
	if n := len(c.find("connection closed")) + len(g.find("connection closed")); n != 0 {
		t.Errorf("the connection was closed %d times", n)
	}
	if after := c.connection("gate"); after.Generation != before.Generation || !after.LastHandshake.Equal(before.LastHandshake) {
		t.Errorf("another session: %+v, before %+v", after, before)
	}
	t.Logf("moved %v after the relay was killed; the longest gap of TCP is %v", moved.Round(time.Millisecond), s.longestGap())
}
