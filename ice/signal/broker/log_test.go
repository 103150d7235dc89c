package broker

import (
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestServerLines: what the server says is told in our words, with who is meant, or only at debug.
func TestServerLines(t *testing.T) {
	const from = `203.0.113.5:4711 - cid:17 - "v1.39.1:go" - `
	for text, want := range map[string]string{
		from + "Slow Consumer Detected: WriteDeadline of 5s exceeded with 1 chunks of 70 total bytes.": `level=WARN msg="a node takes too long to read, and its connection ends" from=203.0.113.5:4711`,
		from + "maximum subscriptions exceeded":                                                        `level=WARN msg="a node asked for more subscriptions than it may have" from=203.0.113.5:4711`,
		from + `Publish Violation - Subject "x"`:                                                       `level=WARN msg="a node asked for what it may not" from=203.0.113.5:4711`,
		from + "Client parser ERROR, state=0, i=0: proto='\"\\x16\"...'":                               `level=WARN msg="a node sent what is not understood, and its connection ends" from=203.0.113.5:4711`,
		from + "Readloop processing time: 3s":                                                          `level=DEBUG msg="the message server says" from=203.0.113.5:4711 text=`,
		"Filestore [KV_x] had trouble":                                                                 `level=DEBUG msg="the message server says" text=`,
		from + "authentication error":                                                                  "",
	} {
		for _, level := range []slog.Level{slog.LevelInfo, slog.LevelDebug} {
			var b strings.Builder
			l := &serverLog{to: slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: level})), now: time.Now}
			l.Errorf("%s", text)
			want := want
			if level == slog.LevelInfo && strings.HasPrefix(want, "level=DEBUG") {
				want = ""
			}
			if got := b.String(); !strings.Contains(got, want) || want == "" && got != "" {
				t.Errorf("%q at %v: got %q, want %q", text, level, got, want)
			}
			if level == slog.LevelInfo && (strings.Contains(b.String(), "cid:") || strings.Contains(b.String(), "v1.39")) {
				t.Errorf("the server's own words: %q", b.String())
			}
		}
	}
}
