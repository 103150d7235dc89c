package pipeline_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/ice/relay"
	"github.com/sluice-vpn/sluice/ice/turn"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun"
)

const relaySecret = "no secret, for a test only"

// patience is how long anything may take on a machine that has other things to do.
const patience = 60 * time.Second

var relayLoopback = netip.MustParseAddr("127.0.0.1")

// startRelay starts our relay on the loopback.
func startRelay(t *testing.T) netip.AddrPort {
	t.Helper()
	s, err := relay.New(relay.Config{
		Listen: []netip.AddrPort{netip.AddrPortFrom(relayLoopback, 0)}, Secret: relaySecret,
		AllowedPeers: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
	})
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() { failed <- s.Run(context.Background()) }()
	t.Cleanup(func() { s.Close() })
	poll(t, "the relay is not ready", func() bool {
		select {
		case err := <-failed:
			t.Fatal(err)
		default:
		}
		return s.Ready()
	})
	return s.Addrs()[0]
}

// poll waits until ready.
func poll(t *testing.T, what string, ready func() bool) {
	t.Helper()
	for limit := time.Now().Add(patience); !ready(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal(what)
		}
	}
}

// relayedNode is a pipeline with its TUN in a namespace and its sockets on the loopback of the lab, where the relay is, and a
// TURN client on the pipeline's own socket that the test drives by hand.
type relayedNode struct {
	*pipeline.Pipeline
	t        *testing.T
	ns       *lab.Namespace
	inner    netip.Addr
	key      crypto.PrivateKey
	offloads atomic.Pointer[udp.Offloads]
	strays   chan turnDatagram
	client   *turn.Client
	start    time.Time
}

// turnDatagram is a copy of a stray.
type turnDatagram struct {
	src  netip.AddrPort
	data []byte
}

func newRelayedNode(t *testing.T, i int) *relayedNode {
	t.Helper()
	ns, err := lab.NewNamespace(fmt.Sprint("relayed", i))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	n := &relayedNode{
		t: t, ns: ns, inner: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), strays: make(chan turnDatagram, 64), start: time.Now(),
	}
	if n.key, err = crypto.GeneratePrivateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	var device tun.Device
	err = ns.Run(func() (err error) {
		device, err = tun.Open(tun.Options{Name: "relayed0", MTU: 1420, Queues: 1})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	n.Pipeline, err = pipeline.New(pipeline.Config{Device: device, Listen: n.listen, Stray: n.stray})
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { ran <- n.Run(context.Background()) }()
	t.Cleanup(func() {
		_ = n.Close()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(ns.AddAddr("relayed0", netip.PrefixFrom(n.inner, 24)), ns.SetUp("relayed0")); err != nil {
		t.Fatal(err)
	}
	poll(t, "the sockets do not open", func() bool { return n.LocalPort() != 0 })
	return n
}

func (n *relayedNode) listen(cfg udp.Config) ([]udp.Pair, error) {
	pairs, err := udp.Listen(cfg)
	if err == nil && pairs[0].V4 != nil {
		offloads := pairs[0].V4.Offloads()
		n.offloads.Store(&offloads)
	}
	return pairs, err
}

func (n *relayedNode) stray(s pipeline.Stray) {
	select {
	case n.strays <- turnDatagram{s.Src, bytes.Clone(s.Data)}:
	default:
	}
}

// outer is where the node's datagrams come from.
func (n *relayedNode) outer() netip.AddrPort { return netip.AddrPortFrom(relayLoopback, n.LocalPort()) }

// know makes other a peer, at this address if it is valid.
func (n *relayedNode) know(other *relayedNode, endpoint netip.AddrPort) {
	_ = n.Edit(func(e *pipeline.Edit) error {
		e.SetPrivateKey(&n.key)
		p := e.AddPeer(other.key.Public())
		if endpoint.IsValid() {
			p.SetEndpoint(endpoint)
		}
		p.AddAllowedIP(netip.PrefixFrom(other.inner, 32))
		return nil
	})
}

// until drives the TURN client until it has an output of this kind.
func (n *relayedNode) until(kind turn.OutputKind) turn.Output {
	n.t.Helper()
	now := func() time.Duration { return time.Hour + time.Since(n.start) }
	for limit := time.Now().Add(patience); time.Now().Before(limit); {
		for {
			out, ok := n.client.Poll()
			if !ok {
				break
			}
			switch {
			case out.Kind == turn.SendDatagram:
				if err := n.SendOne(udp.Run{Data: out.Datagram, Dst: n.client.Server()}); err != nil {
					n.t.Fatal(err)
				}
			case out.Kind == kind:
				return out
			case out.Final:
				n.t.Fatalf("TURN failed: %v, %d", out.Reason, out.Code)
			}
		}
		select {
		case d := <-n.strays:
			n.client.Handle(now(), d.src, d.data)
		case <-time.After(5 * time.Millisecond):
		}
		n.client.HandleTimeout(now())
	}
	n.t.Fatalf("no %v from the TURN client", kind)
	return turn.Output{}
}

// allocate asks the relay for a relayed address.
func (n *relayedNode) allocate(server netip.AddrPort) netip.AddrPort {
	n.t.Helper()
	n.SetRelays([]netip.AddrPort{server})
	user, password := relay.Credential(relaySecret, time.Now().Add(time.Hour), n.inner.String())
	var err error
	n.client, err = turn.New(turn.Config{Server: server, Credentials: turn.Credentials{Username: user, Password: password}})
	if err != nil {
		n.t.Fatal(err)
	}
	n.client.Start(time.Hour + time.Since(n.start))
	out := n.until(turn.Allocated)
	if out.Mapped != n.outer() {
		n.t.Fatalf("the relay sees us at %v, our socket is %v", out.Mapped, n.outer())
	}
	return out.Relayed
}

// bind binds a channel to the peer and lets the tunnel go over it.
func (n *relayedNode) bind(peer netip.AddrPort) {
	n.t.Helper()
	if err := n.client.Bind(time.Hour+time.Since(n.start), peer); err != nil {
		n.t.Fatal(err)
	}
	out := n.until(turn.ChannelBound)
	if err := pipeline.SetPath(n.Pipeline, &pipeline.Path{Dst: n.client.Server(), Channel: out.Channel, Fixed: true}); err != nil {
		n.t.Fatal(err)
	}
}

// counts returns the node's counters.
func (n *relayedNode) counts() map[string]uint64 {
	set := make(map[string]uint64)
	for _, c := range n.Counters() {
		set[c.Name] = c.Value
	}
	return set
}

// pour sends this many bytes by TCP from one node to the other and compares what came.
func pour(t *testing.T, from, to *relayedNode, size int) {
	t.Helper()
	var listener net.Listener
	var out net.Conn
	err := to.ns.Run(func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(to.inner, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_ = listener.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	if err := from.ns.Run(func() (err error) {
		out, err = net.DialTimeout("tcp4", listener.Addr().String(), patience)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	_ = errors.Join(in.SetDeadline(time.Now().Add(patience)), out.SetDeadline(time.Now().Add(patience)))
	data := make([]byte, size)
	_, _ = rand.Read(data)
	sent := make(chan error, 1)
	go func() {
		_, err := out.Write(data)
		sent <- errors.Join(err, out.(*net.TCPConn).CloseWrite())
	}()
	hash := sha256.New()
	n, err := io.Copy(hash, in)
	if err := errors.Join(err, <-sent); err != nil || int(n) != size {
		t.Fatalf("%d of %d bytes came: %v", n, size, err)
	}
	if want := sha256.Sum256(data); !bytes.Equal(hash.Sum(nil), want[:]) {
		t.Error("what came is not what was sent")
	}
}

// bounce sends bursts of datagrams there and back, the next when the last has come back whole: no socket buffer has reason to
// drop one.
func bounce(t *testing.T, from, to *relayedNode, bursts, size int) {
	t.Helper()
	var conns [2]net.PacketConn
	for i, n := range []*relayedNode{from, to} {
		if err := n.ns.Run(func() (err error) {
			conns[i], err = net.ListenPacket("udp4", netip.AddrPortFrom(n.inner, 0).String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer conns[i].Close()
		_ = conns[i].SetDeadline(time.Now().Add(patience))
	}
	const burst = 32
	b := make([]byte, size)
	for round := range bursts {
		for i, conn := range conns {
			for k := range burst {
				b[0], b[1] = byte(round), byte(k)
				if _, err := conn.WriteTo(b, conns[1-i].LocalAddr()); err != nil {
					t.Fatal(err)
				}
			}
			for k := range burst {
				n, _, err := conns[1-i].ReadFrom(b)
				if err != nil || n != size || b[0] != byte(round) || b[1] != byte(k) {
					t.Fatalf("burst %d, datagram %d: %d bytes of burst %d, datagram %d, %v", round, k, n, b[0], b[1], err)
				}
			}
		}
	}
}

// Through our relay on real sockets a tunnel carries what was sent, loses nothing at a moderate rate, and ChannelData goes in
// and out of the kernel in runs (UDP_SEGMENT, UDP_GRO) as plain datagrams do.
func TestThroughRelay(t *testing.T) {
	lab.NeedTUN(t)
	for _, both := range []bool{false, true} {
		name := map[bool]string{false: "one side", true: "both sides"}[both]
		t.Run(name, func(t *testing.T) {
			server := startRelay(t)
			a, b := newRelayedNode(t, 0), newRelayedNode(t, 1)
			relayedA := a.allocate(server)
			a.know(b, netip.AddrPort{})
			b.know(a, relayedA)
			if both {
				relayedB := b.allocate(server)
				a.bind(relayedB)
				b.bind(relayedA)
			} else {
				a.bind(b.outer())
			}
			bounce(t, a, b, 50, 1200)
			wantNoLoss(t, a, b)
			for _, n := range []*relayedNode{a, b} {
				c := n.counts()
				if relayed := n == a || both; relayed != (c["channel_sent"] >= 1600) || relayed != (c["channel_received"] >= 1600) {
					t.Errorf("%d were sent and %d received as ChannelData, of 1600", c["channel_sent"], c["channel_received"])
				}
			}
			before := [2]map[string]uint64{a.counts(), b.counts()}
			pour(t, a, b, 8<<20)
			pour(t, b, a, 8<<20)
			for i, n := range []*relayedNode{a, b} {
				if n == a || both {
					wantRuns(t, n, before[i])
				}
			}
		})
	}
}

// wantNoLoss fails the test if a lane has dropped what peers sent.
func wantNoLoss(t *testing.T, nodes ...*relayedNode) {
	t.Helper()
	for _, n := range nodes {
		c := n.counts()
		for _, drop := range []string{
			"channel_data", "malformed", "unknown_index", "unauthentic", "replayed", "too_big", "send_stalled", "tun_full",
		} {
			if c["drop_"+drop] != 0 {
				t.Errorf("%v has drop_%s %d", n.inner, drop, c["drop_"+drop])
			}
		}
	}
}

// wantRuns fails the test unless since before the node has sent and received ChannelData in runs, where the kernel has them.
func wantRuns(t *testing.T, n *relayedNode, before map[string]uint64) {
	t.Helper()
	after, offloads := n.counts(), n.offloads.Load()
	since := func(name string) uint64 { return after[name] - before[name] }
	sent, sendRuns := since("udp_send_datagrams"), since("udp_send_runs")
	received, receiveRuns := since("udp_receive_datagrams"), since("udp_receive_runs")
	t.Logf("%v: sent %d datagrams in %d runs, received %d in %d", n.inner, sent, sendRuns, received, receiveRuns)
	if framed := since("channel_sent"); framed < 5000 { // of 6079 segments, and acknowledgements
		t.Errorf("%d of %d datagrams were framed", framed, sent)
	}
	if offloads.SegmentSend && (sent < 2*sendRuns || after["udp_segment_refused"] != 0) {
		t.Errorf("%d datagrams were sent in %d runs, %d runs were refused", sent, sendRuns, after["udp_segment_refused"])
	}
	if offloads.GROReceive && received < 2*receiveRuns {
		t.Errorf("%d datagrams were received in %d runs", received, receiveRuns)
	}
}
