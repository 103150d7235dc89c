package status

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-vpn/sluice/ice/edge"
)

// dropText says in words what became of packets that a counter has.
func dropText(name string) string {
	if text := dropWhy[name]; text != "" {
		return text
	}
	return "were lost " + strings.TrimSpace(lostWhere[name])
}

// writePeerDrops lists what was dropped of the peer, the most first, and the latest of it.
func (w *Why) writePeerDrops(b *strings.Builder, v View) {
	c := w.Connection
	if c == nil {
		return
	}
	names := slices.SortedFunc(maps.Keys(c.Drops), func(x, y string) int { return cmp.Or(cmp.Compare(c.Drops[y], c.Drops[x]), cmp.Compare(x, y)) })
	for _, name := range names {
		v.say(b, "", "dropped of %s: %d packets %s (%s)", c.Peer, c.Drops[name], dropText(name), name)
	}
	if d := c.LastDrop; d != nil {
		v.say(b, "", "last dropped of %s: %s, %s%s", c.Peer, age(d.At, w.At), d.Name, flowText(d))
	}
}

// protocols are the names of those that packets in a tunnel mostly are (IANA).
var protocols = map[uint8]string{1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6"}

// flowText says whose the packet was: ", UDP 10.0.0.1:5000 to 10.0.0.2:53", or nothing.
func flowText(d *edge.DropStatus) string {
	if !d.Src.IsValid() {
		return ""
	}
	name := cmp.Or(protocols[d.Protocol], fmt.Sprintf("protocol %d", d.Protocol))
	end := func(a netip.AddrPort) string {
		if d.Src.Port() == 0 && d.Dst.Port() == 0 {
			return a.Addr().String()
		}
		return a.String()
	}
	return fmt.Sprintf(", %s %s to %s", name, end(d.Src), end(d.Dst))
}

// writeDrops lists what was dropped, what is new first, then the most.
func (w *Why) writeDrops(b *strings.Builder, v View) {
	names := slices.SortedFunc(maps.Keys(w.Drops), func(x, y string) int {
		return cmp.Or(cmp.Compare(w.New[y], w.New[x]), cmp.Compare(w.Drops[y], w.Drops[x]), cmp.Compare(x, y))
	})
	for _, name := range names {
		recent := ""
		if w.New[name] > 0 {
			recent = fmt.Sprintf(", %d within the last %s", w.New[name], Span(seconds(w.NewS)))
		}
		v.say(b, "", "dropped: %d packets %s (%s)%s", w.Drops[name], dropText(name), name, recent)
	}
	if len(names) == 0 {
		v.say(b, "", "dropped: nothing, of no peer")
	}
}
