package edge

import (
	"context"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// Two nodes on the system's sockets and clock: connected, ended, nothing left.
func TestLoopback(t *testing.T) {
	before := ours()
	p, network := newPortal(), signal.NewNetwork(1, signal.Faults{})
	here := netip.MustParseAddr("127.0.0.1")
	nodes := map[string]*node{}
	for i, name := range []string{"gate", "laptop"} {
		role := []protocol.Role{protocol.Gateway, protocol.Client}[i]
		p.change(func() { p.nodes[name] = &entry{role: role, number: uint16(i + 1)} })
		n := &node{name: name, w: &world{t: t}}
		nodes[name] = n
		var err error
		if n.memory, err = network.Join(name, signal.Filter{AllowLoopback: true}); err != nil {
			t.Fatal(err)
		}
		n.edge, err = New(Config{
			Name: name, Role: role, Identity: identityOf(name), Signaler: n.memory, Loopback: true, Addresses: func() []netip.Addr { return []netip.Addr{here} },
			Sync: func(ctx context.Context, r protocol.SyncRequest) (protocol.Sync, error) { return p.sync(ctx, name, r) },
		})
		if err != nil {
			t.Fatal(err)
		}
		n.device = tuntest.New(tuntest.Config{})
		n.pipeline, err = pipeline.New(pipeline.Config{
			Device: n.device, UDP: udp.Config{Portable: true}, Stray: n.edge.Stray, Connector: n.edge.Connector(),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		n.stop, n.ran = cancel, make(chan error, 2)
		go func() { n.ran <- n.pipeline.Run(context.Background()) }()
		go func() { n.ran <- n.edge.Run(ctx, n.pipeline) }()
	}
	poll(t, "connected", func() bool { return up(nodes["laptop"], nodes["gate"]) })
	if s := nodes["laptop"].connection("gate"); s.Endpoint.Addr() != here || s.Via != "direct" {
		t.Errorf("%+v", s)
	}
	for _, n := range nodes {
		n.close()
	}
	poll(t, "nothing is left", func() bool { return ours() <= before })
}

// ours is how many goroutines run our code or pion's, this test's own left out.
func ours() (n int) {
	buffer := make([]byte, 4<<20)
	for g := range strings.SplitSeq(string(buffer[:runtime.Stack(buffer, true)]), "\n\n") {
		if strings.Contains(g, "sluice/") || strings.Contains(g, "pion/") {
			n++
		}
	}
	return n
}

func poll(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			buffer := make([]byte, 1<<20)
			t.Fatalf("not within a minute: %s\n%s", what, buffer[:runtime.Stack(buffer, true)])
		}
	}
}
