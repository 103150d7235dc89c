package turn

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/ice/v2"
	"github.com/pion/logging"
	oldstun "github.com/pion/stun"
	witness "github.com/pion/stun/v4"
	"github.com/pion/transport/v2"
	"github.com/pion/transport/v2/stdnet"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// facadeNet is the system's network, but that its one packet socket is a Facade.
type facadeNet struct {
	transport.Net
	facade *Facade
}

func (n facadeNet) ListenPacket(string, string) (net.PacketConn, error) { return n.facade, nil }

func newAgent(t *testing.T, network transport.Net, kind ice.CandidateType) *ice.Agent {
	t.Helper()
	quiet := logging.NewDefaultLoggerFactory()
	quiet.DefaultLogLevel = logging.LogLevelDisabled
	wait := time.Duration(0)
	var servers []*oldstun.URI
	if kind == ice.CandidateTypeRelay {
		servers = []*oldstun.URI{{
			Scheme: oldstun.SchemeTypeTURN, Proto: oldstun.ProtoTypeUDP, Host: FacadeHost, Port: FacadePort,
			Username: FacadeUsername, Password: FacadePassword,
		}}
	}
	agent, err := ice.NewAgent(&ice.AgentConfig{
		Urls:         servers,
		NetworkTypes: []ice.NetworkType{ice.NetworkTypeUDP4}, CandidateTypes: []ice.CandidateType{kind},
		MulticastDNSMode: ice.MulticastDNSModeDisabled, IncludeLoopback: true, Net: network, LoggerFactory: quiet,
		RelayAcceptanceMinWait: &wait,
		IPFilter:               func(ip net.IP) bool { return ip.IsLoopback() },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = agent.Close() })
	return agent
}

// gather returns all candidates of an agent.
func gather(t *testing.T, agent *ice.Agent) []ice.Candidate {
	t.Helper()
	found := make(chan ice.Candidate, 16)
	if err := agent.OnCandidate(func(c ice.Candidate) { found <- c }); err != nil {
		t.Fatal(err)
	}
	if err := agent.GatherCandidates(); err != nil {
		t.Fatal(err)
	}
	var all []ice.Candidate
	for {
		select {
		case c := <-found:
			if c == nil {
				return all
			}
			all = append(all, c)
		case <-time.After(10 * time.Second):
			t.Fatal("gathering does not end")
		}
	}
}

// settledFacade makes a Facade that stands for an allocation with these addresses from the start.
func settledFacade(relayed, mapped netip.AddrPort, wake func()) *Facade {
	f := newFacade(nil, wake, nil)
	f.at, f.relayed, f.mapped = facadeAddr, relayed, mapped
	return f
}

// TestFacadeAgent: an agent of pion/ice v2 gets a relayed candidate from the shared allocation, connects over it to an agent without
// a relay, and carries data both ways.
func TestFacadeAgent(t *testing.T) {
	t.Parallel()
	_, at := newPion(t, "127.0.0.1", 0)
	l := newLive(t, Config{Server: at, Credentials: goodLogin})
	l.c.Start(l.now())
	allocated := l.until(Allocated)
	facade := settledFacade(allocated.Relayed, allocated.Mapped, func() {})
	network, err := stdnet.NewNet()
	if err != nil {
		t.Fatal(err)
	}
	relayed, direct := newAgent(t, facadeNet{network, facade}, ice.CandidateTypeRelay), newAgent(t, network, ice.CandidateTypeHost)
	ours, theirs := gather(t, relayed), gather(t, direct)
	if len(ours) != 1 || ours[0].Type() != ice.CandidateTypeRelay || ours[0].Port() != int(allocated.Relayed.Port()) ||
		ours[0].Address() != "127.0.0.1" || ours[0].RelatedAddress().Port != int(allocated.Mapped.Port()) || len(theirs) == 0 {
		t.Fatalf("ours %v, theirs %v", ours, theirs)
	}
	done := make(chan error, 1)
	go func() { done <- converse(relayed, direct, ours, theirs) }()
	for finished := false; !finished; {
		facade.Serve(l.now(), l.c, func() {})
		l.step()
		for _, p := range l.got {
			facade.Deliver(p.Peer, p.Data)
		}
		l.got = nil
		select {
		case err := <-done:
			finished = true
			if err != nil {
				t.Error(err)
			}
		default:
		}
	}
	if len(facade.permitted) == 0 {
		t.Error("no permission is held")
	}
	before := time.Now()
	if err := relayed.Close(); err != nil {
		t.Error(err)
	}
	if d := time.Since(before); d > 5*time.Second {
		t.Errorf("Close took %v although nobody serves", d)
	}
	for range 3 {
		if !facade.Serve(l.now(), l.c, func() {}) {
			break
		}
	}
	if len(facade.permitted) != 0 || len(l.c.permitted) != 0 {
		t.Error("channels are still held")
	}
}

// converse connects two agents and sends a word each way.
func converse(relayed, direct *ice.Agent, ours, theirs []ice.Candidate) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, c := range ours {
		if err := direct.AddRemoteCandidate(c); err != nil {
			return err
		}
	}
	for _, c := range theirs {
		if err := relayed.AddRemoteCandidate(c); err != nil {
			return err
		}
	}
	ufrag, pwd, err := direct.GetLocalUserCredentials()
	ufrag2, pwd2, err2 := relayed.GetLocalUserCredentials()
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	type result struct {
		conn *ice.Conn
		err  error
	}
	accepted := make(chan result, 1)
	go func() {
		conn, err := direct.Accept(ctx, ufrag2, pwd2)
		accepted <- result{conn, err}
	}()
	a, err := relayed.Dial(ctx, ufrag, pwd)
	if err != nil {
		return err
	}
	b := <-accepted
	if b.err != nil {
		return b.err
	}
	for _, way := range [][2]*ice.Conn{{a, b.conn}, {b.conn, a}} {
		if _, err := way[0].Write([]byte("word")); err != nil {
			return err
		}
		buffer := make([]byte, 100)
		n, err := way[1].Read(buffer)
		if err != nil {
			return err
		}
		if string(buffer[:n]) != "word" {
			return errors.New("another word")
		}
	}
	return nil
}

// TestFacadeBounds: what the agent writes is bounded and checked like what strangers write, and nothing of it blocks.
func TestFacadeBounds(t *testing.T) {
	w := up(t)
	woken := 0
	f := settledFacade(testRelayed, testMapped, func() { woken++ })
	write := func(b []byte) {
		t.Helper()
		if n, err := f.WriteTo(b, nil); n != len(b) || err != nil {
			t.Fatal(n, err)
		}
	}
	noise := [][]byte{
		nil, []byte("x"), channelData(FirstChannel, []byte("unbound")), dataIndication(peerA, []byte("x")),
		indication(stun.Send, stun.ID{}, netip.AddrPortFrom(peerA.Addr(), 0), []byte("x")),
	}
	for _, b := range noise {
		write(b)
	}
	if n := f.Lost(); n != uint64(len(noise)) || woken != 0 {
		t.Errorf("%d lost of %d, woken %d times", n, len(noise), woken)
	}
	for i := range facadeQueue + 10 {
		write(indication(stun.Send, stun.ID{}, netip.AddrPortFrom(peerA.Addr(), uint16(i+1)), []byte("x")))
	}
	if woken != facadeQueue || f.Lost() != uint64(len(noise)+10) {
		t.Errorf("woken %d times, %d lost", woken, f.Lost())
	}
	f.Serve(w.now, w.c, func() {})
	if len(w.c.list) != 1 || len(w.c.numbers) != 0 {
		t.Errorf("%d permissions and %d channels for %d ports of an address, want a permission", len(w.c.list), len(w.c.numbers), facadeQueue)
	}
	w.run(time.Second)
	send := func(want string) {
		t.Helper()
		write(indication(stun.Send, stun.ID{}, peerA, []byte("through")))
		f.Serve(w.now, w.c, func() {})
		out, ok := w.c.Poll()
		if !ok || !strings.HasPrefix(string(out.Datagram), want) || !strings.HasSuffix(string(out.Datagram), "through") {
			t.Errorf("%v %q, want %q", ok, out.Datagram, want)
		}
	}
	write(indication(stun.Send, stun.ID{}, peerA, []byte("even"))) // of a length that is not padded
	f.Serve(w.now, w.c, func() {})
	if out, ok := w.c.Poll(); !ok || string(out.Datagram[:2]) != "\x00\x16" || !strings.HasSuffix(string(out.Datagram), "even") {
		t.Errorf("%v %q, want a Send indication", ok, out.Datagram)
	}
	f.bind(peerA)
	f.Serve(w.now, w.c, func() { t.Error("a channel is there before the answer") })
	w.run(time.Second)
	send(string(channelData(FirstChannel, []byte("through"))[:frame.ChannelHeaderSize]))
	known := 0
	f.bind(peerA)
	f.Serve(w.now, w.c, func() { known++ })
	if known != 1 {
		t.Errorf("told %d times that there is a channel, want once", known)
	}
	for range facadeQueue + 10 {
		f.Deliver(peerA, []byte("x"))
	}
	if len(f.down) != facadeQueue {
		t.Error(len(f.down))
	}
	f.Deliver(peerA, make([]byte, maxSend+1))
	for _, err := range []error{f.SetDeadline(time.Time{}), f.SetReadDeadline(time.Time{}), f.SetWriteDeadline(time.Time{})} {
		if !errors.Is(err, os.ErrNoDeadline) {
			t.Error(err)
		}
	}
	if f.Close() != nil || !errors.Is(f.Close(), net.ErrClosed) {
		t.Error("Close")
	}
	_, _, err := f.ReadFrom(make([]byte, 10))
	_, err2 := f.WriteTo([]byte("x"), nil)
	if !errors.Is(err, net.ErrClosed) || !errors.Is(err2, net.ErrClosed) {
		t.Error(err, err2)
	}
	if f.Serve(w.now, w.c, func() {}) || len(w.c.permitted) != 0 {
		t.Error("not let go of")
	}
}

// TestFacadeAnswers: the requests of a TURN client, one by one.
func TestFacadeAnswers(t *testing.T) {
	f := settledFacade(testRelayed, testMapped, func() {})
	ask := func(method witness.Method, fill func(m *witness.Message)) *witness.Message {
		t.Helper()
		request := newRequest(method, stun.ID{5})
		if fill != nil {
			fill(request)
		}
		if _, err := f.WriteTo(request.Raw, nil); err != nil {
			t.Fatal(err)
		}
		b := <-f.down
		m := &witness.Message{}
		if new(stun.Message).Parse(b, stun.Client) != stun.DropNone || witness.Decode(b, m) != nil || m.Type.Method != method || m.TransactionID != request.TransactionID {
			t.Fatalf("%x", b)
		}
		return m
	}
	code := func(m *witness.Message) int { return stun.CodeOf(m.Raw) }
	sign := func(m *witness.Message) { must(witness.MessageIntegrity("key").AddTo(m)) }
	bind := func(number uint16) func(m *witness.Message) {
		return func(m *witness.Message) {
			addUint32(m, witness.AttrChannelNumber, uint32(number)<<16)
			m.Add(witness.AttrXORPeerAddress, pionAddressOf(&m.TransactionID, peerA))
		}
	}
	if m := ask(witness.MethodAllocate, nil); code(m) != 401 || text(m, witness.AttrRealm) == "" || text(m, witness.AttrNonce) == "" {
		t.Error(m)
	}
	m := ask(witness.MethodAllocate, sign)
	if a, ok := pionAddress(m, witness.AttrXORRelayedAddress); !ok || a != testRelayed {
		t.Error(a)
	}
	if a, ok := pionAddress(ask(witness.MethodBinding, nil), witness.AttrXORMappedAddress); !ok || a != testMapped {
		t.Error(a)
	}
	if d, ok := pionLifetime(ask(witness.MethodRefresh, nil)); !ok || d != facadeLifetime {
		t.Error(d)
	}
	codes := []int{
		code(ask(witness.MethodCreatePermission, nil)), code(ask(witness.MethodChannelBind, nil)),
		code(ask(witness.MethodRefresh, func(m *witness.Message) { m.Add(0x7ABC, nil) })), code(ask(witness.MethodChannelBind, bind(0x4100))),
	}
	if want := []int{0, 400, 420, 0}; !slices.Equal(codes, want) {
		t.Errorf("%v, want %v", codes, want)
	}
	for i := range uint16(facadeChannels - 1) {
		if c := code(ask(witness.MethodChannelBind, bind(0x4200+i))); c != 0 {
			t.Error(c)
		}
	}
	if c := code(ask(witness.MethodChannelBind, bind(0x4300))); c != stun.CodeInsufficient {
		t.Error(c)
	}
	if _, err := f.WriteTo(channelData(0x4100, []byte("x")), nil); err != nil || (<-f.up).peer != peerA {
		t.Error("not queued")
	}
}
