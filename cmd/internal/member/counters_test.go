package member

import (
	"context"
	"flag"
	"io"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/ice"
	"github.com/sluice-vpn/sluice/ice/portal"
	"github.com/sluice-vpn/sluice/ice/relay"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/ice/turn"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/counters.txt anew")

// TestCounterNames: the names in SLUICE_STATS, and on the portal's metrics page, are a promise to those who read them. One that is to
// go has to be taken out of testdata/counters.txt by hand.
func TestCounterNames(t *testing.T) {
	network := udptest.New(1)
	p, err := pipeline.New(pipeline.Config{
		Device: tuntest.New(tuntest.Config{}), Listen: network.Listen(netip.MustParseAddr("192.0.2.1"), netip.Addr{}), UDP: udp.Config{Port: 51820},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- p.Run(ctx) }()
	mux := ice.NewMux(ice.MuxConfig{Loopback: true})
	defer mux.Close()
	relays := turn.NewRelays(turn.RelaysConfig{Clock: p.Now})
	defer relays.Close()
	var names []string
	for _, c := range slices.Concat(p.Counters(), mux.Counters(), relays.Counters(), signalCounters(signal.Counters{}), []pipeline.Counter{{Name: "goroutines"}}) {
		names = append(names, "member "+c.Name)
	}
	cancel()
	<-ran
	names = append(names, portalSeries(t)...)
	compareNames(t, filepath.Join("testdata", "counters.txt"), names)
}

var addressOf = regexp.MustCompile(`\{address=.*\}`)

// portalSeries are the series of a portal with a relay.
func portalSeries(t *testing.T) (names []string) {
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
	w := httptest.NewRecorder()
	p.Ops().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	text, _ := io.ReadAll(w.Result().Body)
	for line := range strings.Lines(string(text)) {
		if name, _, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name != "#" {
			names = append(names, "portal "+addressOf.ReplaceAllString(name, "{address}"))
		}
	}
	return names
}

func compareNames(t *testing.T, path string, names []string) {
	t.Helper()
	slices.Sort(names)
	got := strings.Join(names, "\n") + "\n"
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
