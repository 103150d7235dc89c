package acceptance

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// Strangers throw at every open port what looks like STUN, TURN, ChannelData and WireGuard and is not, also under the addresses of
// relay and peers. No process minds: a direct connection and a relayed one carry TCP, what came is counted by reason and not logged,
// and afterwards all is as idle as before.
func TestGarbage(t *testing.T) {
	t.Parallel()
	v := newVPN(t, "-ops", opsAt)
	g, desk := v.pair(lab.NoNAT, lab.Cone)
	walled := v.site("walled-site", lab.NoNAT) // from the gateway, but from nobody else
	for _, way := range [][2]string{{g.site.Port, walled.Port}, {walled.Port, g.site.Port}} {
		if _, err := v.internet.Hub.Drop(way[0], way[1], true); err != nil {
			t.Fatal(err)
		}
	}
	relayed := v.add("walled", "client", walled)
	desk.awaitConnection(patience, "gate", "connected", isUp("direct"))
	relayed.awaitConnection(patience, "gate", "connected", isUp("relay"))
	streams := []*stream{
		openStream(t, desk.site.Node, g.site.Node, g.overlay()), openStream(t, relayed.site.Node, g.site.Node, g.overlay()),
	}
	everybody := []*sluice{g.sluice, desk.sluice, relayed.sluice, v.portal}
	idle := usage(everybody)
	counters, relay := g.counters(), v.metrics()
	lines := len(g.lines()) + len(desk.lines()) + len(relayed.lines())

	attack(t, v, g, desk, relayed)
	for i, s := range streams {
		s.awaitProgress(patience, []string{"direct", "relayed"}[i])
		t.Logf("stream %d: longest gap %v", i, s.longestGap())
	}
	time.Sleep(time.Second)
	after := usage(everybody)
	t.Logf("CPU time in a second: before %v, 1 s after %v", idle, after)
	for i, p := range everybody {
		if after[i] > idle[i]+200*time.Millisecond {
			t.Errorf("%s used %v of CPU time in the second after, %v before", p.name, after[i], idle[i])
		}
		select {
		case <-p.done:
			t.Errorf("%s has ended", p.name)
		default:
		}
	}
	if lost := append(append(g.sessionsLost(), desk.sessionsLost()...), relayed.sessionsLost()...); len(lost) != 0 {
		t.Errorf("connections were closed: %v", lost)
	}
	if n := len(g.lines()) + len(desk.lines()) + len(relayed.lines()); n > lines+4 {
		t.Errorf("the nodes have logged %d lines", n-lines)
	}
	grown(t, g.name, counters, g.counters(), "drop_malformed", "drop_unknown_index", "drop_channel_data", "handshake_mac1_mismatch",
		"drop_ice_not_stun", "drop_ice_malformed", "drop_ice_not_binding", "drop_ice_unknown_attribute",
		"drop_turn_not_stun", "drop_turn_length", "drop_turn_address", "drop_turn_value", "drop_turn_no_agent")
	var reasons []string
	for _, reason := range []string{"not_stun", "malformed", "method", "channel_length", "no_allocation", "no_channel", "no_permission"} {
		reasons = append(reasons, fmt.Sprintf("sluice_relay_drops_total{reason=%q}", reason))
	}
	grown(t, "portal", relay, v.metrics(), reasons...)
	if before, now := counters["goroutines"], g.counters()["goroutines"]; now > before+10 {
		t.Errorf("the gateway has %d goroutines, before %d", now, before)
	}
}

// attack sends garbage to every open port of the portal and the nodes, from a site of its own and under others' addresses.
func attack(t *testing.T, v *vpn, nodes ...*member) {
	t.Helper()
	stranger := v.site("stranger-site", lab.NoNAT)
	portals := netip.AddrPortFrom(lab.HubAddr, 3478)
	var work sync.WaitGroup
	seed := uint64(0)
	throw := func(what string, f func(g garbage) error) {
		seed++
		g := newGarbage(seed)
		work.Go(func() {
			if err := f(g); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
	}
	datagrams := func(to netip.AddrPort, sources ...netip.AddrPort) {
		throw(fmt.Sprint("to ", to), func(g garbage) error { return g.datagrams(stranger.Node, to, 2000) })
		for _, source := range sources {
			throw(fmt.Sprint(source, " to ", to), func(g garbage) error { return g.forge(v.internet.Hub, source, to, 1000) })
		}
	}
	var own []netip.AddrPort // where the nodes' sockets are seen
	for _, m := range nodes {
		at := m.site.Public
		if at.Is4() && m.site.Addr.Is4() && !m.site.Addr.IsPrivate() {
			at = m.site.Addr
		}
		for _, port := range openPorts(t, m.sluice, "udp") {
			own = append(own, netip.AddrPortFrom(at, port))
		}
	}
	for i, at := range own {
		datagrams(at, portals, own[(i+1)%len(own)])
	}
	for _, port := range openPorts(t, v.portal, "udp") {
		datagrams(netip.AddrPortFrom(lab.HubAddr, port), own...)
	}
	var closing sync.Map
	for _, port := range openPorts(t, v.portal, "tcp") {
		from, to := stranger.Node, netip.AddrPortFrom(lab.HubAddr, port)
		if port == 9090 { // the operator's
			from, to = v.internet.Hub, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
		}
		throw(fmt.Sprint("to ", to), func(g garbage) error {
			closeAll, err := g.connections(from, to, 80)
			closing.Store(to, closeAll)
			return err
		})
	}
	work.Wait()
	closing.Range(func(_, f any) bool { f.(func())(); return true })
	t.Logf("%d ports of nodes; %d attackers", len(own), seed)
}

// openPorts lists the ports of a kind (udp or tcp) that a process's network namespace has open, but for those of the tunnel
// (proc_pid_net(5)).
func openPorts(t *testing.T, p *sluice, kind string) (ports []uint16) {
	t.Helper()
	const udpOpen, tcpListens = "07", "0A"
	for _, name := range []string{kind, kind + "6"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", p.cmd.Process.Pid, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			fields := strings.Fields(s.Text())
			if len(fields) < 4 || fields[3] != udpOpen && fields[3] != tcpListens {
				continue
			}
			address, port, _ := strings.Cut(fields[1], ":")
			n, err := strconv.ParseUint(port, 16, 16)
			if raw, _ := hex.DecodeString(address); err != nil || len(raw) == 4 && raw[3] == 100 { // 100.64.0.0/11, bytes reversed
				continue
			}
			if !slices.Contains(ports, uint16(n)) {
				ports = append(ports, uint16(n))
			}
		}
	}
	if len(ports) == 0 {
		t.Fatalf("%s has no %s port", p.name, kind)
	}
	return ports
}

// usage is how much CPU time processes take within a second (proc_pid_stat(5), fields 14 and 15, in hundredths).
func usage(list []*sluice) []time.Duration {
	sum := func(p *sluice) (ticks uint64) {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		for _, field := range fields[11:13] {
			n, _ := strconv.ParseUint(field, 10, 64)
			ticks += n
		}
		return ticks
	}
	used := make([]time.Duration, len(list))
	for i, p := range list {
		used[i] = -time.Duration(sum(p)) * 10 * time.Millisecond
	}
	time.Sleep(time.Second)
	for i, p := range list {
		used[i] += time.Duration(sum(p)) * 10 * time.Millisecond
	}
	return used
}

// metrics reads the portal's page of counters.
func (v *vpn) metrics() map[string]uint64 {
	v.t.Helper()
	code, text := ask(v.internet.Hub, "/metrics")
	if code != 200 {
		v.t.Fatalf("metrics of the portal: %d %s", code, text)
	}
	list := map[string]uint64{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseFloat(value, 64); ok && err == nil {
			list[name] = uint64(n)
		}
	}
	return list
}

// grown checks that counters have grown, each by more than one datagram.
func grown(t *testing.T, of string, before, after map[string]uint64, names ...string) {
	t.Helper()
	for _, name := range names {
		if after[name] < before[name]+2 {
			t.Errorf("%s: %s was %d and is %d", of, name, before[name], after[name])
		}
	}
}
