package broker_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sluice-vpn/sluice/ice/signal/broker"
)

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// authenticate takes the node's name for its token. a may write to b and b to a; c may write to nobody.
func authenticate(token string) (string, []string, error) {
	switch token {
	case "a":
		return "a", []string{"b"}, nil
	case "b":
		return "b", []string{"a"}, nil
	case "c", "..":
		return token, nil, nil
	}
	return "", nil, errors.New("unknown token")
}

func start(t *testing.T, cfg broker.Config) *broker.Broker {
	t.Helper()
	if cfg.Authenticate == nil {
		cfg.Authenticate = authenticate
	}
	cfg.Listen = loopback
	b, err := broker.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// node is a raw connection that notes what the broker complains about.
type node struct {
	*nats.Conn
	complaints chan string
	ended      chan struct{}
}

func dial(b *broker.Broker, token string) (*node, error) {
	n := &node{complaints: make(chan string, 64), ended: make(chan struct{})}
	conn, err := nats.Connect("nats://"+b.Addr().String(), nats.Token(token), nats.NoReconnect(),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { n.complaints <- err.Error() }),
		nats.ClosedHandler(func(*nats.Conn) { close(n.ended) }))
	n.Conn = conn
	return n, err
}

func connect(t *testing.T, b *broker.Broker, token string) *node {
	t.Helper()
	n, err := dial(b, token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func (n *node) wantComplaint(t *testing.T, what string) {
	t.Helper()
	if err := n.Flush(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	select {
	case c := <-n.complaints:
		if !strings.Contains(strings.ToLower(c), "permissions violation") {
			t.Errorf("%s: %s", what, c)
		}
	case <-time.After(20 * time.Second):
		t.Errorf("%s is permitted", what)
	}
}

// TestPermissions: a node can write and listen only where its name says.
func TestPermissions(t *testing.T) {
	b := start(t, broker.Config{Store: t.TempDir()})
	own, err := b.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	seen := make(chan string, 64)
	if _, err := own.Subscribe(">", func(m *nats.Msg) { seen <- m.Subject }); err != nil {
		t.Fatal(err)
	}
	if err := own.Flush(); err != nil {
		t.Fatal(err)
	}
	a := connect(t, b, "a")
	for _, subject := range []string{
		"sig.b.c", "sig.c.a", "sig.a.b", "sig.a.a", "sig.b.a.x", "sig.b", "portal.b.hello", "portal.a", "_INBOX_b.x", "_INBOX_b.ack.c.1",
		"_INBOX_b.ack.a.1.2", "_INBOX_c.ack.a.1", "_INBOX.x", "$JS.API.INFO", "$JS.API.STREAM.CREATE.x", "$KV.nodes.a",
		"$SYS.REQ.SERVER.PING", "$SYS.REQ.USER.INFO", "$O.x", "other",
	} {
		if err := a.Publish(subject, []byte("x")); err != nil {
			t.Fatal(err)
		}
		a.wantComplaint(t, "publish "+subject)
	}
	for _, subject := range []string{
		">", "*.>", "sig.>", "sig.*.a", "sig.b.>", "sig.b.a", "_INBOX_b.>", "_INBOX.>", "portal.a.>", "portal.>", "$JS.>", "$JS.API.>",
		"$KV.>", "$SYS.>", "$SYS.ACCOUNT.>", "_INBOX_*.>",
	} {
		if _, err := a.SubscribeSync(subject); err != nil {
			t.Fatal(err)
		}
		a.wantComplaint(t, "subscribe "+subject)
		if _, err := a.QueueSubscribeSync(subject, "q"); err != nil {
			t.Fatal(err)
		}
		a.wantComplaint(t, "subscribe in a group "+subject)
	}
	for _, subject := range []string{"sig.b.a", "_INBOX_b.ack.a.7", "portal.a.hello"} {
		if err := a.Publish(subject, nil); err != nil {
			t.Fatal(err)
		}
		if got := <-seen; got != subject {
			t.Errorf("the portal saw %s, want %s", got, subject)
		}
	}
	for _, subject := range []string{"sig.a.>", "_INBOX_a.>"} {
		if _, err := a.SubscribeSync(subject); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Flush(); err != nil || len(a.complaints) != 0 || len(seen) != 0 {
		t.Errorf("%v, %d complaints, %d messages", err, len(a.complaints), len(seen))
	}
}

// TestNoAnswersElsewhere: two nodes that may talk cannot use reply subjects to write where neither may.
func TestNoAnswersElsewhere(t *testing.T) {
	b := start(t, broker.Config{})
	a, other := connect(t, b, "a"), connect(t, b, "b")
	got, err := other.SubscribeSync("sig.b.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, reply := range []string{"sig.c.a", "sig.a.c", "portal.a.x", "$JS.API.INFO"} {
		if err := a.PublishRequest("sig.b.a", reply, []byte("x")); err != nil {
			t.Fatal(err)
		}
		m, err := got.NextMsg(20 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Respond([]byte("forged")); err != nil {
			t.Fatal(err)
		}
		other.wantComplaint(t, "answer to "+reply)
	}
}

// TestTracing: the server's own tracing of messages obeys the permissions: it publishes at a subject that the message names.
func TestTracing(t *testing.T) {
	b := start(t, broker.Config{})
	own, err := b.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	seen := make(chan string, 64)
	if _, err := own.Subscribe(">", func(m *nats.Msg) { seen <- m.Subject }); err != nil {
		t.Fatal(err)
	}
	if err := own.Flush(); err != nil {
		t.Fatal(err)
	}
	a := connect(t, b, "a")
	for _, to := range []string{"sig.b.c", "portal.b.sync", "_INBOX_b.ack.c.1"} {
		m := nats.NewMsg("sig.b.a")
		m.Header.Set("Nats-Trace-Dest", to)
		if err := a.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
		a.wantComplaint(t, "trace to "+to)
	}
	if err := own.Flush(); err != nil {
		t.Fatal(err)
	}
	for len(seen) > 0 {
		if subject := <-seen; subject != "sig.b.a" {
			t.Errorf("something was published at %s", subject)
		}
	}
}

func TestTokens(t *testing.T) {
	var text bytes.Buffer
	b := start(t, broker.Config{Log: slog.New(slog.NewTextHandler(&text, nil))})
	for _, token := range []string{"", "x", "..", strings.Repeat("x", 1000)} {
		if n, err := dial(b, token); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("%q: %v", token, err)
			n.Close()
		}
	}
	if conn, err := nats.Connect("nats://"+b.Addr().String(), nats.UserInfo("$portal", ""), nats.NoReconnect()); err == nil {
		t.Error("the portal's name alone is enough")
		conn.Close()
	}
	b.Close()
	lines := text.String()
	if !strings.Contains(lines, "unknown token") || !strings.Contains(lines, "no valid node name") {
		t.Errorf("log: %s", lines)
	}
	if strings.Contains(lines, "authentication error") {
		t.Errorf("what was told already is told again: %s", lines)
	}
}

// TestGoneMeanwhile: a connection that ends while it is authenticated, as all do when the broker is closed, ends nothing else.
func TestGoneMeanwhile(t *testing.T) {
	for _, token := range []string{"a", "wrong"} {
		asked, answer := make(chan struct{}), make(chan struct{})
		b := start(t, broker.Config{Log: slog.New(slog.DiscardHandler), Authenticate: func(token string) (string, []string, error) {
			close(asked)
			<-answer
			return authenticate(token)
		}})
		conn, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := fmt.Fprintf(conn, "CONNECT {\"auth_token\":%q}\r\nPING\r\n", token); err != nil {
			t.Fatal(err)
		}
		<-asked
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			b.Close()
		}()
		if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		close(answer)
		<-closed
		if c := b.Clients("a"); len(c) != 0 {
			t.Errorf("%+v", c)
		}
	}
}

func TestKick(t *testing.T) {
	b := start(t, broker.Config{})
	first, second, other := connect(t, b, "a"), connect(t, b, "a"), connect(t, b, "b")
	if c := b.Clients("a"); len(c) != 2 || c[0].ID >= c[1].ID || !strings.HasPrefix(c[0].Addr, "127.0.0.1") {
		t.Errorf("%+v", c)
	}
	if n := b.Kick("a"); n != 2 {
		t.Errorf("%d were kicked", n)
	}
	<-first.ended
	<-second.ended
	if err := other.Flush(); err != nil {
		t.Error(err)
	}
	if n := b.Kick("a") + b.Kick("nobody"); n != 0 || len(b.Clients("a")) != 0 {
		t.Errorf("%d were kicked", n)
	}
	connect(t, b, "a")
	if c := b.Clients("a"); len(c) != 1 {
		t.Errorf("%+v", c)
	}
}

// TestManyOfOneNode: a node that connects again and again keeps nobody else out; its latest connections stay.
func TestManyOfOneNode(t *testing.T) {
	b := start(t, broker.Config{MaxConnections: 40})
	var list []*node
	for range 60 {
		list = append(list, connect(t, b, "a"))
	}
	<-list[55].ended
	connect(t, b, "b")
	if n := len(b.Clients("a")); n != 4 {
		t.Errorf("%d connections, want 4", n)
	}
	for _, n := range list[56:] {
		if err := n.Flush(); err != nil {
			t.Error(err)
		}
	}
}

// TestAmplification: what a node sends makes the broker send little more, whatever subscriptions the nodes have and wherever an
// answer of the broker's own may go.
func TestAmplification(t *testing.T) {
	b := start(t, broker.Config{})
	const copies = 4 * 8 // connections of a node and subscriptions of each
	for _, tt := range []struct {
		name, sent string
		most       int // bytes
	}{
		{"a message", "PUB sig.b.a _INBOX_a.ack.b.1 20\r\n01234567890123456789\r\n", copies * 80},
		{"a header", "HPUB sig.b.a _INBOX_a.ack.b.1 30 30\r\nNATS/1.0\r\nNats-Rollup: all\r\n\r\n\r\n", copies * 100},
		{"nobody listens", "PUB portal.a.nothing _INBOX_a.ack.a.1 0\r\n\r\n", copies * 120},
		{"forbidden", "PUB sig.c.a 0\r\n\r\n", 200},
	} {
		var conns []*raw
		for _, node := range []string{"a", "b"} {
			for range 8 { // of which 4 are left
				c := dialRaw(t, b, node)
				for id := range 128 {
					c.write(t, fmt.Sprintf("SUB sig.%s.> %d\r\nSUB _INBOX_%s.> %d\r\n", node, 2*id, node, 2*id+1))
				}
				c.settle(t)
				conns = append(conns, c)
			}
		}
		before := total(conns)
		conns[7].write(t, tt.sent) // the newest of a
		conns[7].settle(t)
		for i := range conns {
			if i%8 >= 4 {
				conns[i].settle(t)
			}
		}
		got := total(conns) - before - 9*len("PONG\r\n")
		if got < 1 || got > tt.most {
			t.Errorf("%s: %d bytes in, %d out, want at most %d", tt.name, len(tt.sent), got, tt.most)
		}
		t.Logf("%s: %d bytes in, %d out", tt.name, len(tt.sent), got)
		for _, c := range conns {
			c.Close()
		}
	}
}

// raw speaks NATS by hand and counts what it gets.
type raw struct {
	net.Conn
	lines *bufio.Reader
	got   int
}

func dialRaw(t *testing.T, b *broker.Broker, token string) *raw {
	t.Helper()
	conn, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &raw{Conn: conn, lines: bufio.NewReader(conn)}
	c.write(t, fmt.Sprintf("CONNECT {\"auth_token\":%q,\"headers\":true,\"no_responders\":true,\"echo\":true}\r\n", token))
	c.settle(t)
	return c
}

func (c *raw) write(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// settle returns when the broker has done what it was told before, and what others had told it before that.
func (c *raw) settle(t *testing.T) {
	t.Helper()
	c.write(t, "PING\r\n")
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for {
		line, err := c.lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		c.got += len(line)
		if line == "PONG\r\n" {
			return
		}
	}
}

func total(list []*raw) (n int) {
	for _, c := range list {
		n += c.got
	}
	return n
}

func TestLimits(t *testing.T) {
	b := start(t, broker.Config{MaxConnections: 1, MaxSubscriptions: 2, MaxPayload: 1024})
	a := connect(t, b, "a")
	if n, err := dial(b, "b"); err == nil {
		t.Error("a second connection was taken")
		n.Close()
	}
	if err := a.Publish("sig.b.a", make([]byte, 1025)); !errors.Is(err, nats.ErrMaxPayload) {
		t.Error(err)
	}
	for range 3 {
		if _, err := a.SubscribeSync("sig.a.>"); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-a.complaints:
	case <-a.ended:
	case <-time.After(20 * time.Second):
		t.Error("a third subscription was taken")
	}
}

// TestStore: what the portal keeps in JetStream is there after a restart.
func TestStore(t *testing.T) {
	folder := t.TempDir()
	b := start(t, broker.Config{Store: folder})
	put := func(b *broker.Broker, use func(kv jetstream.KeyValue)) {
		conn, err := b.Connect()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		js, err := jetstream.New(conn)
		if err != nil {
			t.Fatal(err)
		}
		kv, err := js.CreateOrUpdateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "nodes", Storage: jetstream.FileStorage})
		if err != nil {
			t.Fatal(err)
		}
		use(kv)
	}
	put(b, func(kv jetstream.KeyValue) {
		if _, err := kv.Put(t.Context(), "a", []byte("1")); err != nil {
			t.Fatal(err)
		}
	})
	b.Close()
	put(start(t, broker.Config{Store: folder}), func(kv jetstream.KeyValue) {
		if e, err := kv.Get(t.Context(), "a"); err != nil || string(e.Value()) != "1" {
			t.Errorf("%v, %v", e, err)
		}
	})
}

func TestStartErrors(t *testing.T) {
	b := start(t, broker.Config{})
	for name, cfg := range map[string]broker.Config{
		"no callback":  {Listen: loopback},
		"no address":   {Authenticate: authenticate},
		"port in use":  {Listen: b.Addr(), Authenticate: authenticate},
		"store a file": {Listen: loopback, Authenticate: authenticate, Store: "broker_test.go"},
	} {
		var log bytes.Buffer
		cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
		second, err := broker.Start(cfg)
		if err == nil {
			t.Errorf("%s: no error", name)
			second.Close()
		}
		if errors.Is(err, broker.ErrListen) != (name == "port in use") || log.Len() > 0 {
			t.Errorf("%s: %v; told twice: %s", name, err, log.String())
		}
	}
}
