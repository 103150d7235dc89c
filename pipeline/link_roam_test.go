package pipeline

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

// A selected pair's peer that is heard from elsewhere, with data or a handshake message, is what control tells the edge, which may then
// select that. Data moves nothing by itself.
func TestStrayOfALink(t *testing.T) {
	runLinks(t, plain, func(w *linkWorld) {
		w.connect()
		elsewhere := netip.AddrPortFrom(netip.MustParseAddr("198.51.100.9"), 9)
		selected := w.b.status().Connection.Path
		w.b.controlled(func(c *controller, p *peer) {
			now := w.b.Now()
			for _, from := range []Path{{Dst: selected.Dst}, {Dst: elsewhere, Channel: 0x4001}, {Dst: elsewhere}} {
				if p.stray(now, from) {
					c.notice(now, p, signalStray)
				}
			}
		})
		w.settle()
		list := w.b.requests(RequestStray)
		if len(list) != 1 || list[0].Path.Dst != elsewhere || w.b.status().Connection.Path != selected {
			t.Fatalf("%d requests: %+v; path %+v, want %+v", len(list), list, w.b.status().Connection.Path, selected)
		}
		w.b.attempt.Selected(1, Path{Dst: elsewhere})
		if got := w.b.status().Connection.Path; got.Dst != elsewhere || !got.Fixed || w.b.status().Connection.Phase != PhaseUp {
			t.Errorf("path %+v", got)
		}
	})
}

// A path that is needed and over which nothing is heard is checked within half a second, in either direction of the data, and has a
// second agent two seconds after it went silent. One that answers has none.
func TestQuiet(t *testing.T) {
	for _, answers := range []bool{true, false} {
		runLinks(t, plain, func(w *linkWorld) {
			w.connect()
			w.sleep(3 * time.Second)
			silent := time.Now()
			w.edges(func() { w.stun = answers })
			w.network.Hook(func(*udptest.Datagram) bool { return false })
			for i := range 30 {
				w.a.send(i)
				w.sleep(100 * time.Millisecond)
			}
			checks := w.a.requests(RequestCheck)
			if len(checks) == 0 {
				t.Fatal("the pair was not checked")
			}
			if last := checks[len(checks)-1]; answers && time.Since(last.at) > time.Second || last.Agent != 1 && answers {
				t.Errorf("answers %v: the last check %v ago, of agent %d", answers, time.Since(last.at), last.Agent)
			}
			agents := w.a.requests(RequestAgent)
			if answers != (len(agents) == 1) {
				t.Fatalf("answers %v: %d agents were asked for", answers, len(agents))
			}
			if !answers {
				if first, second := checks[0].at, agents[1].at; first.Sub(silent) > time.Second || second.Sub(silent) > 2500*time.Millisecond {
					t.Errorf("checked after %v, another agent after %v", first.Sub(silent), second.Sub(silent))
				}
			}
			w.network.Hook(nil)
			w.edges(func() { w.stun = true })
			w.sleep(time.Second)
			w.wantUp()
		})
	}
}
