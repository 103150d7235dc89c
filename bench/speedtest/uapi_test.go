package speedtest

import (
	"bufio"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
)

func testTunnel() tunnelConfig {
	return tunnelConfig{
		PrivateKey: [32]byte{1, 2}, ListenPort: 51820, PeerKey: [32]byte{31: 0xff},
		Endpoint:   netip.MustParseAddrPort("10.0.0.2:51820"),
		AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.1.0.2/32"), netip.MustParsePrefix("fd00::/64")},
	}
}

func TestEncodeUAPI(t *testing.T) {
	want := "set=1\n" +
		"private_key=0102" + strings.Repeat("00", 30) + "\n" +
		"listen_port=51820\n" +
		"replace_peers=true\n" +
		"public_key=" + strings.Repeat("00", 31) + "ff\n" +
		"endpoint=10.0.0.2:51820\n" +
		"replace_allowed_ips=true\n" +
		"allowed_ip=10.1.0.2/32\n" +
		"allowed_ip=fd00::/64\n\n"
	if got := testTunnel().encode(); got != want {
		t.Errorf("encoded\n%s\nwant\n%s", got, want)
	}
}

func TestReadAnswer(t *testing.T) {
	for in, want := range map[string]string{
		"errno=0\n\n":           "",
		"x=1\nerrno=0\n\nmore":  "",
		"errno=-22\n\n":         "errno -22",
		"errno=98\n\n":          "errno 98",
		"errno=zero\n\n":        `errno="zero"`,
		"\n":                    "no errno",
		"":                      "no errno",
		"public_key=00\n\nerrn": "no errno",
	} {
		err := readAnswer(strings.NewReader(in))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

func TestConfigure(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	if err := configure(path, testTunnel()); err == nil {
		t.Error("no socket, no error")
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Skipf("unix sockets: %v", err)
	}
	defer ln.Close()
	got := make(chan string, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var lines strings.Builder
		for s := bufio.NewScanner(conn); s.Scan() && s.Text() != ""; {
			lines.WriteString(s.Text() + "\n")
		}
		got <- lines.String()
		_, _ = conn.Write([]byte("errno=-98\n\n"))
	}()
	if err := configure(path, testTunnel()); err == nil || !strings.Contains(err.Error(), "errno -98") {
		t.Errorf("a refusal: %v", err)
	}
	if text := <-got; text+"\n" != testTunnel().encode() {
		t.Errorf("the program read\n%s", text)
	}
}
