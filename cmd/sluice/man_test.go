package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestManPages: every command has a page with all of its flags, and both programs that show pages have nothing to complain about.
func TestManPages(t *testing.T) {
	folder := t.TempDir()
	if _, stderr, code := call("", "man", "-date", "2026-11-29", folder); code != 0 {
		t.Fatalf("code %d: %s", code, stderr)
	}
	pages, err := filepath.Glob(filepath.Join(folder, "*.8"))
	if err != nil {
		t.Fatal(err)
	}
	root := newCommand(strings.NewReader(""), nil, nil)
	for _, c := range root.VisibleCommands() {
		text, err := os.ReadFile(filepath.Join(folder, "sluice-"+c.Name+".8"))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, f := range c.VisibleFlags() {
			if want := `\fB` + roff("-"+f.Names()[0]) + `\fR`; !strings.Contains(string(text), want) {
				t.Errorf("sluice-%s.8 lacks %s", c.Name, want)
			}
		}
	}
	pages = append(pages, "deploy/man/sluice-wg.8")
	for _, lint := range [][]string{{"mandoc", "-T", "lint", "-W", "warning"}, {"groff", "-man", "-ww", "-z"}} {
		if _, err := exec.LookPath(lint[0]); err != nil {
			t.Logf("SKIPPED: pages are not shown to %s: it is not installed", lint[0])
			continue
		}
		for _, page := range pages {
			if out, err := exec.Command(lint[0], append(lint[1:], page)...).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%s %s: %v\n%s", lint[0], filepath.Base(page), err, out)
			}
		}
	}
}

// TestSluiceWGPage: what sluice-wg says of itself is in its page.
func TestSluiceWGPage(t *testing.T) {
	page, err := os.ReadFile("deploy/man/sluice-wg.8")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("../sluice-wg/main.go")
	if err != nil {
		t.Fatal(err)
	}
	words := regexp.MustCompile(`(?m)^  ((?:-f|--|WG_|SLUICE_|LOG_)[\w-]*)`).FindAllSubmatch(program, -1)
	if len(words) < 10 {
		t.Fatalf("the program names %d flags and variables", len(words))
	}
	for _, w := range words {
		if want := roff(string(w[1])); !strings.Contains(string(page), want) {
			t.Errorf("the page lacks %s", want)
		}
	}
}

// TestCompletion: what shells ask, and that they can read the script that asks.
func TestCompletion(t *testing.T) {
	for args, want := range map[string][]string{
		"":                 {"client:", "status:", "completion:"},
		"client":           {"-token-file:", "-fail-closed:"},
		"client -tok":      {"-token-file:"},
		"portal node":      {"add:", "list:"},
		"portal node list": {"-json:"},
	} {
		stdout, stderr, code := call("", append(strings.Fields(args), "--generate-shell-completion")...)
		if code != 0 || stderr != "" {
			t.Errorf("%q: code %d, %s", args, code, stderr)
		}
		for _, begin := range want {
			if !strings.Contains("\n"+stdout, "\n"+begin) {
				t.Errorf("%q: no %q in %q", args, begin, stdout)
			}
		}
		if strings.Contains(stdout, "--") || strings.Contains("\n"+stdout, "\nman:") {
			t.Errorf("%q: %q", args, stdout)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		script, stderr, code := call("", "completion", shell)
		if code != 0 || stderr != "" || !strings.Contains(script, "sluice") {
			t.Errorf("%s: code %d, %s", shell, code, stderr)
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("SKIPPED: %s does not read its script: it is not installed", shell)
			continue
		}
		file := filepath.Join(t.TempDir(), shell)
		if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(path, "-n", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", shell, err, out)
		}
		completeHostile(t, shell, path, file)
	}
}

// completeHostile has a shell complete after words that would do harm if it ran them. The program is handed them as they are, and what it
// says is offered.
func completeHostile(t *testing.T, shell, path, script string) {
	t.Helper()
	folder := t.TempDir()
	program, said := filepath.Join(folder, "sluice"), filepath.Join(folder, "said")
	text := "#!/bin/sh\nprintf '<%s>' \"$@\" >" + said + "\nprintf '%s\\n' '-token-file:read the token' 'client:reach gateways'\n"
	if err := os.WriteFile(program, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	harm := filepath.Join(folder, "harm")
	hostile := "$(touch${IFS}" + harm + ");`touch${IFS}" + harm + "`"
	if shell == "fish" {
		hostile = "$(touch " + harm + ")"
	}
	run := map[string]string{
		"bash": `. "$1"; COMP_WORDS=(sluice "$2" cl) COMP_CWORD=2; _sluice; echo "${COMPREPLY[*]}"`,
		"zsh":  `compdef() { : }; _describe() { print -l -- "${(@P)2}" }; _files() { : }; . "$1"; words=(sluice "$2" cl); _sluice`,
		"fish": `source $argv[1]; complete --do-complete "sluice $argv[2] cl"`,
	}[shell]
	args := []string{"-c", run, shell, script, hostile}
	if shell == "fish" {
		args = []string{"--no-config", "-c", run, script, hostile}
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "PATH="+folder+":"+os.Getenv("PATH"), "HOME="+folder)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "client") {
		t.Errorf("%s: %v, it offers %q, want client", shell, err, out)
	}
	if got, _ := os.ReadFile(said); !strings.HasPrefix(string(got), "<"+hostile[:len("$(touch")]) || !strings.HasSuffix(string(got), "<--generate-shell-completion>") {
		t.Errorf("%s: the program is asked %q, want the words as they are", shell, got)
	}
	if _, err := os.Stat(harm); err == nil {
		t.Errorf("%s: it has run what was typed", shell)
	}
}
