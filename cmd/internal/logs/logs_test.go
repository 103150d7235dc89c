package logs

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// hostile are texts that try to be more than one line, or another line.
var hostile = []string{
	"plain", "two\nlines", "carriage\rreturn", "\x1b[2Jclear", "nul\x00", "\u2028separator\u2029", "\u202eoverride",
	"bad \xff\xfe utf-8", "\"}\n{\"time\":\"now\",\"severity\":\"ERROR\",\"message\":\"forged\"}", "del\x7f", "\u0085", "",
}

func decode(t *testing.T, b []byte) []map[string]any {
	t.Helper()
	var objects []map[string]any
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		var o map[string]any
		if err := json.Unmarshal(s.Bytes(), &o); err != nil {
			t.Fatalf("%q: %v", s.Text(), err)
		}
		objects = append(objects, o)
	}
	return objects
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	l := slog.New(NewJSON(&b, slog.LevelInfo))
	l.Debug("below the level")
	l.With("peer", 7).WithGroup("udp").Warn("slow", "port", uint16(9), "error", errors.New("no <route>"), "took", time.Second,
		slog.Group("tx", "ok", true), "ratio", 0.5, "endless", math.Inf(1), "none", nil)
	line := b.String()
	at := regexp.MustCompile(`^\{"time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z",`).FindString(line)
	want := at + `"severity":"WARNING","message":"slow (peer 7, udp.port 9, udp.error no <route>, udp.took 1 s, udp.tx.ok true, udp.ratio 0.5,` +
		` udp.endless +Inf, udp.none <nil>)","event":"slow","peer":7,"udp.port":9,"udp.error":"no <route>","udp.took":"1s",` +
		`"udp.tx.ok":true,"udp.ratio":0.5,"udp.endless":"+Inf","udp.none":"<nil>"}` + "\n"
	if at == "" || line != want {
		t.Errorf("got  %s\nwant %s", line, want)
	}
}

func TestKeysOccurOnce(t *testing.T) {
	var b bytes.Buffer
	l := slog.New(NewJSON(&b, slog.LevelInfo))
	l.With("a", 1, "message", "x").Info("real", "a", 2, "time", "never", "severity", "none", "message", "forged", "event", 3, "msg", 1,
		"level", 2)
	for _, key := range []string{"a", "time", "severity", "message", "_message", "event", "_event", "msg", "level"} {
		if n := strings.Count(b.String(), `"`+key+`":`); n != 1 {
			t.Errorf("%q occurs %d times in %s", key, n, b.String())
		}
	}
	o := decode(t, b.Bytes())[0]
	if o["event"] != "real" || o["severity"] != "INFO" || o["a"] != 2.0 {
		t.Errorf("%v", o)
	}
}

func TestHostileTextIsOneLine(t *testing.T) {
	for _, text := range hostile {
		for name, h := range map[string]func(*bytes.Buffer) slog.Handler{
			"json": func(b *bytes.Buffer) slog.Handler { return NewJSON(b, slog.LevelInfo) },
			"text": func(b *bytes.Buffer) slog.Handler { return NewText(b, slog.LevelInfo) },
		} {
			var b bytes.Buffer
			slog.New(h(&b)).Info(text, "name", text, "error", errors.New(text), text, 1)
			line := b.String()
			if strings.IndexFunc(strings.TrimSuffix(line, "\n"), hidden) >= 0 || !strings.HasSuffix(line, "\n") {
				t.Errorf("%s of %q: %q", name, text, line)
			}
			if name == "json" {
				o := decode(t, b.Bytes())
				if len(o) != 1 || o[0]["severity"] != "INFO" || o[0]["event"] != visible(text) ||
					!strings.HasPrefix(o[0]["message"].(string), visible(text)) {
					t.Errorf("%q: %v", text, o)
				}
			}
		}
	}
}

func TestText(t *testing.T) {
	var b bytes.Buffer
	slog.New(NewText(&b, slog.LevelDebug)).Debug("interface is up", "name", "wg0", "why", "a b", "empty", "")
	got := regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d{3}`).ReplaceAllString(b.String(), "T")
	if want := "T DEBUG   interface is up (name wg0, why a b)\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestConcurrentLinesStayWhole(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "x.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := New(f, slog.LevelInfo)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 100 {
				l.Info("concurrent", "from", i, "text", strings.Repeat("x", 100))
			}
		})
	}
	wg.Wait()
	Flush()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if n := len(decode(t, b)); n != 800 {
		t.Errorf("%d lines, want 800", n)
	}
}

// readmeLine returns what runs the command that README gives for reading logs, as it stands there, in a folder, and returns its output.
func readmeLine(t *testing.T) (read func(dir string) string) {
	t.Helper()
	for _, tool := range []string{"jq", "bash"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: README's line is not tested, %s is not installed", tool)
		}
	}
	readme, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	command := regexp.MustCompile(`(?m)^ *(cat \*\.log \| jq .*)$`).FindSubmatch(readme)
	if command == nil {
		t.Fatal("README has no line that starts with: cat *.log | jq")
	}
	return func(dir string) string {
		t.Helper()
		run := exec.Command("bash", "-c", string(command[1]))
		run.Dir = dir
		out, err := run.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", command[1], err, out)
		}
		return string(out)
	}
}

// TestReadmeLine runs the command that README gives for reading logs, as it stands there, on logs with hostile texts.
func TestReadmeLine(t *testing.T) {
	read := readmeLine(t)
	dir := t.TempDir()
	for _, name := range []string{"a.log", "b.log"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		l := New(f, slog.LevelDebug)
		for _, text := range hostile {
			l.Error(text)
		}
		Flush()
		f.Close()
	}
	out := read(dir)
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) != 2*len(hostile) {
		t.Fatalf("%d lines of %d records:\n%s", len(lines), 2*len(hostile), out)
	}
	for i, line := range lines {
		at, rest, _ := strings.Cut(line, " ")
		if _, err := time.Parse(time.RFC3339Nano, at); err != nil || rest != "ERROR "+visible(hostile[i%len(hostile)]) {
			t.Errorf("line %q", line)
		}
	}
}

// TestJoined: errors that were joined stay on the line, readable.
func TestJoined(t *testing.T) {
	var b bytes.Buffer
	slog.New(NewJSON(&b, slog.LevelInfo)).Info("x", "error", errors.Join(errors.New("one"), errors.New("two\x1b")))
	if !strings.Contains(b.String(), `"error":"one; two\\x1b"`) {
		t.Error(b.String())
	}
}

// TestDurations: people get as many digits as they read, programs get all.
func TestDurations(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 µs", 632195: "632 µs", 456912339: "457 ms", 1234 * time.Millisecond: "1.2 s", 2 * time.Second: "2 s", 9960 * time.Millisecond: "10 s",
		15002646420 * time.Nanosecond: "15 s", 59600 * time.Millisecond: "1 min", 63616562420 * time.Nanosecond: "1 min 4 s", 7 * time.Minute: "7 min",
		200 * time.Minute: "3 h 20 min", 50 * time.Hour: "2 d 2 h", -1234567: "-1 ms",
	} {
		var human, object bytes.Buffer
		slog.New(NewText(&human, slog.LevelInfo)).Info("x", "after", d)
		slog.New(NewJSON(&object, slog.LevelInfo)).Info("x", "after", d)
		if !strings.HasSuffix(human.String(), " x (after "+want+")\n") || !strings.Contains(object.String(), `"after":"`+d.String()+`"`) {
			t.Errorf("%v: got %s%s, want %q", d, human.String(), object.String(), want)
		}
	}
}

// TestSentences: the message is what a person reads, with the facts in it.
func TestSentences(t *testing.T) {
	closed := []any{"peer", "gate", "generation", 2, "reason", "handshake_timeout", "cause", "the peer does not know our public key", "lasted", 15102 * time.Millisecond}
	for want, record := range map[string][]any{
		"connection to gate closed after 15 s: handshake_timeout, gate does not know our public key": append([]any{"connection closed"}, closed...),
		"connection to gate closed after 2 min: ice_disconnected, nothing is heard of gate any more": {
			"connection closed", "peer", "gate", "reason", "ice_disconnected", "lasted", 2 * time.Minute},
		"connection to gate closed after 2 min: peer_closed, gate has ended it; gate reports shutdown": {
			"connection closed", "peer", "gate", "reason", "peer_closed", "lasted", 2 * time.Minute, slog.Group("peer_reports", "reason", "shutdown")},
		"connection to gate is up after 310 ms: direct, 203.0.113.9:51820": {
			"connection up", "peer", "gate", "after", 310 * time.Millisecond, "via", "direct", "endpoint", "203.0.113.9:51820"},
		"connection to gate is up after 310 ms":            {"connection up", "peer", "gate", "after", 310 * time.Millisecond},
		"a node at 192.0.2.1:5 was refused: unknown token": {"node refused", "from", "192.0.2.1:5", "reason", "unknown token"},
		"gate was refused: unknown token":                  {"node refused", "node", "gate", "reason", "unknown token"},
		"the host could not be configured: no nftables":    {"the host could not be configured", "error", errors.New("no nftables")},
		"packets were lost (tun drops 3, left 1)":          {"packets were lost", "tun_drops", 3, "left", 1},
	} {
		var b bytes.Buffer
		slog.New(NewJSON(&b, slog.LevelInfo)).Info(record[0].(string), record[1:]...)
		if o := decode(t, b.Bytes())[0]; o["message"] != want || o["event"] != record[0] {
			t.Errorf("got %q of event %q, want %q", o["message"], o["event"], want)
		}
	}
	for event, form := range sentences { // each is well formed, and says something whatever is missing
		if s, _ := fill(form, nil); strings.ContainsAny(s, "{}[]") || strings.TrimSpace(s) == "" && event != "node refused" {
			t.Errorf("%q without facts: %q", event, s)
		}
	}
}

// TestLevels: one parser of one set of names, and wireguard-go's.
func TestLevels(t *testing.T) {
	for text, want := range map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warning": slog.LevelWarn, "error": slog.LevelError, "silent": LevelSilent,
		"verbose": slog.LevelDebug, "": slog.LevelInfo, "WARNING": slog.LevelWarn,
	} {
		got, err := ParseLevel(text)
		if err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
		if name := LevelName(got); text != "verbose" && text != "" && name != strings.ToLower(text) {
			t.Errorf("%q: got the name %q", text, name)
		}
	}
	for _, text := range []string{"warn", "loud", "info+1", " info"} {
		if _, err := ParseLevel(text); err == nil || !strings.Contains(err.Error(), "debug, info, warning, error or silent") {
			t.Errorf("%q: got %v, want an error that names the levels", text, err)
		}
	}
	var b bytes.Buffer
	slog.New(NewJSON(&b, LevelSilent)).Error("x")
	if b.Len() != 0 {
		t.Errorf("silent wrote %q", b.String())
	}
}

// TestReadmeEvents: what README promises scripts is logged, with these facts where the words are found.
func TestReadmeEvents(t *testing.T) {
	readme, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(readme), "| event | facts |\n|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var sources strings.Builder
	for _, dir := range []string{"pipeline", "ice/edge", "ice/portal", "cmd/internal/member", "cmd/internal/node", "cmd/internal/logs", "cmd/sluice"} {
		names, err := filepath.Glob("../../../" + dir + "/*.go")
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: no sources: %v", dir, err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			sources.Write(text)
		}
	}
	rows := strings.Split(table, "\n")
	if len(rows) < 10 {
		t.Fatalf("README has %d rows of events", len(rows))
	}
	quoted := regexp.MustCompile("`([^`]+)`")
	for _, row := range rows {
		columns := strings.Split(row, "|")
		for _, event := range quoted.FindAllStringSubmatch(columns[1], -1) {
			if !strings.Contains(sources.String(), `"`+event[1]+`"`) {
				t.Errorf("README promises the event %q, which nothing logs", event[1])
			}
			for _, fact := range quoted.FindAllStringSubmatch(columns[2], -1) {
				if !strings.Contains(sources.String(), `"`+fact[1]+`"`) {
					t.Errorf("README promises %s of %q, which is no attribute", fact[1], event[1])
				}
				if form := sentences[event[1]]; form != "" && !strings.Contains(form, "{"+fact[1]+"}") {
					t.Errorf("the sentence of %q lacks %s", event[1], fact[1])
				}
			}
		}
	}
}
