package logs

import (
	"bytes"
	"io"
	"log/slog"
	"os"
)

// This file is what systemd's journal is told beside the line: the priority, as <N> in front of it (sd-daemon(3), syslog(3)). Without
// it each line would have priority 6, and journalctl -p warning would show none.

// withPriority puts the priority in front of each record.
func withPriority(encode encoder) encoder {
	return func(b *bytes.Buffer, r slog.Record, fields []field) {
		b.WriteString(priority(r.Level))
		encode(b, r, fields)
	}
}

func priority(level slog.Level) string {
	switch severity(level) {
	case "DEBUG":
		return "<7>"
	case "INFO":
		return "<6>"
	case "WARNING":
		return "<4>"
	}
	return "<3>"
}

// errorWriter is for lines that are no records: errors that end a program.
type errorWriter struct{ w io.Writer }

func (e errorWriter) Write(line []byte) (int, error) {
	_, err := e.w.Write(append([]byte(priority(slog.LevelError)), line...))
	return len(line), err
}

// isJournal reports whether f leads to the journal: systemd says which stream does (systemd.exec(5), JOURNAL_STREAM), and the variable is
// inherited by programs whose output goes elsewhere.
func isJournal(f *os.File) bool {
	want := os.Getenv("JOURNAL_STREAM")
	return want != "" && want == streamID(f)
}
