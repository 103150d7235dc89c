package status

import (
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/edge"
)

func TestExplain(t *testing.T) {
	busy := busy()
	busy.Awaited = []string{"zoe"}
	fresh := edge.Status{Name: "laptop", Interface: "sluice0", Portal: edge.PortalStatus{Why: "connection refused"}}
	distrust := busy
	distrust.Connections = append([]edge.ConnectionStatus{{Peer: "alice", State: "none", Distrust: "identity_changed"}}, busy.Connections[1:]...)
	busy.Connections = slices.Clone(busy.Connections)
	busy.Connections[0].Drops = map[string]uint64{"drop_staged_full": 3, "drop_replayed": 40}
	busy.Connections[0].LastDrop = &edge.DropStatus{At: noon.Add(-3 * time.Second), Name: "drop_staged_full", Protocol: 17,
		Src: netip.MustParseAddrPort("[fd00:1234:5678:9abc:def0:1234:5678:9abc]:50000"), Dst: netip.MustParseAddrPort("[fd00:2021:1111::2]:53")}
	busy.Connections[2].Drops = map[string]uint64{"drop_staged_expired": 7}
	busy.Connections[2].LastDrop = &edge.DropStatus{At: noon.Add(-90 * time.Second), Name: "drop_staged_expired", Protocol: 1,
		Src: netip.MustParseAddrPort("10.0.0.1:0"), Dst: netip.MustParseAddrPort("10.0.0.2:0")}
	busy.Connections[1].Drops = map[string]uint64{"drop_unauthentic": 1}
	busy.Connections[1].LastDrop = &edge.DropStatus{At: noon, Name: "drop_unauthentic"}
	tunnel := KernelRoute{Interface: "sluice0", Source: netip.MustParseAddr("100.64.0.1"), Table: 51888}
	for name, tt := range map[string]struct {
		status  edge.Status
		subject string
		kernel  KernelRoute
		verdict Verdict
	}{
		"why-up":            {busy, "alice", tunnel, VerdictUp},
		"why-address":       {busy, "10.2.0.77", tunnel, VerdictUp},
		"why-mapped":        {busy, "::ffff:10.2.0.77", tunnel, VerdictUp},
		"why-waiting":       {busy, "carol", tunnel, VerdictNotConnected},
		"why-refused":       {busy, "10.1.0.9", KernelRoute{Interface: "lan0", Source: netip.MustParseAddr("10.1.0.2"), Table: 254}, VerdictRefused},
		"why-elsewhere":     {busy, "10.2.0.1", KernelRoute{Interface: "lan0", Router: netip.MustParseAddr("192.0.2.1"), Table: 254}, VerdictNotTunneled},
		"why-unreachable":   {busy, "10.2.0.1", KernelRoute{Unreachable: true}, VerdictNotTunneled},
		"why-nowhere":       {busy, "9.9.9.9", KernelRoute{Interface: "lan0", Router: netip.MustParseAddr("192.0.2.1"), Table: 254}, VerdictNoRoute},
		"why-own":           {busy, "100.64.0.1", KernelRoute{Interface: "lo", Table: 255}, VerdictOwn},
		"why-awaited":       {busy, "zoe", tunnel, VerdictAwaited},
		"why-not-signed-in": {fresh, "10.2.0.1", KernelRoute{Interface: "lan0", Table: 254}, VerdictNotSignedIn},
		"why-distrusted":    {distrust, "100.64.0.2", tunnel, VerdictDistrusted},
		"why-long":          {long(), "10.2.0.1", KernelRoute{Interface: "sluice-and-more", Table: 51888}, VerdictUp},
	} {
		w, ok := Explain(&tt.status, tt.subject)
		if !ok {
			t.Fatalf("%s: not known", name)
		}
		w.SetKernel(tt.kernel)
		w.At = noon
		if w.Verdict != tt.verdict {
			t.Errorf("%s: %s, want %s", name, w.Verdict, tt.verdict)
		}
		w.MTU = MTU{Tunnel: 1416, Outer: 1500, Overhead: 60}
		w.Drops, w.NewS = map[string]uint64{"drop_staged_expired": 7, "tun_read_dropped": 900, "drop_no_route": 3}, 1
		switch name {
		case "why-up":
			w.New = map[string]uint64{"drop_no_route": 2}
		case "why-address":
			w.MTU.Outer, w.Drops = 1420, nil
		}
		var b strings.Builder
		if err := (View{}).WriteWhy(&b, &w); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.String(), Columns)
	}
	if _, ok := Explain(&busy, "nobody"); ok {
		t.Error("a peer that is not there is known")
	}
}

// Every counter of drops has words.
func TestDropWhy(t *testing.T) {
	list, err := os.ReadFile("../member/testdata/counters.txt")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`(?m)^member\t(drop_\w+)\t\w+\tsluice_dropped_packets_total`).FindAllStringSubmatch(string(list), -1)
	data := 0
	for _, name := range names {
		if regexp.MustCompile(`^drop_(ice|turn|signal)_`).MatchString(name[1]) {
			continue // of connectivity, which carries no packets
		}
		data++
		if dropWhy[name[1]] == "" && lostWhere[name[1]] == "" {
			t.Errorf("nothing says what %s is", name[1])
		}
	}
	if data < 20 {
		t.Errorf("%d counters of drops", data)
	}
}

// One packet is one packet: the words of a counter fit one and many.
func TestDropText(t *testing.T) {
	for name, want := range map[string]string{
		"drop_unauthentic": "forged or damaged", "drop_tun_full": "lost because the interface took nothing more", "drop_replayed": "came twice or much too late",
	} {
		for n, packets := range map[uint64]string{0: "0 packets ", 1: "1 packet ", 2: "2 packets "} {
			if got := dropText(n, name); got != packets+want {
				t.Errorf("%s: %q, want %q", name, got, packets+want)
			}
		}
	}
	for _, words := range []map[string]string{dropWhy, lostWhere} {
		for name, text := range words {
			if regexp.MustCompile(`^(was|were|is|are|have|has)\b`).MatchString(text) {
				t.Errorf("%s: %q does not fit one packet and many", name, text)
			}
		}
	}
}
