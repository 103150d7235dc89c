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
	want := at + `"severity":"WARN","message":"slow","peer":7,"udp.port":9,"udp.error":"no <route>","udp.took":"1s",` +
		`"udp.tx.ok":true,"udp.ratio":0.5,"udp.endless":"+Inf","udp.none":"<nil>"}` + "\n"
	if at == "" || line != want {
		t.Errorf("got  %s\nwant %s", line, want)
	}
}

func TestKeysOccurOnce(t *testing.T) {
	var b bytes.Buffer
	l := slog.New(NewJSON(&b, slog.LevelInfo))
	l.With("a", 1, "message", "x").Info("real", "a", 2, "time", "never", "severity", "none", "message", "forged", "msg", 1, "level", 2)
	for _, key := range []string{"a", "time", "severity", "message", "_message", "msg", "level"} {
		if n := strings.Count(b.String(), `"`+key+`":`); n != 1 {
			t.Errorf("%q occurs %d times in %s", key, n, b.String())
		}
	}
	o := decode(t, b.Bytes())[0]
	if o["message"] != "real" || o["severity"] != "INFO" || o["a"] != 2.0 {
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
				if len(o) != 1 || o[0]["severity"] != "INFO" || o[0]["message"] != visible(text) {
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
	if want := "T DEBUG interface is up name=wg0 why=\"a b\" empty=\"\"\n"; got != want {
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

// TestReadmeLine runs the command that README gives for reading logs, as it stands there, on logs with hostile texts.
func TestReadmeLine(t *testing.T) {
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
	dir := t.TempDir()
	for _, name := range []string{"a.log", "b.log"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		l := New(f, slog.LevelDebug)
		for _, text := range hostile {
			l.Error(text, "name", text)
		}
		Flush()
		f.Close()
	}
	run := exec.Command("bash", "-c", string(command[1]))
	run.Dir = dir
	out, err := run.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command[1], err, out)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
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

// TestRounded: people get as many digits as they read, programs get all.
func TestRounded(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 15002646420 * time.Nanosecond: "15s", 63616562420 * time.Nanosecond: "1m3.62s", 456912339: "456.9ms", 632195: "632.2µs", 7: "7ns",
		-1234567: "-1.235ms",
	} {
		var text, object bytes.Buffer
		slog.New(NewText(&text, slog.LevelInfo)).Info("x", "after", d)
		slog.New(NewJSON(&object, slog.LevelInfo)).Info("x", "after", d)
		if !strings.HasSuffix(text.String(), " after="+want+"\n") || !strings.Contains(object.String(), `"after":"`+d.String()+`"`) {
			t.Errorf("%v: %s%s", d, text.String(), object.String())
		}
	}
}
