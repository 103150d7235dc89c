package pipeline

import (
	"net/netip"
	"testing"
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
