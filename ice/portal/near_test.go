package portal

import (
	"bytes"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/relay"
)

// TestOnThisMachine: a node on the portal's machine signs in although the public address leads nowhere from there, and is told where
// the relay is from there; others are told the public address, whatever they say of themselves. The operator is told of the ports.
func TestOnThisMachine(t *testing.T) {
	const public = "127.1.2.3" // nobody listens there
	var log bytes.Buffer
	p, err := Start(Config{
		Folder: filepath.Join(t.TempDir(), "state"), Public: public, Listen: loopback, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Relay: relay.Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:0")}, PublicAddrs: addrs("203.0.113.7")},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	bus := sign(t, add(t, p, "laptop", protocol.Client))
	s := ask(t, bus, protocol.SyncRequest{PublicKey: key(t)})
	port := p.relay.Addrs()[0].Port()
	if got, err := bus.Remote(t.Context()); got != loopback.Addr() {
		t.Errorf("the portal was reached at %v, %v", got, err)
	}
	for via, want := range map[string]string{
		"": "203.0.113.7", "203.0.113.7": "203.0.113.7", "198.51.100.9": "203.0.113.7", "127.0.0.1": "127.0.0.1", "::1": "127.0.0.1",
	} {
		at, _ := netip.ParseAddr(via)
		if got := p.relayAddrs(at); !slices.Equal(got, []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(want), port)}) {
			t.Errorf("via %q the relay is at %v, want %s", via, got, want)
		}
	}
	if len(s.Relays) != 1 || s.Relays[0].Addrs[0].Addr() != loopback.Addr() {
		t.Errorf("the node is told of %v", s.Relays)
	}
	p.Close()
	if text := log.String(); !strings.Contains(text, "have to be forwarded") || !strings.Contains(text, "udp_range=49152-65535") {
		t.Errorf("no line about the ports:\n%s", text)
	}
}
