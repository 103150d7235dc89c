package speedtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// peerProgram is a program to compare with that is built from source.
type peerProgram struct {
	name    string // of the implementation
	tool    string // that builds it: go, for a package of a module, or cargo, for a crate
	module  string // package or crate
	version string
	binary  string // file that the tool makes
}

// peerPrograms are the programs that -against knows by name. Their versions stand here only.
var peerPrograms = []peerProgram{
	{"wireguard-go", "go", "golang.zx2c4.com/wireguard", "v0.0.0-20260522210424-ecfc5a8d5446", "wireguard"},
	{"tailscale", "go", "github.com/tailscale/wireguard-go", "v0.0.0-20260928213032-417aef361226", "wireguard-go"},
	{"boringtun", "cargo", "boringtun-cli", "0.7.1", "boringtun-cli"},
	{"gotatun", "cargo", "gotatun-cli", "0.10.2", "gotatun"},
}

// Peers are the names that Config.Against may hold beside paths.
func Peers() []string {
	var names []string
	for _, p := range peerPrograms {
		names = append(names, p.name)
	}
	return names
}

// Program is an implementation to compare with.
type Program struct {
	Name    string
	Path    string
	Version string // module@version, "" for a path
}

// ResolveAgainst finds or builds the programs named in against. Building takes the network, once: it must run outside of the
// lab; inside, it finds what was built. log gets a line per build.
func ResolveAgainst(ctx context.Context, against []string, log io.Writer) ([]Program, error) {
	var list []Program
	seen := map[string]bool{}
	for _, name := range against {
		p, err := resolveProgram(ctx, name, log)
		if err != nil {
			return nil, err
		}
		if p.Name == ImplSluice || p.Name == ImplBare || p.Name == ImplNull {
			p.Name += "-other"
		}
		if seen[p.Name] {
			return nil, fmt.Errorf("-against %s is given twice; leave one out, or rename the program", p.Name)
		}
		seen[p.Name] = true
		list = append(list, p)
	}
	return list, nil
}

func resolveProgram(ctx context.Context, name string, log io.Writer) (Program, error) {
	for _, p := range peerPrograms {
		if p.name == name {
			path, err := p.build(ctx, log)
			return Program{Name: name, Path: path, Version: p.module + "@" + p.version}, err
		}
	}
	path, err := exec.LookPath(name)
	if err == nil || errors.Is(err, exec.ErrDot) {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return Program{}, fmt.Errorf("-against %s: no such program; use %s or the path of one that keeps the contract of sluice-wg",
			name, strings.Join(Peers(), ", "))
	}
	return Program{Name: filepath.Base(path), Path: path}, nil
}

// build returns the path of the built program, building it if it is not in the cache. The file appears there by a rename, so
// an interrupted build leaves none.
func (p peerProgram) build(ctx context.Context, log io.Writer) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("-against %s: no cache folder (%w); set HOME or XDG_CACHE_HOME", p.name, err)
	}
	dir := filepath.Join(cache, "sluice", "peers", p.name, p.version, runtime.GOOS+"-"+runtime.GOARCH)
	path := filepath.Join(dir, p.binary)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("-against %s: %w", p.name, err)
	}
	tmp, err := os.MkdirTemp(dir, "build")
	if err != nil {
		return "", fmt.Errorf("-against %s: %w", p.name, err)
	}
	defer os.RemoveAll(tmp)
	if log != nil {
		fmt.Fprintf(log, "building %s@%s\n", p.module, p.version)
	}
	cmd, built, err := p.install(ctx, tmp)
	if err != nil {
		return "", err
	}
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fmt.Errorf("-against %s: %s install %s@%s: %v: %s", p.name, p.tool, p.module, p.version, err, lastLine(string(out)))
	}
	if err := os.Rename(built, path); err != nil {
		return "", fmt.Errorf("-against %s: %w", p.name, err)
	}
	return path, nil
}

// ErrNoTool means that a program to compare with is built by a tool that is not installed.
var ErrNoTool = errors.New("or give the path of a built program")

// install is the command that builds the program below dir, and the file that it makes.
func (p peerProgram) install(ctx context.Context, dir string) (cmd *exec.Cmd, built string, err error) {
	tool, err := exec.LookPath(p.tool)
	if err != nil {
		return nil, "", fmt.Errorf("-against %s is built from source and needs the %s command in PATH; %w", p.name, p.tool, ErrNoTool)
	}
	if p.tool == "cargo" {
		cmd = exec.CommandContext(ctx, tool, "install", "--quiet", "--locked", "--root", dir, "--version", p.version, p.module)
		// The target folder goes with dir; it has a gigabyte that nothing needs any more.
		cmd.Env = append(os.Environ(), "CARGO_TARGET_DIR="+filepath.Join(dir, "target"))
		return cmd, filepath.Join(dir, "bin", p.binary), nil
	}
	cmd = exec.CommandContext(ctx, tool, "install", "-trimpath", p.module+"@"+p.version)
	// GOFLAGS of the caller, such as -mod=vendor, are about another module.
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=", "GOTOOLCHAIN=auto", "CGO_ENABLED=0")
	return cmd, filepath.Join(dir, p.binary), nil
}

// lastLine is the last line of text that is not blank.
func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
