package logs

import (
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// Log is the log of a program that keeps it: on standard error and in a folder. Its methods may be used by several goroutines.
type Log struct {
	*slog.Logger
	// Level is what both have; it may be changed.
	Level *slog.LevelVar

	file   *slog.Logger // only the folder; nil without
	spool  *spool
	folder *folder
}

// Open begins a log to f, as New does, and in a folder, which it makes, unless there is to be none. That the folder cannot be written is
// told at f, once, and tried again; who logs never waits. Call Flush before the program ends.
func Open(f *os.File, place Place, level slog.Level) *Log {
	l := &Log{Level: new(slog.LevelVar)}
	l.Level.Set(level)
	standard := New(f, l.Level)
	l.Logger = standard
	if place.None() {
		return l
	}
	l.keep(standard, &folder{place: place, now: time.Now, warn: standard, opening: create})
	return l
}

// keep has the log go to a folder as well.
func (l *Log) keep(standard *slog.Logger, d *folder) {
	l.folder, l.spool = d, spoolFor(d, encodeJSON)
	out := &output{w: l.spool, encode: encodeJSON}
	l.file = slog.New(&lineWriter{outs: []*output{out}, level: l.Level})
	l.Logger = slog.New(&lineWriter{outs: append(standard.Handler().(*lineWriter).outs, out), level: l.Level})
	file := d.place.String()
	if err := d.begin(); err == nil {
		file = filepath.Join(file, d.name)
	}
	l.Logger.Info("started log", "file", file)
}

// File logs to the folder only, and to nobody without one: for what is told at standard error in another way.
func (l *Log) File() *slog.Logger {
	if l.file == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l.file
}

// Folder is where the log is kept, "" if nowhere.
func (l *Log) Folder() string {
	if l.folder == nil {
		return ""
	}
	return l.folder.place.String()
}

// Trouble is why the folder takes no lines now, "" if it does.
func (l *Log) Trouble() string {
	if l.folder == nil {
		return ""
	}
	if text := l.folder.told.Load(); text != nil {
		return *text
	}
	return ""
}

// Lost is how many lines the folder has not taken since the start.
func (l *Log) Lost() uint64 {
	if l.spool == nil {
		return 0
	}
	l.spool.mu.Lock()
	defer l.spool.mu.Unlock()
	return l.spool.lost
}
