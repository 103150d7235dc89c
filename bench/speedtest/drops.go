package speedtest

import (
	"cmp"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
)

// sideNames are the two ends of the test bed.
var sideNames = [2]string{"a", "b"}

// Drop is where packets of a UDP case went that were sent and not received.
type Drop struct {
	// Where: a or b, the node that counted it; between, after a socket of node A and before node B's; receiver, the load's own socket.
	Where   string `json:"where"`
	Name    string `json:"name"` // as the node's counters have it
	Packets uint64 `json:"packets"`
}

// Drops that no node counts.
const (
	dropBetween  = "not_received" // in the queue of B's socket, whose udp_receive_dropped counts runs, on the cable, or in a relay
	dropReceiver = "socket_full"  // the load's receiver was too slow
)

// counterNotDrops are counters of drops that the load has no part in: what the host sends of its own accord, and other traffic of the
// edge, whose names go on behind drop_.
var counterNotDrops = []string{"drop_housekeeping", "drop_no_route", "drop_ice_", "drop_turn_", "drop_signal_"}

// counterDrops are the counters of drops that do not begin with drop_. udp_receive_dropped is told by what did not arrive.
var counterDrops = []string{
	"tun_read_dropped", "tun_read_malformed", "tun_read_unserved", "udp_send_errors", "udp_send_too_big", "udp_send_no_buffer",
	"udp_receive_truncated", "tun_write_refused", "tun_write_down", "tun_write_dropped",
}

// namedDrops are those that the counters of both nodes tell, and what was lost between them, by place and name.
func namedDrops(nodes []map[string]uint64) (list []Drop) {
	if len(nodes) != 2 {
		return nil
	}
	for i, counters := range nodes {
		for name, n := range counters {
			other := slices.ContainsFunc(counterNotDrops, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
			if n > 0 && (strings.HasPrefix(name, "drop_") && !other || slices.Contains(counterDrops, name)) {
				list = append(list, Drop{sideNames[i], name, n})
			}
		}
	}
	if sent, received := nodes[0]["udp_send_datagrams"], nodes[1]["udp_receive_datagrams"]; sent > received {
		list = append(list, Drop{"between", dropBetween, sent - received})
	}
	slices.SortFunc(list, func(a, b Drop) int { return cmp.Or(cmp.Compare(a.Where, b.Where), cmp.Compare(a.Name, b.Name)) })
	return list
}

// account notes what became of the packets of a UDP case. Not ok: the nodes do not count, or another load program does not tell all.
func (r *Result) account(receiver uint64) {
	r.Drops = namedDrops(r.Counters)
	if receiver > 0 {
		r.Drops = append(r.Drops, Drop{"receiver", dropReceiver, receiver})
	}
	left := int64(r.PacketsSent) - int64(r.PacketsReceived)
	for _, d := range r.Drops {
		left -= int64(d.Packets)
	}
	r.UnaccountedPackets = &left
}

// dropNotes tell where packets of UDP cases went, of all rounds together.
func (r *Report) dropNotes() (notes []string) {
	type group struct{ load, impl string }
	var groups []group
	sums := map[group]*Result{}
	for i := range r.Results {
		one := &r.Results[i]
		if one.UnaccountedPackets == nil {
			continue
		}
		g := group{one.Case, one.Impl}
		sum := sums[g]
		if sum == nil {
			groups = append(groups, g)
			sum = &Result{UnaccountedPackets: new(int64)}
			sums[g] = sum
		}
		sum.PacketsSent += one.PacketsSent
		sum.PacketsReceived += one.PacketsReceived
		*sum.UnaccountedPackets += *one.UnaccountedPackets
		for _, d := range one.Drops {
			if k := slices.IndexFunc(sum.Drops, func(o Drop) bool { return o.Where == d.Where && o.Name == d.Name }); k >= 0 {
				sum.Drops[k].Packets += d.Packets
				continue
			}
			sum.Drops = append(sum.Drops, d)
		}
	}
	for _, g := range groups {
		sum := sums[g]
		note := fmt.Sprintf("%s, %s: %d packets sent, %d received; dropped:", g.load, g.impl, sum.PacketsSent, sum.PacketsReceived)
		for _, d := range sum.Drops {
			note += fmt.Sprintf(" %d %s %s,", d.Packets, d.Where, d.Name)
		}
		if len(sum.Drops) == 0 {
			note += " none,"
		}
		notes = append(notes, fmt.Sprintf("%s not accounted for: %d", note, *sum.UnaccountedPackets))
	}
	return notes
}

// Build says which Sluice was measured.
type Build struct {
	Version string `json:"version"`          // of the module
	Commit  string `json:"commit,omitempty"` // where the build knows it
	Dirty   bool   `json:"dirty"`            // it has changes that are in no commit
}

// readBuild reads what the Go toolchain wrote into this program, which is also the nodes'.
func readBuild() Build {
	b := Build{Version: "(devel)"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Version = cmp.Or(info.Main.Version, b.Version)
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			b.Dirty = s.Value == "true"
		}
	}
	return b
}

// String is for a person.
func (b Build) String() string {
	text := "Sluice " + b.Version
	if b.Commit != "" {
		text += ", commit " + b.Commit
	}
	if b.Dirty {
		text += ", with changes that are in no commit"
	}
	return text
}
