package host

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// readTable reads it while nobody changes any.
func readTable(name string) (text string, generation uint16, err error) {
	r := tableReader{name: name}
	text, err = r.read()
	return text, r.generation, err
}

func listChains(t *testing.T, conn *nftables.Conn) map[string]*nftables.Chain {
	t.Helper()
	list, err := conn.ListChains()
	must(t, err)
	chains := map[string]*nftables.Chain{}
	for _, c := range list {
		chains[c.Name] = c
	}
	return chains
}

// TestMendedWhole: whatever is changed of the table is seen, and made again; what is not changed is left.
func TestMendedWhole(t *testing.T) {
	inNewNamespace(t)
	off(t)
	fw, err := StartForwarding(Forward{
		Interface: "host0", Routes: behindRoutes.Routes, Reach: prefixes("10.2.0.0/24"), Addresses: prefixes("100.64.0.1/32", "fd00:2021:1111::1/128"),
	})
	must(t, err)
	defer func() { must(t, fw.Close()) }()
	conn, err := nftables.New()
	must(t, err)
	want, _, err := readTable("sluice-host0")
	must(t, err)
	check := func(what string, harm func()) {
		t.Helper()
		harm()
		must(t, conn.Flush())
		for _, wantMended := range []bool{what != "nothing", false} {
			if mended, err := fw.Mend(); err != nil || mended != wantMended {
				t.Errorf("%s: mended %v, %v; want %v, nil", what, mended, err, wantMended)
			}
		}
		if now, _, err := readTable("sluice-host0"); err != nil || now != want {
			t.Errorf("%s: then there is %s\nwant %s (%v)", what, now, want, err)
		}
	}
	rules := func(chain string) []*nftables.Rule {
		t.Helper()
		list, err := conn.GetRules(fw.table, listChains(t, conn)[chain])
		must(t, err)
		return list
	}
	check("nothing", func() {})
	for name := range listChains(t, conn) {
		for i := range rules(name) {
			check("a rule of "+name+" deleted", func() { must(t, conn.DelRule(rules(name)[i])) })
		}
		if !isNote(name) {
			check("rules of "+name+" flushed", func() { conn.FlushChain(listChains(t, conn)[name]) })
		}
	}
	check("another verdict", func() {
		for _, r := range rules(forwardChain) {
			if v, ok := r.Exprs[len(r.Exprs)-1].(*expr.Verdict); ok && v.Kind == expr.VerdictDrop {
				v.Kind = expr.VerdictAccept
				conn.ReplaceRule(r)
				return
			}
		}
		t.Error("no rule drops")
	})
	check("a rule before others", func() {
		conn.InsertRule(&nftables.Rule{Table: fw.table, Chain: listChains(t, conn)[forwardChain], Exprs: verdict(expr.VerdictAccept)})
	})
	check("another policy", func() {
		c := listChains(t, conn)[forwardChain]
		drop := nftables.ChainPolicyDrop
		c.Policy = &drop
		conn.AddChain(c)
	})
	check("one more network", func() {
		s, err := conn.GetSetByName(fw.table, "offered4")
		must(t, err)
		must(t, conn.SetAddElements(s, intervals(prefixes("10.99.0.0/16"), false)))
	})
	check("no networks", func() {
		s, err := conn.GetSetByName(fw.table, "offered6")
		must(t, err)
		conn.FlushSet(s)
	})
	if nft, err := exec.LookPath("nft"); err == nil {
		check("asleep", func() { must(t, exec.Command(nft, "add table inet sluice-host0 { flags dormant; }").Run()) })
	}
	check("no chains", func() { conn.FlushTable(fw.table); conn.DelChain(listChains(t, conn)["errors"]) })
	check("no table", func() { conn.DelTable(fw.table) })
	check("nothing", func() { // a counter has counted
		must(t, SetUp("host0"))
		must(t, AddAddress("host0", netip.MustParsePrefix("10.1.0.1/24")))
		udp, err := net.Dial("udp", "10.1.0.2:4000")
		must(t, err)
		defer udp.Close()
		_, err = udp.Write([]byte("to the tunnel"))
		must(t, err)
	})
}

// TestMendedAmongChanges: that others change their tables all the time is no damage to ours, and does not hide any.
func TestMendedAmongChanges(t *testing.T) {
	inNewNamespace(t)
	off(t)
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(home)
	end, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		conn, err := nftables.New(nftables.WithNetNSFd(home))
		table := &nftables.Table{Name: "busy", Family: nftables.TableFamilyINet}
		for n := 0; err == nil; n++ {
			select {
			case <-end:
				ended <- nil
				return
			default:
			}
			conn.AddTable(table)
			c := conn.AddChain(&nftables.Chain{Name: "rules", Table: table})
			conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: verdict(expr.VerdictAccept)})
			if n%10 == 9 {
				conn.DelTable(table)
			}
			err = conn.Flush()
		}
		ended <- err
	}()
	fw := start(t, "host0")
	for range 100 {
		if mended, err := fw.Mend(); err != nil || mended {
			t.Fatalf("mended %v, %v; want false, nil", mended, err)
		}
	}
	conn, err := nftables.New()
	must(t, err)
	conn.FlushTable(fw.table)
	must(t, conn.Flush())
	for _, want := range []bool{true, false} {
		if mended, err := fw.Mend(); err != nil || mended != want {
			t.Errorf("flushed: mended %v, %v; want %v, nil", mended, err, want)
		}
	}
	close(end)
	must(t, <-ended)
	must(t, fw.Close())
}

// TestWatcher: each kind of change is told of, and what is none of our business is not.
func TestWatcher(t *testing.T) {
	inNewNamespace(t)
	newCable(t, "192.168.7.2/24")
	must(t, SetUp("host0"))
	fw := start(t, "host0")
	defer func() { must(t, fw.Close()) }()
	w, err := NewWatcher(DefaultTable)
	must(t, err)
	conn, err := nftables.New()
	must(t, err)
	other := &nftables.Table{Name: "other", Family: nftables.TableFamilyINet}
	for _, c := range []struct {
		what   string
		told   bool
		change func() error
	}{
		{"another table", false, func() error { conn.AddTable(other); return conn.Flush() }},
		{"a route of another table", false, func() error {
			return AddRoute(Route{Interface: "eth0", Prefix: netip.MustParsePrefix("10.3.0.0/24"), Table: 77})
		}},
		{"a route of main", false, func() error { return AddRoute(Route{Interface: "eth0", Prefix: netip.MustParsePrefix("10.3.0.0/24")}) }},
		{"a default route", true, func() error { return AddRoute(Route{Interface: "eth0", Prefix: netip.MustParsePrefix("0.0.0.0/0")}) }},
		{"a route of ours", true, func() error {
			return AddRoute(Route{Interface: "host0", Prefix: netip.MustParsePrefix("10.4.0.0/24"), Table: DefaultTable})
		}},
		{"an IPv4 rule", true, func() error { return AddRule(Rule{Table: 77, Priority: 100}) }},
		{"an IPv6 rule", true, func() error { return AddRule(Rule{Table: 77, Priority: 100, IPv6: true}) }},
		{"an address", true, func() error { return AddAddress("eth0", netip.MustParsePrefix("192.168.8.2/24")) }},
		{"a link", true, func() error { return netlink.LinkAdd(tunLink("host9")) }},
		{"forwarding", true, func() error { return os.WriteFile(settings+"ipv4/ip_forward", []byte("0"), 0) }},
		{"a rule in our table", true, func() error {
			conn.AddRule(&nftables.Rule{Table: fw.table, Chain: listChains(t, conn)[forwardChain], Exprs: verdict(expr.VerdictAccept)})
			return conn.Flush()
		}},
		{"all tables", true, func() error { conn.FlushRuleset(); return conn.Flush() }},
	} {
		must(t, c.change())
		wait := 100 * time.Millisecond
		if c.told {
			wait = 20 * time.Second
		}
		select {
		case <-w.Changes():
			if !c.told {
				t.Errorf("%s is told of", c.what)
			}
			for quiet := false; !quiet; { // a change makes several notices
				select {
				case <-w.Changes():
				case <-time.After(200 * time.Millisecond):
					quiet = true
				}
			}
		case <-time.After(wait):
			if c.told {
				t.Errorf("%s is not told of", c.what)
			}
		}
	}
	must(t, w.Close())
}

// TestFlowsEnded: a flow that began while the table was away is masqueraded afterwards, one that is masqueraded already goes on as it is,
// and one that Set does not allow any more ends.
func TestFlowsEnded(t *testing.T) {
	l := newGatewayLab(t)
	f := behindRoutes
	f.Overlay = prefixes("100.64.0.0/11", "fd00:2021:1111::/107")
	fw := l.startForwarding(t, f)
	mend := func() {
		t.Helper()
		l.in(t, func() error {
			_, err := fw.Mend()
			return errors.Join(err, wrap(unsettled(fw), "mend"))
		})
	}
	for _, family := range families {
		conn := socket(t, l.behind, family.behind, 4000)
		ask := func(port uint16) *net.UDPAddr {
			t.Helper()
			l.fromTunnel(t, family.client, family.behind, &layers.UDP{SrcPort: layers.UDPPort(port), DstPort: 4000})
			_, from := got(t, conn)
			return from
		}
		before := ask(1000)
		l.in(t, func() error { flushRuleset(t); return nil })
		if from := ask(2000); from.IP.String() != family.client {
			t.Fatalf("without our table the host behind sees %v, want %s", from, family.client)
		}
		mend()
		if from := ask(2000); from.IP.String() != family.gateway {
			t.Errorf("a flow that began without the table is from %v, want %s", from, family.gateway)
		}
		if from := ask(1000); from.String() != before.String() {
			t.Errorf("a flow that began before is from %v, want %v", from, before)
		}
		g := f
		g.Routes = prefixes("10.2.0.0/24", "fd02::/64")
		l.in(t, func() error { return fw.Set(g) })
		mend()
		l.fromTunnel(t, family.client, family.behind, &layers.UDP{SrcPort: 1000, DstPort: 4000})
		wantNothing(t, conn, "a network that is not offered any more")
		l.in(t, func() error { return fw.Set(f) })
		mend()
	}
}

// unsettled mends until there is nothing to end.
func unsettled(fw *Forwarding) error {
	for range 1000 {
		if !fw.Unended() {
			return nil
		}
		if _, err := fw.Mend(); err != nil {
			return err
		}
	}
	return errors.New("there are always connections to end")
}

// TestMarksMended: what is changed of the table that leads answers back is made again.
func TestMarksMended(t *testing.T) {
	inNewNamespace(t)
	r := newRouting(t, "host0")
	routes := prefixes("0.0.0.0/0")
	must(t, r.Set(routes))
	const name = "sluice-host0-mark"
	want, _, err := readTable(name)
	must(t, err)
	conn, err := nftables.New()
	must(t, err)
	for chain, c := range listChains(t, conn) {
		list, err := conn.GetRules(c.Table, c)
		must(t, err)
		for i := range list {
			now, err := conn.GetRules(c.Table, c)
			must(t, err)
			must(t, conn.DelRule(now[i]))
			must(t, conn.Flush())
			must(t, r.Set(routes))
			if text, _, err := readTable(name); err != nil || text != want {
				t.Errorf("rule %d of %s deleted: then there is %s\nwant %s (%v)", i, chain, text, want, err)
			}
		}
	}
	_, before, err := readTable(name)
	must(t, err)
	must(t, r.Set(routes))
	if _, after, err := readTable(name); err != nil || after != before {
		t.Errorf("nothing was changed, and nftables were written: generation %d, want %d (%v)", after, before, err)
	}
	must(t, r.Close())
}
