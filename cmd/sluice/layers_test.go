package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// These tests keep the house in order: which package may know which, and the few rules that a reviewer should not have to
// check. There is no Go file at the root, so they live with the command that sees every layer.

const module = "github.com/sluice-vpn/sluice/"

// layers lists, for each package of ours, the packages of ours that it may import, test files excepted. A folder that ends in
// /... stands for all below it.
var layers = map[string][]string{
	"crypto/aead":              {"crypto/secret"},
	"crypto/replay":            {},
	"crypto/secret":            {},
	"crypto":                   {"crypto/aead", "crypto/replay", "crypto/secret"},
	"crypto/cryptotest":        {"crypto", "crypto/aead"},
	"tun/ip":                   {},
	"tun":                      {"tun/ip"},
	"tun/host":                 {},
	"tun/netstack":             {"tun", "tun/ip"},
	"tun/tuntest":              {"tun", "tun/ip"},
	"pipeline/udp":             {},
	"pipeline/udp/udptest":     {"pipeline/udp"},
	"pipeline/count":           {},
	"pipeline/errno":           {},
	"pipeline/flow":            {"tun/ip"},
	"pipeline/uapi":            {"pipeline", "pipeline/udp", "crypto", "crypto/secret"},
	"pipeline/frame":           {},
	"pipeline":                 {"pipeline/count", "crypto", "crypto/aead", "crypto/replay", "crypto/secret", "tun", "tun/ip", "pipeline/flow", "pipeline/frame", "pipeline/udp"},
	"bench/...":                {"bench/...", "crypto/...", "tun/...", "pipeline/...", "ice/..."},
	"bench/lab":                {},
	"cmd/internal/logs":        {"pipeline/errno"},
	"cmd/internal/names":       {"pipeline/errno", "ice/signal"},
	"cmd/internal/version":     {},
	"cmd/internal/environment": {"cmd/internal/logs", "pipeline", "pipeline/count", "tun", "crypto/aead"},
	"cmd/internal/node":        {"cmd/internal/environment", "cmd/internal/version", "pipeline", "pipeline/uapi", "tun", "crypto/aead"},
	"cmd/internal/service":     {"ice/secretfile"},
	"cmd/internal/tune":        {},
	"cmd/internal/status":      {"cmd/internal/doctor", "cmd/internal/tune", "ice/edge", "ice/netcheck"},
	"cmd/internal/doctor":      {"pipeline/udp", "tun"},
	"cmd/internal/ops":         {"pipeline/count", "pipeline/errno"},
	"cmd/internal/proxy":       {"pipeline/errno"},
	"cmd/internal/member": {
		"cmd/internal/capture", "cmd/internal/environment", "cmd/internal/logs", "cmd/internal/names", "cmd/internal/ops", "cmd/internal/proxy", "cmd/internal/service", "cmd/internal/status", "cmd/internal/version", "ice/...", "pipeline", "pipeline/count", "pipeline/errno", "pipeline/uapi", "tun", "tun/host", "tun/netstack", "crypto",
	},
	"cmd/internal/...": {"cmd/internal/...", "pipeline/...", "tun/...", "crypto/..."},
	"cmd/sluice-wg":    {"cmd/internal/logs", "cmd/internal/node", "cmd/internal/version"},
	"cmd/sluice":       {"cmd/internal/...", "bench/...", "ice/...", "pipeline/...", "tun/...", "crypto/..."},
	"ice/stun":         {"pipeline/frame"},
	"ice/edge":         {"ice/...", "pipeline", "pipeline/count", "pipeline/udp", "crypto"},
	"ice/link":         {"ice/rate", "ice/signal", "pipeline", "pipeline/count", "crypto"},
	"ice/turn":         {"ice", "ice/rate", "ice/stun", "pipeline/count", "pipeline/frame", "pipeline/udp"},
	"ice/...":          {"ice/...", "pipeline", "pipeline/count", "pipeline/errno", "pipeline/frame", "pipeline/udp"},
}

// forbidden are imports from outside, test files excepted.
var forbidden = []struct {
	in, imports string
	except      []string // imports, or files, that may
	why         string
}{
	{"crypto/...", "net/...", []string{"net/netip"}, "the protocol core does no I/O"},
	{"crypto/...", "os/...", nil, "the protocol core does no I/O"},
	{"crypto/...", "syscall", nil, "the protocol core does no I/O"},
	{"crypto/...", "golang.org/x/sys/unix", []string{"crypto/secret/signals_linux.go"}, "the protocol core does no I/O"},
	{"crypto/...", "sync", nil, "the core belongs to one goroutine"},
	{"crypto/...", "sync/atomic", []string{"crypto/keypair.go", "crypto/index.go"}, "only what is published to lanes is atomic"},
	{"tun/ip", "net/...", []string{"net/netip"}, "header views are bytes to bytes"},
	{"pipeline/frame", "net/...", []string{"net/netip"}, "the layout of messages is bytes to bytes"},
	{"ice/stun", "net/...", []string{"net/netip"}, "a view and a builder are bytes to bytes"},
	{"ice/stun", "github.com/...", []string{"github.com/sluice-vpn/..."}, "one alphabet of our own, without pion's"},
	{"pipeline", "github.com/vishvananda/...", nil, "routes and addresses are tun/host's work"},
	{"...", "github.com/pion/...", []string{"ice/..."}, "only the connectivity edge knows ICE"},
	{"...", "github.com/nats-io/...", []string{"ice/..."}, "only the connectivity edge knows the signaling bus"},
	{"...", "gvisor.dev/...", []string{"tun/netstack"}, "only a node without an interface has its own TCP/IP"},
	{"cmd/internal/...", "github.com/urfave/...", nil, "sluice-wg parses two flags and needs no library"},
}

// banned are words that say nothing, and so no part of the name of a package or type.
var banned = []string{
	"manager", "engine", "helper", "helpers", "util", "utils", "common", "info", "elem", "container", "process", "do",
}

const (
	longestFunction = 80
	longestFile     = 500
)

// under reports whether p matches a pattern of layers.
func under(p, pattern string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "..."); ok {
		return strings.HasPrefix(p+"/", prefix)
	}
	return p == pattern
}

func underAny(p string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return under(p, pattern) })
}

// allowedFor returns the entry of layers that fits dir best.
func allowedFor(dir string) (allowed []string, known bool) {
	if allowed, known = layers[dir]; known {
		return allowed, true
	}
	best := ""
	for pattern := range layers {
		if under(dir, pattern) && len(pattern) > len(best) {
			best = pattern
		}
	}
	return layers[best], best != ""
}

// source is one parsed Go file of ours.
type source struct {
	name string // from the module's root, with slashes
	dir  string
	test bool
	tree *ast.File
	set  *token.FileSet
}

func (s *source) position(n ast.Node) string {
	p := s.set.Position(n.Pos())
	p.Filename = s.name
	return p.String()
}

const root = "../.."

// walk calls visit for each file of the repository, testdata and raw results excepted.
func walk(t *testing.T, visit func(name string, nested bool)) {
	t.Helper()
	nested := map[string]bool{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		if d.IsDir() {
			if d.Name() == ".git" || d.Name() == "testdata" || name == "bench/results" {
				return filepath.SkipDir
			}
			_, err := os.Stat(filepath.Join(p, "go.mod"))
			nested[name] = nested[path.Dir(name)] && name != "." || name != "." && err == nil
			return nil
		}
		visit(name, nested[path.Dir(name)])
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sources parses every Go file of this module, for all systems.
func sources(t *testing.T) []*source {
	t.Helper()
	var list []*source
	set := token.NewFileSet()
	walk(t, func(name string, nested bool) {
		if !strings.HasSuffix(name, ".go") || nested {
			return
		}
		tree, err := parser.ParseFile(set, filepath.Join(root, name), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, &source{name, path.Dir(name), strings.HasSuffix(name, "_test.go"), tree, set})
	})
	if len(list) == 0 {
		t.Fatal("no Go file was found")
	}
	return list
}

func TestLayers(t *testing.T) {
	for _, s := range sources(t) {
		allowed, known := allowedFor(s.dir)
		if !known {
			t.Errorf("%s: package %s has no layer: say in layers what it may import", s.name, s.dir)
		}
		if s.test {
			continue
		}
		for _, spec := range s.tree.Imports {
			imported := strings.Trim(spec.Path.Value, `"`)
			if ours, ok := strings.CutPrefix(imported, module); ok && !underAny(ours, allowed) {
				t.Errorf("%s: %s may not import %s, only %q", s.position(spec), s.dir, ours, allowed)
			}
			for _, rule := range forbidden {
				if under(s.dir, rule.in) && under(imported, rule.imports) && !underAny(imported, rule.except) &&
					!underAny(s.name, rule.except) && !underAny(s.dir, rule.except) {
					t.Errorf("%s: %s may not import %s: %s", s.position(spec), s.dir, imported, rule.why)
				}
			}
		}
	}
}

// TestSluiceWGIsSmall: a drop-in for wireguard-go carries no connectivity stack.
func TestSluiceWGIsSmall(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "../sluice-wg").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, module+"pipeline") {
		t.Fatalf("go list names no pipeline: %q", deps)
	}
	for _, dep := range deps {
		for _, word := range []string{"pion/", "nats-io/", "urfave/", "pkg/profile", "prometheus/", "gvisor.dev/", "/bench"} {
			if strings.Contains(dep, word) {
				t.Errorf("sluice-wg depends on %s", dep)
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		begin := "Package " + s.tree.Name.Name + " "
		if s.tree.Name.Name == "main" {
			begin = "Command " + path.Base(s.dir) + " "
		}
		documented[s.dir] = documented[s.dir] || strings.HasPrefix(s.tree.Doc.Text(), begin)
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

// readsClock are the folders of ice that still read the clock by themselves, each where it waits for a network. What decides does not.
var readsClock = []string{"ice", "ice/netcheck", "ice/portal/...", "ice/relay", "ice/signal/...", "ice/turn"}

// TestClockIsAnArgument: what reads the clock cannot be tested without waiting. The clock's edges are files named clock.
func TestClockIsAnArgument(t *testing.T) {
	for _, s := range sources(t) {
		core := under(s.dir, "crypto/...") || under(s.dir, "pipeline/...") || under(s.dir, "ice/...") && !underAny(s.dir, readsClock)
		if s.test || !core || strings.HasPrefix(path.Base(s.name), "clock") {
			continue
		}
		ast.Inspect(s.tree, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, ok := sel.X.(*ast.Ident)
			if ok && pkg.Name == "time" && slices.Contains([]string{"Now", "Since", "Until"}, sel.Sel.Name) {
				t.Errorf("%s: time.%s: take now as an argument", s.position(n), sel.Sel.Name)
			}
			return true
		})
	}
}

// TestPipelineKnowsNoICE: how a path is found is the business of whoever is its Connector, so none of its words belong there.
func TestPipelineKnowsNoICE(t *testing.T) {
	word := regexp.MustCompile(`\b(ICE|[Aa]gents?)\b`)
	for _, s := range sources(t) {
		if !under(s.dir, "pipeline/...") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, s.name))
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			if word.MatchString(line) {
				t.Errorf("%s:%d: a word of ICE: %s", s.name, i+1, strings.TrimSpace(line))
			}
		}
	}
}

func TestBudget(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || ast.IsGenerated(s.tree) {
			continue
		}
		line := func(p token.Pos) int { return s.set.Position(p).Line }
		if n := line(s.tree.FileEnd); n > longestFile {
			t.Errorf("%s has %d lines, the limit is %d", s.name, n, longestFile)
		}
		for _, d := range s.tree.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := line(f.End()) - line(f.Pos()) + 1; n > longestFunction {
				t.Errorf("%s: %s has %d lines, the limit is %d", s.position(f), f.Name.Name, n, longestFunction)
			}
		}
	}
}

func TestNames(t *testing.T) {
	for _, s := range sources(t) {
		if word := bannedWord(strings.TrimSuffix(s.tree.Name.Name, "_test")); word != "" {
			t.Errorf("%s: package %s: %q says nothing", s.name, s.tree.Name.Name, word)
		}
		ast.Inspect(s.tree, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if word := bannedWord(spec.Name.Name); word != "" {
				t.Errorf("%s: type %s: %q says nothing", s.position(spec), spec.Name.Name, word)
			}
			return true
		})
	}
}

// bannedWord returns the word of a name that should not be there. "Handler" alone is banned, not as a part.
func bannedWord(name string) string {
	if strings.EqualFold(name, "handler") {
		return name
	}
	word := ""
	for i, r := range name {
		if r == '_' || unicode.IsUpper(r) && i > 0 && !unicode.IsUpper(rune(name[i-1])) {
			if slices.Contains(banned, strings.ToLower(word)) {
				return word
			}
			word = ""
		}
		if r != '_' {
			word += string(r)
		}
	}
	if slices.Contains(banned, strings.ToLower(word)) {
		return word
	}
	return ""
}

func TestBannedWord(t *testing.T) {
	for name, want := range map[string]string{
		"PeerManager": "Manager", "util": "util", "FlowInfo": "Info", "infoBox": "info", "Handler": "Handler",
		"information": "", "domain": "", "lineHandler": "", "Processor": "", "peer": "", "A": "", "": "",
	} {
		if got := bannedWord(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

// TestNoMachinePaths: nothing may depend on, or tell of, the machine that it was written on.
func TestNoMachinePaths(t *testing.T) {
	local := regexp.MustCompile(`(^|[^\w.~])/(work|root|home)/\w`)
	kinds := []string{".go", ".s", ".md", ".mod", ".json", ".txt", ".sh", ".html", ".js", ".css"}
	walk(t, func(name string, _ bool) {
		if !slices.Contains(kinds, path.Ext(name)) && name != ".ci/run" {
			return
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(text), "\n") {
			if local.MatchString(line) {
				t.Errorf("%s:%d: a path of one machine: %s", name, i+1, strings.TrimSpace(line))
			}
		}
	})
}
