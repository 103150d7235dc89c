package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// TestAnswerFollowsRoaming: whoever sends to another address of its peer is answered from there, with the first packet. Else
// it would roam back, and where a filter is in between the answer would be lost (kernel WireGuard's test, "reply to sender").
func TestAnswerFollowsRoaming(t *testing.T) {
	need(t, "wg", "ping")
	for _, queues := range []string{"1", "2"} {
		t.Run(queues+" queues", func(t *testing.T) {
			path := program(t, "SLUICE_QUEUES="+queues)
			ends := tunnel(t, [2]string{path, path}, 0)
			places := ends[1].outer[:]
			for _, prefix := range []string{"192.0.2.77/24", "2001:db8::77/64"} {
				p := netip.MustParsePrefix(prefix)
				if err := ends[1].ns.AddAddr("eth0", p); err != nil {
					t.Fatal(err)
				}
				places = append(places, p.Addr())
			}
			ping(t, ends[0].ns, 1, ends[1].inner[0])
			peer := ends[1].private.Public().Encode()
			for i := range 40 {
				endpoint := netip.AddrPortFrom(places[i%len(places)], ends[1].port).String()
				must(t, ends[0].ns, "wg", "set", ends[0].name, "peer", peer, "endpoint", endpoint)
				ping(t, ends[0].ns, 1, ends[1].inner[i/2%2])
				if got := must(t, ends[0].ns, "wg", "show", ends[0].name, "endpoints"); got != fmt.Sprintf("%s\t%s\n", peer, endpoint) {
					t.Errorf("ping %d went to %s and was answered from %s", i, endpoint, strings.TrimSpace(got))
				}
			}
		})
	}
}
