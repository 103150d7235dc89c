package portal

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/relay"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// clusterOf describes a cluster of three on loopback.
func clusterOf(t *testing.T) (c Cluster) {
	t.Helper()
	c.Name = "test"
	for _, name := range []string{"one", "two", "three"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c.Members = append(c.Members, Member{name, l.Addr().String()})
	}
	return c
}

// startMember starts the i-th portal of a cluster.
func startMember(c Cluster, i int, folder string) (*Portal, error) {
	c.Self, c.Listen = c.Members[i].Name, netip.MustParseAddrPort(c.Members[i].Address)
	return Start(Config{
		Folder: folder, Public: "127.0.0.1", Listen: loopback, Relay: relay.Config{Listen: []netip.AddrPort{loopback}}, Cluster: &c,
	})
}

// eventually waits until holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// trio is a cluster that runs, of a portal that was alone before and had a gateway and a client.
type trio struct {
	cluster      Cluster
	folders      [3]string
	portals      [3]*Portal
	gate, laptop protocol.Token
}

func newTrio(t *testing.T) *trio {
	t.Helper()
	x := &trio{cluster: clusterOf(t)}
	for i := range x.folders {
		x.folders[i] = filepath.Join(t.TempDir(), fmt.Sprint(i))
	}
	alone := open(t, x.folders[0])
	x.gate, x.laptop = add(t, alone, "gate", protocol.Gateway), add(t, alone, "laptop", protocol.Client)
	text, err := alone.Backup()
	if err != nil {
		t.Fatal(err)
	}
	alone.Close()
	var tasks sync.WaitGroup
	for i := range x.portals {
		if i > 0 {
			if _, err := Restore(t.Context(), x.folders[i], text); err != nil {
				t.Fatal(err)
			}
		}
		tasks.Go(func() {
			p, err := startMember(x.cluster, i, x.folders[i])
			if err != nil {
				t.Errorf("portal %d: %v", i, err)
			}
			x.portals[i] = p
		})
	}
	tasks.Wait()
	for _, p := range x.portals {
		if p != nil {
			t.Cleanup(func() { p.Close() })
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	eventually(t, "every portal has heard of the others", func() bool {
		return !slices.ContainsFunc(x.portals[:], func(p *Portal) bool { return len(p.others()) != 2 })
	})
	return x
}

// at is a token for one of the portals alone.
func (x *trio) at(i int, token protocol.Token) protocol.Token {
	token.Portals = []string{x.portals[i].public()}
	return token
}

// Three portals made of one are one to nodes: whoever signs in at one meets who has at another, and what is changed at one holds at all.
func TestCluster(t *testing.T) {
	t.Parallel()
	x := newTrio(t)
	gate, laptop := sign(t, x.at(0, x.gate)), sign(t, x.at(1, x.laptop))
	gateKey, laptopKey := key(t), key(t)
	ask(t, gate, protocol.SyncRequest{PublicKey: gateKey})
	var view protocol.Sync
	eventually(t, "the client is told of the gateway", func() bool {
		view = ask(t, laptop, protocol.SyncRequest{PublicKey: laptopKey})
		return len(view.Peers) == 1 && view.Peers[0].Online && view.Peers[0].PublicKey == gateKey
	})
	var relays []string
	for _, r := range view.Relays {
		relays = append(relays, r.Name)
	}
	if want := []string{"one", "three", "two"}; !slices.Equal(relays, want) {
		t.Errorf("relays %q, want %q", relays, want)
	}
	offer := signal.Message{Kind: signal.Bye, Generation: 1, Reason: "test"}
	if err := laptop.Send(t.Context(), "gate", offer); err != nil {
		t.Errorf("a message from portal to portal: %v", err)
	}

	token := add(t, x.portals[2], "late", protocol.Client)
	if len(token.Portals) != 3 {
		t.Errorf("the token names the portals %q, want three", token.Portals)
	}
	eventually(t, "a node that was added at the third portal is known at the first", func() bool {
		return slices.ContainsFunc(x.portals[0].Nodes(), func(n NodeStatus) bool { return n.Name == "late" })
	})
	if s := ask(t, sign(t, x.at(0, token)), protocol.SyncRequest{PublicKey: key(t)}); s.Refused != "" || len(s.Peers) != 1 {
		t.Errorf("the new node at the first portal: %q, %d peers", s.Refused, len(s.Peers))
	}

	// A token in use at two portals is served at the one where it came last.
	again := sign(t, x.at(2, x.laptop))
	if s := ask(t, again, protocol.SyncRequest{PublicKey: key(t)}); s.Refused != "" {
		t.Errorf("the later program: %q", s.Refused)
	}
	eventually(t, "the earlier program is displaced", func() bool {
		return ask(t, laptop, protocol.SyncRequest{PublicKey: laptopKey}).Displaced
	})
	again.Close()
	eventually(t, "the earlier program is served again", func() bool {
		return !ask(t, laptop, protocol.SyncRequest{PublicKey: laptopKey}).Displaced
	})

	if err := x.portals[0].RemoveNode(t.Context(), "laptop"); err != nil {
		t.Fatal(err)
	}
	if why := refusal(t, laptop); why == nil {
		t.Error("a node that was removed at another portal stays connected")
	}
}

// One of three is lost: nodes go on at another one, and changes are taken. Two are lost: what is known is served, changes are refused.
// They come back: changes are taken, and all hold the same.
func TestClusterLoses(t *testing.T) {
	t.Parallel()
	x := newTrio(t)
	x.gate.Portals = nil
	for _, p := range x.portals {
		x.gate.Portals = append(x.gate.Portals, p.public())
	}
	gate := sign(t, x.gate)
	k := key(t)
	ask(t, gate, protocol.SyncRequest{PublicKey: k})
	x.portals[0].Close()
	lost := time.Now()
	takes := func(p *Portal, name string) bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := p.AddNode(ctx, NewNode{Name: name, Role: protocol.Client})
		return err == nil || errors.Is(err, ErrExists) // a try that timed out may have been written
	}
	eventually(t, "a change without the first portal", func() bool { return takes(x.portals[1], "after-one") })
	t.Logf("changes are taken %v after the first portal was lost", time.Since(lost))
	if s := ask(t, gate, protocol.SyncRequest{PublicKey: k}); s.Refused != "" {
		t.Errorf("the gateway at another portal: %q", s.Refused)
	}

	eventually(t, "the third has it too", func() bool { return len(x.portals[2].Nodes()) == 3 })
	x.portals[1].Close()
	_, err := x.portals[2].AddNode(t.Context(), NewNode{Name: "minority", Role: protocol.Client})
	if err == nil || !strings.Contains(err.Error(), "no majority") {
		t.Errorf("a change at one of three: %v", err)
	}
	if s := ask(t, gate, protocol.SyncRequest{PublicKey: k}); s.Refused != "" || len(s.Peers) != 2 {
		t.Errorf("the gateway at one of three: %q, %d peers", s.Refused, len(s.Peers))
	}
	eventually(t, "the portal says that there is no majority", func() bool {
		why := x.portals[2].Unready()
		return why != nil && strings.Contains(why.Error(), "no majority")
	})

	back, err := startMember(x.cluster, 0, x.folders[0])
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	eventually(t, "a change with the first portal again", func() bool { return takes(x.portals[2], "after-all") })
	var names []string
	defer func() {
		if t.Failed() {
			t.Logf("the first and the third hold %q", names)
		}
	}()
	eventually(t, "both hold the same", func() bool {
		names = nil
		for _, p := range []*Portal{back, x.portals[2]} {
			var list []string
			for _, n := range p.Nodes() {
				list = append(list, n.Name)
			}
			names = append(names, strings.Join(list, " "))
		}
		return names[0] == names[1] && strings.Contains(names[0], "after-all after-one")
	})
}

// A portal whose folder is lost is replaced by one of another name, and then another one may be lost.
func TestClusterReplaces(t *testing.T) {
	t.Parallel()
	x := newTrio(t)
	text, err := x.portals[0].Backup()
	if err != nil {
		t.Fatal(err)
	}
	x.portals[2].Close()
	if err := x.portals[0].RemoveMember(t.Context(), "two"); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("a member that is there: %v", err)
	}
	empty := filepath.Join(t.TempDir(), "state")
	if _, err := Restore(t.Context(), empty, text); err != nil {
		t.Fatal(err)
	}
	if _, err := startMember(x.cluster, 2, empty); err == nil || !strings.Contains(err.Error(), "was here before") {
		t.Fatalf("with another folder under the old name: %v", err)
	}

	next := x.cluster
	next.Members = append(slices.Clone(x.cluster.Members[:2]), Member{"four", clusterOf(t).Members[0].Address})
	for i := range 2 {
		x.portals[i].Close()
		if x.portals[i], err = startMember(next, i, x.folders[i]); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { x.portals[i].Close() })
	}
	folder := filepath.Join(t.TempDir(), "state")
	if _, err := Restore(t.Context(), folder, text); err != nil {
		t.Fatal(err)
	}
	four, err := startMember(next, 2, folder)
	if err != nil {
		t.Fatal(err)
	}
	defer four.Close()
	eventually(t, "the lost one is removed", func() bool {
		if err := x.portals[0].RemoveMember(t.Context(), "three"); err != nil {
			t.Log(err)
		}
		list, _, _ := x.portals[0].Members()
		return len(list) == 3
	})
	eventually(t, "a change that the new one has", func() bool {
		_, err := four.AddNode(t.Context(), NewNode{Name: "more", Role: protocol.Client})
		return err == nil
	})
	eventually(t, "the others have it", func() bool { return len(x.portals[0].Nodes()) == 3 })
	eventually(t, "the new one has all of the state", func() bool {
		list, _, _ := x.portals[0].Members()
		return !slices.ContainsFunc(list, func(m MemberStatus) bool { return !m.Stores })
	})
	x.portals[1].Close()
	eventually(t, "a change without the second", func() bool {
		_, err := four.AddNode(t.Context(), NewNode{Name: "again", Role: protocol.Client})
		return err == nil
	})
}

// What cannot become a member says why.
func TestBadMember(t *testing.T) {
	t.Parallel()
	good := clusterOf(t)
	for name, tt := range map[string]struct {
		change func(*Cluster)
		want   string
	}{
		"two":            {func(c *Cluster) { c.Members = c.Members[:2] }, "not 2"},
		"name twice":     {func(c *Cluster) { c.Members[2].Name = "one" }, "twice"},
		"address twice":  {func(c *Cluster) { c.Members[2].Address = c.Members[0].Address }, "twice"},
		"no port":        {func(c *Cluster) { c.Members[2].Address = "example.net" }, "HOST:PORT"},
		"not among them": {func(c *Cluster) { c.Self = "four" }, "not in the list"},
		"cluster's name": {func(c *Cluster) { c.Name = "A B" }, "name of a cluster"},
	} {
		c := good
		c.Members, c.Self = slices.Clone(good.Members), "two"
		tt.change(&c)
		_, err := Start(Config{Folder: filepath.Join(t.TempDir(), "state"), Public: "127.0.0.1", Cluster: &c})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}
