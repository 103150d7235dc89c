// Package logs is how the commands write their logs with log/slog: one JSON object a line, for machines, or human text
// where the log is a terminal.
//
// Every object has the keys `time` (RFC 3339, UTC, nanoseconds), `severity` (DEBUG, INFO, WARNING, ERROR), `message` and `event`, in
// this order, then the attributes; an attribute of a group is GROUP.KEY. What is logged is an event, which programs wait for, with its
// facts; the message is the sentence that a person reads of both (sentences.go). An attribute that is called like one of the
// four gets an underscore in front, so that each key occurs once. Control characters in texts are shown as Go escapes, not only
// encoded: what comes from outside cannot make a second line, neither here nor in the output of `jq -r`, nor move a
// terminal's cursor.
package logs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// timeFormat has as many digits always, so that lines of several files sort.
const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// New returns a logger to f of records at level or above: human text if f is a terminal, JSON lines if not. Logging never waits for
// whoever reads f: lines that find no room are lost, and counted in a line of their own. Call Flush before the program ends.
func New(f *os.File, level slog.Leveler) *slog.Logger {
	encode := encodeJSON
	switch {
	case term.IsTerminal(int(f.Fd())):
		encode = encodeText
	case isJournal(f):
		encode = withPriority(encodeJSON)
	}
	return slog.New(&lineWriter{outs: []*output{{w: spoolFor(f, encode), encode: encode}}, level: level})
}

// Writer is for the few lines to f that are no records, such as the error that a program ends with: each Write is one, in order with
// those of loggers, and does not wait either.
func Writer(f *os.File) io.Writer {
	s := spoolFor(f, nil)
	if isJournal(f) {
		return errorWriter{s}
	}
	return s
}

// NewJSON returns a slog.Handler that writes JSON lines to w, each with one Write. It may be used by several goroutines.
func NewJSON(w io.Writer, level slog.Leveler) slog.Handler {
	return &lineWriter{outs: []*output{{w: w, encode: encodeJSON}}, level: level}
}

// NewText returns a slog.Handler that writes human text to w: local time, severity, message.
func NewText(w io.Writer, level slog.Leveler) slog.Handler {
	return &lineWriter{outs: []*output{{w: w, encode: encodeText}}, level: level}
}

// field is an attribute with its full key.
type field struct {
	key   string
	value slog.Value
}

// encoder appends a record without the end of its line.
type encoder func(b *bytes.Buffer, r slog.Record, fields []field)

// output is where lines go, and how.
type output struct {
	encode encoder // frozen

	mu sync.Mutex
	w  io.Writer // guarded by mu
}

// lineWriter is a slog.Handler, frozen after it was made.
type lineWriter struct {
	outs   []*output
	level  slog.Leveler
	fields []field
	prefix string // of the open groups, with its last dot
}

func (h *lineWriter) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.level.Level()
}

func (h *lineWriter) Handle(_ context.Context, r slog.Record) error {
	fields := slices.Clone(h.fields)
	r.Attrs(func(a slog.Attr) bool {
		fields = appendFields(fields, h.prefix, a)
		return true
	})
	var err error
	for _, out := range h.outs {
		err = errors.Join(err, out.write(r, fields))
	}
	return err
}

func (o *output) write(r slog.Record, fields []field) error {
	var b bytes.Buffer
	o.encode(&b, r, fields)
	b.WriteByte('\n')
	o.mu.Lock()
	defer o.mu.Unlock()
	_, err := o.w.Write(b.Bytes())
	return err
}

func (h *lineWriter) WithAttrs(attrs []slog.Attr) slog.Handler {
	child := *h
	child.fields = slices.Clone(h.fields)
	for _, a := range attrs {
		child.fields = appendFields(child.fields, h.prefix, a)
	}
	return &child
}

func (h *lineWriter) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	child := *h
	child.prefix += name + "."
	return &child
}

// appendFields flattens groups; a later attribute of the same key replaces the earlier.
func appendFields(fields []field, prefix string, a slog.Attr) []field {
	a.Value = a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return fields
	}
	if a.Value.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, member := range a.Value.Group() {
			fields = appendFields(fields, prefix, member)
		}
		return fields
	}
	key := visible(prefix + a.Key)
	switch key {
	case "time", "severity", "message", "event":
		key = "_" + key
	}
	if i := slices.IndexFunc(fields, func(f field) bool { return f.key == key }); i >= 0 {
		fields[i].value = a.Value
		return fields
	}
	return append(fields, field{key, a.Value})
}

func encodeJSON(b *bytes.Buffer, r slog.Record, fields []field) {
	b.WriteString(`{"time":`)
	writeJSON(b, r.Time.UTC().Format(timeFormat))
	b.WriteString(`,"severity":`)
	writeJSON(b, severity(r.Level))
	b.WriteString(`,"message":`)
	writeJSON(b, sentence(r.Message, fields))
	b.WriteString(`,"event":`)
	writeJSON(b, visible(r.Message))
	for _, f := range fields {
		b.WriteByte(',')
		writeJSON(b, f.key)
		b.WriteByte(':')
		writeJSON(b, jsonValue(f.value))
	}
	b.WriteByte('}')
}

// jsonValue is what is encoded of an attribute: numbers and booleans as such, the rest as text, structures included, so
// that no type's own encoder reaches the log unseen.
func jsonValue(v slog.Value) any {
	switch v.Kind() {
	case slog.KindBool, slog.KindInt64, slog.KindUint64:
		return v.Any()
	case slog.KindFloat64:
		if f := v.Float64(); f-f == 0 { // JSON has no infinities
			return f
		}
	}
	return text(v)
}

func text(v slog.Value) string {
	if v.Kind() == slog.KindTime {
		return v.Time().UTC().Format(time.RFC3339Nano)
	}
	if err, ok := v.Any().(error); ok { // several errors, joined, are a line each
		return visible(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if v.Kind() == slog.KindAny {
		return visible(fmt.Sprint(v.Any()))
	}
	return visible(v.String())
}

func writeJSON(b *bytes.Buffer, v any) {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic("logs: " + err.Error()) // strings, booleans and finite numbers always encode
	}
	b.Truncate(b.Len() - 1) // Encode ends with a newline
}

func encodeText(b *bytes.Buffer, r slog.Record, fields []field) {
	fmt.Fprintf(b, "%s %-7s %s", r.Time.Format("15:04:05.000"), severity(r.Level), sentence(r.Message, fields))
}

// visible replaces what could steer a terminal or a line reader by its Go escape.
func visible(s string) string {
	if strings.IndexFunc(s, hidden) < 0 && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if (r == utf8.RuneError && n == 1) || hidden(r) {
			quoted := strconv.QuoteToASCII(s[:n])
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

// hidden: control and format characters (bidirectional overrides are among the latter) and line separators.
func hidden(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}
