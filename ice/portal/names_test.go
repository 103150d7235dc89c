package portal

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/relay"
)

func addrs(texts ...string) (list []netip.Addr) {
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

func TestOnePerFamily(t *testing.T) {
	for _, tt := range []struct{ current, found, want []netip.Addr }{
		{nil, nil, nil},
		{nil, addrs("2001:db8::1", "192.0.2.1", "192.0.2.2"), addrs("192.0.2.1", "2001:db8::1")},
		{nil, addrs("::ffff:192.0.2.1"), addrs("192.0.2.1")},
		{addrs("192.0.2.2"), addrs("192.0.2.1", "192.0.2.2"), addrs("192.0.2.2")}, // round robin
		{addrs("192.0.2.2"), addrs("192.0.2.1"), addrs("192.0.2.1")},
		{addrs("192.0.2.1", "2001:db8::1"), addrs("192.0.2.1", "2001:db8::2"), addrs("192.0.2.1", "2001:db8::2")},
		{addrs("192.0.2.1", "2001:db8::1"), addrs("192.0.2.2"), addrs("192.0.2.2", "2001:db8::1")},
		{addrs("192.0.2.1"), addrs("192.0.2.1", "2001:db8::1"), addrs("192.0.2.1", "2001:db8::1")},
		{addrs("192.0.2.1", "2001:db8::1"), nil, addrs("192.0.2.1", "2001:db8::1")},
	} {
		if got := OnePerFamily(tt.current, tt.found); !slices.Equal(got, tt.want) {
			t.Errorf("%v, found %v: %v, want %v", tt.current, tt.found, got, tt.want)
		}
	}
}

// TestNamesAnew: nodes hear of another address of the portal's name and of a relay's name while they wait; a resolver that fails
// changes nothing, and is told of once.
func TestNamesAnew(t *testing.T) {
	var mu sync.Mutex
	names := map[string][]netip.Addr{"vpn.example.org": addrs("127.0.0.1"), "turn.example.org": addrs("203.0.113.1")}
	var failure error
	var log bytes.Buffer
	p, err := Start(Config{
		Folder: filepath.Join(t.TempDir(), "state"), Public: "vpn.example.org", Listen: loopback, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Relay: relay.Config{Listen: []netip.AddrPort{loopback}, PublicAddrs: addrs("127.0.0.1"), OnlyPublic: true},
		Relays: []OtherRelay{{
			Name: "coturn", Host: "turn.example.org", Addrs: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:3478")}, Secret: strings.Repeat("s", 20),
		}},
		Resolve: func(_ context.Context, host string) ([]netip.Addr, error) {
			mu.Lock()
			defer mu.Unlock()
			return names[host], failure
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	token := add(t, p, "laptop", protocol.Client)
	token.Portals = []string{p.Addr().String()} // the name is an invention
	bus := sign(t, token)
	request := protocol.SyncRequest{PublicKey: key(t)}
	s := ask(t, bus, request)
	relays := func(s protocol.Sync) (list []string) {
		for _, r := range s.Relays {
			for _, a := range r.Addrs {
				list = append(list, r.Name+" "+a.Addr().String())
			}
		}
		return list
	}
	if got := relays(s); !slices.Equal(got, []string{"portal 127.0.0.1", "coturn 203.0.113.1"}) {
		t.Fatalf("relays %q", got)
	}
	for _, failure = range []error{errors.New("the resolver is away"), nil} { // an error twice, and then nothing at all
		p.renew(t.Context())
		p.renew(t.Context())
		names = map[string][]netip.Addr{}
	}
	if got := ask(t, bus, request); got.Revision != s.Revision {
		t.Errorf("after failures the relays are %q", relays(got))
	}
	names = map[string][]netip.Addr{"vpn.example.org": addrs("127.0.0.2", "::1"), "turn.example.org": addrs("203.0.113.1", "2001:db8::1")}
	request.Known = s.Revision
	told := make(chan protocol.Sync, 1)
	go func() { told <- ask(t, bus, request) }()
	until(t, "the node waits for news", func() bool { return len(p.waiting(func(*hold) bool { return true })) == 1 })
	p.renew(t.Context())
	// The node is on this machine, and goes on using the address by which it came. No listener of the relay is of IPv6.
	if got := p.relayAddrs(netip.Addr{}); len(got) != 1 || got[0].Addr() != names["vpn.example.org"][0] {
		t.Errorf("the relay is at %v for others", got)
	}
	if got := relays(<-told); !slices.Equal(got, []string{"portal 127.0.0.1", "coturn 203.0.113.1", "coturn 2001:db8::1"}) {
		t.Errorf("relays %q", got)
	}
	p.Close()
	if n := strings.Count(log.String(), "does not resolve"); n != 2 || strings.Count(log.String(), "resolves again") != 2 {
		t.Errorf("%d lines of two names that do not resolve:\n%s", n, &log)
	}
}
