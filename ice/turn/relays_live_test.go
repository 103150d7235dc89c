package turn

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice"
	"github.com/sluice-vpn/sluice/ice/relay"
	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/frame"
	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// liveNode is a machine on a real socket that refuses to send to anybody but the relay, when it has one.
type liveNode struct {
	conn    *net.UDPConn
	mux     *ice.Mux
	mailbox *ice.Mailbox
	relays  *Relays
	only    netip.AddrPort
	ended   chan struct{}
}

func newLiveNode(t *testing.T, server *relay.Server) *liveNode {
	t.Helper()
	at := server.Addrs()[0]
	n := &liveNode{conn: listen(t, "127.0.0.1"), mailbox: ice.NewMailbox(), only: at, ended: make(chan struct{})}
	n.mux = ice.NewMux(ice.MuxConfig{Sender: n, Loopback: true, Addresses: func() []netip.Addr { return []netip.Addr{at.Addr()} }})
	n.relays = NewRelays(RelaysConfig{Sender: n})
	user, password := server.Credential(time.Now().Add(time.Hour), "node")
	n.relays.SetServers([]RelayServer{{Addr: at, Credentials: Credentials{user, password}}})
	go n.pump()
	return n
}

func (n *liveNode) LocalPort() uint16 { return n.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

func (n *liveNode) SendOne(r udp.Run) error {
	if r.Dst != n.only {
		return nil // a firewall
	}
	_, err := n.conn.WriteToUDPAddrPort(r.Data, r.Dst)
	return err
}

func (n *liveNode) pump() {
	defer close(n.ended)
	buffer := make([]byte, inboxBytes)
	for {
		k, src, err := n.conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return
		}
		s := pipeline.Stray{Data: buffer[:k], Src: netip.AddrPortFrom(src.Addr().Unmap(), src.Port()), Dst: n.only.Addr()}
		if number, payload, ok := frame.ParseChannelData(s.Data, LastChannel); ok && s.Src == n.only {
			s.Channel, s.Data = number, payload
		}
		if !n.relays.Receive(s.Src, s.Channel, s.Data) {
			n.mux.Receive(s)
		}
	}
}

func (n *liveNode) mail() *ice.Mailbox { return n.mailbox }

func (n *liveNode) close() {
	n.mux.Close()
	n.relays.Close()
	n.conn.Close()
	<-n.ended
}

// goroutinesOf counts those that run this package's or pion's code for agents.
func goroutinesOf() int {
	buffer := make([]byte, 4<<20)
	n := 0
	for _, g := range strings.Split(string(buffer[:runtime.Stack(buffer, true)]), "\n\n") {
		if strings.Contains(g, "pion/ice") || strings.Contains(g, "pion/turn/v2") || strings.Contains(g, "(*Relays)") {
			n++
		}
	}
	return n
}

// newRelay starts our own relay.
func newRelay(t *testing.T) *relay.Server {
	t.Helper()
	server, err := relay.New(relay.Config{
		Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Secret: "a secret of the tests only",
		AllowedPeers: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
	})
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Run(context.Background()) }()
	poll(t, func() bool { return server.Ready() || len(failed) > 0 })
	if len(failed) > 0 {
		t.Skipf("SKIPPED: no relay on this machine: %v", <-failed)
	}
	t.Cleanup(func() { server.Close() })
	return server
}

// TestRelayRenewal: with our own relay an allocation and its channels outlive the credentials that they were made with, and a
// process that has newer ones gets rid of what one before it left on its port.
func TestRelayRenewal(t *testing.T) {
	t.Parallel()
	server := newRelay(t)
	login := func(life time.Duration) Credentials {
		user, password := server.Credential(time.Now().Add(life), "node")
		return Credentials{user, password}
	}
	l := newLive(t, Config{Server: server.Addrs()[0], Credentials: login(shortLife)})
	l.outlive(login(time.Hour))
	var err error
	if l.c, err = New(Config{Server: l.c.Server(), Credentials: login(2 * time.Hour)}); err != nil {
		t.Fatal(err)
	}
	l.events = nil
	l.c.Start(l.now())
	l.until(Allocated)
	if l.c.failures != 0 {
		t.Errorf("%d attempts failed", l.c.failures)
	}
}

// TestRelaysLive: the same over the system's UDP and our own relay, twice in a row, and then the relay dies.
func TestRelaysLive(t *testing.T) {
	server := newRelay(t)
	before := goroutinesOf()
	a, b := newLiveNode(t, server), newLiveNode(t, server)
	poll(t, func() bool { return len(a.relays.URLs()) == 1 && len(b.relays.URLs()) == 1 })
	ca := newConnection(ice.AgentConfig{Mux: a.mux, Mailbox: a.mailbox, Relay: a.relays, Controlling: true})
	cb := newConnection(ice.AgentConfig{Mux: b.mux, Mailbox: b.mailbox, Relay: b.relays})
	p := newPair(t, 1, a, b, ca, cb)
	for generation := uint32(2); ; generation++ {
		if !p.signal(30*time.Second, p.connected) {
			t.Fatalf("not connected: %v", a.relays.Counters())
		}
		if generation == 3 {
			break
		}
		p.restart(t, generation)
	}
	for i, c := range p.ends {
		if path := c.Path(); path.Dst != a.only || path.Channel == 0 {
			t.Errorf("path %+v", path)
		}
		if seen, took := c.LastSeen(); time.Since(seen) > 30*time.Second || took <= 0 {
			t.Errorf("end %d was last seen at %v, round trip %v", i, seen, took)
		}
	}
	server.Close()
	p.close(t, 2*time.Second) // pion alone would take 7.6 s
	before2 := time.Now()
	a.close()
	b.close()
	if took := time.Since(before2); took > 5*time.Second {
		t.Errorf("Close took %v", took)
	}
	poll(t, func() bool { return goroutinesOf() <= before })
}

func poll(t *testing.T, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			buffer := make([]byte, 1<<20)
			t.Fatalf("it does not come about\n%s", buffer[:runtime.Stack(buffer, true)])
		}
	}
}

// FuzzRelaysReceive: whatever a relay sends us, before and after its header is stripped, pion lives, and what it gets to see
// passes the gate.
func FuzzRelaysReceive(f *testing.F) {
	f.Add(uint16(FirstChannel), []byte("noise"))
	f.Add(uint16(0), channelData(FirstChannel, []byte("noise")))
	f.Add(uint16(0), dataIndication(peerA, []byte("noise")))
	f.Add(uint16(FirstChannel), newRequest(1, stun.ID{7}).Raw)
	r, revive := fuzzed(f)
	f.Fuzz(func(t *testing.T, channel uint16, data []byte) {
		revive()
		for _, b := range [][]byte{data, channelData(FirstChannel, data), dataIndication(peerA, data)} {
			before := r.counts.Received.Load() + r.counts.TooLong.Load()
			if !r.Receive(testServer, channel, b) {
				t.Fatal("not taken")
			}
			for r.counts.Received.Load()+r.counts.TooLong.Load() == before {
				runtime.Gosched()
			}
		}
		if s := r.Status(); len(s) != 1 || r.counts.Delivered.Load() != 0 || s[0].Relayed != testRelayed {
			t.Fatalf("%+v, %d delivered", s, r.counts.Delivered.Load())
		}
	})
}

// echo is a scripted server that answers at once.
type echo struct {
	s      *scripted
	relays func() *Relays
}

func (e *echo) LocalPort() uint16 { return 1000 }

func (e *echo) SendOne(run udp.Run) error {
	if r := e.relays(); r != nil && run.Dst == testServer && run.Data[0] == 0 && run.Data[1]&0x10 == 0 { // neither ChannelData nor an indication
		if answer := e.s.handle(start, slices.Clone(run.Data)); answer != nil {
			r.Receive(testServer, 0, answer)
		}
	}
	return nil
}

// fuzzed makes Relays with an agent that has a channel to peerA, and another whenever that has given up.
func fuzzed(f *testing.F) (r *Relays, revive func()) {
	w := newWorld(&testing.T{})
	ready := make(chan struct{})
	e := &echo{w.s, func() *Relays { <-ready; return r }}
	r = NewRelays(RelaysConfig{Sender: e})
	close(ready)
	r.SetServers([]RelayServer{{Addr: testServer, Credentials: goodLogin}})
	mux := ice.NewMux(ice.MuxConfig{Sender: e, Addresses: func() []netip.Addr { return nil }})
	wait := func(ok func() bool) {
		for limit := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(limit) {
				panic("it does not come about")
			}
		}
	}
	wait(func() bool { return len(r.URLs()) == 1 })
	c := newConnection(ice.AgentConfig{Mux: mux, Mailbox: ice.NewMailbox(), Relay: r})
	f.Cleanup(func() { c.Close(); mux.Close(); r.Close() })
	generation := uint32(0)
	agents := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.servers[0].tenants)
	}
	return r, func() {
		if agents() > 0 {
			return
		}
		generation++
		_, err := c.Restart(generation)
		err2 := c.AddCandidate(generation, "1 1 udp 1 "+peerA.Addr().String()+" 1000 typ host")
		err3 := c.Connect(generation, ice.Credentials{Ufrag: "abcdefgh", Password: "abcdefghijklmnopqrstuvwxyz"})
		if err := errors.Join(err, err2, err3); err != nil {
			panic(err)
		}
		wait(func() bool { return agents() > 0 })
		r.mu.Lock()
		tenants := slices.Collect(maps.Keys(r.servers[0].tenants))
		r.mu.Unlock()
		for _, t := range tenants {
			t.facade.bind(peerA)
		}
		wait(func() bool { _, _, ok := r.Channel(testRelayed, peerA); return ok })
	}
}
