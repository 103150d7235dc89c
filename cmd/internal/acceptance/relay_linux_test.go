package acceptance

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
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
	if lost := append(c.sessionsLost(), g.sessionsLost()...); len(lost) != 0 {
		t.Errorf("connections were closed: %v", lost)
	}
	if after := c.connection("gate"); after.Generation != before.Generation || !after.LastHandshake.Equal(before.LastHandshake) {
		t.Errorf("another session: %+v, before %+v", after, before)
	}
	t.Logf("moved %v after the relay was killed; the longest gap of TCP is %v", moved.Round(time.Millisecond), s.longestGap())
}

// Through our relay and through coturn, between two nodes that have no other way, a moderate stream of datagrams arrives whole in
// both directions.
func TestRelayedDatagrams(t *testing.T) {
	t.Parallel()
	for name, relay := range map[string]func(v *vpn) []string{
		"portal": func(*vpn) []string { return nil },
		"coturn": func(v *vpn) []string {
			flag, _ := v.coturn("one", lab.HubAddr)
			return []string{"-relay-listen", "none", "-relay", flag}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVPNWith(t, relay)
			g := v.add("gate", "gateway", v.site("gate-site", lab.Symmetric))
			c := v.add("laptop", "client", v.site("client-site", lab.Symmetric), "-accept-incoming") // the gateway begins as well
			c.awaitConnection(patience, "gate", "connected", isUp("relay"))
			g.awaitConnection(patience, "laptop", "connected", isUp("relay"))
			// On a machine that is too busy to run the relay its buffer overflows now and then; what we lose is lost each time.
			const tries = 5
			for try := 1; ; try++ {
				lost := make([]int, 2)
				var both sync.WaitGroup
				both.Go(func() { lost[0] = datagrams(t, c, g) })
				both.Go(func() { lost[1] = datagrams(t, g, c) })
				both.Wait()
				if lost[0]+lost[1] == 0 || t.Failed() {
					return
				}
				if try == tries {
					t.Fatalf("datagrams were lost %d times in a row", tries)
				}
			}
		})
	}
}

// datagrams sends 2000 datagrams of 1000 bytes in two seconds through the tunnel. What the kernel had no room for before the TUN was
// read, as on a machine that is too busy to run the sender's node, was never sent; of all else it returns how many were lost.
func datagrams(t *testing.T, from, to *member) (lost int) {
	const count, size = 2000, 1000
	var receiver, sender *net.UDPConn
	err := to.site.Node.Run(func() (err error) {
		receiver, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.overlay(), 0)))
		return err
	})
	if err == nil {
		err = from.site.Node.Run(func() (err error) {
			sender, err = net.DialUDP("udp4", nil, receiver.LocalAddr().(*net.UDPAddr))
			return err
		})
	}
	if err != nil {
		t.Error(err)
		return 0
	}
	defer receiver.Close()
	defer sender.Close()
	if err := receiver.SetReadBuffer(4 << 20); err != nil {
		t.Error(err)
	}
	unsent := from.tunnelDrops()
	var sending sync.WaitGroup
	defer sending.Wait()
	sending.Go(func() {
		b := make([]byte, size)
		for next := time.Now(); binary.BigEndian.Uint32(b) < count; next = next.Add(time.Millisecond) {
			time.Sleep(time.Until(next))
			if late := time.Since(next); late > 20*time.Millisecond {
				next = next.Add(late) // no burst after a pause
			}
			if _, err := sender.Write(b); err != nil {
				t.Error(err)
			}
			binary.BigEndian.PutUint32(b, binary.BigEndian.Uint32(b)+1)
		}
	})
	seen, b := map[uint32]bool{}, make([]byte, 2*size)
	for len(seen) < count {
		receiver.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := receiver.Read(b)
		if err != nil {
			break
		}
		number := binary.BigEndian.Uint32(b)
		if n != size || number >= count || seen[number] {
			t.Errorf("%s to %s: %d bytes, number %d", from.name, to.name, n, number)
		}
		seen[number] = true
	}
	unsent = from.tunnelDrops() - unsent
	t.Logf("%s to %s: %d of %d datagrams arrived, %d were not sent", from.name, to.name, len(seen), count, unsent)
	return count - unsent - len(seen)
}

// tunnelDrops is how many packets the kernel had no room for in the queue of a node's TUN (proc_pid_net(5), dev).
func (m *member) tunnelDrops() int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", m.cmd.Process.Pid))
	if err != nil {
		m.t.Error(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); fields[0] == "sluice0:" {
			drops, _ := strconv.Atoi(fields[12])
			return drops
		}
	}
	m.t.Errorf("%s has no TUN:\n%s", m.name, text)
	return 0
}
