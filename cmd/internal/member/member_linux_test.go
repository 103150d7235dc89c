package member

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/cmd/internal/environment"
	"github.com/sluice-vpn/sluice/cmd/internal/logs"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/tun/host"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fakePortal answers sync requests with what the test says, and holds those that know it already.
type fakePortal struct {
	mu     sync.Mutex
	answer protocol.Sync
	asked  protocol.SyncRequest
	change chan struct{} // closed when the answer changes
}

func (f *fakePortal) set(s protocol.Sync) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s.Revision = f.answer.Revision + 1
	if s.Overlay == nil {
		s.Overlay = protocol.DefaultOverlay()
	}
	s.Peers = slices.Clone(s.Peers)
	for i := range s.Peers {
		if p := &s.Peers[i]; p.Identity == (protocol.Identity{}) {
			id := protocol.Token{Secret: sha256.Sum256([]byte(p.Name))}.Identity()
			p.Identity, p.Signature = protocol.IdentityOf(id), protocol.SignKey(id, p.Name, p.PublicKey)
		}
	}
	f.answer = s
	if f.change != nil {
		close(f.change)
	}
	f.change = make(chan struct{})
}

func (f *fakePortal) sync(ctx context.Context, q protocol.SyncRequest) (protocol.Sync, error) {
	f.mu.Lock()
	f.asked = q
	answer, change := f.answer, f.change
	f.mu.Unlock()
	if q.Known != answer.Revision {
		return answer, nil
	}
	select {
	case <-ctx.Done():
		return protocol.Sync{}, ctx.Err()
	case <-change:
	}
	return f.sync(ctx, protocol.SyncRequest{PublicKey: q.PublicKey, Routes: q.Routes})
}

// testNode is a node in the lab, with a portal in memory.
type testNode struct {
	portal *fakePortal
	node   *status.Node
	socket string
	log    *safeBuffer
	made   *node
	end    context.CancelFunc
	ended  chan error
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func startNode(t *testing.T, o Options, first protocol.Sync, environ map[string]string) *testNode {
	t.Helper()
	lab.NeedTUN(t)
	if o.Token.Name == "" {
		o.Token.Name = "node"
	}
	o.Socket = filepath.Join(t.TempDir(), "run", "node.sock")
	if o.Pins == "" {
		o.Pins = filepath.Join(t.TempDir(), "pins.json")
	}
	o.Getenv = func(name string) string { return environ[name] }
	o = o.withDefaults()
	memory, err := signal.NewNetwork(1, signal.Faults{}).Join(o.Token.Name, signal.Filter{})
	must(t, err)
	n := &testNode{portal: &fakePortal{}, socket: o.Socket, log: &safeBuffer{}, ended: make(chan error, 1), node: status.NewNode(o.Socket)}
	n.portal.set(first)
	ctx, cancel := context.WithCancelCause(context.Background())
	n.end = func() { cancel(nil) }
	made := &node{
		options: o, settings: environment.Read(o.Getenv), logger: slog.New(logs.NewText(n.log, slog.LevelDebug)), failed: cancel,
		portal: &portalLink{
			signaler: memory, sync: n.portal.sync, counters: memory.Counters, close: memory.Close,
			state:   func() signal.State { return signal.State{Up: true, Since: time.Now()} },
			changed: func() <-chan struct{} { return nil },
		},
		signIn: func() *edge.SignInStatus { return &edge.SignInStatus{SignedIn: true} },
	}
	n.made = made
	listener, err := status.Listen(o.Socket)
	must(t, err)
	must(t, made.build())
	p := newPresence(o, made.settings, made.logger)
	p.node.Store(made)
	server := p.serve(listener)
	stopStats, stopHangUp := environment.OnStatsSignal(p.writeStats), onHangUp(made.networkChanged)
	go func() {
		err := made.live(ctx)
		stopStats()
		stopHangUp()
		n.ended <- errors.Join(err, server.Close())
	}()
	t.Cleanup(func() { n.stop(t) })
	return n
}

func (n *testNode) stop(t *testing.T) error {
	t.Helper()
	n.end()
	select {
	case err := <-n.ended:
		n.ended <- err
		return err
	case <-time.After(30 * time.Second):
		t.Errorf("the node did not end; its log:\n%s", n.log)
		return nil
	}
}

// eventually waits until ok, up to a deadline that only a hang exceeds.
func (n *testNode) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s; log:\n%s", what, n.log)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func addressesOf(name string) []string {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil
	}
	list, _ := netlink.AddrList(link, netlink.FAMILY_ALL)
	var all []string
	for _, a := range list {
		if !a.IP.IsLinkLocalUnicast() {
			all = append(all, a.IPNet.String())
		}
	}
	return all
}

func tableOf(table int) []string {
	var all []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, _ := netlink.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
		for _, r := range list {
			all = append(all, r.Dst.String())
		}
	}
	return all
}

func setting(t *testing.T, path string) string {
	t.Helper()
	value, err := os.ReadFile("/proc/sys/net/" + path)
	must(t, err)
	return strings.TrimSpace(string(value))
}

func key(b byte) protocol.Key {
	private, err := crypto.GeneratePrivateKey(bytes.NewReader(bytes.Repeat([]byte{b}, 64)))
	if err != nil {
		panic(err)
	}
	return protocol.Key(private.Public())
}

// TestGateway: a node follows the portal, tells of itself, and leaves nothing behind.
func TestGateway(t *testing.T) {
	lab.NeedTUN(t)
	before := setting(t, "ipv4/ip_forward")
	first := protocol.Sync{
		Name: "office", Role: protocol.Gateway, Addresses: prefixes("100.64.0.1/32", "fd00:2021:1111::1/128"),
		Offers: protocol.Offers{
			{Prefix: netip.MustParsePrefix("10.0.0.0/24"), State: protocol.Approved},
			{Prefix: netip.MustParsePrefix("8.8.8.0/24"), State: protocol.Pending, Why: "not private", Remedy: "approve it"},
		},
		Peers: []protocol.Peer{
			{Name: "alice", Role: protocol.Client, PublicKey: key(1), AllowedIPs: prefixes("100.64.0.2/32")},
			{Name: "home", Role: protocol.Gateway, PublicKey: key(2), AllowedIPs: prefixes("100.64.0.3/32", "10.0.0.128/25", "10.1.0.0/24")},
		},
	}
	n := startNode(t, Options{Role: protocol.Gateway, Interface: "gw0", Routes: prefixes("10.0.0.0/24", "8.8.8.0/24", "9.9.9.0/24"), Token: protocol.Token{Name: "office"}}, first, nil)
	n.eventually(t, "up", func() bool { return strings.Contains(n.log.String(), "gateway office is up") })
	if got := addressesOf("gw0"); !slices.Equal(got, []string{"100.64.0.1/32", "fd00:2021:1111::1/128"}) {
		t.Errorf("addresses %q", got)
	}
	if got := tableOf(host.DefaultTable); !slices.Equal(got, []string{"10.1.0.0/24", "100.64.0.2/32", "100.64.0.3/32"}) {
		t.Errorf("routes %q", got)
	}
	if !strings.Contains(n.log.String(), "10.0.0.128/25") {
		t.Error("nothing was said of the route that overlaps with our own")
	}
	for _, want := range []string{
		"8.8.8.0/24 is offered to nobody (pending): not private; to approve it, on the portal's machine: approve it",
		"9.9.9.0/24 is offered to nobody: the portal says nothing about it",
	} {
		if !strings.Contains(n.log.String(), want) {
			t.Errorf("no %q in the log", want)
		}
	}
	if setting(t, "ipv4/ip_forward") != "1" {
		t.Error("a gateway does not forward")
	}
	if st, err := os.Stat(n.socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: mode %v, %v", st.Mode(), err)
	}
	s, err := n.node.Get(context.Background())
	if err != nil || s.Name != "office" || s.Interface != "gw0" || len(s.Connections) != 2 || s.ListenPort == 0 {
		t.Errorf("status %+v, %v", s, err)
	}

	first.Peers = first.Peers[:1]
	n.portal.set(first)
	n.eventually(t, "the second answer", func() bool { return slices.Equal(tableOf(host.DefaultTable), []string{"100.64.0.2/32"}) })

	must(t, n.stop(t))
	if got := setting(t, "ipv4/ip_forward"); got != before {
		t.Errorf("ip_forward is %s, was %s", got, before)
	}
	if _, err := netlink.LinkByName("gw0"); err == nil {
		t.Error("the interface was left")
	}
	if got := tableOf(host.DefaultTable); len(got) != 0 {
		t.Errorf("routes were left: %q", got)
	}
	if _, err := os.Stat(n.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket was left: %v", err)
	}
	if strings.Contains(n.log.String(), "ERROR") {
		t.Errorf("log:\n%s", n.log)
	}
}

// TestMended: a gateway survives that others load a firewall anew and delete routes, and its status tells what is in the way.
func TestMended(t *testing.T) {
	lab.NeedTUN(t)
	lan := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}, PeerName: "lan1"}
	must(t, netlink.LinkAdd(lan))
	defer netlink.LinkDel(lan)
	must(t, host.AddAddress("lan0", netip.MustParsePrefix("10.1.0.7/16")))
	n := startNode(t, Options{Role: protocol.Gateway, Interface: "gw4", Table: 780}, protocol.Sync{
		Name: "office", Role: protocol.Gateway, Addresses: prefixes("100.64.0.1/32"),
		Peers: []protocol.Peer{{Name: "home", Role: protocol.Gateway, PublicKey: key(2), AllowedIPs: prefixes("100.64.0.3/32", "10.0.0.0/15", "10.2.0.0/24")}},
	}, nil)
	n.eventually(t, "up", func() bool { return strings.Contains(n.log.String(), "gateway office is up") })
	notes := func() string {
		s, err := n.node.Get(context.Background())
		must(t, err)
		return strings.Join(s.Notes, "\n")
	}
	for _, want := range []string{"offers no network", "10.1.0.0/16 on lan0 overlaps with 10.0.0.0/15"} {
		if got := notes(); !strings.Contains(got, want) {
			t.Errorf("no %q among the notes:\n%s", want, got)
		}
	}

	conn, err := nftables.New()
	must(t, err)
	conn.FlushRuleset()
	drop := nftables.ChainPolicyDrop
	conn.AddChain(&nftables.Chain{
		Name: "forward", Table: conn.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyINet}),
		Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	must(t, conn.Flush())
	defer func() {
		conn.FlushRuleset()
		conn.Flush()
	}()
	must(t, host.DeleteRoute(host.Route{Interface: "gw4", Prefix: netip.MustParsePrefix("10.2.0.0/24"), Table: 780}))
	n.eventually(t, "mended", func() bool {
		tables, err := conn.ListTables()
		must(t, err)
		there := slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == "sluice-gw4" })
		return there && slices.Contains(tableOf(780), "10.2.0.0/24")
	})
	n.eventually(t, "told", func() bool {
		return strings.Contains(notes(), "nft insert rule inet filter forward iifname gw4 accept")
	})
	n.made.networkChanged()
	n.eventually(t, "looked at once more", func() bool { return len(n.made.keeper.look) == 0 })
	must(t, n.stop(t))
	for _, text := range []string{"changed by somebody else", "touched by somebody else", "offers no network", "drops what it is not told"} {
		if got := strings.Count(n.log.String(), text); got != 1 {
			t.Errorf("%q is logged %d times:\n%s", text, got, n.log)
		}
	}
}

// TestWatched: what others change is set again by what the kernel tells, long before the next look at everything; who does so all the time
// gets the log's attention once.
func TestWatched(t *testing.T) {
	lab.NeedTUN(t)
	n := startNode(t, Options{Role: protocol.Gateway, Interface: "gw6", Table: 786, Routes: prefixes("10.3.0.0/24")}, protocol.Sync{
		Name: "office", Role: protocol.Gateway, Addresses: prefixes("100.64.0.1/32"),
		Offers: protocol.Offers{{Prefix: netip.MustParsePrefix("10.3.0.0/24"), State: protocol.Approved}},
		Peers:  []protocol.Peer{{Name: "home", Role: protocol.Gateway, PublicKey: key(2), AllowedIPs: prefixes("100.64.0.3/32", "10.2.0.0/24")}},
	}, nil)
	n.eventually(t, "up", func() bool { return strings.Contains(n.log.String(), "gateway office is up") })
	conn, err := nftables.New()
	must(t, err)
	table := &nftables.Table{Name: "sluice-gw6", Family: nftables.TableFamilyINet}
	forward := &nftables.Chain{Name: "forward", Table: table}
	rules := func() int {
		list, _ := conn.GetRules(table, forward) // the table may be away
		return len(list)
	}
	all := rules()
	policy := func() []netlink.Rule {
		list, err := netlink.RuleListFiltered(netlink.FAMILY_V4, &netlink.Rule{Table: 786}, netlink.RT_FILTER_TABLE)
		must(t, err)
		return list
	}
	for _, c := range []struct {
		what string
		harm func()
		away func() bool
	}{
		{"rules of nftables", func() { conn.FlushTable(table); must(t, conn.Flush()) }, func() bool { return rules() != all }},
		{"one of them", func() {
			list, err := conn.GetRules(table, forward)
			must(t, err)
			must(t, conn.DelRule(list[0]))
			must(t, conn.Flush())
		}, func() bool { return rules() != all }},
		{"the table", func() { conn.DelTable(table); must(t, conn.Flush()) }, func() bool { return rules() != all }},
		{"a policy rule", func() { list := policy(); must(t, netlink.RuleDel(&list[0])) }, func() bool { return len(policy()) != 2 }},
		{"a route", func() {
			must(t, host.DeleteRoute(host.Route{Interface: "gw6", Prefix: netip.MustParsePrefix("10.2.0.0/24"), Table: 786}))
		}, func() bool { return !slices.Contains(tableOf(786), "10.2.0.0/24") }},
		{"forwarding", func() { must(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0)) }, func() bool { return setting(t, "ipv4/ip_forward") != "1" }},
	} {
		c.harm()
		begin := time.Now()
		n.eventually(t, c.what+" back", func() bool { return !c.away() })
		if took := time.Since(begin); took > mendInterval/2 { // at least a look at everything was not waited for
			t.Errorf("%s was away for %v", c.what, took)
		}
	}
	for begin := time.Now(); time.Since(begin) < 2*time.Second; time.Sleep(20 * time.Millisecond) {
		conn.DelTable(table)
		_ = conn.Flush() // it may be away
	}
	n.eventually(t, "the table back", func() bool { return rules() == all })
	written := func() uint64 { // grows when the table is made
		list, err := conn.GetRules(table, forward)
		must(t, err)
		return list[0].Handle
	}
	quiet, before := time.Now(), written()
	n.eventually(t, "what a node sets again is nothing to set again", func() bool {
		if now := written(); now != before {
			quiet, before = time.Now(), now
		}
		return time.Since(quiet) > 4*leastPause
	})
	if got := strings.Count(n.log.String(), "touched by somebody else"); got != 1 {
		t.Errorf("it is logged %d times, want once:\n%s", got, n.log)
	}
	must(t, n.stop(t))
}

// TestStrangersTold: a gateway that has dropped what others sent through its machine, because it switched forwarding on for itself only, tells
// how the machine forwards other things too.
func TestStrangersTold(t *testing.T) {
	lab.NeedTUN(t)
	const path = "/proc/sys/net/ipv4/ip_forward"
	before := setting(t, "ipv4/ip_forward")
	must(t, os.WriteFile(path, []byte("0"), 0))
	defer os.WriteFile(path, []byte(before), 0)
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	request, err := unix.NewIfreq("other0")
	must(t, err)
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	must(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, request))
	must(t, host.AddAddress("other0", netip.MustParsePrefix("10.55.0.1/24")))
	must(t, host.SetUp("other0"))
	n := startNode(t, Options{Role: protocol.Gateway, Interface: "gw9", Table: 789, Routes: prefixes("10.3.0.0/24")}, protocol.Sync{
		Name: "office", Role: protocol.Gateway, Addresses: prefixes("100.64.0.1/32"),
		Offers: protocol.Offers{{Prefix: netip.MustParsePrefix("10.3.0.0/24"), State: protocol.Approved}},
	}, nil)
	n.eventually(t, "up", func() bool { return strings.Contains(n.log.String(), "gateway office is up") })
	notes := func() string {
		s, err := n.node.Get(context.Background())
		must(t, err)
		return strings.Join(s.Notes, "\n")
	}
	const told, remedy = "switched forwarding on for itself only", "sysctl -w net.ipv4.ip_forward=1 before it starts"
	if got := notes(); strings.Contains(got, told) {
		t.Errorf("before packets: notes %q", got)
	}
	header := []byte{0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0, 10, 55, 0, 2, 10, 55, 0, 3} // RFC 791; protocol 253 is for tests (RFC 3692)
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(header[i])<<8 | uint32(header[i+1])
	}
	sum = ^(sum&0xffff + sum>>16)
	header[10], header[11] = byte(sum>>8), byte(sum)
	_, err = unix.Write(fd, header)
	must(t, err)
	n.eventually(t, "told", func() bool { got := notes(); return strings.Contains(got, told) && strings.Contains(got, remedy) })
	must(t, n.stop(t))
}

// TestNoIPv6: a gateway whose machine has no IPv6 goes on, and its status tells which of its networks are not reached.
func TestNoIPv6(t *testing.T) {
	lab.Need(t)
	const path = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
	must(t, os.WriteFile(path, []byte("1"), 0))
	defer os.WriteFile(path, []byte("0"), 0)
	n := startNode(t, Options{Role: protocol.Gateway, Interface: "gw8", Table: 788, Routes: prefixes("10.3.0.0/24", "fd03::/64")}, protocol.Sync{
		Name: "office", Role: protocol.Gateway, Addresses: prefixes("100.64.0.1/32", "fd00:2021:1111::1/128"),
	}, nil)
	n.eventually(t, "up", func() bool { return strings.Contains(n.log.String(), "gateway office is up") })
	s, err := n.node.Get(context.Background())
	must(t, err)
	if got := strings.Join(s.Notes, "\n"); !strings.Contains(got, "no IPv6 on gw8") || !strings.Contains(got, "not reached: fd03::/64") {
		t.Errorf("notes %q, want one of IPv6 and fd03::/64", got)
	}
	must(t, n.stop(t))
}

func TestRoleMismatch(t *testing.T) {
	n := startNode(t, Options{Role: protocol.Gateway, Interface: "gw1"}, protocol.Sync{Name: "node", Role: protocol.Client}, nil)
	select {
	case err := <-n.ended:
		n.ended <- nil
		if err == nil || err.Error() != "the token is that of a client: run sluice client" {
			t.Errorf("error %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("the node goes on; log:\n%s", n.log)
	}
}

// TestInterfaceDeleted: a node without its interface ends, and says why.
func TestInterfaceDeleted(t *testing.T) {
	n := startNode(t, Options{Role: protocol.Client, Interface: "cl3", Table: 778}, protocol.Sync{
		Name: "laptop", Role: protocol.Client, Addresses: prefixes("100.64.0.2/32"),
		Peers: []protocol.Peer{{Name: "office", Role: protocol.Gateway, PublicKey: key(1), AllowedIPs: prefixes("100.64.0.1/32")}},
	}, nil)
	n.eventually(t, "up", func() bool { return strings.Contains(n.log.String(), "client laptop is up") })
	link, err := netlink.LinkByName("cl3")
	must(t, err)
	must(t, netlink.LinkDel(link))
	select {
	case err := <-n.ended:
		n.ended <- nil
		if err == nil || err.Error() != "interface cl3 is gone" {
			t.Errorf("error %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("the node goes on; log:\n%s", n.log)
	}
	rules, err := netlink.RuleListFiltered(netlink.FAMILY_V4, &netlink.Rule{Table: 778}, netlink.RT_FILTER_TABLE)
	if err != nil || len(rules) > 0 {
		t.Errorf("rules were left: %v, %v", rules, err)
	}
}

// TestPortTaken: a node that cannot have its UDP port ends, and says which flag helps.
func TestPortTaken(t *testing.T) {
	lab.NeedTUN(t)
	taken, err := net.ListenUDP("udp4", &net.UDPAddr{})
	must(t, err)
	defer taken.Close()
	port := uint16(taken.LocalAddr().(*net.UDPAddr).Port)
	n := startNode(t, Options{Role: protocol.Client, Interface: "cl4", Table: 779, Port: port}, protocol.Sync{
		Name: "laptop", Role: protocol.Client, Addresses: prefixes("100.64.0.2/32"),
	}, nil)
	select {
	case err := <-n.ended:
		n.ended <- nil
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("port %d", port)) || !strings.HasSuffix(err.Error(), "another one with -port") {
			t.Errorf("error %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("the node goes on; log:\n%s", n.log)
	}
}

func TestClientDoesNotForward(t *testing.T) {
	lab.NeedTUN(t)
	before := setting(t, "ipv4/ip_forward")
	n := startNode(t, Options{Role: protocol.Client, Interface: "cl0", Table: 777}, protocol.Sync{
		Name: "laptop", Role: protocol.Client, Addresses: prefixes("100.64.0.2/32"),
		Peers: []protocol.Peer{{Name: "office", Role: protocol.Gateway, PublicKey: key(1), AllowedIPs: prefixes("100.64.0.1/32", "0.0.0.0/0", "::/0")}},
	}, nil)
	n.eventually(t, "up", func() bool { return strings.Contains(n.log.String(), "client laptop is up") })
	if got := tableOf(777); !slices.Equal(got, []string{"0.0.0.0/0", "100.64.0.1/32", "::/0"}) {
		t.Errorf("routes %q", got)
	}
	if got := setting(t, "ipv4/ip_forward"); got != before {
		t.Errorf("ip_forward is %s, was %s", got, before)
	}
	must(t, n.stop(t))
}

// post sends a request to the status socket.
func (n *testNode) post(t *testing.T, path string) int {
	t.Helper()
	answer, err := status.Client(n.socket, 0).Post("http://node"+path, "", nil)
	must(t, err)
	defer answer.Body.Close()
	io.Copy(io.Discard, answer.Body)
	return answer.StatusCode
}

func TestHooks(t *testing.T) {
	s := protocol.Sync{
		Name: "laptop", Role: protocol.Client, Addresses: prefixes("100.64.0.2/32"),
		Peers: []protocol.Peer{{Name: "office", Role: protocol.Gateway, PublicKey: key(1), PresharedKey: protocol.Key{7}, AllowedIPs: prefixes("100.64.0.1/32")}},
	}
	for _, enabled := range []bool{false, true} {
		environ, name := map[string]string{}, "cl1"
		if enabled {
			environ["SLUICE_TEST_HOOKS"], name = "1", "cl2"
		}
		n := startNode(t, Options{Role: protocol.Client, Interface: name}, s, environ)
		n.eventually(t, "up", func() bool { return strings.Contains(n.log.String(), "client laptop is up") })
		for path, want := range map[string]int{
			"/test/private-key": 204, "/test/preshared-key?peer=office": 204, "/test/preshared-key?peer=nobody": 404, "/test/other": 404,
		} {
			if !enabled {
				want = 404
			}
			if got := n.post(t, path); got != want {
				t.Errorf("hooks %v: POST %s: %d, want %d", enabled, path, got, want)
			}
		}
		must(t, n.stop(t))
	}
}

// TestDialerRemembers: the portal is found again while names cannot be resolved.
func TestDialerRemembers(t *testing.T) {
	lab.Need(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	d := &dialer{mark: host.DefaultMark, last: map[string]string{}}
	const name = "portal.invalid:1"
	if _, err := d.dial(context.Background(), "tcp", name); err == nil {
		t.Fatal("portal.invalid was found")
	}
	d.last[name] = l.Addr().String()
	conn, err := d.dial(context.Background(), "tcp", name)
	must(t, err)
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) {
		if mark, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK); err != nil || mark != host.DefaultMark {
			t.Errorf("mark %d, %v", mark, err)
		}
	}))
}
