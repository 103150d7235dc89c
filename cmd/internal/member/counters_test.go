package member

import (
	"context"
	"crypto/ed25519"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/ice/portal"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/relay"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/count"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/counters.txt anew")

// TestCounterNames: names in SLUICE_STATS and series of /metrics are a promise to those who read them. What is to go has to be taken out
// of testdata/counters.txt by hand.
func TestCounterNames(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("SKIPPED: the list is that of Linux; other systems count a part of it")
	}
	e, err := edge.New(edge.Config{
		Name: "laptop", Role: protocol.Client, Identity: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), Signaler: new(signal.Memory),
		Sync:      func(context.Context, protocol.SyncRequest) (protocol.Sync, error) { return protocol.Sync{}, nil },
		Addresses: func() []netip.Addr { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := pipeline.New(pipeline.Config{
		Device: tuntest.New(tuntest.Config{}), Listen: udptest.New(1).Listen(netip.MustParseAddr("192.0.2.1"), netip.Addr{}), UDP: udp.Config{Port: 51820},
		Connector: e.Connector(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- p.Run(ctx) }()
	member := &node{pipeline: p, edge: e, portal: &portalLink{counters: func() signal.Counters { return signal.Counters{} }}}
	list := declarations("member", member.Counters())
	cancel()
	<-ran
	compareLines(t, filepath.Join("testdata", "counters.txt"), append(list, portalDeclarations(t)...))
}

// declarations are lines of role, name, kind, series and what the name counts.
func declarations(role string, list []count.Counter) (lines []string) {
	for _, c := range list {
		labels := ""
		for i := 0; i+1 < len(c.Labels); i += 2 {
			value := c.Labels[i+1]
			if c.Labels[i] == "address" { // of this run
				value, c.Name = "ADDRESS", "relay_receive_buffer_bytes_ADDRESS"
			}
			labels += fmt.Sprintf(",%s=%q", c.Labels[i], value)
		}
		if labels != "" {
			labels = "{" + labels[1:] + "}"
		}
		lines = append(lines, strings.Join([]string{role, c.Name, c.Kind.String(), c.Series + labels, c.Help}, "\t"))
	}
	return lines
}

// portalDeclarations are those of a portal with a relay.
func portalDeclarations(t *testing.T) []string {
	t.Helper()
	loopback := netip.MustParseAddrPort("127.0.0.1:0")
	p, err := portal.Start(portal.Config{
		Folder: filepath.Join(t.TempDir(), "state"), Public: "127.0.0.1", Listen: loopback,
		Relay: relay.Config{Listen: []netip.AddrPort{loopback}, PublicAddrs: []netip.Addr{loopback.Addr()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	return declarations("portal", p.Counters())
}

func compareLines(t *testing.T, path string, lines []string) {
	t.Helper()
	slices.Sort(lines)
	for i := range lines[1:] {
		if name := strings.Split(lines[i], "\t")[1]; name == strings.Split(lines[i+1], "\t")[1] {
			t.Errorf("%s is declared twice", name)
		}
	}
	got := strings.Join(lines, "\n") + "\n"
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("counters are\n%s\nwant\n%s", got, want)
	}
}
