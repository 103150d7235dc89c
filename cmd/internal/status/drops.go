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

// dropText says in words how many packets a counter has, and what became of them. The words are the same for one and for many.
func dropText(n uint64, name string) string {
	return packets(n) + " " + cmp.Or(dropWhy[name], "lost "+strings.TrimSpace(lostWhere[name]))
}

// packets is a number of packets in words.
func packets(n uint64) string {
	if n == 1 {
		return "1 packet"
	}
	return fmt.Sprintf("%d packets", n)
}

// writePeerDrops lists what was dropped of the peer, the most first, and the latest of it.
func (w *Why) writePeerDrops(b *strings.Builder, v View) {
	c := w.Connection
	if c == nil {
		return
	}
	names := slices.SortedFunc(maps.Keys(c.Drops), func(x, y string) int { return cmp.Or(cmp.Compare(c.Drops[y], c.Drops[x]), cmp.Compare(x, y)) })
	for _, name := range names {
		v.say(b, "", "dropped of %s: %s (%s)", c.Peer, dropText(c.Drops[name], name), name)
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
		v.say(b, "", "dropped: %s (%s)%s", dropText(w.Drops[name], name), name, recent)
	}
	if len(names) == 0 {
		v.say(b, "", "dropped: nothing, of no peer")
	}
}
