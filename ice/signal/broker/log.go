package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

// Noticef implements server.Logger; the server's notices tell of its inner life only.
func (l *serverLog) Noticef(string, ...any) {}

// Debugf implements server.Logger.
func (l *serverLog) Debugf(string, ...any) {}

// Tracef implements server.Logger.
func (l *serverLog) Tracef(string, ...any) {}

// Warnf implements server.Logger.
func (l *serverLog) Warnf(format string, v ...any) {
	l.write(slog.LevelWarn, fmt.Sprintf(format, v...))
}

// Errorf implements server.Logger. Most are about what a stranger sent, so they are no errors of ours. Who was refused, and why,
// the authenticator has told already.
func (l *serverLog) Errorf(format string, v ...any) {
	if text := fmt.Sprintf(format, v...); !strings.Contains(text, "authentication error") {
		l.write(slog.LevelWarn, text)
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
		l.write(slog.LevelError, text)
	}
}
