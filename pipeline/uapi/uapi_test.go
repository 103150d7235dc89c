package uapi

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline"
)

// recorder is a configurable without a pipeline: it writes down the edits in the order they come.
type recorder struct {
	mu      sync.Mutex
	ops     []string
	known   map[crypto.PublicKey]bool
	portErr error
	status  pipeline.Status
}

func (r *recorder) edit(fn func(editor) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fn(r)
}

func (r *recorder) Status() (*pipeline.Status, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Peers = slices.Clone(s.Peers) // the caller wipes them
	return &s, nil
}

func (r *recorder) note(format string, args ...any) {
	r.ops = append(r.ops, fmt.Sprintf(format, args...))
}

func (r *recorder) SetPrivateKey(k *crypto.PrivateKey) { r.note("private %x", k[:2]) }
func (r *recorder) SetMark(mark uint32) error          { r.note("mark %d", mark); return nil }
func (r *recorder) RemovePeers()                       { r.note("remove all") }
func (r *recorder) RemovePeer(k crypto.PublicKey)      { r.note("remove %x", k[:2]) }
func (r *recorder) SetListenPort(port uint16) error {
	if r.portErr != nil {
		return r.portErr
	}
	r.note("port %d", port)
	return nil
}

func (r *recorder) peer(k crypto.PublicKey, create bool) peerEditor {
	if !create && !r.known[k] {
		return nil
	}
	r.note("peer %x", k[:2])
	return peerRecorder{r}
}

type peerRecorder struct{ *recorder }

func (r peerRecorder) SetPresharedKey(k *crypto.PresharedKey) { r.note("psk %x", k[:2]) }
func (r peerRecorder) SetEndpoint(ep netip.AddrPort)          { r.note("endpoint %v", ep) }
func (r peerRecorder) SetPersistentKeepalive(seconds uint16)  { r.note("keepalive %d", seconds) }
func (r peerRecorder) RemoveAllowedIPs()                      { r.note("remove ips") }
func (r peerRecorder) AddAllowedIP(prefix netip.Prefix)       { r.note("add %v", prefix) }
func (r peerRecorder) RemoveAllowedIP(prefix netip.Prefix)    { r.note("drop %v", prefix) }
func newRecorder() *recorder                                  { return &recorder{known: map[crypto.PublicKey]bool{}} }
func testServer(target configurable, l *slog.Logger) *server {
	return newServer(target, l)
}

// keys whose hexadecimal form is one byte repeated.
var (
	keyA = strings.Repeat("aa", 32)
	keyB = strings.Repeat("bb", 32)
)

// exchange gives a server the bytes and returns all that it answers until it has read them and closes.
func exchange(t testing.TB, s *server, request string) string {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	s.admit(theirs)
	go func() { defer close(done); s.client(theirs) }()
	var answer bytes.Buffer
	read := make(chan struct{})
	go func() { defer close(read); io.Copy(&answer, ours) }()
	io.WriteString(ours, request) // fails where the server has closed: then its answer says why
	// net.Pipe has no half-close, so the end of the request is told by one more, which is no request.
	io.WriteString(ours, "end\n")
	<-done
	<-read
	ours.Close()
	return answer.String()
}

func TestSet(t *testing.T) {
	tests := []struct {
		name    string
		request string
		errno   int
		ops     []string
	}{
		{"nothing", "", 0, nil},
		{"device", "private_key=" + keyA + "\nlisten_port=51820\nfwmark=4294967295\nreplace_peers=true\n", 0,
			[]string{"private aaaa", "port 51820", "mark 4294967295", "remove all"}},
		{"zeros", "private_key=" + strings.Repeat("0", 64) + "\nlisten_port=0\nfwmark=0\n", 0,
			[]string{"private 0000", "port 0", "mark 0"}},
		{"capital digits", "private_key=" + strings.ToUpper(keyA) + "\n", 0, []string{"private aaaa"}},
		{"peer", "public_key=" + keyA + "\npreshared_key=" + keyB + "\nprotocol_version=1\nendpoint=192.0.2.1:51820\n" +
			"persistent_keepalive_interval=25\nreplace_allowed_ips=true\nallowed_ip=10.0.0.0/8\nallowed_ip=fd00::/64\n", 0,
			[]string{"peer aaaa", "psk bbbb", "endpoint 192.0.2.1:51820", "keepalive 25", "remove ips", "add 10.0.0.0/8", "add fd00::/64"}},
		{"host bits are masked", "public_key=" + keyA + "\nallowed_ip=10.1.2.3/8\n", 0, []string{"peer aaaa", "add 10.0.0.0/8"}},
		{"removal of one prefix", "public_key=" + keyA + "\nallowed_ip=-10.1.2.3/8\nallowed_ip=-::/0\n", 0,
			[]string{"peer aaaa", "drop 10.0.0.0/8", "drop ::/0"}},
		{"zone", "public_key=" + keyA + "\nendpoint=[fe80::1%7]:1\n", 0, []string{"peer aaaa", "endpoint [fe80::1%7]:1"}},
		{"zone of an address that needs none", "public_key=" + keyA + "\nendpoint=[2001:db8::1%nobody]:1\n", 0,
			[]string{"peer aaaa", "endpoint [2001:db8::1]:1"}},
		{"mapped endpoint", "public_key=" + keyA + "\nendpoint=[::ffff:192.0.2.1]:1\n", 0, []string{"peer aaaa", "endpoint 192.0.2.1:1"}},
		{"two peers", "public_key=" + keyA + "\npublic_key=" + keyB + "\n", 0, []string{"peer aaaa", "peer bbbb"}},
		{"remove", "public_key=" + keyA + "\nremove=true\nallowed_ip=10.0.0.0/8\n", 0, []string{"remove aaaa"}},
		{"update only, unknown", "public_key=" + keyA + "\nupdate_only=true\nallowed_ip=10.0.0.0/8\npublic_key=" + keyB + "\n", 0,
			[]string{"peer bbbb"}},
		{"update only, known", "public_key=" + strings.Repeat("cc", 32) + "\nupdate_only=true\nallowed_ip=10.0.0.0/8\n", 0,
			[]string{"peer cccc", "add 10.0.0.0/8"}},

		{"unknown device key", "listen_port=1\ncolour=blue\nfwmark=2\n", -errnoInvalid, []string{"port 1"}},
		{"unknown peer key", "public_key=" + keyA + "\ncolour=blue\nremove=true\n", -errnoInvalid, []string{"peer aaaa"}},
		{"device key after a peer", "public_key=" + keyA + "\nlisten_port=1\n", -errnoInvalid, []string{"peer aaaa"}},
		{"peer key before a peer", "allowed_ip=10.0.0.0/8\n", -errnoInvalid, nil},
		{"a key that only get has", "public_key=" + keyA + "\nrx_bytes=1\n", -errnoInvalid, []string{"peer aaaa"}},
		{"no equals sign", "listen_port\n", -errnoProtocol, nil},
		{"no key", "=1\n", -errnoInvalid, nil},
		{"repeated peer", "public_key=" + keyA + "\npublic_key=" + keyB + "\npublic_key=" + keyA + "\nremove=true\n", -errnoInvalid,
			[]string{"peer aaaa", "peer bbbb"}},
		{"short key", "private_key=aa\n", -errnoInvalid, nil},
		{"long key", "private_key=" + keyA + "aa\n", -errnoInvalid, nil},
		{"base64 key", "public_key=" + strings.Repeat("A", 43) + "=\n", -errnoInvalid, nil},
		{"key with a wrong digit", "private_key=g" + keyA[1:] + "\n", -errnoInvalid, nil},
		{"port too large", "listen_port=65536\n", -errnoInvalid, nil},
		{"port negative", "listen_port=-1\n", -errnoInvalid, nil},
		{"port signed", "listen_port=+1\n", -errnoInvalid, nil},
		{"port hexadecimal", "listen_port=0x10\n", -errnoInvalid, nil},
		{"mark too large", "fwmark=4294967296\n", -errnoInvalid, nil},
		{"false", "replace_peers=false\n", -errnoInvalid, nil},
		{"remove false", "public_key=" + keyA + "\nremove=false\n", -errnoInvalid, []string{"remove aaaa"}},
		{"version", "public_key=" + keyA + "\nprotocol_version=2\n", -errnoInvalid, []string{"peer aaaa"}},
		{"endpoint name", "public_key=" + keyA + "\nendpoint=localhost:1\n", -errnoInvalid, []string{"peer aaaa"}},
		{"endpoint without port", "public_key=" + keyA + "\nendpoint=192.0.2.1\n", -errnoInvalid, []string{"peer aaaa"}},
		{"endpoint with an unknown zone", "public_key=" + keyA + "\nendpoint=[fe80::1%nobody]:1\n", -errnoInvalid, []string{"peer aaaa"}},
		{"endpoint port 0", "public_key=" + keyA + "\nendpoint=192.0.2.1:0\n", -errnoInvalid, []string{"peer aaaa"}},
		{"endpoint without brackets", "public_key=" + keyA + "\nendpoint=fe80::1:1\n", -errnoInvalid, []string{"peer aaaa"}},
		{"keepalive too large", "public_key=" + keyA + "\npersistent_keepalive_interval=65536\n", -errnoInvalid, []string{"peer aaaa"}},
		{"prefix without bits", "public_key=" + keyA + "\nallowed_ip=10.0.0.1\n", -errnoInvalid, []string{"peer aaaa"}},
		{"prefix bits too large", "public_key=" + keyA + "\nallowed_ip=10.0.0.1/33\n", -errnoInvalid, []string{"peer aaaa"}},
		{"prefix with zone", "public_key=" + keyA + "\nallowed_ip=fe80::1%eth0/64\n", -errnoInvalid, []string{"peer aaaa"}},
		{"line too long", "listen_port=1\nfwmark=" + strings.Repeat("0", maxLine) + "\nlisten_port=2\n", -errnoInvalid, []string{"port 1"}},
		{"longest line", "listen_port=" + strings.Repeat("0", maxLine-len("listen_port=")-2) + "1\n", 0, []string{"port 1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRecorder()
			r.known[crypto.PublicKey(bytes.Repeat([]byte{0xcc}, 32))] = true
			got := exchange(t, testServer(r, slog.New(slog.DiscardHandler)), "set=1\n"+tt.request+"\n")
			if want := fmt.Sprintf("errno=%d\n\n", tt.errno); got != want {
				t.Errorf("answer %q, want %q", got, want)
			}
			if !slices.Equal(r.ops, tt.ops) {
				t.Errorf("edits %q, want %q", r.ops, tt.ops)
			}
		})
	}
}

func TestPortInUse(t *testing.T) {
	r := newRecorder()
	r.portErr = fmt.Errorf("bind: %w", syscall.EADDRINUSE)
	request := "set=1\nfwmark=1\nlisten_port=1\nfwmark=2\npublic_key=" + keyA + "\n\n"
	got := exchange(t, testServer(r, slog.New(slog.DiscardHandler)), request)
	if want := fmt.Sprintf("errno=%d\n\n", -errnoAddressInUse); got != want {
		t.Errorf("answer %q, want %q", got, want)
	}
	if want := []string{"mark 1"}; !slices.Equal(r.ops, want) {
		t.Errorf("edits %q, want %q: what stands before the failure stays", r.ops, want)
	}
}

func TestGet(t *testing.T) {
	r := newRecorder()
	r.status = pipeline.Status{ListenPort: 51820, Mark: 7, Peers: []pipeline.PeerStatus{
		{
			Endpoint: netip.MustParseAddrPort("[fe80::1%7]:9"), PersistentKeepalive: 25, RxBytes: 1 << 63, TxBytes: 3,
			LastHandshake: time.Unix(1700000000, 5), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::/0")},
		}, {},
	}}
	hex.Decode(r.status.PrivateKey[:], []byte(keyA))
	hex.Decode(r.status.Peers[0].PublicKey[:], []byte(keyB))
	zeros := strings.Repeat("0", 64)
	want := "private_key=" + keyA + "\nlisten_port=51820\nfwmark=7\n" +
		"public_key=" + keyB + "\npreshared_key=" + zeros + "\nprotocol_version=1\nendpoint=[fe80::1%7]:9\n" +
		"last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\ntx_bytes=3\nrx_bytes=9223372036854775808\n" +
		"persistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\nallowed_ip=::/0\n" +
		"public_key=" + zeros + "\npreshared_key=" + zeros + "\nprotocol_version=1\n" +
		"last_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=0\nrx_bytes=0\n" +
		"persistent_keepalive_interval=0\nerrno=0\n\n"
	s := testServer(r, slog.New(slog.DiscardHandler))
	if got := exchange(t, s, "get=1\n\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	r.status = pipeline.Status{}
	// `wg` parses digits only after errno= in the answer to a get.
	invalid := fmt.Sprintf("errno=%d\n\n", errnoInvalid)
	if got := exchange(t, s, "get=1\nlisten_port=1\n\nget=1\n\n"); got != invalid+"errno=0\n\n" {
		t.Errorf("get with trailing lines: %q", got)
	}
}

func TestSeveralRequests(t *testing.T) {
	s := testServer(newRecorder(), slog.New(slog.DiscardHandler))
	got := exchange(t, s, "set=1\n\nget=1\n\nset=1\nx\n\nset=1\nlisten_port=1\n\n")
	if want := fmt.Sprintf("errno=0\n\nerrno=0\n\nerrno=%d\n\nerrno=0\n\n", -errnoProtocol); got != want {
		t.Errorf("answers %q, want %q", got, want)
	}
	for _, first := range []string{"", "\n", "hello\n", "get=2\n\n", "set=1 \n\n", "set=1\r\n\r\n", "GET / HTTP/1.1\r\n\r\n"} {
		if got := exchange(t, s, first+"get=1\n\n"); first != "" && got != "" {
			t.Errorf("after %q: %q, want the connection closed", first, got)
		}
	}
}

// TestUAPIReadOnly: all but preshared keys is told; a set changes nothing, whatever is in it, and its refusal is logged without it.
func TestReadOnly(t *testing.T) {
	var log bytes.Buffer
	r := newRecorder()
	r.status = pipeline.Status{Peers: []pipeline.PeerStatus{{}}}
	hex.Decode(r.status.PrivateKey[:], []byte(keyA))
	hex.Decode(r.status.Peers[0].PresharedKey[:], []byte(keyB))
	s := testServer(r, slog.New(slog.NewTextHandler(&log, nil)))
	s.readOnly = "the portal decides"
	got := exchange(t, s, "get=1\n\n")
	if !strings.HasPrefix(got, "private_key="+keyA+"\n") || !strings.Contains(got, "\npreshared_key="+strings.Repeat("0", 64)+"\n") {
		t.Errorf("got %q, want the private key and no preshared key", got)
	}
	refused := fmt.Sprintf("errno=%d\n\n", -errnoNotPermitted)
	sets := []string{"", "private_key=" + keyB + "\n", "nonsense\n", "listen_port=" + strings.Repeat("0", 2*maxLine) + "\n"}
	for _, set := range sets {
		if got := exchange(t, s, "set=1\n"+set+"\nset=1\n\n"); got != refused+refused {
			t.Errorf("%.40q: answers %q, want %q twice", set, got, refused)
		}
	}
	if r.ops != nil {
		t.Errorf("edits %q, want none", r.ops)
	}
	if n := strings.Count(log.String(), "the portal decides"); n != 2*len(sets) || strings.Contains(log.String(), keyB) {
		t.Errorf("%d lines, want %d without keys:\n%s", n, 2*len(sets), log.String())
	}
}

// TestUAPICut: a request is applied whole or, when the client went away in the middle, not at all.
func TestCut(t *testing.T) {
	request := "set=1\nlisten_port=1\npublic_key=" + keyA + "\nreplace_allowed_ips=true\nallowed_ip=10.0.0.0/8\n\n"
	for n := range len(request) {
		r := newRecorder()
		s := testServer(r, slog.New(slog.DiscardHandler))
		lines := newLines(strings.NewReader(request[:n]))
		if first, err := lines.next(); err == nil {
			answer, more := s.answer(first, lines)
			if want := fmt.Sprintf("errno=%d\n\n", -errnoProtocol); string(answer) != want || more {
				t.Errorf("%d bytes: answer %q, more %v", n, answer, more)
			}
		}
		if r.ops != nil {
			t.Errorf("%d bytes: edits %q", n, r.ops)
		}
	}
}

func TestRequestTooLarge(t *testing.T) {
	r := newRecorder()
	s := testServer(r, slog.New(slog.DiscardHandler))
	endless := &endlessLines{line: []byte(strings.Repeat("x", 60<<10) + "\n")}
	lines := newLines(endless)
	answer, more := s.answer([]byte("set=1"), lines)
	if want := fmt.Sprintf("errno=%d\n\n", -errnoInvalid); string(answer) != want || more {
		t.Errorf("answer %q, more %v", answer, more)
	}
	if endless.read > maxRequest+2*maxLine {
		t.Errorf("%d bytes were read", endless.read)
	}
	endless = &endlessLines{line: bytes.Repeat([]byte("x"), 4<<10)} // one line without end
	lines = newLines(endless)
	if _, more := s.answer([]byte("get=1"), lines); more || endless.read > maxRequest+2*maxLine {
		t.Errorf("endless line: more %v after %d bytes", more, endless.read)
	}
}

type endlessLines struct {
	line []byte
	read int
}

func (e *endlessLines) Read(b []byte) (int, error) {
	n := copy(b, e.line)
	e.read += n
	return n, nil
}

// TestUAPIManyLines: what `wg` sends for a large table of allowed IPs.
func TestManyLines(t *testing.T) {
	const lines = 130_000
	var b strings.Builder
	b.WriteString("set=1\npublic_key=" + keyA + "\n")
	for i := range lines {
		fmt.Fprintf(&b, "allowed_ip=10.%d.%d.%d/32\n", i>>16, i>>8&255, i&255)
	}
	r := newRecorder()
	if got := exchange(t, testServer(r, slog.New(slog.DiscardHandler)), b.String()+"\n"); got != "errno=0\n\n" {
		t.Fatalf("answer %q", got)
	}
	if len(r.ops) != lines+1 || r.ops[lines] != "add 10.1.251.207/32" {
		t.Errorf("%d edits, the last %q", len(r.ops), r.ops[len(r.ops)-1])
	}
}

// TestUAPISecrets: neither a key nor what could be one stands in an error, so none gets to a log.
func TestSecrets(t *testing.T) {
	const secret = "SGVsbG8sIFdvcmxkISBIZWxsbywgV29ybGQhISEhISE="
	for _, line := range []string{
		"private_key=" + secret, "preshared_key=" + secret, secret, secret + "=", "private_key=" + keyA[:62] + "zz",
		"private_key" + secret, "private_key " + keyA, "public_key=" + secret,
	} {
		for _, before := range []string{"", "public_key=" + keyB + "\n"} {
			var log bytes.Buffer
			s := testServer(newRecorder(), slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
			if got := exchange(t, s, "set=1\n"+before+line+"\n\n"); !strings.HasPrefix(got, "errno=-") {
				t.Errorf("%q was accepted: %q", line, got)
			}
			if log.Len() == 0 {
				t.Errorf("%q: no log line", line)
			}
			for _, part := range []string{secret[:8], keyA[:8]} {
				if strings.Contains(log.String(), part) {
					t.Errorf("%q: the log has the key: %s", line, log.String())
				}
			}
		}
	}
}

func FuzzUAPI(f *testing.F) {
	f.Add([]byte("get=1\n\n"))
	f.Add([]byte("set=1\nprivate_key=" + keyA + "\nlisten_port=1\nfwmark=1\nreplace_peers=true\npublic_key=" + keyB + "\n\n"))
	f.Add([]byte("set=1\npublic_key=" + keyA + "\nupdate_only=true\nendpoint=[::1]:1\nallowed_ip=-::/0\npersistent_keepalive_interval=1\n\nget=1\n\n"))
	f.Fuzz(func(t *testing.T, request []byte) {
		r := newRecorder()
		s := testServer(r, slog.New(slog.DiscardHandler))
		lines := newLines(bytes.NewReader(request))
		for more := true; more; {
			first, err := lines.next()
			if err != nil {
				break
			}
			var answer []byte
			answer, more = s.answer(first, lines)
			if answer != nil && !bytes.HasSuffix(answer, []byte("\n\n")) {
				t.Fatalf("answer %q", answer)
			}
		}
		if got, limit := len(r.ops), bytes.Count(request, []byte{'\n'}); got > limit {
			t.Fatalf("%d edits of %d lines", got, limit)
		}
	})
}
