package member

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
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
	}
	terminate(t, laptop)
	must(t, n.laptop.Run(func() error { noTables(t); return nil }))
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
