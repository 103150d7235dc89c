package edge

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/pion/logging"
	"github.com/pion/turn/v5"

	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

// packets is a socket of the network in memory as a net.PacketConn.
type packets struct {
	socket   udp.Socket
	address  netip.AddrPort
	once     sync.Once
	closed   chan struct{}
	deadline chan struct{} // has a value when ReadFrom must return
	batch    [1]udp.Datagrams
}

func newPackets(h *udptest.Host, address netip.Addr, port uint16) (*packets, error) {
	pairs, err := h.Listen(udp.Config{Port: port})
	if err != nil {
		return nil, err
	}
	p := &packets{socket: pairs[0].V4, closed: make(chan struct{}), deadline: make(chan struct{}, 1)}
	p.address = netip.AddrPortFrom(address, p.socket.LocalPort())
	p.batch[0].Buf = make([]byte, 1<<16)
	return p, nil
}

func (p *packets) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		if n, err := p.socket.Receive(p.batch[:]); err != nil || n > 0 {
			return copy(b, p.batch[0].Data), net.UDPAddrFromAddrPort(p.batch[0].Src), err
		}
		select {
		case <-p.socket.Ready():
		case <-p.deadline:
			return 0, nil, os.ErrDeadlineExceeded
		case <-p.closed:
			return 0, nil, net.ErrClosed
		}
	}
}

func (p *packets) WriteTo(b []byte, to net.Addr) (int, error) {
	at := to.(*net.UDPAddr).AddrPort()
	err := p.socket.SendOne(udp.Run{Data: b, SegmentSize: len(b), Dst: netip.AddrPortFrom(at.Addr().Unmap(), at.Port())})
	return len(b), err
}

func (p *packets) Close() error {
	p.once.Do(func() { close(p.closed) })
	return p.socket.Close()
}

func (p *packets) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(p.address) }

func (p *packets) SetReadDeadline(t time.Time) error {
	if !t.IsZero() && !t.After(time.Now()) {
		select {
		case p.deadline <- struct{}{}:
		default:
		}
	}
	return nil
}
func (p *packets) SetDeadline(t time.Time) error    { return p.SetReadDeadline(t) }
func (p *packets) SetWriteDeadline(time.Time) error { return nil }

// turnServer is pion/turn's server on the network in memory.
type turnServer struct {
	host    *udptest.Host
	address netip.Addr
	server  *turn.Server
}

func (s *turnServer) Validate() error { return nil }

func (s *turnServer) AllocatePacketConn(turn.AllocateListenerConfig) (net.PacketConn, net.Addr, error) {
	p, err := newPackets(s.host, s.address, 0)
	if err != nil {
		return nil, nil, err
	}
	return p, p.LocalAddr(), nil
}

func (s *turnServer) AllocateListener(turn.AllocateListenerConfig) (net.Listener, net.Addr, error) {
	return nil, nil, errors.ErrUnsupported
}

func (s *turnServer) AllocateConn(turn.AllocateConnConfig) (net.Conn, error) {
	return nil, errors.ErrUnsupported
}

// relayNamed starts a TURN server at an address and returns what the portal says about it.
func (w *world) relayNamed(name string, number byte) (protocol.Relay, *turnServer) {
	w.t.Helper()
	s := &turnServer{address: netip.AddrFrom4([4]byte{203, 0, 113, number})}
	s.host = w.network.Host(s.address)
	conn, err := newPackets(s.host, s.address, 3478)
	if err != nil {
		w.t.Fatal(err)
	}
	quiet := logging.NewDefaultLoggerFactory()
	quiet.DefaultLogLevel = logging.LogLevelDisabled
	s.server, err = turn.NewServer(turn.ServerConfig{
		Realm: "example.org", LoggerFactory: quiet,
		AuthHandler: func(a *turn.RequestAttributes) (string, []byte, bool) {
			return a.Username, turn.GenerateAuthKey(a.Username, a.Realm, "password"), a.Username != "stranger"
		},
		PacketConnConfigs: []turn.PacketConnConfig{{PacketConn: conn, RelayAddressGenerator: s}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.ends = append(w.ends, func() { _ = s.server.Close() })
	return protocol.Relay{
		Name: name, Addrs: []netip.AddrPort{conn.address}, Username: "node", Password: "password",
	}, s
}

// Where no direct path is, the first attempt is relayed, though the nodes have just started; as soon as there is one the
// connection moves to it with its session.
func TestRelayedThenDirect(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		one, _ := w.relayNamed("north", 1)
		w.portal.relays = []protocol.Relay{one}
		w.direct(false)
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		took := w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		t.Log("connected after", took)
		w.carries(c, g)
		s := c.connection("gate")
		if s.Via != "relay" || s.Generation != 1 || !regexp.MustCompile(
			`^relayed by .* at \S+ \(\w+ - \w+\), since no direct pair of addresses has worked; tries again every 2 min$`).MatchString(s.Explanation) {
			t.Errorf("status %+v", s)
		}
		if l, r := s.Local, s.Remote; l != "relay" && r != "relay" {
			t.Errorf("candidates %s and %s", l, r)
		}
		w.direct(true)
		for range 12 { // some data, so that the connection does not become idle
			time.Sleep(2 * time.Second)
			w.carries(c, g)
		}
		w.await(time.Minute, "direct", func() bool {
			return c.connection("gate").Via == "direct" && g.connection("laptop").Via == "direct"
		})
		w.carries(c, g)
		after := c.connection("gate")
		if after.Generation != 1 || !after.LastHandshake.Equal(s.LastHandshake) {
			t.Errorf("another session: %+v", after)
		}
		if n := c.log.count(`INFO msg="path changed" peer=gate generation=1 via=direct`); n == 0 {
			t.Error("the log does not tell that the path is another one")
		}
	})
}

// A relayed connection without data becomes direct, too, when it can, and is idle again.
func TestIdleRelayedThenDirect(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		one, _ := w.relayNamed("north", 1)
		w.portal.relays = []protocol.Relay{one}
		w.direct(false)
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		idle := func() bool { return c.connection("gate").State == "idle" && g.connection("laptop").State == "idle" }
		w.await(time.Minute, "idle", idle)
		if s := c.connection("gate"); s.Via != "relay" {
			t.Fatalf("status %+v", s)
		}
		w.direct(true)
		w.await(link.UpgradeEvery*9/8+15*time.Second, "direct", func() bool {
			return c.connection("gate").Via == "direct" && g.connection("laptop").Via == "direct"
		})
		w.await(time.Minute, "idle again", idle)
		w.carries(c, g)
		if s := c.connection("gate"); s.Via != "direct" || s.Generation != 1 {
			t.Errorf("status %+v", s)
		}
	})
}

// Where signaling is slow, the peer's checks are there before its candidates, over all paths, and those of the relay are not
// taken for the peer's own: the direct path is chosen although it is the slower one.
func TestChecksBeforeCandidates(t *testing.T) {
	for seed := range uint64(8) {
		runSeed(t, seed, signal.Faults{Reorder: 1, Delay: 300 * time.Millisecond}, func(w *world) {
			w.network.Impair(func(from, to netip.AddrPort) udptest.Impairment {
				delay := 10 * time.Millisecond
				if from.Addr().As4()[0] == 198 && to.Addr().As4()[0] == 198 {
					delay = 60 * time.Millisecond
				}
				return udptest.Impairment{Delay: delay}
			})
			one, _ := w.relayNamed("north", 1)
			w.portal.relays = []protocol.Relay{one}
			g := w.node("gate", protocol.Gateway)
			c := w.node("laptop", protocol.Client)
			w.await(5*time.Second, "connected", func() bool { return up(c, g) })
			for _, s := range []ConnectionStatus{c.connection("gate"), g.connection("laptop")} {
				if s.Via != "direct" {
					t.Errorf("seed %d: %s", seed, s.Explanation)
				}
			}
		})
	}
}

// A relay that dies is left for another one.
func TestRelayLost(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		one, first := w.relayNamed("north", 1)
		two, _ := w.relayNamed("south", 2)
		w.portal.relays = []protocol.Relay{one}
		w.direct(false)
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		before := c.connection("gate")
		w.portal.change(func() { w.portal.relays = []protocol.Relay{one, two} })
		time.Sleep(3 * time.Second)
		_ = first.server.Close()
		w.await(time.Minute, "over the other relay", func() bool {
			s, k := c.connection("gate"), g.connection("laptop")
			south := two.Addrs[0].Addr()
			over := s.Endpoint.Addr() == south || k.Endpoint.Addr() == south
			return over && s.State == "up" && k.State == "up" && s.Endpoint.Addr() != one.Addrs[0].Addr() &&
				k.Endpoint.Addr() != one.Addrs[0].Addr()
		})
		w.carries(c, g)
		t.Log(before.Endpoint, c.connection("gate").Endpoint, c.connection("gate").Generation)
	})
}

// A relay that is silent from the start holds an attempt up no longer than relayPatience.
func TestDeadRelay(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		w.portal.relays = []protocol.Relay{{Name: "gone", Addrs: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.9:3478")}}}
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		took := w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		if took > relayPatience+time.Second {
			t.Error("connected after", took)
		}
		if s := c.connection("gate"); s.Via != "direct" {
			t.Errorf("%+v", s)
		}
	})
}
