package proxy

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/proxy"
)

// behind is what a server dials: names of the other side, here on the loopback.
type behind map[string]string

func (b behind) dial(ctx context.Context, host string, port uint16) (Conn, error) {
	at, known := b[net.JoinHostPort(host, strconv.Itoa(int(port)))]
	switch {
	case host == "elsewhere.test":
		return nil, fmt.Errorf("elsewhere.test is %w", ErrNotRouted)
	case host == "silent.test":
		<-ctx.Done()
		return nil, ctx.Err()
	case host == "closed.test":
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	case !known:
		return nil, fmt.Errorf("%s: %w", host, ErrNoName)
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func newServer(t *testing.T, c Config) *Server {
	t.Helper()
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := New(c)
	t.Cleanup(func() { s.Close() })
	return s
}

// at fails the test on an error.
func at(t *testing.T) func(net.Addr, error) string {
	return func(a net.Addr, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return a.String()
	}
}

// echo sends back what it gets, and ends when the other side has.
func echo(t *testing.T) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

// exchange sends size bytes, ends its direction, and wants the same back.
func exchange(t *testing.T, conn net.Conn, size int64) {
	t.Helper()
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	sent, got := sha256.New(), sha256.New()
	go func() {
		io.Copy(io.MultiWriter(conn, sent), io.LimitReader(rand.NewChaCha8([32]byte{2}), size))
		conn.(interface{ CloseWrite() error }).CloseWrite()
	}()
	n, err := io.Copy(got, conn)
	if n != size || err != nil || string(got.Sum(nil)) != string(sent.Sum(nil)) {
		t.Errorf("%d bytes came back (%v), want %d, and the same", n, err, size)
	}
}

// keeping is a dialer that keeps the connection it has made.
type keeping struct{ conn net.Conn }

func (k *keeping) Dial(network, to string) (c net.Conn, err error) {
	k.conn, err = net.Dial(network, to)
	return k.conn, err
}

// socksDial speaks SOCKS5 by golang.org/x/net.
func socksDial(t *testing.T, server, to string) (net.Conn, error) {
	t.Helper()
	var k keeping
	d, err := proxy.SOCKS5("tcp", server, nil, &k)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Dial("tcp", to)
	return k.conn, err
}

// TestSOCKS: another implementation's client is connected, and told why it is not.
func TestSOCKS(t *testing.T) {
	b := behind{"gate.sluice:80": echo(t), "10.0.0.7:80": echo(t), "fd09::7:80": ""}
	b["[fd09::7]:80"] = echo(t)
	s := newServer(t, Config{Dial: b.dial, Connect: 50 * time.Millisecond})
	server := at(t)(s.SOCKS("-socks5", "127.0.0.1:0"))
	for _, to := range []string{"gate.sluice:80", "10.0.0.7:80", "[fd09::7]:80"} {
		c, err := socksDial(t, server, to)
		if err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		exchange(t, c, 3<<20)
	}
	for to, want := range map[string]string{
		"elsewhere.test:80": "not allowed", "nowhere.test:80": "host unreachable", "closed.test:80": "connection refused", "silent.test:80": "TTL expired",
	} {
		c, err := socksDial(t, server, to)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", to, err, want)
		}
		c.Close()
	}
}

// TestHostileSOCKS: what is no SOCKS5, or none that is served, gets its answer and an end.
func TestHostileSOCKS(t *testing.T) {
	s := newServer(t, Config{Dial: behind{}.dial, Handshake: 200 * time.Millisecond})
	server := at(t)(s.SOCKS("-socks5", "127.0.0.1:0"))
	for said, want := range map[string]string{
		"":                                     "",
		"\x04\x01\x00\x50\x7f\x00\x00\x01\x00": "", // SOCKS4
		"GET / HTTP/1.1\r\n\r\n":               "",
		"\x05\x00":                             "\x05\xff",
		"\x05\x01\x02":                         "\x05\xff", // with a password only
		"\x05\x02\x02\x00\x05\x03\x00\x01\x01\x02\x03\x04\x00\x50": "\x05\x00\x05\x07", // UDP
		"\x05\x01\x00\x05\x01\x00\x09":                             "\x05\x00\x05\x08", // an unknown kind of address
		"\x05\x01\x00\x05\x01\x00\x03\x00\x00\x50":                 "\x05\x00\x05\x01", // an empty name
		"\x05\x01\x00\x05\x01\x00\x03\xffshort":                    "\x05\x00",
	} {
		c, err := net.Dial("tcp", server)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, said)
		got, err := io.ReadAll(c)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%q: the connection does not end", said)
		}
		if !strings.HasPrefix(string(got), want) || want == "" && len(got) > 0 {
			t.Errorf("%q: answered %q, want %q", said, got, want)
		}
		c.Close()
	}
}

// TestHTTP: a web client reaches what is behind, by requests and by CONNECT, and is told why it does not.
func TestHTTP(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s%s", r.Method, r.Host, body, r.Header.Get("X-Forwarded-For"), r.Header.Get("Proxy-Connection"))
	}))
	defer web.Close()
	b := behind{"gate.sluice:80": strings.TrimPrefix(web.URL, "http://"), "gate.sluice:7": echo(t)}
	s := newServer(t, Config{Dial: b.dial, Connect: 50 * time.Millisecond})
	server := at(t)(s.HTTP("-http-proxy", "127.0.0.1:0"))
	client := http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: server})}, Timeout: time.Minute}
	defer client.CloseIdleConnections()
	for range 3 {
		r, err := client.Post("http://gate.sluice/", "text/plain", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if want := "POST gate.sluice hello "; string(text) != want {
			t.Errorf("got %q, want %q", text, want)
		}
	}
	for to, want := range map[string]int{"elsewhere.test": 403, "nowhere.test": 502, "closed.test": 502, "silent.test": 504} {
		r, err := client.Get("http://" + to + "/")
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if r.StatusCode != want || !strings.HasPrefix(string(text), "sluice: ") {
			t.Errorf("%s: %d %q, want %d and a reason", to, r.StatusCode, text, want)
		}
	}
	connect := func(to string) (net.Conn, string) {
		c, err := net.Dial("tcp", server)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", to)
		// Nothing comes behind the empty line before the client says something.
		line, _ := bufio.NewReader(c).ReadString('\n')
		if strings.Contains(line, " 200 ") {
			return c, line
		}
		c.Close()
		return nil, line
	}
	for to, want := range map[string]string{"elsewhere.test:443": " 403 ", "nowhere.test:443": " 502 ", "silent.test:443": " 504 ", "gate.sluice:x": " 400 "} {
		if _, got := connect(to); !strings.Contains(got, want) {
			t.Errorf("CONNECT %s: %q, want%s", to, got, want)
		}
	}
	c, line := connect("gate.sluice:7")
	if c == nil {
		t.Fatalf("CONNECT: %q", line)
	}
	exchange(t, c, 1<<20)
	r, err := http.Get("http://" + server + "/")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusBadRequest {
		t.Errorf("a request that is no proxy's: %s, want 400", r.Status)
	}
}

// TestForward: a port leads to its target.
func TestForward(t *testing.T) {
	s := newServer(t, Config{Dial: behind{"gate.sluice:80": echo(t)}.dial})
	f, err := ParseForward("127.0.0.1:0=gate.sluice:80")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", at(t)(s.Forward("-forward", f)))
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, c, 1<<20)
	f.To.Host = "closed.test"
	if c, err = net.Dial("tcp", at(t)(s.Forward("-forward", f))); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a target that refuses: %d bytes, %v; want an end", n, err)
	}
}

// TestParse: what flags say.
func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"8080=10.0.0.7:80": "127.0.0.1:8080 10.0.0.7:80", ":1=[fd09::7]:2": "127.0.0.1:1 [fd09::7]:2", "[::]:9=gate.sluice:22": "[::]:9 gate.sluice:22",
		"8080": "", "8080=10.0.0.7": "", "=a:1": "", "8080=:80": "", "x=a:1": "", "8080=a:0": "", "8080=a:99999": "",
	} {
		f, err := ParseForward(text)
		if got := f.Local + " " + f.To.String(); want != "" && (err != nil || got != want) {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
		if want == "" && (err == nil || !strings.Contains(err.Error(), "-forward")) {
			t.Errorf("%q: %v, want an error that names the flag", text, err)
		}
	}
	s := newServer(t, Config{Dial: behind{}.dial})
	taken := at(t)(s.SOCKS("-socks5", "127.0.0.1:0"))
	if _, err := s.HTTP("-http-proxy", taken); err == nil || !strings.Contains(err.Error(), "-http-proxy "+taken+": another program has this port") {
		t.Errorf("a port in use: %v", err)
	}
}

// TestThousandClients: those that stall in the handshake are ended, a thousand that are connected take little memory, one more than there may
// be is turned away, and all have gone at the end.
func TestThousandClients(t *testing.T) {
	const clients = 1000
	b := behind{"gate.sluice:80": echo(t)}
	before := runtime.NumGoroutine()
	s := New(Config{Dial: b.dial, Logger: slog.New(slog.DiscardHandler), Most: clients, Handshake: 2 * time.Second})
	defer s.Close()
	server := at(t)(s.SOCKS("-socks5", "127.0.0.1:0"))
	stalled := make([]net.Conn, clients)
	for i := range stalled {
		c, err := net.Dial("tcp", server)
		if err != nil {
			t.Skipf("SKIPPED: this system has no %d connections for a test: %v", clients, err)
		}
		defer c.Close()
		stalled[i] = c
		io.WriteString(c, "\x05\x01") // and no more
	}
	over, err := net.Dial("tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	over.SetDeadline(time.Now().Add(time.Second))
	if _, err := over.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one more than there may be: %v, want an end at once", err)
	}
	for _, c := range stalled {
		c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a client that stalls is not ended")
		}
		c.Close()
	}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	base := heap()
	conns := make([]net.Conn, clients)
	var dialing sync.WaitGroup
	room := make(chan struct{}, 50)
	for i := range conns {
		dialing.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			var err error
			if conns[i], err = socksDial(t, server, "gate.sluice:80"); err != nil {
				t.Error(err)
				return
			}
			io.WriteString(conns[i], "x")
			io.ReadFull(conns[i], make([]byte, 1))
		})
	}
	dialing.Wait()
	if grown := heap() - base; grown > clients*64<<10 { // with the test's own client and target
		t.Errorf("%d silent clients take %d KiB each", clients, grown/clients>>10)
	}
	s.Close()
	for _, c := range conns {
		if c != nil {
			c.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("a client after the server's end: %v", err)
			}
			c.Close()
		}
	}
	for begin := time.Now(); runtime.NumGoroutine() > before+20; time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("%d goroutines are left, of %d before", runtime.NumGoroutine(), before)
		}
	}
}
