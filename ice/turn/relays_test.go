package turn

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	witness "github.com/pion/stun/v4"

	"github.com/sluice-vpn/sluice/ice"
	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/frame"
	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// air joins nodes and TURN servers in a bubble of virtual time. Nodes reach servers and relayed addresses, but not
// one another.
type air struct {
	t       *testing.T
	epoch   time.Time
	mu      sync.Mutex // held while anything is delivered
	stopped bool
	nodes   map[netip.AddrPort]*airNode
	servers map[netip.AddrPort]*airServer
	flying  sync.WaitGroup
}

// airServer has a scripted server for each client.
type airServer struct {
	at      netip.AddrPort
	delay   time.Duration
	dead    bool
	clients map[netip.AddrPort]*scripted
}

// airNode is one machine with all that stands on the pipeline's sockets.
type airNode struct {
	air     *air
	at      netip.AddrPort
	mux     *ice.Mux
	mailbox *ice.Mailbox
	relays  *Relays
	raw     bool // nobody strips ChannelData
	got     []pipeline.Stray
	lost    []netip.AddrPort
	moved   []netip.AddrPort
	changes atomic.Int32
}

func newAir(t *testing.T) *air {
	return &air{t: t, epoch: time.Now(), nodes: map[netip.AddrPort]*airNode{}, servers: map[netip.AddrPort]*airServer{}}
}

func (a *air) now() time.Duration { return start + time.Since(a.epoch) }

// later runs f after a delay, one at a time.
func (a *air) later(delay time.Duration, f func()) {
	a.flying.Add(1)
	time.AfterFunc(delay, func() {
		defer a.flying.Done()
		a.mu.Lock()
		defer a.mu.Unlock()
		if !a.stopped {
			f()
		}
	})
}

func (a *air) stop() {
	a.mu.Lock()
	a.stopped = true
	a.mu.Unlock()
	a.flying.Wait()
}

func (a *air) server(at string, delay time.Duration) *airServer {
	s := &airServer{at: netip.MustParseAddrPort(at), delay: delay, clients: map[netip.AddrPort]*scripted{}}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.servers[s.at] = s
	return s
}

// client is what a server knows of one client.
func (a *air) client(s *airServer, at netip.AddrPort) *scripted {
	c := s.clients[at]
	if c == nil {
		c = &scripted{
			t: a.t, realm: "example.org", logins: []Credentials{goodLogin, otherLogin}, mapped: at, lifetime: testTTL,
			relayed: netip.AddrPortFrom(s.at.Addr(), uint16(50000+len(s.clients))),
			refuse:  map[witness.Method]witness.ErrorCode{}, mute: map[witness.Method]bool{}, sent: map[witness.Method]int{},
		}
		s.clients[at] = c
	}
	return c
}

// send is a datagram from a node.
func (a *air) send(src, dst netip.AddrPort, data []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.servers[dst]; s != nil {
		a.later(s.delay, func() { a.toServer(s, src, data) })
		return
	}
	if n := a.nodes[dst]; n != nil {
		return
	}
	a.later(oneWay, func() { a.deliver(src, dst, data) })
}

func (a *air) toServer(s *airServer, src netip.AddrPort, data []byte) {
	c := a.client(s, src)
	if s.dead {
		return
	}
	if number, payload, ok := frame.ParseChannelData(data, LastChannel); ok {
		if peer := c.channels[number]; c.allocatedFor != "" && peer.IsValid() {
			a.deliver(c.relayed, peer, payload)
		}
		return
	}
	m := new(witness.Message)
	if witness.Decode(data, m) == nil && m.Type == witness.NewType(witness.MethodSend, witness.ClassIndication) {
		peer, _ := pionAddress(m, witness.AttrXORPeerAddress)
		if payload, err := m.Get(witness.AttrData); err == nil && c.allocatedFor != "" && c.permissions[peer.Addr()] {
			a.deliver(c.relayed, peer, payload)
		}
		return
	}
	if answer := c.handle(a.now(), data); answer != nil {
		a.later(s.delay, func() { a.deliver(s.at, src, answer) })
	}
}

// deliver brings a datagram to a node, or to a relayed address and from there to its owner.
func (a *air) deliver(src, dst netip.AddrPort, data []byte) {
	if n := a.nodes[dst]; n != nil {
		n.receive(src, data)
		return
	}
	for _, s := range a.servers {
		for at, c := range s.clients {
			if c.relayed == dst && c.allocatedFor != "" && !s.dead {
				if b := c.wrap(src, data); b != nil {
					a.later(s.delay, func() { a.deliver(s.at, at, b) })
				}
			}
		}
	}
}

// wrap is how a server passes on what a peer sent: over the channel, in an indication if the address is permitted, else not.
func (s *scripted) wrap(src netip.AddrPort, data []byte) []byte {
	for number, p := range s.channels {
		if p == src {
			return channelData(number, data)
		}
	}
	if s.permissions[src.Addr()] {
		return dataIndication(src, data)
	}
	return nil
}

// node makes a machine with the given servers; none: without relays.
func (a *air) node(at string, servers ...RelayServer) *airNode {
	n := &airNode{air: a, at: netip.MustParseAddrPort(at), mailbox: ice.NewMailbox()}
	n.mux = ice.NewMux(ice.MuxConfig{Sender: n, Addresses: func() []netip.Addr { return []netip.Addr{n.at.Addr()} }})
	if len(servers) == 0 {
		a.add(n)
		return n
	}
	n.relays = NewRelays(RelaysConfig{
		Sender: n, Clock: a.now,
		Changed: func() { n.changes.Add(1) },
		Lost: func(s netip.AddrPort) {
			a.mu.Lock()
			defer a.mu.Unlock()
			n.lost = append(n.lost, s)
		},
		Moved: func(s netip.AddrPort) {
			a.mu.Lock()
			defer a.mu.Unlock()
			n.moved = append(n.moved, s)
		},
	})
	a.add(n)
	n.relays.SetServers(servers)
	n.until(func() bool { return len(n.relays.URLs()) == len(servers) })
	return n
}

func (a *air) add(n *airNode) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.nodes[n.at] = n
}

// lostServers are those that were reported lost.
func (n *airNode) lostServers() []netip.AddrPort {
	n.air.mu.Lock()
	defer n.air.mu.Unlock()
	return slices.Clone(n.lost)
}

// LocalPort and SendOne make it an ice.Sender.
func (n *airNode) LocalPort() uint16 { return n.at.Port() }

func (n *airNode) SendOne(r udp.Run) error {
	n.air.send(n.at, r.Dst, slices.Clone(r.Data))
	return nil
}

// receive is what the pipeline does with a datagram.
func (n *airNode) receive(src netip.AddrPort, data []byte) {
	s := pipeline.Stray{Data: data, Src: src, Dst: n.at.Addr()}
	if n.relays != nil && slices.Contains(n.relays.Servers(), src) && !n.raw {
		if number, payload, ok := frame.ParseChannelData(data, LastChannel); ok {
			s.Channel, s.Data = number, payload
		}
	}
	switch {
	case !witness.IsMessage(s.Data) && !n.raw:
		n.got = append(n.got, s)
	case n.relays != nil && n.relays.Receive(s.Src, s.Channel, s.Data):
	default:
		n.mux.Receive(s)
	}
}

// until waits for a condition in the bubble's time.
func (n *airNode) until(ok func() bool) time.Duration {
	n.air.t.Helper()
	before := time.Now()
	for !ok() {
		if time.Since(before) > 5*time.Minute {
			n.air.t.Fatal("it does not come about")
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(before)
}

func (n *airNode) connection(controlling bool) *connection {
	c := ice.AgentConfig{Mux: n.mux, Mailbox: n.mailbox, Controlling: controlling}
	if n.relays != nil {
		c.Relay = n.relays
	}
	return newConnection(c)
}

func (n *airNode) close() {
	n.mux.Close()
	if n.relays != nil {
		n.relays.Close()
	}
}

// pair is a connection between two machines, with signaling that carries everything at once.
type pair struct {
	nodes [2]mailer
	ends  [2]*connection
	texts []string // candidates
	types [2][2]string
}

type mailer interface{ mail() *ice.Mailbox }

func (n *airNode) mail() *ice.Mailbox { return n.mailbox }

func newPair(t *testing.T, generation uint32, a, b mailer, ca, cb *connection) *pair {
	t.Helper()
	p := &pair{nodes: [2]mailer{a, b}, ends: [2]*connection{ca, cb}}
	p.restart(t, generation)
	return p
}

func (p *pair) restart(t *testing.T, generation uint32) {
	t.Helper()
	var own [2]ice.Credentials
	for i, c := range p.ends {
		var err error
		if own[i], err = c.Restart(generation); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range p.ends {
		if err := c.Connect(generation, own[1-i]); err != nil {
			t.Fatal(err)
		}
	}
}

// signal carries candidates until done, for so long at most.
func (p *pair) signal(limit time.Duration, done func() bool) bool {
	deadline := time.Now().Add(limit)
	for {
		for i, n := range p.nodes {
			for e, ok := n.mail().Poll(); ok; e, ok = n.mail().Poll() {
				p.types[i] = [2]string{e.Local, e.Remote}
				for _, text := range e.Candidates {
					p.texts = append(p.texts, text)
					_, number := ownerOf(e)
					_ = p.ends[1-i].AddCandidate(number, text)
				}
			}
		}
		if done() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(time.Millisecond)
	}
}

func (p *pair) connected() bool { return p.ends[0].Path() != nil && p.ends[1].Path() != nil }

// close closes both ends, which may take so long.
func (p *pair) close(t *testing.T, limit time.Duration) {
	t.Helper()
	for _, c := range p.ends {
		before := time.Now()
		c.Close()
		if took := time.Since(before); took > limit {
			t.Errorf("Close took %v", took)
		}
	}
}

func at(s *airServer) RelayServer {
	return RelayServer{Name: "relay " + s.at.String(), Addr: s.at, Credentials: goodLogin}
}

// held is how many channels are held at the servers of a node. The bubble must be at rest.
func (n *airNode) held() (held int) {
	synctest.Wait()
	n.relays.mu.Lock()
	defer n.relays.mu.Unlock()
	for _, s := range n.relays.servers {
		held += len(s.client.permitted) + len(s.interest) + len(s.tenants) + len(s.holders)
	}
	return held
}

// facades are those of the agents that use a server. The bubble must be at rest.
func (n *airNode) facades(at netip.AddrPort) (list []*Facade) {
	n.air.t.Helper()
	synctest.Wait()
	n.relays.mu.Lock()
	defer n.relays.mu.Unlock()
	for _, s := range n.relays.servers {
		for t := range s.tenants {
			if s.addr == at {
				list = append(list, t.facade)
			}
		}
	}
	if len(list) == 0 {
		n.air.t.Error("no agent uses the server")
	}
	return list
}

func (n *airNode) counter(name string) uint64 {
	for _, c := range n.relays.Counters() {
		if c.Name == name {
			return c.Value
		}
	}
	n.air.t.Fatalf("no counter %q", name)
	return 0
}

// TestRelaysConnect: two agents that cannot reach one another connect over relays of both and of one side, data takes the way that
// the paths say, and nothing is left when they are closed.
func TestRelaysConnect(t *testing.T) {
	for _, test := range []struct {
		name string
		both bool
		raw  bool
		net  string
	}{
		{"relayed and relayed", true, false, "10.0.0.%d"}, {"relayed and host", false, false, "10.0.0.%d"},
		{"nothing is stripped", true, true, "10.0.0.%d"}, {"IPv6", false, false, "[2001:db8::%d]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { connectRelayed(t, test.both, test.raw, test.net) })
		})
	}
}

func connectRelayed(t *testing.T, both, raw bool, network string) {
	w := newAir(t)
	s := w.server(fmt.Sprintf(network, 10)+":3478", oneWay)
	first, second := fmt.Sprintf(network, 1)+":1000", fmt.Sprintf(network, 2)+":2000"
	a, b := w.node(first, at(s)), (*airNode)(nil)
	if a.raw = raw; both {
		b = w.node(second, at(s))
		b.raw = raw
	} else {
		b = w.node(second)
	}
	before := time.Now()
	p := newPair(t, 1, a, b, a.connection(true), b.connection(false))
	if !p.signal(10*time.Second, p.connected) {
		t.Fatalf("not connected: %v", a.relays.Counters())
	}
	t.Logf("connected after %v", time.Since(before))
	p.signal(2*time.Second, func() bool { return false })
	pa, pb := *p.ends[0].Path(), *p.ends[1].Path()
	w.mu.Lock()
	relayed := s.clients[a.at].relayed
	w.mu.Unlock()
	if pa.Channel != 0 && pa.Dst != s.at || pb.Channel != 0 && pb.Dst != s.at || pa.Channel == 0 && pb.Channel == 0 ||
		!both && (pa.Channel == 0 || pb.Dst != relayed) {
		t.Errorf("paths %+v and %+v", pa, pb)
	}
	if !raw {
		carry(t, w, a, b, pa, pb)
	}
	p.signal(time.Minute, func() bool { return false })
	if !p.connected() {
		t.Error("the connection did not last")
	}
	for _, c := range p.ends {
		if seen, took := c.LastSeen(); time.Since(seen) > 7*time.Second || took < 2*oneWay || took > 8*oneWay {
			t.Errorf("last seen %v ago, round trip %v", time.Since(seen), took)
		}
	}
	p.close(t, 100*time.Millisecond)
	if n := a.held(); n != 0 {
		t.Errorf("%d things are held after Close", n)
	}
	a.close()
	b.close()
	time.Sleep(time.Second)
	w.stop()
	if c := s.clients[a.at]; c.allocatedFor != "" {
		t.Error("the allocation was not released")
	}
}

// carry sends a word each way over the paths.
func carry(t *testing.T, w *air, a, b *airNode, pa, pb pipeline.Path) {
	t.Helper()
	over := func(n *airNode, p pipeline.Path) {
		data := []byte("a word")
		if p.Channel != 0 {
			data = channelData(p.Channel, data)
		}
		_ = n.SendOne(udp.Run{Data: data, Dst: p.Dst})
	}
	over(a, pa)
	over(b, pb)
	time.Sleep(time.Second)
	w.mu.Lock()
	defer w.mu.Unlock()
	for n, path := range map[*airNode]pipeline.Path{a: pa, b: pb} {
		if len(n.got) != 1 || string(n.got[0].Data) != "a word" || n.got[0].Src != path.Dst || n.got[0].Channel != path.Channel {
			t.Errorf("%v got %+v, its path is %+v", n.at, n.got, path)
		}
	}
}

// TestRelaysHold: a channel outlives the agent for as long as its path is held, and is refreshed.
func TestRelaysHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAir(t)
		s := w.server("192.0.2.10:3478", oneWay)
		a, b := w.node("10.0.0.1:1000", at(s)), w.node("10.0.0.2:2000")
		p := newPair(t, 1, a, b, a.connection(true), b.connection(false))
		if !p.signal(10*time.Second, p.connected) {
			t.Fatal("not connected")
		}
		path := *p.ends[0].Path()
		first, second := a.relays.Hold(path.Dst, path.Channel), a.relays.Hold(path.Dst, path.Channel)
		p.close(t, 100*time.Millisecond)
		c := s.clients[a.at]
		binds := func() int {
			w.mu.Lock()
			defer w.mu.Unlock()
			return c.sent[witness.MethodChannelBind]
		}
		refreshed := func(want bool) {
			t.Helper()
			before := binds()
			time.Sleep(12 * time.Minute)
			if n := binds() - before; n >= 2 != want {
				t.Errorf("the channel was refreshed %d times", n)
			}
		}
		refreshed(true)
		first()
		first()
		refreshed(true)
		second()
		refreshed(false)
		if n := a.held(); n != 0 {
			t.Errorf("%d things are held", n)
		}
		a.relays.Hold(path.Dst, 0)()
		a.relays.Hold(b.at, path.Channel)()
		a.relays.Hold(path.Dst, path.Channel+1)()
		a.close()
		b.close()
		a.relays.Hold(path.Dst, path.Channel)()
		w.stop()
	})
}

// TestRelaysShare: however many pairs of a peer are about to be selected, at however many of its agents, it gets 16 channels.
func TestRelaysShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAir(t)
		s := w.server("10.0.0.10:3478", oneWay)
		a, b := w.node("10.0.0.1:1000", at(s)), w.node("10.0.0.2:2000")
		p := newPair(t, 1, a, b, a.connection(true), b.connection(false))
		if !p.signal(10*time.Second, p.connected) {
			t.Fatal("not connected")
		}
		bound := func() int {
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(s.clients[a.at].channels)
		}
		flood := func() {
			for _, f := range a.facades(s.at) {
				for port := range uint16(100) {
					f.bind(netip.AddrPortFrom(peerA.Addr(), port+1))
					synctest.Wait()
				}
			}
			p.signal(time.Second, func() bool { return false })
		}
		flood()
		if n := bound(); n != 16 {
			t.Errorf("%d channels of the peer, want 16", n)
		}
		p.restart(t, 2)
		p.signal(2*time.Second, func() bool { return false })
		flood()
		if n := bound(); n != 16 {
			t.Errorf("%d channels of the peer with a second agent, want 16", n)
		}
		p.close(t, time.Second)
		a.close()
		b.close()
		time.Sleep(time.Second)
		w.stop()
	})
}

// TestRelaysMoved: when a NAT maps us anew the agents and paths over a relay stay, each channel under its number. If there is no other
// allocation to be had they are closed as those of a silent relay are.
func TestRelaysMoved(t *testing.T) {
	for _, again := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newAir(t)
			s := w.server("192.0.2.10:3478", oneWay)
			a, b := w.node("10.0.0.1:1000", at(s)), w.node("10.0.0.2:2000")
			p := newPair(t, 1, a, b, a.connection(true), b.connection(false))
			if !p.signal(10*time.Second, p.connected) {
				t.Fatal("not connected")
			}
			path := *p.ends[0].Path()
			release := a.relays.Hold(path.Dst, path.Channel)
			facades, before := a.facades(s.at), a.relays.Status()[0].Relayed
			w.mu.Lock()
			c := s.clients[a.at]
			c.mapped = netip.MustParseAddrPort("203.0.113.8:41000")
			c.relayed = netip.AddrPortFrom(s.at.Addr(), 50999)
			if !again {
				c.mute[witness.MethodAllocate] = true
			}
			w.mu.Unlock()
			a.relays.Probe()
			time.Sleep(time.Second)
			open := func() bool { _, err := facades[0].WriteTo([]byte("x"), nil); return !errors.Is(err, net.ErrClosed) }
			if !open() || len(a.lostServers()) != 0 {
				t.Errorf("again %v: agents have not waited: open %v, lost %v", again, open(), a.lostServers())
			}
			time.Sleep(2 * homelessFor)
			w.mu.Lock()
			moved, lost := len(a.moved), len(a.lost)
			w.mu.Unlock()
			if again {
				server, channel, ok := a.relays.Channel(before, b.at)
				if !open() || moved != 1 || lost != 0 || !ok || channel != path.Channel || server != path.Dst {
					t.Errorf("open %v, moved %d, lost %d; channel of %v %v, want %+v", open(), moved, lost, server, ok, path)
				}
			} else if open() || moved != 0 || lost != 1 {
				t.Errorf("open %v, moved %d, lost %d", open(), moved, lost)
			}
			release()
			p.close(t, 100*time.Millisecond)
			if n := a.held(); n != 0 {
				t.Errorf("%d things are held", n)
			}
			a.close()
			b.close()
			w.stop()
		})
	}
}

// TestRelaysSilent: of two relays the one that falls silent is reported after SilentAfter, its agents notice, closing them does not
// wait, and new agents only get the other.
func TestRelaysSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAir(t)
		near, far := w.server("192.0.2.10:3478", oneWay), w.server("192.0.2.20:3478", 3*oneWay)
		a, b := w.node("10.0.0.1:1000", at(far), at(near)), w.node("10.0.0.2:2000")
		first, second := a.relays.Status()[0], a.relays.Status()[1]
		if first.RoundTripS != (6*oneWay).Seconds() || second.RoundTripS != (2*oneWay).Seconds() || first.State != "allocated" || first.Mapped != a.at {
			t.Errorf("%+v, %+v", first, second)
		}
		a.relays.mu.Lock()
		ports := [2]uint16{a.relays.servers[1].port, a.relays.servers[0].port}
		a.relays.mu.Unlock()
		if urls := a.relays.URLs(); urls[0].Port != int(ports[0]) || urls[1].Port != int(ports[1]) {
			t.Errorf("%v: the nearest is not the first", urls)
		}
		p := newPair(t, 1, a, b, a.connection(true), b.connection(false))
		if !p.signal(10*time.Second, p.connected) {
			t.Fatal("not connected")
		}
		p.signal(time.Second, func() bool { return false })
		facades := a.facades(p.ends[0].Path().Dst)
		w.mu.Lock()
		lost := w.servers[p.ends[0].Path().Dst]
		lost.dead = true
		w.mu.Unlock()
		a.relays.Probe()
		took := a.until(func() bool { return len(a.relays.URLs()) == 1 })
		if took < SilentAfter || took > SilentAfter+time.Second || !slices.Equal(a.lostServers(), []netip.AddrPort{lost.at}) || a.changes.Load() < 2 {
			t.Errorf("%v after %v, %d changes", a.lostServers(), took, a.changes.Load())
		}
		for _, f := range facades {
			if _, err := f.WriteTo([]byte("x"), nil); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the agent does not notice: %v", err)
			}
		}
		// An agent beside the first has the relay that lives, and takes over.
		p.texts = nil
		p.restart(t, 2)
		moved := func() bool {
			path := p.ends[0].Path()
			return path != nil && path.Dst != lost.at && path.Channel != 0
		}
		if !p.signal(10*time.Second, moved) {
			t.Error("the connection did not move")
		}
		relayed := 0
		for _, text := range p.texts {
			if strings.Contains(text, "typ relay") {
				if relayed++; strings.Contains(text, lost.at.Addr().String()) {
					t.Error("a candidate of the silent relay:", text)
				}
			}
		}
		if relayed != 1 {
			t.Errorf("%d relayed candidates", relayed)
		}
		p.close(t, 100*time.Millisecond)
		if n := a.held(); n != 0 {
			t.Errorf("%d things are held", n)
		}
		a.close()
		b.close()
		w.stop()
	})
}

// TestRelaysCloseDead: nothing waits for a relay that is dead, neither a connection while it checks nor the relays.
func TestRelaysCloseDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAir(t)
		s := w.server("192.0.2.10:3478", oneWay)
		a, b := w.node("10.0.0.1:1000", at(s)), w.node("10.0.0.2:2000")
		for _, wait := range []time.Duration{0, time.Millisecond, time.Second, 20 * time.Second} {
			w.mu.Lock()
			s.dead = true
			w.mu.Unlock()
			p := newPair(t, 1, a, b, a.connection(true), b.connection(false))
			p.signal(wait, func() bool { return false })
			p.close(t, 100*time.Millisecond)
			w.mu.Lock()
			s.dead = false
			w.mu.Unlock()
			a.until(func() bool { return len(a.relays.URLs()) == 1 })
		}
		p := newPair(t, 1, a, b, a.connection(true), b.connection(false))
		p.signal(10*time.Second, p.connected)
		before := time.Now()
		a.relays.Close() // under the agents
		a.relays.Close()
		if took := time.Since(before); took > 100*time.Millisecond {
			t.Errorf("Close took %v", took)
		}
		p.close(t, 100*time.Millisecond)
		if a.relays.Receive(s.at, 0, []byte("x")) || len(a.relays.URLs()) != 0 || a.relays.Status() != nil {
			t.Error("there is something after Close")
		}
		a.relays.SetServers([]RelayServer{at(s)})
		a.relays.Probe()
		if a.relays.Servers() != nil {
			t.Error("servers after Close")
		}
		a.close()
		b.close()
		w.stop()
	})
}

// TestRelaysServers: what SetServers adds, keeps, renews and drops.
func TestRelaysServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAir(t)
		s1, s2 := w.server("192.0.2.10:3478", oneWay), w.server("[2001:db8::20]:3478", oneWay)
		n := w.node("10.0.0.1:1000", at(s1))
		bad := RelayServer{Name: "bad", Addr: netip.MustParseAddrPort("192.0.2.30:3478")}
		n.relays.SetServers([]RelayServer{at(s2), at(s2), at(s1), bad})
		n.until(func() bool { return len(n.relays.URLs()) == 2 })
		status := n.relays.Status()
		if len(status) != 3 || status[0].Server != s2.at || !status[0].Relayed.Addr().Is6() || status[1].Server != s1.at ||
			status[2].State != "refused" || status[2].Reason == "" || !slices.Equal(n.relays.Servers(), []netip.AddrPort{s2.at, s1.at, bad.Addr}) {
			t.Errorf("%+v", status)
		}
		// New credentials serve the next allocation; what was broken is made anew.
		renewed := at(s2)
		renewed.Credentials = otherLogin
		w.mu.Lock()
		s2.clients[n.at].logins = []Credentials{otherLogin}
		w.mu.Unlock()
		bad.Credentials = otherLogin
		n.relays.SetServers([]RelayServer{renewed, bad})
		n.until(func() bool { return slices.Equal(n.lostServers(), []netip.AddrPort{s1.at}) })
		time.Sleep(20 * time.Minute)
		w.mu.Lock()
		if s1.clients[n.at].allocatedFor != "" || s2.clients[n.at].allocatedFor != otherLogin.Username {
			t.Errorf("allocations for %q and %q", s1.clients[n.at].allocatedFor, s2.clients[n.at].allocatedFor)
		}
		w.mu.Unlock()
		if s := n.relays.Status(); len(s) != 2 || s[1].State == "refused" {
			t.Errorf("%+v", s)
		}
		if n.relays.Receive(s1.at, 0, nil) {
			t.Error("a server that is gone is listened to")
		}
		for _, text := range []string{fmt.Sprintf("%v %+v %#v", n.relays, n.relays, n.relays), fmt.Sprintf("%+v", renewed)} {
			if strings.Contains(text, otherLogin.Password) || strings.Contains(text, otherLogin.Username) {
				t.Errorf("a secret in %q", text)
			}
		}
		// Many at once, and back again while the first are leaving.
		var many []RelayServer
		for i := range 2 * maxServers {
			many = append(many, at(w.server(fmt.Sprintf("192.0.2.%d:1", 100+i), oneWay)))
		}
		n.relays.SetServers(many)
		n.until(func() bool { return len(n.relays.Status()) == maxServers })
		n.relays.SetServers([]RelayServer{renewed})
		n.until(func() bool { return len(n.relays.Status()) == 1 && len(n.relays.URLs()) == 1 })
		n.relays.SetServers(nil)
		n.relays.SetServers([]RelayServer{renewed})
		n.until(func() bool { return len(n.relays.URLs()) == 1 })
		n.close()
		w.stop()
	})
}

// TestRelaysStrangers: of what comes through a relay, pion gets to see what is authentic only.
func TestRelaysStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAir(t)
		s := w.server("192.0.2.10:3478", oneWay)
		a, b := w.node("10.0.0.1:1000", at(s)), w.node("10.0.0.2:2000")
		p := newPair(t, 1, a, b, a.connection(true), b.connection(false))
		if !p.signal(10*time.Second, p.connected) {
			t.Fatal("not connected")
		}
		path := *p.ends[0].Path()
		short := witness.MustBuild(witness.TransactionID, witness.BindingSuccess)
		short.Add(witness.AttrXORMappedAddress, []byte{0, 1}) // pion/stun v0.6.1 panics on it
		request := witness.MustBuild(witness.TransactionID, witness.BindingRequest, witness.NewUsername("nobody:x"), witness.NewShortTermIntegrity("x"), witness.Fingerprint)
		hostile := [][]byte{
			nil, []byte("noise"), short.Raw, request.Raw, witness.MustBuild(witness.TransactionID, witness.BindingSuccess).Raw,
			witness.MustBuild(witness.TransactionID, witness.NewType(witness.MethodBinding, witness.ClassIndication), witness.Fingerprint).Raw,
		}
		synctest.Wait()
		before, bad := a.counter("turn_delivered"), a.counter("drop_turn_no_agent")
		for _, data := range hostile {
			for _, stray := range []pipeline.Stray{
				{Src: s.at, Channel: path.Channel, Data: data}, {Src: s.at, Data: channelData(path.Channel, data)}, {Src: s.at, Data: dataIndication(b.at, data)},
			} {
				if !a.relays.Receive(stray.Src, stray.Channel, stray.Data) {
					t.Error("not taken")
				}
			}
		}
		synctest.Wait()
		if n, k := a.counter("turn_delivered")-before, a.counter("drop_turn_no_agent")-bad; n != 0 || k != uint64(3*len(hostile)) {
			t.Errorf("%d were delivered, %d dropped", n, k)
		}
		// The rest is dropped under its name.
		for name, stray := range map[string]pipeline.Stray{
			"drop_turn_stripped_channel": {Src: s.at, Channel: path.Channel + 1, Data: request.Raw},
			"drop_turn_too_long":         {Src: s.at, Data: make([]byte, inboxBytes+1)},
			"drop_turn_no_permission":    {Src: s.at, Data: dataIndication(peerA, request.Raw)},
			"drop_turn_request":          {Src: s.at, Data: request.Raw},
		} {
			before := a.counter(name)
			taken := a.relays.Receive(stray.Src, stray.Channel, stray.Data)
			synctest.Wait()
			if !taken || a.counter(name) != before+1 {
				t.Errorf("%s: not counted", name)
			}
		}
		if a.relays.Receive(b.at, 0, request.Raw) {
			t.Error("a stranger was taken for a server")
		}
		for range inboxSlots + 100 { // the goroutine runs beside, so some more than fit
			a.relays.Receive(s.at, 0, request.Raw)
		}
		synctest.Wait()
		if !p.connected() {
			t.Error("the connection did not survive")
		}
		p.close(t, 100*time.Millisecond)
		a.close()
		b.close()
		w.stop()
	})
}

// TestFlights: a round trip is that of a request sent once, to its first answer.
func TestFlights(t *testing.T) {
	var f flights
	message := func(class witness.MessageClass, id byte) []byte {
		m := witness.Message{TransactionID: stun.ID{id}, Type: witness.NewType(witness.MethodBinding, class)}
		m.WriteHeader()
		return m.Raw
	}
	request := func(id byte) []byte { return message(witness.ClassRequest, id) }
	answer := func(id byte) []byte { return message(witness.ClassSuccessResponse, id) }
	f.left(1, request(1))
	f.left(2, request(2))
	f.left(3, request(1))
	f.left(4, channelData(FirstChannel, answer(3)))
	f.left(5, answer(4)[:10])
	for i := range byte(8) {
		f.left(6, request(10+i))
	}
	f.left(7, request(18))
	for _, test := range []struct {
		name string
		b    []byte
		want time.Duration
	}{
		{"pushed out", answer(2), -1}, {"sent again", answer(1), -1}, {"never sent", answer(3), -1}, {"no answer", request(11), -1},
		{"short", answer(11)[:10], -1}, {"answered", answer(11), 4}, {"answered again", answer(11), -1},
		{"refused", message(witness.ClassErrorResponse, 12), 4}, {"the latest", answer(18), 3},
	} {
		took, ok := f.landed(10, test.b)
		if ok != (test.want > 0) || ok && took != test.want {
			t.Errorf("%s: %v, %v", test.name, took, ok)
		}
	}
	f = flights{}
	f.left(1, request(1))
	f.left(2, request(1))
	if _, ok := f.landed(3, answer(1)); ok {
		t.Error("a request that was sent twice was measured")
	}
}

// TestRelaysMany: many connections between two machines share an allocation each, and all find their peers.
func TestRelaysMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAir(t)
		s := w.server("192.0.2.10:3478", oneWay)
		a, b := w.node("10.0.0.1:1000", at(s)), w.node("10.0.0.2:2000", at(s))
		other := map[*connection]*connection{}
		var pairs []*pair
		for range 20 {
			p := newPair(t, 1, a, b, a.connection(true), b.connection(false))
			pairs = append(pairs, p)
			other[p.ends[0]], other[p.ends[1]] = p.ends[1], p.ends[0]
		}
		connected := func() bool {
			for _, n := range []*airNode{a, b} {
				for e, ok := n.mailbox.Poll(); ok; e, ok = n.mailbox.Poll() {
					for _, text := range e.Candidates {
						of, number := ownerOf(e)
						_ = other[of].AddCandidate(number, text)
					}
				}
			}
			return !slices.ContainsFunc(pairs, func(p *pair) bool { return !p.connected() })
		}
		t.Logf("connected after %v", a.until(connected))
		time.Sleep(time.Minute)
		if !connected() {
			t.Error("a connection did not last")
		}
		for _, p := range pairs {
			for i, n := range []*airNode{a, b} {
				path := *p.ends[i].Path()
				if path.Channel == 0 { // then the peer's relayed address is reached directly
					continue
				}
				n.relays.Hold(path.Dst, path.Channel)()
			}
			p.close(t, 100*time.Millisecond)
		}
		for _, n := range []*airNode{a, b} {
			if k := n.held(); k != 0 {
				t.Errorf("%d things are held", k)
			}
			for _, name := range []string{"drop_turn_no_agent", "drop_turn_inbox_full", "drop_turn_unbound_channel", "drop_turn_stripped_channel"} {
				if k := n.counter(name); k > 100 {
					t.Errorf("%s: %d", name, k)
				}
			}
			n.close()
		}
		w.stop()
	})
}
