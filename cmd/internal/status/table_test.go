package status

import (
	"cmp"
	"flag"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/turn"
	"github.com/sluice-vpn/sluice/pipeline"
)

var update = flag.Bool("update", false, "write the golden files anew")

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func prefixList(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, s := range texts {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

// busy is a gateway with peers in every state.
func busy() edge.Status {
	return edge.Status{
		Name: "office", Identity: "f15e-ad5a-2bd0-5f77-ba8a-783b", Role: "gateway", Interface: "sluice0", ListenPort: 41641, Since: noon.Add(-26 * time.Hour),
		Addresses: prefixList("100.64.0.1/32", "fd00:2021:1111::1/128"), Offers: protocol.Offers{
			{Prefix: netip.MustParsePrefix("10.0.0.0/24"), State: protocol.Approved},
			{Prefix: netip.MustParsePrefix("fd09::/64"), State: protocol.Approved},
			{Prefix: netip.MustParsePrefix("0.0.0.0/0"), State: protocol.Pending},
		},
		Portal: edge.PortalStatus{Up: true, Since: noon.Add(-3 * time.Minute)},
		Mappings: []edge.MappingStatus{
			{Server: netip.MustParseAddrPort("203.0.113.5:3478"), Mapped: netip.MustParseAddrPort("198.51.100.99:41641")},
			{Server: netip.MustParseAddrPort("203.0.113.6:3478"), Mapped: netip.MustParseAddrPort("198.51.100.99:1025")},
		},
		Notes: []string{"10.1.0.0/16 on lan0 overlaps with 10.1.0.0/24"},
		Relays: []turn.RelayStatus{
			{Name: "fra", Server: netip.MustParseAddrPort("203.0.113.5:3478"), State: "allocated", RoundTripS: 0.0124},
			{Name: "nyc", Server: netip.MustParseAddrPort("[2001:db8::5]:3478"), State: "waiting", Reason: "no answer"},
		},
		Routes: []edge.RouteStatus{
			{Prefix: netip.MustParsePrefix("100.64.0.2/32"), Peer: "alice", State: edge.RouteUsed},
			{Prefix: netip.MustParsePrefix("100.64.0.3/32"), Peer: "bob-with-a-long-name", State: edge.RouteUsed},
			{Prefix: netip.MustParsePrefix("10.2.0.0/24"), Peer: "bob-with-a-long-name", State: edge.RouteUsed},
			{Prefix: netip.MustParsePrefix("8.8.8.8/32"), Peer: "bob-with-a-long-name", State: edge.RouteRefused, Why: "a single\x1b address"},
			{Prefix: netip.MustParsePrefix("fd0a::/64"), Peer: "bob-with-a-long-name", State: edge.RouteUsed},
			{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Peer: "erin", State: edge.RouteRefused, Why: "it is of 10.1.0.0/16"},
		},
		Connections: []edge.ConnectionStatus{
			{Peer: "alice", State: "up", Online: true, Since: noon.Add(-25 * time.Hour), AllowedIPs: prefixList("100.64.0.2/32"), Via: "direct", Endpoint: netip.MustParseAddrPort("198.51.100.7:41234"), RTTS: 0.0234,
				LastHandshake: noon.Add(-12 * time.Second), RxBytes: 1 << 21, TxBytes: 340 << 10,
				Explanation: "direct to 198.51.100.7:41234 (host - srflx)"},
			{Peer: "bob-with-a-long-name", State: "idle", Since: noon.Add(-3 * time.Hour), AllowedIPs: prefixList("100.64.0.3/32", "10.2.0.0/24", "fd0a::/64"), Via: "relay", Relay: "fra", Endpoint: netip.MustParseAddrPort("203.0.113.5:3478"),
				RTTS: 0.048, LastHandshake: noon.Add(-150 * time.Second), RxBytes: 512, TxBytes: 1536,
				Explanation: "relayed by fra at 203.0.113.5:3478 (relay - srflx), since no direct pair of addresses has worked; tries again every 2 min; idle: keepalives hold the path",
				LastClose:   &edge.CloseStatus{At: noon.Add(-3 * time.Hour), Reason: "ice_disconnected", LastedS: 300}},
			{Peer: "carol", State: "waiting", NextAttemptS: 5, Explanation: "tries again in 5 s, after handshake_timeout: preshared keys differ",
				LastClose: &edge.CloseStatus{At: noon.Add(-12 * time.Second), Reason: "handshake_timeout", Cause: "preshared keys differ",
					PeerReports: &edge.PeerReport{Reason: "handshake_timeout", Counters: map[string]uint64{"mac1_mismatch": 5, "initiations": 4}}}},
			{Peer: "dave", State: "up", Via: "relay", Endpoint: netip.MustParseAddrPort("192.0.2.9:50001"), RTTS: 0.00035,
				LastHandshake: noon.Add(-time.Hour), RxBytes: 5 << 40, TxBytes: 3 << 30, Explanation: "relayed by the peer's relay at 192.0.2.9:50001"},
			{Peer: "erin", State: "none", Explanation: "the peer is not connected to the portal"},
			{Peer: "frank", State: "none", Explanation: "the peer is not connected to the portal", RxBytes: 1,
				LastClose: &edge.CloseStatus{At: noon.Add(-time.Hour), Reason: "peer_closed"}},
			{Peer: "grace", State: "none", Explanation: "the peer is not connected to the portal",
				LastClose: &edge.CloseStatus{At: noon.Add(-500 * time.Millisecond), Reason: "ice_timeout"}},
		},
	}
}

// long is the busy gateway with the longest names and addresses that there can be.
func long() edge.Status {
	s := busy()
	name := strings.Repeat("a-long-name-", 5) + "abc"
	s.Name, s.Interface = name, "sluice-and-more"
	s.Relays[1].Server = netip.MustParseAddrPort("[2001:db8:1111:2222:3333:4444:5555:6666]:34780")
	s.Relays[1].Name = name
	c := &s.Connections[1]
	c.Peer, c.Relay, c.Endpoint = name, name, s.Relays[1].Server
	c.Explanation = "relayed by " + name + " at [2001:db8:1111:2222:3333:4444:5555:6666]:34780 (relay - srflx)"
	for i := range s.Routes {
		if s.Routes[i].Peer == "bob-with-a-long-name" {
			s.Routes[i].Peer = name
		}
	}
	s.Awaited = []string{name + "x", "zoe"}
	return s
}

func TestWrite(t *testing.T) {
	later := busy()
	later.Connections[0].RxBytes += 125_000
	later.Connections[0].TxBytes += 250_000_000
	later.Connections[1].TxBytes += 10
	later.Connections[3].RxBytes = 7 // counted anew
	for i := range 32 {
		later.Connections[0].History = append(later.Connections[0].History, edge.RoundTrip{At: noon.Add(time.Duration(i-62) * 2 * time.Second), RTTS: 0.0234 + float64(i*i%7)*0.013})
	}
	crowded := later
	crowded.Connections = slices.Clone(later.Connections)
	crowded.Connections[1].History = later.Connections[0].History[:2]
	for name, tt := range map[string]struct {
		view        View
		now, before Sample
	}{
		"busy":   {now: Sample{noon, busy()}},
		"narrow": {view: View{Width: 60, Rates: true}, now: Sample{noon, crowded}},
		"rates":  {view: View{Rates: true}, now: Sample{noon.Add(time.Second), later}, before: Sample{noon, busy()}},
		"long":   {now: Sample{noon, long()}},
		"gateway": {now: Sample{noon, edge.Status{
			Name: "office", Role: "gateway", Interface: "sluice0", ListenPort: 5, Since: noon.Add(-2 * time.Second), Addresses: prefixList("100.64.0.1/32"),
			Portal: edge.PortalStatus{Up: true, Since: noon.Add(-time.Second)}, Awaited: []string{"alice", "bob"},
		}}},
		"alone": {now: Sample{noon, edge.Status{
			Name: "laptop", Role: "client", Interface: "sluice0", ListenPort: 5, Since: noon.Add(-2 * time.Second), Addresses: prefixList("100.64.0.2/32"),
			Portal: edge.PortalStatus{Up: true, Since: noon.Add(-time.Second)},
		}}},
		"new": {now: Sample{noon, edge.Status{
			Name: "laptop", Role: "client", Interface: "sluice0", ListenPort: 5, Since: noon.Add(-2 * time.Second),
			Portal: edge.PortalStatus{Since: noon.Add(-2 * time.Second), Why: "connecting for the first time"},
		}}},
		"problems": {now: Sample{noon, edge.Status{
			Name: "lap\x1b[31mtop", Role: "client", Interface: "sluice0", Since: noon, Problem: "host: add route: run as root or with CAP_NET_ADMIN",
			Addresses: prefixList("100.64.0.9/32"), Portal: edge.PortalStatus{Up: true, Since: noon, Refused: "the gateway\u202e offers 0.0.0.0/0", AheadS: -7200},
			Connections: []edge.ConnectionStatus{{Peer: "office", State: "none", Online: true, Explanation: "the peer is not connected\nto the portal"}},
			Lost:        map[string]uint64{"drop_tun_full": 7, "tun_read_dropped": 283630, "udp_receive_dropped": 7, "of_tomorrow\x1b": 1},
		}}},
	} {
		var b strings.Builder
		if err := tt.view.Write(&b, tt.now, tt.before); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.String(), cmp.Or(tt.view.Width, Columns))
	}
}

// golden compares a screen with testdata/NAME.txt, and holds that it fits width columns and does not steer a terminal.
func golden(t *testing.T, name, got string, width int) {
	t.Helper()
	path := "testdata/" + name + ".txt"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || got != string(want) {
		t.Errorf("%s (%v):\n%s\nwant (go test -update writes it):\n%s", name, err, got, want)
	}
	for line := range strings.Lines(got) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
			t.Errorf("%s: %d columns, want at most %d: %s", name, n, width, line)
		}
	}
	for _, r := range got {
		if r < ' ' && r != '\n' || r == '\u202e' {
			t.Errorf("%s: %q could steer a terminal", name, r)
		}
	}
}

func TestUnits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 350 * time.Microsecond: "0.3 ms", 23 * time.Millisecond: "23 ms", 999 * time.Millisecond: "999 ms",
		time.Second: "1 s", 119 * time.Second: "119 s", 2 * time.Minute: "2 min", 2 * time.Hour: "2 h", 48 * time.Hour: "2 days",
	} {
		if got := Span(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1<<20 - 1: "1.0 MiB", 1<<64 - 1: "16384.0 PiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
	for n, want := range map[float64]string{0: "0 bit/s", 124.9: "999 bit/s", 125: "1 kbit/s", 1.25e8: "1.0 Gbit/s", 1.25e11: "1000.0 Gbit/s"} {
		if got := rate(n); got != want {
			t.Errorf("%g: %q, want %q", n, got, want)
		}
	}
}

// Every counter of losses has words that say where they were.
func TestLostWhere(t *testing.T) {
	for _, name := range pipeline.LossNames() {
		if lostWhere[name] == "" {
			t.Errorf("nothing says what %s is", name)
		}
	}
}
