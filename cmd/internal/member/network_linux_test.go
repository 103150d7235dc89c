package member

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/cmd/internal/logs"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/ice/portal"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// programVariable makes this test binary a portal or a node, in the lab.
const programVariable = "SLUICE_MEMBER_TEST"

// routesVariable is what the gateway offers.
const routesVariable = "SLUICE_MEMBER_ROUTES"

// failVariable has a client fail closed.
const failVariable = "SLUICE_MEMBER_FAIL_CLOSED"

// acceptVariable has a client accept connections.
const acceptVariable = "SLUICE_MEMBER_ACCEPT"

func TestMain(m *testing.M) {
	var err error
	switch program := os.Getenv(programVariable); program {
	case "":
		lab.Main(m)
	case "portal":
		err = runPortal()
	default:
		err = runNode(protocol.Role(program))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runPortal prints the tokens of gate and laptop, a line each, and removes gate on SIGUSR1.
func runPortal() error {
	p, err := portal.Start(portal.Config{
		Folder: os.Args[1], Public: "10.7.0.1", Listen: netip.MustParseAddrPort("10.7.0.1:4443"), NoRelay: true,
	})
	if err != nil {
		return err
	}
	for _, n := range []portal.NewNode{
		{Name: "gate", Role: protocol.Gateway, Routes: prefixes("0.0.0.0/0", "::/0", "10.0.0.0/8")}, {Name: "laptop", Role: protocol.Client},
	} {
		token, err := p.AddNode(context.Background(), n)
		if err != nil {
			return err
		}
		fmt.Println(n.Name, token.Encode())
	}
	remove := make(chan os.Signal, 1)
	signal.Notify(remove, syscall.SIGUSR1)
	go func() {
		<-remove
		if err := p.RemoveNode(context.Background(), "gate"); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	return p.Wait(context.Background())
}

func runNode(role protocol.Role) error {
	token, source, err := ReadToken("", nil)
	if err != nil {
		return err
	}
	o := Options{Role: role, Token: token, TokenSource: source, Socket: os.Args[1], Log: logs.Open(os.Stderr, logs.Place{}, slog.LevelInfo)}
	if role == protocol.Gateway {
		o.Routes = prefixes(strings.Fields(os.Getenv(routesVariable))...)
	}
	o.AcceptIncoming = os.Getenv(acceptVariable) != ""
	o.FailClosed = os.Getenv(failVariable) != ""
	return Run(context.Background(), o)
}

// program is this binary as a portal or a node; what it logs is shown if the test fails.
func program(t *testing.T, kind, argument, token string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self, argument)
	cmd.Env = append(os.Environ(), programVariable+"="+kind, "SLUICE_TOKEN="+token)
	cmd.Stderr = &safeBuffer{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s:\n%s", kind, cmd.Stderr)
		}
	})
	return cmd
}

// terminate has a program end in good order.
func terminate(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("%s ended with %v", cmd.Args, err)
		}
	case <-time.After(30 * time.Second):
		cmd.Process.Kill()
		t.Errorf("%s did not end", cmd.Args)
	}
}

// network is a portal that is also the router between a gateway and a client, and a host behind the gateway.
type network struct {
	portal, gate, laptop, behind *lab.Namespace
	program                      *os.Process // the portal's, with tokens
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	lab.NeedTUN(t)
	n := &network{}
	for name, ns := range map[string]**lab.Namespace{"portal": &n.portal, "gate": &n.gate, "laptop": &n.laptop, "behind": &n.behind} {
		made, err := lab.NewNamespace(name)
		must(t, err)
		t.Cleanup(func() { made.Close() })
		*ns = made
	}
	plug := func(ns *lab.Namespace, device, address string) lab.Plug {
		return lab.Plug{Namespace: ns, Device: device, Addrs: prefixes(address)}
	}
	must(t, lab.Connect(lab.Cable{}, plug(n.portal, "eth0", "10.7.0.1/24"), plug(n.gate, "eth0", "10.7.0.2/24")))
	must(t, lab.Connect(lab.Cable{}, plug(n.portal, "eth1", "10.8.0.1/24"), plug(n.laptop, "eth0", "10.8.0.2/24")))
	must(t, lab.Connect(lab.Cable{}, plug(n.gate, "eth1", "10.9.0.1/24"), plug(n.behind, "eth0", "10.9.0.2/24")))
	everywhere := netip.MustParsePrefix("0.0.0.0/0")
	must(t, n.gate.AddRoute(everywhere, "eth0", netip.MustParseAddr("10.7.0.1")))
	must(t, n.laptop.AddRoute(everywhere, "eth0", netip.MustParseAddr("10.8.0.1")))
	must(t, n.portal.Run(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }))
	return n
}

// tokens starts the portal and reads what it prints.
func (n *network) tokens(t *testing.T, dir string) map[string]string {
	t.Helper()
	cmd := program(t, "portal", filepath.Join(dir, "state"), "")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, n.portal.Start(cmd))
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	n.program = cmd.Process
	tokens, lines := map[string]string{}, bufio.NewScanner(out)
	for len(tokens) < 2 && lines.Scan() {
		if name, token, ok := strings.Cut(lines.Text(), " "); ok {
			tokens[name] = token
		}
	}
	if len(tokens) < 2 {
		t.Fatal("the portal gave no tokens")
	}
	return tokens
}

// connection polls a node until its connection to the peer fits.
func connection(t *testing.T, socket, peer, what string, fits func(edge.ConnectionStatus) bool) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		s, err := status.NewNode(socket).Get(context.Background())
		last = fmt.Sprintf("%+v, %v", s, err)
		for _, c := range s.Connections {
			if c.Peer == peer && fits(c) {
				return
			}
		}
	}
	t.Fatalf("%s: not within 60 s: %s", what, last)
}

// exchange has the client ask a host behind the gateway, which sees the gateway's address.
func (n *network) exchange(t *testing.T) {
	t.Helper()
	var server net.PacketConn
	must(t, n.behind.Run(func() (err error) { server, err = net.ListenPacket("udp", "10.9.0.2:7"); return err }))
	defer server.Close()
	var client net.Conn
	must(t, n.laptop.Run(func() (err error) { client, err = net.Dial("udp", "10.9.0.2:7"); return err }))
	defer client.Close()
	_, err := client.Write([]byte("through the tunnel"))
	must(t, err)
	must(t, server.SetReadDeadline(time.Now().Add(20*time.Second)))
	_, from, err := server.ReadFrom(make([]byte, 100))
	must(t, err)
	if got := from.(*net.UDPAddr).IP.String(); got != "10.9.0.1" {
		t.Errorf("the host behind saw %s, want the gateway", got)
	}
	_, err = server.WriteTo([]byte("back"), from)
	must(t, err)
	must(t, client.SetReadDeadline(time.Now().Add(20*time.Second)))
	answer := make([]byte, 100)
	size, err := client.Read(answer)
	if err != nil || string(answer[:size]) != "back" {
		t.Errorf("%q, %v", answer[:size], err)
	}
}

// TestNetwork: with nothing but two tokens a client reaches a host behind a gateway, and all is as before in the end.
func TestNetwork(t *testing.T) {
	n := newNetwork(t)
	dir := t.TempDir()
	tokens := n.tokens(t, dir)
	gateSocket, laptopSocket := filepath.Join(dir, "gate.sock"), filepath.Join(dir, "laptop.sock")
	gate := program(t, "gateway", gateSocket, tokens["gate"])
	gate.Env = append(gate.Env, routesVariable+"=10.9.0.0/24")
	must(t, n.gate.Start(gate))
	laptop := program(t, "client", laptopSocket, tokens["laptop"])
	counters := filepath.Join(dir, "counters.json")
	laptop.Env = append(laptop.Env, "SLUICE_STATS="+counters)
	must(t, n.laptop.Start(laptop))
	connection(t, laptopSocket, "gate", "the client connects", func(c edge.ConnectionStatus) bool {
		return c.State == "up" && c.Via == "direct" && !c.LastHandshake.IsZero()
	})

	n.exchange(t)
	must(t, laptop.Process.Signal(syscall.SIGUSR1))
	must(t, laptop.Process.Signal(syscall.SIGHUP))
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(counters)
		if err == nil && strings.Contains(fmt.Sprint(laptop.Stderr), `"why":"asked to"`) {
			for _, name := range []string{"inbound_packets", "ice_agents", "turn_allocations", "signal_received", "goroutines"} {
				if !strings.Contains(string(text), `"`+name+`"`) {
					t.Errorf("there is no %s in %s", name, text)
				}
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("SIGUSR1, SIGHUP: %v", err)
		}
	}
	terminate(t, laptop)
	connection(t, gateSocket, "laptop", "the gateway hears of the end", func(c edge.ConnectionStatus) bool {
		return c.State != "up" && c.LastClose != nil && c.LastClose.Reason == "peer_closed"
	})
	terminate(t, gate)
	must(t, n.gate.Run(func() error {
		if got := setting(t, "ipv4/ip_forward"); got != "0" {
			t.Errorf("ip_forward is %s", got)
		}
		return nil
	}))
	for _, socket := range []string{gateSocket, laptopSocket} {
		if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was left: %v", socket, err)
		}
	}
}

// TestRefused: a token that the portal does not know is said to be that, and tried again.
func TestRefused(t *testing.T) {
	n := newNetwork(t)
	dir := t.TempDir()
	token, err := protocol.ParseToken(n.tokens(t, dir)["laptop"])
	must(t, err)
	token.Secret[0] ^= 1
	laptop := program(t, "client", filepath.Join(dir, "laptop.sock"), token.Encode())
	must(t, n.laptop.Start(laptop))
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(fmt.Sprint(laptop.Stderr), "the portal refuses the token"); {
		if time.Now().After(deadline) {
			t.Fatal("nothing was said of the token")
		}
		time.Sleep(10 * time.Millisecond)
	}
	terminate(t, laptop)
}

// TestDefaultRoute: with all of the client's traffic in the tunnel, and a strict reverse path filter, the tunnel's own packets
// and the connection to the portal still go beside it, also when the gateway is killed and comes back.
func TestDefaultRoute(t *testing.T) {
	n := newNetwork(t)
	dir := t.TempDir()
	tokens := n.tokens(t, dir)
	must(t, n.laptop.Run(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("1"), 0) }))
	gateSocket, laptopSocket := filepath.Join(dir, "gate.sock"), filepath.Join(dir, "laptop.sock")
	startGate := func() *exec.Cmd {
		gate := program(t, "gateway", gateSocket, tokens["gate"])
		gate.Env = append(gate.Env, routesVariable+"=0.0.0.0/0")
		must(t, n.gate.Start(gate))
		return gate
	}
	gate := startGate()
	laptop := program(t, "client", laptopSocket, tokens["laptop"])
	must(t, n.laptop.Start(laptop))
	up := func(c edge.ConnectionStatus) bool {
		return c.State == "up" && slices.Contains(c.AllowedIPs, netip.MustParsePrefix("0.0.0.0/0"))
	}
	connection(t, laptopSocket, "gate", "the client connects", up)
	n.exchange(t)
	first, err := status.NewNode(laptopSocket).Get(context.Background())
	must(t, err)

	must(t, gate.Process.Kill())
	gate.Wait()
	gate = startGate()
	connection(t, laptopSocket, "gate", "the client connects to the gateway's next run", func(c edge.ConnectionStatus) bool {
		return up(c) && c.PublicKey != first.Connections[0].PublicKey
	})
	n.exchange(t)
	if s, err := status.NewNode(laptopSocket).Get(context.Background()); err != nil || !s.Portal.Up {
		t.Errorf("portal %+v, %v", s.Portal, err)
	}
	terminate(t, laptop)
	terminate(t, gate)
	must(t, n.gate.Run(func() error {
		if got := setting(t, "ipv4/ip_forward"); got != "0" {
			t.Errorf("ip_forward is %s after the second run, which took over from the killed one", got)
		}
		return nil
	}))
}
