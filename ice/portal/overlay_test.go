package portal

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/relay"
)

// TestOverlay: the portal chooses the network of tunnel addresses, keeps it, and changes it only while there is no node.
func TestOverlay(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	begin := func(overlay ...string) (*Portal, error) {
		cfg := Config{Folder: folder, Public: "127.0.0.1", Listen: loopback, Relay: relay.Config{Listen: []netip.AddrPort{loopback}}}
		for _, text := range overlay {
			cfg.Overlay = append(cfg.Overlay, netip.MustParsePrefix(text))
		}
		return Start(cfg)
	}
	for _, overlay := range [][]string{nil, {"10.88.0.0/16"}, {"10.99.0.0/29", "fd99::/64"}} {
		p, err := begin(overlay...)
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
	}
	p, err := begin() // what is stored
	if err != nil {
		t.Fatal(err)
	}
	gate := sign(t, add(t, p, "gate", protocol.Gateway))
	s := ask(t, gate, protocol.SyncRequest{PublicKey: key(t)})
	if want := []netip.Prefix{netip.MustParsePrefix("10.99.0.1/32"), netip.MustParsePrefix("fd99::1/128")}; !slices.Equal(s.Addresses, want) ||
		s.Overlay[0].String() != "10.99.0.0/29" || s.Overlay[1].String() != "fd99::/64" {
		t.Errorf("addresses %v of %v, want %v", s.Addresses, s.Overlay, want)
	}
	inside := []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24")}
	if s := ask(t, gate, protocol.SyncRequest{PublicKey: key(t), Routes: inside}); len(s.Offers) != 1 || s.Offers[0].State != protocol.Refused ||
		!strings.Contains(s.Offers[0].Why, "overlaps the tunnels' own addresses") {
		t.Errorf("a route in the overlay: %+v", s.Offers)
	}
	for _, name := range []string{"b", "c", "d", "e", "f"} {
		add(t, p, name, protocol.Client)
	}
	if _, err := p.AddNode(t.Context(), NewNode{Name: "g", Role: protocol.Client}); err == nil || !strings.Contains(err.Error(), "6 nodes, which is all that have room") {
		t.Errorf("a seventh node of six: %v", err)
	}
	p.Close()
	if p, err := begin("10.77.0.0/16"); err == nil || !strings.Contains(err.Error(), "while there are nodes (6)") {
		t.Errorf("another network with nodes: %v", err)
		p.Close()
	}
	for overlay, want := range map[string]string{
		"10.0.0.1/8": "is no network", "10.0.0.0/30": "fewer than 6", "127.0.0.0/8": "not for hosts", "fe80::/64": "not for hosts",
	} {
		if p, err := begin(overlay); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", overlay, err, want)
			p.Close()
		}
	}
}
