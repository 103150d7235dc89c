package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/member"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// goodToken is one that no portal knows.
func goodToken() string {
	return protocol.Token{Name: "laptop", Portals: []string{"portal.invalid:4430"}, Secret: [32]byte{7}}.Encode()
}

func writeFile(t *testing.T, name, text string, mode os.FileMode) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCheck: what is wrong with a configuration is one line that names file, line and remedy, and status 2; what is good is status 0. The
// network is not asked: names are of domains that there are not.
func TestCheck(t *testing.T) {
	t.Setenv("SLUICE_TOKEN", "")
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	token, open := writeFile(t, "token", goodToken(), 0o600), writeFile(t, "open", goodToken(), 0o644)
	half := writeFile(t, "half", goodToken()[:50], 0o600)
	state := t.TempDir()
	if err := os.WriteFile(member.TokenPath(state), []byte(goodToken()), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(member.TokenPath(state), 0o640); err != nil {
		t.Fatal(err)
	}
	none := "state: " + filepath.Join(state, "none") + "\n"
	for _, tt := range []struct {
		command, text string
		want          string // of the error, after "FILE"; "": all is good
	}{
		{"client", none, ""},
		{"client", "", "others may read the token"}, // of -state below
		{"client", "# nothing but a remark\n" + none + "mtu: 1380\nfail-closed: true\nkeep: [10.0.0.0/8, 192.168.0.0/16]\ntoken-file: " + token + "\n", ""},
		{"gateway", none + "routes:\n  - 10.0.0.0/24\n  - fd09::/64\nno-masquerade: true\nops: 127.0.0.1:9090\n", ""},
		{"portal", "public: portal.invalid\nrelay-listen: none\nrelay-deny:\n  - 10.0.0.0/8\n  - 192.168.0.0/16\nops: 9090\n", ""},
		{"client", "mtu: 1380\nfail-close: true\n", `:2: sluice client has no flag "fail-close"; did you mean fail-closed?`},
		{"client", "routes: 10.0.0.0/24\n", `:1: sluice client has no flag "routes"; did you mean`},
		{"gateway", "route: 10.0.0.0/24\n", "did you mean routes?"},
		{"portal", "listen: :4430\npublc: 203.0.113.7\n", `:2: sluice portal has no flag "publc"; did you mean public?`},
		{"client", "mtu: 1380\n\nmtu: 1400\n", ":3: mtu is in line 1 already"},
		{"client", "mtu: big\n", `:1: mtu: "big" is not understood: invalid syntax`},
		{"client", "mtu: 100\n", ":1: -mtu 100: want 1280"},
		{"client", "\nkeep: [10.0.0.5]\n", ":2: -keep: 10.0.0.5 has no prefix length"},
		{"client", "log-level: loud\n", ":1: -log-level"},
		{"client", "fail-closed: yes, please\n", ":1: fail-closed: "},
		{"client", "token: " + goodToken() + "\n", ":1: token: secrets are not taken from here; token-file names a file"},
		{"client", "pins: " + goodToken() + "\n", ":1: pins: this is a token"},
		{"portal", "secret: abc\n", ":1: secret: secrets are not taken from here; relay names a file"},
		{"client", "config: other\n", ":1: config is for the command line only"},
		{"client", "release: true\n", ":1: release is for the command line only"},
		{"client", "mtu:\n  big: 1\n", ":2: mtu: want a value"},
		{"client", "mtu:\n", ":1: mtu: want a value"},
		{"client", "- mtu\n", ":1: want lines like"},
		{"client", "mtu: [1\n", "yaml: line "},
		{"client", "mtu: 1380\n---\nmtu: 1400\n", "something follows the first document"},
		{"client", strings.Repeat("#", maxConfig+1), "longer than"},
		{"client", none + "token-file: " + open, "chmod 600"},
		{"client", none + "token-file: " + half, "damaged"},
		{"client", none + "ops: nonsense", ":2: -ops \"nonsense\""},
		{"portal", "public: 203.0.113.7:4430\n", ":1: -public 203.0.113.7:4430: give the address without a port"},
		{"portal", "listen: :4430\n", "-public is missing"},
	} {
		path := writeFile(t, "config", tt.text, 0o644)
		args := []string{tt.command, "-check", "-config", path}
		if tt.text == "" {
			args = append(args, "-state", state)
		}
		stdout, stderr, code := call("", args...)
		good := fmt.Sprintf("sluice %s: the configuration is good\n", tt.command)
		switch {
		case tt.want == "" && (code != 0 || stdout != good || stderr != ""):
			t.Errorf("%s %q: code %d, %q, %q", tt.command, tt.text, code, stdout, stderr)
		case tt.want != "" && (code != 2 || stdout != "" || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1):
			t.Errorf("%s %.100q: code %d, %q, %q, want %q", tt.command, tt.text, code, stdout, stderr, tt.want)
		case strings.HasPrefix(tt.want, ":") && !strings.HasPrefix(stderr, "sluice: "+path+tt.want[:2]):
			t.Errorf("%s %.100q: %q does not begin with file and line", tt.command, tt.text, stderr)
		}
		if strings.Contains(stderr, goodToken()[:20]) {
			t.Errorf("the error has the token: %q", stderr)
		}
	}
	for _, args := range [][]string{{"client", "-config", "/none/such"}, {"client", "-check", "-config", "/none/such"}} {
		if _, stderr, code := call("", args...); code != 2 || !strings.Contains(stderr, "no such file") {
			t.Errorf("%q: code %d, %q", args, code, stderr)
		}
	}
	if _, stderr, code := call("", "client", "-check", "-token-file", "-"); code != 0 {
		t.Errorf("a token on standard input, which is not read: code %d, %q", code, stderr)
	}
}

// TestConfigPrecedence: a flag on the command line counts more than the file, all others come from it, lists too.
func TestConfigPrecedence(t *testing.T) {
	path := writeFile(t, "config", "mtu: 1380\nport: 70000\nkeep: [10.0.0.0/8, fd00::/8]\nno-default-route: true\nmark: 77\n", 0o644)
	var o member.Options
	c := clientCommand()
	c.Action = func(_ context.Context, cmd *cli.Command) (err error) {
		if _, err = configure(cmd); err == nil {
			o, err = memberOptions(cmd, protocol.Client)
		}
		return err
	}
	if err := c.Run(t.Context(), []string{"client", "-config", path, "-port", "5", "-mtu", "1400"}); err != nil {
		t.Fatal(err)
	}
	if o.MTU != 1400 || o.Port != 5 || o.Mark != 77 || !o.NoDefault || len(o.Keep) != 2 || o.Keep[1].String() != "fd00::/8" {
		t.Errorf("%+v", o)
	}
	for word, want := range map[string]string{"tokenfile": "token-file", "MTU": "mtu", "interfaces": "interface", "": "mtu"} {
		if got := nearest(word, []string{"token-file", "mtu", "interface", "fail-closed"}); got != want {
			t.Errorf("nearest to %q: %q, want %q", word, got, want)
		}
	}
}
