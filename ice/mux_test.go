package ice

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pion "github.com/pion/ice/v2"
	witness "github.com/pion/stun"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

// sink is a Sender that keeps what is sent.
type sink struct{ runs chan udp.Run }

func newSink() *sink { return &sink{make(chan udp.Run, 1<<16)} }

func (s *sink) SendOne(r udp.Run) error {
	r.Data = append([]byte(nil), r.Data...)
	s.runs <- r
	return nil
}

func (s *sink) LocalPort() uint16 { return 51820 }

// lone is a mux with one agent that has started and whom nobody answers.
func lone(t *testing.T, candidates ...string) (*Mux, *sink, *Connection, Credentials) {
	t.Helper()
	out := newSink()
	m := NewMux(MuxConfig{Sender: out, Addresses: func() []netip.Addr { return []netip.Addr{aliceAddr, alice6} }})
	c := NewConnection(AgentConfig{Mux: m, Mailbox: NewMailbox(), Controlling: true})
	return m, out, c, start(t, c, 1, candidates...)
}

func start(t *testing.T, c *Connection, generation uint32, candidates ...string) Credentials {
	t.Helper()
	local, err := c.Restart(generation)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range candidates {
		if err := c.AddCandidate(generation, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Connect(generation, Credentials{"remoteufrag", testPassword}); err != nil {
		t.Fatal(err)
	}
	return local
}

func drops(m *Mux, why dropReason) uint64 { return m.counters.drops[why].Load() }

// TestReceiveDrops: each kind of stranger is dropped under its name.
func TestReceiveDrops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _, c, own := lone(t)
		synctest.Wait()
		src := netip.MustParseAddrPort("192.0.2.9:7")
		nobody := netip.AddrPort{}
		request := pionCheck(t, own.Ufrag, own.Password)
		tests := []struct {
			name string
			s    pipeline.Stray
			want dropReason
		}{
			{"noise", pipeline.Stray{Data: []byte("noise"), Src: src}, dropNotSTUN},
			{"nothing", pipeline.Stray{Src: src}, dropNotSTUN},
			{"indication", pipeline.Stray{Data: build(0x0011), Src: src}, dropIndication},
			{"answer to nothing", pipeline.Stray{Data: pionAnswer(t, stun.ID{1}, src), Src: src}, dropTransaction},
			{"no source", pipeline.Stray{Data: request, Src: nobody, Dst: aliceAddr}, dropSource},
			{"port 0", pipeline.Stray{Data: request, Src: netip.AddrPortFrom(src.Addr(), 0), Dst: aliceAddr}, dropSource},
			{"multicast", pipeline.Stray{Data: request, Src: netip.MustParseAddrPort("224.0.0.1:7"), Dst: aliceAddr}, dropSource},
			{"another user", pipeline.Stray{Data: pionCheck(t, "nobody", own.Password), Src: src, Dst: aliceAddr}, dropUnknownUsername},
			{"another password", pipeline.Stray{Data: pionCheck(t, own.Ufrag, testPassword), Src: src, Dst: aliceAddr}, dropUnauthentic},
			{"another address", pipeline.Stray{Data: request, Src: src, Dst: bobAddr}, dropLocalAddress},
		}
		for _, test := range tests {
			before := drops(m, test.want)
			m.Receive(test.s)
			if drops(m, test.want) != before+1 {
				t.Errorf("%s: not counted as %s", test.name, dropTable[test.want].reason)
			}
		}
		if m.counters.Requests.Load() != 0 {
			t.Error("a stranger's request was taken")
		}
		m.Receive(pipeline.Stray{Data: request, Src: src, Dst: aliceAddr})
		m.Receive(pipeline.Stray{Data: request, Src: src}) // where the platform does not tell the address
		if m.counters.Requests.Load() != 2 {
			t.Error("an authentic request was not taken")
		}
		synctest.Wait()
		c.Close()
		m.Close()
	})
}

// TestRemotesAreBounded: a peer that lies about its source cannot make us remember addresses without end.
func TestRemotesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _, c, own := lone(t)
		synctest.Wait()
		for i := range 3 * maxRemotes {
			src := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.9"), uint16(1000+i))
			m.Receive(pipeline.Stray{Data: pionCheck(t, own.Ufrag, own.Password), Src: src, Dst: aliceAddr})
			synctest.Wait()
		}
		if n := m.remotes(own.Ufrag); n != maxRemotes || drops(m, dropTooManyRemotes) < 2*maxRemotes {
			t.Errorf("%d addresses are remembered", n)
		}
		c.Close()
		m.Close()
	})
}

// TestReceiveAllocates: what is dropped costs nothing.
func TestReceiveAllocates(t *testing.T) {
	m := NewMux(MuxConfig{Sender: newSink()})
	src := netip.MustParseAddrPort("192.0.2.9:7")
	for name, data := range map[string][]byte{
		"noise": []byte("noise"), "answer": pionAnswer(t, stun.ID{1}, src), "request": pionCheck(t, "nobody", testPassword),
	} {
		if n := testing.AllocsPerRun(100, func() { m.Receive(pipeline.Stray{Data: data, Src: src, Dst: aliceAddr}) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// TestHostileDatagrams: connections come about and live while strangers send whatever they have, mutations of genuine
// messages included.
func TestHostileDatagrams(t *testing.T) {
	world(t, func(t *testing.T, network *udptest.Network, a, b *node) {
		rng := rand.New(rand.NewPCG(1, 2))
		var mu sync.Mutex
		var samples [][]byte
		sample := func() []byte {
			mu.Lock()
			defer mu.Unlock()
			if len(samples) == 0 {
				return nil
			}
			return append([]byte(nil), samples[rng.IntN(len(samples))]...)
		}
		network.Hook(func(d *udptest.Datagram) bool {
			mu.Lock()
			defer mu.Unlock()
			if len(samples) < 64 && (d.Src == a.at(aliceAddr) || d.Src == b.at(bobAddr)) {
				samples = append(samples, append([]byte(nil), d.Data...))
			}
			return true
		})
		hostile := func() {
			for range 200 {
				data := make([]byte, rng.IntN(200))
				for i := range data {
					data[i] = byte(rng.Uint32())
				}
				if genuine := sample(); genuine != nil && rng.IntN(4) > 0 {
					data = genuine
					for range 1 + rng.IntN(3) {
						data[rng.IntN(len(data))] ^= byte(1 + rng.IntN(255))
					}
					if rng.IntN(4) == 0 {
						data = data[:rng.IntN(len(data))]
					}
				}
				to := []netip.AddrPort{a.at(aliceAddr), b.at(bobAddr)}[rng.IntN(2)]
				src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(rng.IntN(4))}), uint16(rng.IntN(4)))
				network.Inject(udptest.Datagram{Src: src, Dst: to, Data: data})
			}
		}
		for round := range 2 {
			hostile()
			l := newLink(a, b)
			l.restart(1)
			ok := signal(a, b, l.peers(), 5*time.Second, func() bool { hostile(); return l.connected() })
			if !ok {
				t.Fatalf("round %d: not connected", round)
			}
			for range 30 {
				hostile()
				time.Sleep(300 * time.Millisecond)
			}
			if p := l.a.Path(); p == nil || (p.Dst.Addr() != bobAddr && p.Dst.Addr() != bob6) {
				t.Fatalf("round %d: path %v", round, p)
			}
			l.close()
		}
		for _, why := range []dropReason{dropNotSTUN, dropMalformed, dropFingerprint} {
			if drops(a.mux, why) == 0 {
				t.Errorf("nothing was dropped as %s", dropTable[why].reason)
			}
		}
	})
}

// TestManyLinks: many connections between two sockets find their peers, and nobody else's.
func TestManyLinks(t *testing.T) {
	links := 100
	if testing.Short() {
		links = 20
	}
	world(t, func(t *testing.T, _ *udptest.Network, a, b *node) { manyLinks(t, a, b, links, time.Minute) })
}

func manyLinks(t *testing.T, a, b *node, links int, limit time.Duration) {
	peers := map[*Connection]*Connection{}
	var list []*link
	start := time.Now()
	for range links {
		l := newLink(a, b)
		peers[l.a], peers[l.b] = l.b, l.a
		list = append(list, l)
		l.restart(1)
	}
	open := list
	all := func() bool {
		for len(open) > 0 && open[0].connected() {
			open = open[1:]
		}
		return len(open) == 0
	}
	if !signal(a, b, peers, limit, all) {
		t.Fatalf("%d of %d did not connect; %v", len(open), links, a.mux.Counters())
	}
	t.Logf("%d links in %v", links, time.Since(start))
	for _, n := range []*node{a, b} {
		for _, why := range []dropReason{dropUnknownUsername, dropUnauthentic, dropTransaction, dropLocalAddress, dropTransactionsFull} {
			if k := drops(n.mux, why); k != 0 {
				t.Errorf("%d datagrams were dropped as %s", k, dropTable[why].reason)
			}
		}
	}
	for _, l := range list {
		l.close()
	}
	if a.mux.remembered()+b.mux.remembered() != 0 {
		t.Error("the mux remembers closed connections")
	}
}

// TestUDPMux pins what pion expects of the four methods.
func TestUDPMux(t *testing.T) {
	m := NewMux(MuxConfig{Sender: newSink(), Tunnel: inTunnel("100.64.0.9"), Addresses: func() []netip.Addr {
		var list []netip.Addr
		for _, a := range strings.Fields("10.0.0.1 10.0.0.1 ::ffff:10.0.0.3 127.0.0.1 ::1 fe80::1 224.0.0.1 100.64.0.9 0.0.0.0 2001:db8::1") {
			list = append(list, netip.MustParseAddr(a))
		}
		return list
	}})
	var got []string
	for _, a := range m.GetListenAddresses() {
		got = append(got, a.String())
	}
	if s := strings.Join(got, " "); s != "10.0.0.1:51820 10.0.0.3:51820 100.64.0.9:51820 [2001:db8::1]:51820" {
		t.Errorf("offered %s", s)
	}
	var mux pion.UDPMux = m
	if _, err := mux.GetConn("nobody", m.GetListenAddresses()[0]); err == nil {
		t.Error("a conn for nobody")
	}
	a, err := m.add("ufrag", testPassword, new(Share), func() {}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.add("ufrag", testPassword, new(Share), func() {}, func() {}); err == nil {
		t.Error("a ufrag was taken twice")
	}
	c, err := mux.GetConn("ufrag", m.GetListenAddresses()[0])
	if err != nil || c.LocalAddr().String() != "10.0.0.1:51820" {
		t.Fatalf("%v, %v", c, err)
	}
	if again, _ := mux.GetConn("ufrag", m.GetListenAddresses()[0]); again != c || len(a.conns) != 1 {
		t.Error("another conn for the same address")
	}
	if _, err := c.WriteTo([]byte("data that is no STUN at all"), m.GetListenAddresses()[0]); err == nil {
		t.Error("data was sent")
	}
	ended := make(chan error)
	go func() {
		_, _, err := c.ReadFrom(make([]byte, 1500))
		ended <- err
	}()
	mux.RemoveConnByUfrag("ufrag")
	if err := <-ended; err == nil {
		t.Error("ReadFrom outlives the agent")
	}
	if err := mux.Close(); err != nil {
		t.Error(err)
	}
}

// TestDestinations: no check goes where none may go, though pion asks for it.
func TestDestinations(t *testing.T) {
	m := NewMux(MuxConfig{Sender: newSink()})
	if _, err := m.add("ufrag", testPassword, new(Share), func() {}, func() {}); err != nil {
		t.Fatal(err)
	}
	local := netip.MustParseAddrPort("10.0.0.1:51820")
	c := newConn(m, m.members["ufrag"], local)
	request := witness.MustBuild(witness.TransactionID, witness.BindingRequest).Raw
	bad := []string{"127.0.0.1:7", "0.0.0.0:7", "224.0.0.1:7", "255.255.255.255:7", "192.0.2.1:0", "[2001:db8::1]:7"}
	for i, to := range bad {
		if n, err := c.WriteTo(request, udpAddr(to)); n != len(request) || err != nil {
			t.Errorf("%s: %d, %v", to, n, err)
		}
		if drops(m, dropDestination) != uint64(i+1) {
			t.Errorf("%s: not dropped", to)
		}
	}
	if m.remotes("ufrag") != 0 {
		t.Error("a refused destination is remembered")
	}
	m.Close()
}

// TestUnknownAttribute: of a check with attributes that must be understood and are not "the server replies with an error response with an
// error code of 420 (Unknown Attribute) and includes an UNKNOWN-ATTRIBUTES attribute in the response that lists the unknown
// comprehension-required attributes" (RFC 8489, section 6.3.1), over sockets of both families and over a relay, once it is authentic.
func TestUnknownAttribute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newSink()
		m := NewMux(MuxConfig{Sender: out})
		a, err := m.add("ufrag", testPassword, new(Share), func() {}, func() {})
		if err != nil {
			t.Fatal(err)
		}
		var answers []udp.Run
		relay := (&Gate{m, a}).Open(netip.MustParseAddrPort("192.0.2.1:50000"), func(to netip.AddrPort, data []byte) {
			answers = append(answers, udp.Run{Dst: to, Data: data})
		}, func(netip.AddrPort) { t.Error("a channel was bound") })
		unknown := []witness.Setter{witness.RawAttribute{Type: 0x7ABC, Value: []byte("x")}, witness.RawAttribute{Type: witness.AttrLifetime, Value: make([]byte, 4)}}
		for local, src := range map[netip.Addr]netip.AddrPort{
			aliceAddr: netip.MustParseAddrPort("192.0.2.9:7"), alice6: netip.MustParseAddrPort("[2001:db8::9]:7"),
		} {
			if _, err := m.GetConn("ufrag", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, out.LocalPort()))); err != nil {
				t.Fatal(err)
			}
			m.Receive(pipeline.Stray{Data: pionCheck(t, "ufrag", testPassword+"x", unknown...), Src: src, Dst: local})
			m.Receive(pipeline.Stray{Data: pionCheck(t, "ufrag", testPassword, unknown...), Src: src, Dst: local})
			answers = append(answers, <-out.runs)
		}
		before := len(answers)
		if passes(relay, netip.MustParseAddrPort("192.0.2.9:8"), pionCheck(t, "ufrag", testPassword, unknown...)) || len(answers) != before+1 {
			t.Errorf("over a relay: passed, or %d answers, want 1", len(answers)-before)
		}
		for _, answer := range answers {
			pion := witness.Message{Raw: answer.Data}
			var code witness.ErrorCodeAttribute
			list := stun.Find(answer.Data, stun.UnknownAttributes) // pion v0.6.1 takes four bytes for each
			err := errors.Join(pion.Decode(), code.GetFrom(&pion), witness.NewShortTermIntegrity(testPassword).Check(&pion), witness.Fingerprint.Check(&pion))
			if err != nil || code.Code != 420 || string(list) != "\x7A\xBC\x00\x0D" {
				t.Errorf("to %v: code %d, unknown %x (%v)", answer.Dst, code.Code, list, err)
			}
		}
		if n, heard := drops(m, dropUnknownAttribute), m.counters.Requests.Load(); n != 3 || heard != 0 || drops(m, dropUnauthentic) != 2 || len(out.runs) != 0 {
			t.Errorf("%d dropped, want 3; %d taken; %d unauthentic, want 2; %d more sent", n, heard, drops(m, dropUnauthentic), len(out.runs))
		}
		m.Close()
	})
}
