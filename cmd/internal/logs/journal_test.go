//go:build unix

package logs

import (
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestJournalPriority: only where the stream is the journal's, each line begins with its priority.
func TestJournalPriority(t *testing.T) {
	write := func(name string, f *os.File) string {
		log := New(f, slog.LevelDebug)
		log.Debug("d")
		log.Info("i")
		log.Warn("w")
		log.Error("e")
		Writer(f).Write([]byte("the end\n"))
		Flush()
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for _, ours := range []bool{true, false} {
		f, err := os.CreateTemp(t.TempDir(), "log")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		t.Setenv("JOURNAL_STREAM", streamID(f))
		if !ours {
			t.Setenv("JOURNAL_STREAM", streamID(f)+"1")
		}
		got := regexp.MustCompile(`(?m)\{.*\}$`).ReplaceAllString(write(f.Name(), f), "{}")
		want := "<7>{}\n<6>{}\n<4>{}\n<3>{}\n<3>the end\n"
		if !ours {
			want = regexp.MustCompile(`<\d>`).ReplaceAllString(want, "")
		}
		if got != want {
			t.Errorf("the journal is ours %v: got %q, want %q", ours, got, want)
		}
	}
	if strings.Count(streamID(os.Stdin), ":") != 1 {
		t.Errorf("got %q, want DEVICE:INODE", streamID(os.Stdin))
	}
}
