package member

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/edge"
)

// TestIncoming: a gateway opens no connection to a client, at none of its addresses and to none behind it, unless the client accepts that;
// answers to the client pass all the same.
func TestIncoming(t *testing.T) {
	for _, accept := range []bool{false, true} {
		t.Run(fmt.Sprint(accept), func(t *testing.T) { testIncoming(t, accept) })
	}
}

func testIncoming(t *testing.T, accept bool) {
	n := newNetwork(t)
	dir := t.TempDir()
	tokens := n.tokens(t, dir)
	gate := program(t, "gateway", filepath.Join(dir, "gate.sock"), tokens["gate"])
	gate.Env = append(gate.Env, routesVariable+"=10.9.0.0/24")
	must(t, n.gate.Start(gate))
	t.Cleanup(func() { gate.Process.Kill(); gate.Wait() })
	must(t, n.laptop.Run(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }))
	laptop := program(t, "client", filepath.Join(dir, "laptop.sock"), tokens["laptop"])
	if accept {
		laptop.Env = append(laptop.Env, acceptVariable+"=1")
	}
	must(t, n.laptop.Start(laptop))
	connection(t, filepath.Join(dir, "laptop.sock"), "gate", "the client connects", func(c edge.ConnectionStatus) bool { return c.State == "up" })
	n.exchange(t) // what the client has begun is answered
	s, err := status.NewNode(filepath.Join(dir, "laptop.sock")).Get(context.Background())
	must(t, err)
	for _, p := range s.Addresses {
		var listener net.Listener
		must(t, n.laptop.Run(func() (err error) {
			listener, err = net.Listen("tcp", netip.AddrPortFrom(p.Addr(), 80).String())
			return err
		}))
		must(t, n.gate.Run(func() error {
			wait := time.Second
			if accept {
				wait = 30 * time.Second
			}
			conn, err := net.DialTimeout("tcp", listener.Addr().String(), wait)
			if (err == nil) != accept {
				t.Errorf("-accept-incoming %v: the gateway's connection to %v: %v", accept, p, err)
			}
			if err == nil {
				conn.Close()
			}
			return nil
		}))
		listener.Close()
		n.probe(t, p.Addr(), accept)
	}
	counters, err := status.NewNode(filepath.Join(dir, "laptop.sock")).Counters(context.Background())
	if got := counters["drop_unasked"]; err != nil || (got > 0) == accept {
		t.Errorf("-accept-incoming %v: %d packets were dropped as unasked (%v)", accept, got, err)
	}
	terminate(t, laptop)
	must(t, n.laptop.Run(func() error { noTables(t); return nil }))
}

// probe has the gateway send datagrams and an echo request to an address of the client, which come in or not.
func (n *network) probe(t *testing.T, to netip.Addr, accept bool) {
	t.Helper()
	var server net.PacketConn
	must(t, n.laptop.Run(func() (err error) {
		server, err = net.ListenPacket("udp", netip.AddrPortFrom(to, 53).String())
		return err
	}))
	defer server.Close()
	wait := 200 * time.Millisecond
	if accept {
		wait = 20 * time.Second
	}
	must(t, n.gate.Run(func() error {
		conn, err := net.Dial("udp", server.LocalAddr().String())
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("nobody asked"))
		return err
	}))
	must(t, server.SetReadDeadline(time.Now().Add(wait)))
	if _, from, err := server.ReadFrom(make([]byte, 100)); (err == nil) != accept {
		t.Errorf("-accept-incoming %v: a datagram for %v from %v: %v", accept, to, from, err)
	}
	ping := exec.Command("ping", "-c", "1", "-W", strconv.FormatFloat(wait.Seconds(), 'f', 1, 64), to.String())
	must(t, n.gate.Start(ping))
	if err := ping.Wait(); (err == nil) != accept {
		t.Errorf("-accept-incoming %v: an echo request to %v: %v", accept, to, err)
	}
}

// TestResumed: a program that only receives goes on to do so by a client that was killed and started again.
func TestResumed(t *testing.T) {
	n := newNetwork(t)
	dir := t.TempDir()
	tokens := n.tokens(t, dir)
	gate := program(t, "gateway", filepath.Join(dir, "gate.sock"), tokens["gate"])
	gate.Env = append(gate.Env, routesVariable+"=10.9.0.0/24")
	must(t, n.gate.Start(gate))
	t.Cleanup(func() { gate.Process.Kill(); gate.Wait() })
	start := func() *exec.Cmd {
		laptop := program(t, "client", filepath.Join(dir, "laptop.sock"), tokens["laptop"])
		must(t, n.laptop.Start(laptop))
		t.Cleanup(func() { laptop.Process.Kill(); laptop.Wait() })
		connection(t, filepath.Join(dir, "laptop.sock"), "gate", "the client connects", func(c edge.ConnectionStatus) bool { return c.State == "up" })
		return laptop
	}
	laptop := start()
	var listener net.Listener
	must(t, n.behind.Run(func() (err error) { listener, err = net.Listen("tcp", "10.9.0.2:80"); return err }))
	defer listener.Close()
	var client net.Conn
	silent := net.Dialer{Timeout: 20 * time.Second, KeepAlive: -1}
	must(t, n.laptop.Run(func() (err error) { client, err = silent.Dial("tcp", "10.9.0.2:80"); return err }))
	defer client.Close()
	server, err := listener.Accept()
	must(t, err)
	defer server.Close()
	laptop.Process.Kill()
	laptop.Wait()
	_, err = server.Write([]byte("while nobody runs")) // is sent again until it arrives
	must(t, err)
	start()
	must(t, client.SetReadDeadline(time.Now().Add(30*time.Second)))
	if got, err := client.Read(make([]byte, 100)); err != nil {
		t.Errorf("%d bytes, %v after another start", got, err)
	}
}

// noTables wants no table of nftables to be left.
func noTables(t *testing.T) {
	t.Helper()
	conn, err := nftables.New()
	must(t, err)
	tables, err := conn.ListTables()
	must(t, err)
	for _, table := range tables {
		t.Errorf("the table %s is left", table.Name)
	}
}
