package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"
)

// At most logBurst lines in each logWindow: strangers cause most of them.
const (
	logBurst  = 10
	logWindow = 5 * time.Second
)

// serverLog takes what the server logs, and implements server.Logger. It ends nothing: the server's Fatalf returns here, and
// is the only word that the server gives about a failed start.
type serverLog struct {
	// Frozen.
	to  *slog.Logger // nil: nothing is written
	now func() time.Time

	mu       sync.Mutex
	starting bool
	fault    string // of the first Fatalf
	began    time.Time
	written  int // since began
	left     int // lines left out since began
}

// started ends the start: it returns why the server could not start, or nil.
func (l *serverLog) started() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.starting = false
	if l.fault == "" {
		return nil
	}
	return errors.New(l.fault)
}

// write writes a line, or counts it if there were too many.
func (l *serverLog) write(level slog.Level, text string, attrs ...any) {
	if l.to == nil {
		return
	}
	left, ok := l.admit()
	if !ok {
		return
	}
	if left > 0 {
		attrs = append(attrs, "left_out_before", left)
	}
	l.to.Log(context.Background(), level, text, attrs...)
}

func (l *serverLog) admit() (left int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := l.now(); now.Sub(l.began) >= logWindow {
		left, l.left = l.left, 0
		l.began, l.written = now, 0
	}
	if l.written >= logBurst {
		l.left++
		return 0, false
	}
	l.written++
	return left, true
}

// Noticef implements server.Logger; but for one, the server's notices tell of its inner life only.
func (l *serverLog) Noticef(format string, v ...any) {
	if strings.Contains(format, "Slow Consumer") && !strings.Contains(format, "Recovered") {
		l.translate(fmt.Sprintf(format, v...))
	}
}

// Debugf implements server.Logger.
func (l *serverLog) Debugf(string, ...any) {}

// Tracef implements server.Logger.
func (l *serverLog) Tracef(string, ...any) {}

// Warnf implements server.Logger.
func (l *serverLog) Warnf(format string, v ...any) { l.translate(fmt.Sprintf(format, v...)) }

// Errorf implements server.Logger. Most are about what a stranger sent, so they are no errors of ours. Who was refused, and why,
// the authenticator has told already.
func (l *serverLog) Errorf(format string, v ...any) {
	if text := fmt.Sprintf(format, v...); !strings.Contains(text, "authentication error") {
		l.translate(text)
	}
}

// serverWords are what the server's lines that an operator may have to act on mean. What is not here is about its inner life, or told
// by the portal in its own words, such as a full disk.
var serverWords = []struct{ part, event string }{
	{"slow consumer", "a node takes too long to read, and its connection ends"},
	{"permissions violation", "a node asked for what it may not"},
	{"publish violation", "a node asked for what it may not"},
	{"subscription violation", "a node asked for what it may not"},
	{"maximum subscriptions", "a node asked for more subscriptions than it may have"},
	{"maximum payload", "a node sent a message that is too long"},
	{"maximum control line", "a node sent a request that is too long"},
	{"maximum connections", "there are too many connections: one was refused"},
	{"authentication timeout", "who connected did not sign in in time"},
	{"authorization timeout", "who connected did not sign in in time"},
	{"parser error", "a node sent what is not understood, and its connection ends"},
	{"stale connection", "a node is silent, and its connection ends"},
}

// origin is how the server's lines about a connection begin: address - cid:number - ["what the node says it is" - ].
var origin = regexp.MustCompile(`^(\S+:\d+) - cid:\d+ - `)

// translate writes in our words what the server has said.
func (l *serverLog) translate(text string) {
	var attrs []any
	if from := origin.FindStringSubmatch(text); from != nil {
		attrs = append(attrs, "from", from[1])
	}
	for _, w := range serverWords {
		if strings.Contains(strings.ToLower(text), w.part) {
			l.write(slog.LevelWarn, w.event, attrs...)
			return
		}
	}
	if l.to != nil && l.to.Enabled(context.Background(), slog.LevelDebug) { // it does not take the place of what matters
		l.write(slog.LevelDebug, "the message server says", append(attrs, "text", text)...)
	}
}

// Fatalf implements server.Logger. Start returns what comes before it has ended, so that it is told once.
func (l *serverLog) Fatalf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.mu.Lock()
	starting := l.starting
	if l.fault == "" {
		l.fault = text
	}
	l.mu.Unlock()
	if !starting {
		l.write(slog.LevelError, "the message server has failed", "error", text)
	}
}
