package main

import (
	"bytes"
	"encoding/base64"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
)

// call runs the program in this process.
func call(stdin string, args ...string) (stdout, stderr string, code int) {
	var out, diagnostics bytes.Buffer
	code = run(append([]string{"sluice"}, args...), strings.NewReader(stdin), &out, &diagnostics)
	return out.String(), diagnostics.String(), code
}

func TestKeys(t *testing.T) {
	private, stderr, code := call("", "genkey")
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(private, "\n"))
	if code != 0 || stderr != "" || err != nil || len(raw) != 32 || !strings.HasSuffix(private, "\n") {
		t.Fatalf("genkey: %d bytes, stderr %q, code %d, %v", len(raw), stderr, code, err)
	}
	if raw[0]&7 != 0 || raw[31]&0x80 != 0 || raw[31]&0x40 == 0 {
		t.Error("genkey: the key is not clamped")
	}
	if again, _, _ := call("", "genkey"); again == private {
		t.Error("genkey: the same key twice")
	}
	psk, _, code := call("", "genpsk")
	if raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(psk)); code != 0 || err != nil || len(raw) != 32 {
		t.Errorf("genpsk: %d bytes, code %d, %v", len(raw), code, err)
	}
}

// TestPubkeyVector is Alice's key pair of RFC 7748, section 6.1.
func TestPubkeyVector(t *testing.T) {
	const (
		private = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="
		public  = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\n"
	)
	for _, input := range []string{private, private + "\n", " " + private + "\r\n"} {
		if got, stderr, code := call(input, "pubkey"); got != public || code != 0 || stderr != "" {
			t.Errorf("%q: %q, stderr %q, code %d", input, got, stderr, code)
		}
	}
}

func TestPubkeyBadInput(t *testing.T) {
	for _, input := range []string{
		"", "\n", "hello", strings.Repeat("A", 43), strings.Repeat("A", 44), strings.Repeat("A", 45) + "=", strings.Repeat("A", 1<<20),
		strings.Repeat("A", 43) + "=" + strings.Repeat("A", 43) + "=", strings.Repeat("00", 32),
	} {
		stdout, stderr, code := call(input, "pubkey")
		if stdout != "" || code != 1 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "standard input") {
			t.Errorf("%.50q: stdout %q, stderr %q, code %d", input, stdout, stderr, code)
		}
		if trimmed := strings.TrimSpace(input); trimmed != "" && strings.Contains(stderr, trimmed) {
			t.Errorf("the error repeats what may be a secret: %q", stderr)
		}
	}
}

// TestKeysAgainstWG: what one program makes the other reads.
func TestKeysAgainstWG(t *testing.T) {
	wg, err := exec.LookPath("wg")
	if err != nil {
		t.Skip("SKIPPED: keys are not compared with those of wg: it is not installed")
	}
	private, _, _ := call("", "genkey")
	cmd := exec.Command(wg, "pubkey")
	cmd.Stdin = strings.NewReader(private)
	want, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, _, _ := call(private, "pubkey"); got != string(want) {
		t.Errorf("pubkey %q, wg says %q", got, want)
	}
}

func TestSecretToReadableFile(t *testing.T) {
	for mode, warned := range map[os.FileMode]bool{0o600: false, 0o640: false, 0o644: true} {
		f, err := os.Create(filepath.Join(t.TempDir(), "key"))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Chmod(mode); err != nil {
			t.Fatal(err)
		}
		var stderr bytes.Buffer
		code := run([]string{"sluice", "genkey"}, strings.NewReader(""), f, &stderr)
		f.Close()
		if got := strings.Contains(stderr.String(), "umask 077"); got != warned || code != 0 {
			t.Errorf("mode %v: warned %v, code %d", mode, got, code)
		}
	}
}

// TestHelp: the help of every command fits a terminal and shows flags as they are written elsewhere.
func TestHelp(t *testing.T) {
	var visit func(cmd *cli.Command, path []string)
	seen := 0
	visit = func(cmd *cli.Command, path []string) {
		stdout, stderr, code := call("", append(path, "-h")...)
		if code != 0 || stderr != "" || !strings.Contains(stdout, "NAME:") {
			t.Errorf("%q: code %d, %q", path, code, stderr)
		}
		seen++
		for line := range strings.Lines(stdout) {
			line = strings.TrimSuffix(line, "\n")
			if len(line) > status.Columns || strings.HasSuffix(line, " ") {
				t.Errorf("%q: %d columns, want at most %d: %q", path, len(line), status.Columns, line)
			}
			if regexp.MustCompile(`(^|\s)--[a-z]`).MatchString(line) {
				t.Errorf("%q: a flag with two hyphens: %q", path, line)
			}
		}
		for _, c := range cmd.Commands {
			if c.Name != "help" {
				visit(c, append(slices.Clone(path), c.Name))
			}
		}
	}
	visit(newCommand(nil, nil, nil), nil)
	if seen < 18 {
		t.Errorf("%d commands have help", seen)
	}
	stdout, _, _ := call("", "portal", "-h")
	for _, want := range []string{
		"\n   -relay-listen ADDRESS  ADDRESS for STUN and TURN, UDP; none: no relay here\n                          (default: \":3478\")\n",
		"\n   -relay NAME=ADDRESS:PORT,FILE ...\n                          another relay,",
		"\n   node         add, list and remove nodes",
		"\n   One process and one folder. Nodes reach it by TCP (TLS) for sign-in and\n   signaling",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
}

func TestUsage(t *testing.T) {
	tests := []struct {
		args           string
		code           int
		stdout, stderr string // regular expressions
	}{
		{"", 0, `speedtest\b(?s:.*)genkey\b(?s:.*)pubkey\b(?s:.*)genpsk\b(?s:.*)version\b`, `^$`},
		{"-h", 0, `COMMANDS`, `^$`},
		{"--help", 0, `COMMANDS`, `^$`},
		{"help", 0, `COMMANDS`, `^$`},
		{"genkey -h", 0, `umask`, `^$`},
		{"node -h", 0, `-profile`, `^$`},
		{"version", 0, `^sluice \S+ \(go1\.\S+, \w+/\w+\)\n$`, `^$`},
		{"vers", 2, `^$`, `^sluice: unknown command "vers".*\n$`},
		{"-nope", 2, `^$`, `^sluice: flag provided but not defined: -nope.*\n$`},
		{"genkey -nope", 2, `^$`, `^sluice: flag provided but not defined: -nope; see sluice genkey -h\n$`},
		{"genkey more", 2, `^$`, `^sluice: sluice genkey takes no argument, not "more"\n$`},
		{"pubkey x", 2, `^$`, `^sluice: .*"x"\n$`},
		{"version x", 2, `^$`, `^sluice: .*"x"\n$`},
		{"node", 2, `^$`, `^sluice: sluice node takes one interface name\n$`},
		{"node a b", 2, `^$`, `^sluice: sluice node takes one interface name\n$`},
		{"node -profile heat x", 2, `^$`, `^sluice: -profile "heat": want cpu, mem, mutex, block or trace\n$`},
		{"node -profile", 2, `^$`, `^sluice: flag needs an argument: -profile.*\n$`},
	}
	for _, tt := range tests {
		stdout, stderr, code := call("", strings.Fields(tt.args)...)
		if code != tt.code || !regexp.MustCompile(tt.stdout).MatchString(stdout) || !regexp.MustCompile(tt.stderr).MatchString(stderr) {
			t.Errorf("%q: code %d, stdout %q, stderr %q", tt.args, code, stdout, stderr)
		}
	}
	var each func(c *cli.Command)
	each = func(c *cli.Command) { // of every command
		path := strings.Fields(c.FullName())[1:]
		help, _, code := call("", append(path, "-h")...)
		if code != 0 || strings.Count(strings.Join(strings.Fields(help), " "), "Exit status: 0, or 1 for a failure, or 2 for arguments") != 1 || regexp.MustCompile(`(^|\s)--\w`).MatchString(help) {
			t.Errorf("%q: code %d, its help lacks the exit statuses, or has a flag with two hyphens:\n%s", c.FullName(), code, help)
		}
		if stdout, stderr, code := call("", append(path, "-version")...); code != 0 || stderr != "" || !strings.HasPrefix(stdout, "sluice ") || strings.Count(stdout, "\n") != 1 {
			t.Errorf("%q -version: code %d, stdout %q, stderr %q", c.FullName(), code, stdout, stderr)
		}
		for _, below := range c.Commands {
			if below.Name != "help" {
				each(below)
			}
		}
	}
	root := newCommand(strings.NewReader(""), io.Discard, io.Discard)
	if err := root.Run(t.Context(), []string{"sluice", "version"}); err != nil { // so that commands know their names
		t.Fatal(err)
	}
	each(root)
	if stdout, _, _ := call("", "-h"); strings.Contains(stdout, "node") && regexp.MustCompile(`(?m)^\s+node\b`).MatchString(stdout) {
		t.Error("the help lists the hidden command node")
	}
}
