package signal_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/ice/signal/broker"
)

// portal is a broker whose nodes' tokens are "token-NAME", and what it lets them do.
type portal struct {
	*broker.Broker
	cfg broker.Config

	mu    sync.Mutex
	peers map[string][]string // a node that is not here is refused
}

func (p *portal) authenticate(token string) (string, []string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name, _ := strings.CutPrefix(token, "token-")
	peers, ok := p.peers[name]
	if !ok {
		return "", nil, errors.New("unknown token")
	}
	return name, peers, nil
}

func (p *portal) revoke(name string) {
	p.mu.Lock()
	delete(p.peers, name)
	p.mu.Unlock()
}

func (p *portal) start(t *testing.T) {
	t.Helper()
	b, err := broker.Start(p.cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.Broker = b
	p.cfg.Listen = b.Addr() // and again after a restart
	t.Cleanup(func() { b.Close() })
}

func newPortal(t *testing.T, conf *tls.Config) *portal {
	t.Helper()
	p := &portal{peers: map[string][]string{"a": {"b", "c"}, "b": {"a"}, "c": {"a"}, "d": nil}}
	p.cfg = broker.Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Authenticate: p.authenticate, TLS: conf}
	p.start(t)
	return p
}

func (p *portal) config(name string) signal.Config {
	scheme := "nats://"
	if p.cfg.TLS != nil {
		scheme = "tls://"
	}
	return signal.Config{Self: name, URLs: []string{scheme + p.cfg.Listen.String()}, Token: "token-" + name,
		MinRetry: 5 * time.Millisecond, MaxRetry: 20 * time.Millisecond, Wait: 20 * time.Second}
}

func connect(t *testing.T, cfg signal.Config) *signal.Bus {
	t.Helper()
	b, err := signal.Connect(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// await waits until the state is as wanted.
func await(t *testing.T, b *signal.Bus, what string, want func(signal.State) bool) signal.State {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		changed := b.Changed()
		s := b.State()
		if want(s) {
			return s
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("never %s: %+v", what, s)
		}
	}
}

func awaitUp(t *testing.T, b *signal.Bus) {
	t.Helper()
	await(t, b, "up", func(s signal.State) bool { return s.Up })
}

func receive(t *testing.T, b *signal.Bus) signal.Msg {
	t.Helper()
	select {
	case msg := <-b.Recv():
		return msg
	case <-time.After(20 * time.Second):
		t.Fatalf("nothing came: %+v", b.Counters())
		panic("not reached")
	}
}

func bye() signal.Message {
	return signal.Message{Kind: signal.Bye, Generation: 3, Reason: "handshake_timeout", Counters: map[string]uint64{"mac1_mismatch": 5}}
}

func TestBus(t *testing.T) {
	p := newPortal(t, nil)
	a, b := connect(t, p.config("a")), connect(t, p.config("b"))
	d := connect(t, p.config("d"))
	awaitUp(t, b)
	ctx := context.Background()
	m := signal.Message{Kind: signal.Offer, Generation: 9, Agent: 1, PublicKey: [32]byte{1}, Ufrag: "abcd", Pwd: strings.Repeat("p", 22),
		Candidates: []string{"1 1 udp 5 192.0.2.1 5 typ host", "1 1 udp 5 127.0.0.1 5 typ host"}}
	if err := a.Send(ctx, "b", m); err != nil { // waits for a's own connection
		t.Fatal(err)
	}
	got := receive(t, b)
	if got.From != "a" || got.Generation != 9 || got.PublicKey != m.PublicKey || got.Run == 0 || !slices.Equal(got.Candidates, m.Candidates[:1]) {
		t.Errorf("%+v", got)
	}
	if err := b.Send(ctx, "a", bye()); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, a); got.From != "b" || got.Reason != "handshake_timeout" || got.Counters["mac1_mismatch"] != 5 {
		t.Errorf("%+v", got)
	}
	if c := b.Counters(); c != (signal.Counters{Received: 1, Candidates: 1}) {
		t.Errorf("%+v", c)
	}
	for _, test := range []struct {
		from *signal.Bus
		to   string
		want error
	}{{a, "c", signal.ErrAbsent}, {a, "d", signal.ErrForbidden}, {d, "a", signal.ErrForbidden}, {a, "a", signal.ErrName}, {a, ">", signal.ErrName}} {
		if err := test.from.Send(ctx, test.to, bye()); !errors.Is(err, test.want) {
			t.Errorf("to %s: %v, want %v", test.to, err, test.want)
		}
	}
	if err := a.Send(ctx, "b", signal.Message{}); !errors.Is(err, signal.ErrMessage) {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := a.Send(ended, "b", bye()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestBusRequest(t *testing.T) {
	p := newPortal(t, nil)
	a := connect(t, p.config("a"))
	ctx := context.Background()
	if _, err := a.Request(ctx, "hello", nil); !errors.Is(err, signal.ErrAbsent) {
		t.Error(err)
	}
	own, err := p.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	_, err = own.Subscribe("portal.*.hello", func(m *nats.Msg) {
		name, _, _ := strings.Cut(strings.TrimPrefix(m.Subject, "portal."), ".")
		if strings.HasPrefix(m.Reply, signal.InboxPrefix(name)+".") {
			m.Respond([]byte(name + " said " + string(m.Data)))
		}
	})
	if err == nil {
		err = own.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.Request(ctx, "hello", []byte("x")); err != nil || string(got) != "a said x" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := a.Request(ctx, "*", nil); !errors.Is(err, signal.ErrName) {
		t.Error(err)
	}
}

// TestRequestHeld: the portal may hold a request for longer than Wait, if the caller's context has a deadline that allows it.
func TestRequestHeld(t *testing.T) {
	p := newPortal(t, nil)
	cfg := p.config("a")
	cfg.Wait = 100 * time.Millisecond
	a := connect(t, cfg)
	own, err := p.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	held := make(chan *nats.Msg, 2)
	if _, err = own.Subscribe("portal.a.news", func(m *nats.Msg) { held <- m }); err == nil {
		err = own.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	awaitUp(t, a)
	if _, err := a.Request(context.Background(), "news", nil); !errors.Is(err, signal.ErrUnanswered) {
		t.Errorf("without a deadline: %v", err)
	}
	<-held
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	go func() {
		m := <-held
		time.Sleep(3 * cfg.Wait) // held for longer than Wait
		m.Respond([]byte("late"))
	}()
	if got, err := a.Request(ctx, "news", nil); err != nil || string(got) != "late" {
		t.Errorf("%q, %v", got, err)
	}
	soon, cancel2 := context.WithTimeout(context.Background(), cfg.Wait)
	defer cancel2()
	if _, err := a.Request(soon, "news", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the caller's deadline: %v", err)
	}
	<-held
	go func() {
		<-held
		a.Close()
	}()
	if _, err := a.Request(ctx, "news", nil); !errors.Is(err, signal.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// hostile connects as a node without a Bus around, to do what a Bus does not.
func hostile(t *testing.T, p *portal, name string) (conn *nats.Conn, violations chan string) {
	t.Helper()
	violations = make(chan string, 64)
	conn, err := nats.Connect("nats://"+p.cfg.Listen.String(), nats.Token("token-"+name), nats.NoReconnect(),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { violations <- err.Error() }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn, violations
}

// TestHostilePayloads: what a peer sends under its own name is checked, counted and not confirmed.
func TestHostilePayloads(t *testing.T) {
	p := newPortal(t, nil)
	a := connect(t, p.config("a"))
	awaitUp(t, a)
	conn, _ := hostile(t, p, "b")
	third := connect(t, p.config("c"))
	awaitUp(t, third)
	good := bye()
	good.Run = 1
	data, err := good.Encode()
	if err != nil {
		t.Fatal(err)
	}
	publish := func(reply string, data []byte) {
		if err := conn.PublishMsg(&nats.Msg{Subject: "sig.a.b", Reply: reply, Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	publish("", []byte("{"))
	publish("", make([]byte, signal.MaxMessage+1))
	// a would write to c, to the portal, and into c's inbox under its own name if it answered to these.
	for _, reply := range []string{"sig.c.a", "portal.a.x", "_INBOX_c.ack.a.1", "_INBOX_b.other", "$JS.API.INFO"} {
		publish(reply, data)
	}
	publish("", data) // no confirmation wanted: fine
	if msg := receive(t, a); msg.From != "b" {
		t.Errorf("%+v", msg)
	}
	if c, want := a.Counters(), (signal.Counters{Received: 1, Malformed: 1, Oversize: 1, Reply: 5}); c != want {
		t.Errorf("%+v, want %+v", c, want)
	}
	if c := third.Counters(); c != (signal.Counters{}) {
		t.Errorf("c got something: %+v", c)
	}
}

// TestForgedAnswers: a peer can neither answer for another one nor make Send believe what it should not.
func TestForgedAnswers(t *testing.T) {
	p := newPortal(t, nil)
	cfg := p.config("a")
	cfg.Wait = 100 * time.Millisecond
	a := connect(t, cfg)
	awaitUp(t, a)
	conn, _ := hostile(t, p, "b")
	silent, err := conn.SubscribeSync("sig.b.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"0", "2", "99999999999999999999", "x", "-1"} {
		conn.Publish("_INBOX_a.ack.b."+id, nil)
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := a.Send(context.Background(), "b", bye()); !errors.Is(err, signal.ErrUnanswered) {
		t.Error(err)
	}
	if msg, err := silent.NextMsg(20 * time.Second); err != nil || !strings.HasPrefix(msg.Reply, "_INBOX_a.ack.b.") {
		t.Errorf("%+v, %v", msg, err)
	}
}

func TestReconnect(t *testing.T) {
	p := newPortal(t, nil)
	a, b := connect(t, p.config("a")), connect(t, p.config("b"))
	awaitUp(t, a)
	p.Close()
	down := await(t, a, "down after failed attempts", func(s signal.State) bool { return !s.Up && s.Attempts > 1 })
	if down.Why == nil || down.Since.IsZero() {
		t.Errorf("%+v", down)
	}
	hurried, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := a.Send(hurried, "b", bye()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with the caller's limit: %v", err)
	}
	cfg := p.config("c")
	cfg.Wait = 20 * time.Millisecond
	c := connect(t, cfg)
	if err := c.Send(context.Background(), "a", bye()); !errors.Is(err, signal.ErrDown) || errors.Is(err, signal.ErrRefused) {
		t.Errorf("with our own limit: %v", err)
	}
	sent := make(chan error, 1)
	go func() { sent <- a.Send(context.Background(), "c", bye()) }() // waits for the portal
	p.start(t)
	if err := <-sent; err != nil && !errors.Is(err, signal.ErrAbsent) && !errors.Is(err, signal.ErrDown) {
		t.Error(err)
	}
	awaitUp(t, a)
	awaitUp(t, b)
	if err := a.Send(context.Background(), "b", bye()); err != nil {
		t.Error(err)
	}
	if s := a.State(); !s.Up || s.Why != nil || s.Attempts != 0 || s.Since.Before(down.Since) {
		t.Errorf("%+v", s)
	}
}

func TestTokens(t *testing.T) {
	p := newPortal(t, nil)
	refused := func(s signal.State) bool { return !s.Up && errors.Is(s.Why, signal.ErrRefused) && s.Attempts > 2 }
	cfg := p.config("a")
	cfg.Token, cfg.Wait = "wrong", 20*time.Millisecond
	wrong := connect(t, cfg)
	await(t, wrong, "refused", refused)
	if err := wrong.Send(context.Background(), "b", bye()); !errors.Is(err, signal.ErrRefused) || !errors.Is(err, signal.ErrDown) {
		t.Error(err)
	}
	stolen := p.config("a")
	stolen.Token = "token-b" // good, but not for this name: the subscriptions are forbidden
	await(t, connect(t, stolen), "forbidden", func(s signal.State) bool { return !s.Up && errors.Is(s.Why, signal.ErrForbidden) })

	b := connect(t, p.config("b"))
	awaitUp(t, b)
	p.revoke("b")
	if n := p.Kick("b"); n == 0 {
		t.Error("nobody was kicked")
	}
	await(t, b, "refused after revocation", refused)
	if n := p.Kick("b"); n != 0 || len(p.Clients("b")) != 0 {
		t.Errorf("%d were still there", n)
	}
}

// certificate returns a self-signed one, outdated on purpose.
func certificate(t *testing.T) (tls.Certificate, signal.Fingerprint) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, signal.FingerprintOf(der)
}

// What a node and the broker agree upon withstands a quantum computer, as both ends see it; with a broker that could not, there is no
// connection.
func TestPostQuantum(t *testing.T) {
	cert, fingerprint := certificate(t)
	curves := map[string]chan tls.CurveID{"the broker": make(chan tls.CurveID, 10), "the node": make(chan tls.CurveID, 10)}
	note := func(end string, then func(tls.ConnectionState) error) func(tls.ConnectionState) error {
		return func(cs tls.ConnectionState) error {
			curves[end] <- cs.CurveID
			return then(cs)
		}
	}
	server := &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13,
		VerifyConnection: note("the broker", func(tls.ConnectionState) error { return nil }),
	}
	p := newPortal(t, server)
	cfg := p.config("a")
	cfg.TLS = fingerprint.TLSConfig()
	cfg.TLS.VerifyConnection = note("the node", cfg.TLS.VerifyConnection)
	awaitUp(t, connect(t, cfg))
	for end, seen := range curves {
		if got := <-seen; got != tls.X25519MLKEM768 {
			t.Errorf("%s sees %v, want %v", end, got, tls.X25519MLKEM768)
		}
	}
	old := newPortal(t, &tls.Config{Certificates: []tls.Certificate{cert}, CurvePreferences: []tls.CurveID{tls.X25519}})
	cfg = old.config("a")
	cfg.TLS = fingerprint.TLSConfig()
	await(t, connect(t, cfg), "refused by the node's own rule", func(s signal.State) bool { return !s.Up && s.Why != nil && s.Attempts > 0 })
}

func TestTLS(t *testing.T) {
	cert, fingerprint := certificate(t)
	p := newPortal(t, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	cfg := p.config("a")
	cfg.TLS = fingerprint.TLSConfig()
	a := connect(t, cfg)
	awaitUp(t, a)
	own, err := p.Connect()
	if err != nil {
		t.Fatalf("inside the process: %v", err)
	}
	own.Close()

	fingerprint[31] ^= 1
	cfg = p.config("b")
	cfg.TLS = fingerprint.TLSConfig()
	await(t, connect(t, cfg), "refused for its certificate", func(s signal.State) bool { return errors.Is(s.Why, signal.ErrFingerprint) })

	plain := newPortal(t, nil)
	cfg = plain.config("a")
	cfg.TLS, cfg.TLSAfterInfo = fingerprint.TLSConfig(), true
	await(t, connect(t, cfg), "refused for want of TLS", func(s signal.State) bool { return errors.Is(s.Why, nats.ErrSecureConnWanted) })
}

// TestSilentPortal: Close waits neither for a portal that accepts and says nothing nor for a Send.
func TestSilentPortal(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := signal.Config{Self: "a", URLs: []string{"nats://" + l.Addr().String()}, Dial: time.Hour, Wait: time.Hour}
	b := connect(t, cfg)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := make(chan error, 1)
	go func() { sent <- b.Send(context.Background(), "b", bye()) }()
	b.Close()
	if err := <-sent; !errors.Is(err, signal.ErrClosed) {
		t.Error(err)
	}
	if _, open := <-b.Recv(); open {
		t.Error("Recv is not closed")
	}
	if s := b.State(); s.Up || !errors.Is(s.Why, signal.ErrClosed) {
		t.Errorf("%+v", s)
	}
	b.Close()
}

func TestConfig(t *testing.T) {
	if _, err := signal.Connect(signal.Config{Self: "A", URLs: []string{"nats://127.0.0.1:1"}}); !errors.Is(err, signal.ErrName) {
		t.Error(err)
	}
	if _, err := signal.Connect(signal.Config{Self: "a"}); err == nil {
		t.Error("no address was taken")
	}
}

// TestGoroutines: nothing is left after Close, with and without a portal.
func TestGoroutines(t *testing.T) {
	p := newPortal(t, nil)
	a, b := connect(t, p.config("a")), connect(t, p.config("b"))
	awaitUp(t, b)
	if err := a.Send(context.Background(), "b", bye()); err != nil {
		t.Fatal(err)
	}
	a.Close()
	p.Close()
	await(t, b, "down", func(s signal.State) bool { return !s.Up })
	b.Close()
	var left string
	for range 200 {
		buf := make([]byte, 1<<20)
		left = string(buf[:runtime.Stack(buf, true)])
		if !strings.Contains(left, "nats.(*Conn)") && !strings.Contains(left, "signal.(*Bus)") && !strings.Contains(left, "server.(*client)") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("still running:\n%s", left)
}
