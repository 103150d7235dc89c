package main

import (
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/cmd/internal/logs"
)

func TestMemberUsage(t *testing.T) {
	t.Setenv("SLUICE_TOKEN", "")
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	for _, tt := range []struct {
		args           string
		code           int
		stdout, stderr string // regular expressions
	}{
		{"gateway -h", 0, `-routes(?s:.*)-no-masquerade`, `^$`},
		{"client -h", 0, `-token-file`, `^$`},
		{"gateway more", 2, `^$`, `sluice gateway takes no argument, not "more"\n$`},
		{"client -routes 10.0.0.0/24", 2, `^$`, `not defined: -routes; see sluice client -h\n$`},
		{"client -token-file /nonexistent/token", 1, `^$`, `^sluice: token: .*no such file.*\n$`},
		{"client -token-file -", 1, `^$`, `^sluice: token: standard input is empty\n$`},
		{"client -port 65536", 2, `^$`, `-port 65536: want 0 to 65535\n$`},
		{"client -port x", 2, `^$`, `invalid value "x" for flag -port: invalid syntax; see sluice client -h\n$`},
		{"gateway -routes 10.0.0.7", 2, `^$`, `no prefix length; did you mean 10.0.0.7/32\?\n$`},
		{"client -port -1", 2, `^$`, `-port -1: want`},
		{"client -mtu 1000", 2, `^$`, `-mtu 1000: want 1280`},
		{"client -table 254", 2, `^$`, `-table 254: `},
		{"client -mark 0", 2, `^$`, `-mark 0: `},
		{"client -interface=", 2, `^$`, `-interface "": want`},
		{"client -interface ../x", 2, `^$`, `-interface "../x": want`},
		{"client -socks5 1080", 2, `^$`, `-socks5 is for -userspace`},
		{"client -userspace", 2, `^$`, `-userspace makes no interface: say with -socks5 1080,`},
		{"client -userspace -socks5 x", 2, `^$`, `-socks5 "x": use PORT`},
		{"client -userspace -http-proxy 127.0.0.1", 2, `^$`, `-http-proxy "127.0.0.1": use PORT`},
		{"client -userspace -forward 8080", 2, `^$`, `-forward "8080": use LOCAL=HOST:PORT`},
		{"client -userspace -socks5 1080 -fail-closed", 2, `^$`, `-fail-closed is for an interface`},
		{"client -userspace -socks5 1080 -names hosts", 2, `^$`, `-names is for an interface`},
		{"gateway -userspace -no-masquerade", 2, `^$`, `-no-masquerade is for an interface`},
		{"gateway -userspace -socks5 1080", 2, `^$`, `not defined: -socks5`},
		{"gateway -routes 10.0.0.0/24 -dns 10.0.0.53", 2, `^$`, `-dns: 10.0.0.53 is for clients whose default route leads here: offer it`},
		{"gateway -routes 0.0.0.0/0 -dns x", 2, `^$`, `-dns: "x" is no address`},
		{"gateway -routes 0.0.0.0/0 -dns 127.0.0.53", 2, `^$`, `-dns: 127.0.0.53 is no name server that others can reach`},
		{"client -log-level loud", 2, `^$`, `-log-level "loud" is no level: want debug, info, warning, error or silent\n$`},
		{"gateway -routes 10.0.0.0/24,10.1", 2, `^$`, `-routes: "10.1" is no prefix`},
		{"gateway -routes " + strings.Repeat("10.0.0.0/24,", 70), 2, `^$`, `-routes: 70 routes are more than the 64 that one gateway may offer; join`},
		{"gateway -routes fe80::/64", 2, `^$`, `-routes: fe80::/64 has a meaning on one machine or link only`},
		{"gateway -routes 10.0.0.7/24", 2, `^$`, `did you mean 10.0.0.0/24\?\n$`},
		{"client sluice1-abcdef", 2, `^$`, `^sluice: a token on the command line`},
		{"status -socket=/tmp/sluice1-abcdef", 2, `^$`, `^sluice: a token on the command line`},
	} {
		stdout, stderr, code := call("", strings.Fields(tt.args)...)
		if code != tt.code || !regexp.MustCompile(tt.stdout).MatchString(stdout) || !regexp.MustCompile(tt.stderr).MatchString(stderr) {
			t.Errorf("%q: code %d, stdout %q, stderr %q", tt.args, code, stdout, stderr)
		}
		if strings.Contains(stderr, "abcdef") {
			t.Errorf("%q: the token is repeated: %q", tt.args, stderr)
		}
	}
}

func TestParseRoutes(t *testing.T) {
	for text, want := range map[string][]netip.Prefix{
		"": nil, " , ": nil,
		"10.0.0.0/24, fd09::/64,": {netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd09::/64")},
		"0.0.0.0/0":               {netip.MustParsePrefix("0.0.0.0/0")},
	} {
		if got, err := parseRoutes("-routes", text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

// TestJournal: where programs read the log, warnings and the error at the end are lines of it as well.
func TestJournal(t *testing.T) {
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(token, 0o644); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"client -token-file " + token:                                     "ERROR token: others may read the token in .*chmod 600",
		"gateway -token-file " + token + ".not":                           "ERROR token: .*no such file",
		"portal -public 127.0.0.1 -state " + token:                        "ERROR portal: ",
		"portal -public 127.0.0.1 -relay a=127.0.0.1:1," + token + ".not": "ERROR -relay a",
	} {
		log, err := os.Create(filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		code := run(append([]string{"sluice"}, strings.Fields(args)...), strings.NewReader(""), io.Discard, log)
		logs.Flush()
		log.Close()
		text, err := os.ReadFile(log.Name())
		if err != nil || code != 1 {
			t.Errorf("%s: %v, code %d", args, err, code)
		}
		wanted := strings.Split(want, "|")
		lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
		for i, line := range lines {
			var record struct{ Time, Severity, Message string }
			if err := json.Unmarshal([]byte(line), &record); err != nil || record.Time == "" {
				t.Errorf("%s: %q is no record: %v", args, line, err)
			}
			if i < len(wanted) && !regexp.MustCompile(wanted[i]).MatchString(record.Severity+" "+record.Message) {
				t.Errorf("%s: %q, want %s", args, line, wanted[i])
			}
		}
		if len(lines) != len(wanted) {
			t.Errorf("%s: %q", args, lines)
		}
	}
}

// TestTokenFileMode: a token that others may read is not taken.
func TestTokenFileMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := call("", "client", "-token-file", path)
	if code != 1 || !strings.Contains(stderr, "chmod 600 "+path) || strings.Contains(stderr, "is empty") {
		t.Errorf("code %d, stderr %q", code, stderr)
	}
}

// TestClientFlags: what a client may refuse is checked, and never both asked for and refused.
func TestClientFlags(t *testing.T) {
	for args, want := range map[string]string{
		"-accept-routes 10.0.0.5":                        "did you mean 10.0.0.5/32",
		"-accept-routes 10.0.0.5/24":                     "did you mean 10.0.0.0/24",
		"-accept-routes ::/0 -no-default-route":          "contradict",
		"-keep ::/0 -fail-closed":                        "contradict",
		"-fail-closed -release":                          "give one of them",
		"-keep 10.0.0.0/8 -fail-closed -token-file /not": "/not",
		"-accept-routes 8.8.8.8/32 -token-file /not":     "/not",
		"-accept-routes fe80::/10 -token-file /not":      "/not",
		"-no-default-route -token-file /not":             "/not",
	} {
		_, stderr, code := call("", append([]string{"client"}, strings.Fields(args)...)...)
		if code == 0 || !strings.Contains(stderr, want) {
			t.Errorf("%s: code %d, %q, want %q", args, code, stderr, want)
		}
	}
}
