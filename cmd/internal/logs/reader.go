package logs

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Reader prints log files as people read them: time, severity and message, in the order of time whatever file they are in, as
// the jq line of README does. Only the goroutine of Print uses it.
type Reader struct {
	// Folders are read together; those that are not there have no lines.
	Folders []string
	Level   slog.Level // of the least lines
	Since   time.Time  // of the oldest; zero: all

	read map[string]int64 // by path: bytes of whole lines that were taken
}

// ErrNoLog: there is no log file.
var ErrNoLog = errors.New("no log file")

// followEvery is how often a reader that follows looks for more.
const followEvery = 200 * time.Millisecond

// Print prints what there is, and with follow what comes, until ctx ends. Errors say what to do.
func (r *Reader) Print(ctx context.Context, w io.Writer, follow bool) error {
	r.read = map[string]int64{}
	out := bufio.NewWriter(w)
	n, err := r.pass(out)
	if err != nil {
		return err
	}
	if n == 0 && !follow {
		return fmt.Errorf("%w in %s; see sluice logs -h for where they are, and -dir", ErrNoLog, strings.Join(r.Folders, " or "))
	}
	ticker := time.NewTicker(followEvery)
	defer ticker.Stop()
	for follow {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if _, err := r.pass(out); err != nil {
			return err
		}
	}
	return nil
}

// entry is what is read of a line.
type entry struct{ Time, Severity, Message string }

// source is a file that is read, at its next line.
type source struct {
	path  string
	file  *os.File
	lines *bufio.Reader
	next  entry
}

// pass prints the lines that were not taken yet, and returns how many files there are. A file is opened when its turn comes: there may
// be many.
func (r *Reader) pass(out *bufio.Writer) (n int, err error) {
	waiting, err := r.list()
	n = len(waiting)
	if err != nil {
		return n, err
	}
	var open []*source
	defer func() {
		for _, s := range open {
			s.file.Close()
		}
	}()
	for len(waiting) > 0 || len(open) > 0 {
		for len(waiting) > 0 && (len(open) == 0 || startOf(waiting[0]) <= slices.MinFunc(open, byTime).next.Time) {
			s, err := r.open(waiting[0])
			waiting = waiting[1:]
			if err != nil {
				return n, err
			}
			if s != nil {
				open = append(open, s)
			}
		}
		if len(open) == 0 {
			continue
		}
		s := slices.MinFunc(open, byTime)
		if err := r.print(out, s.next); err != nil {
			return n, err
		}
		if !r.advance(s) {
			s.file.Close()
			open = slices.DeleteFunc(open, func(o *source) bool { return o == s })
		}
	}
	return n, out.Flush()
}

func byTime(a, b *source) int { return cmp.Compare(a.next.Time, b.next.Time) }

// startOf is the time in the name of a file, no later than its first line.
func startOf(path string) string {
	name := filepath.Base(path)
	return name[:10] + "T" + strings.ReplaceAll(name[11:19], "-", ":") + "." + name[20:23]
}

// list finds the files with lines that were not taken, in the order of their starts.
func (r *Reader) list() (paths []string, err error) {
	for _, dir := range r.Folders {
		root, err := os.OpenRoot(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("%w; run this as root (sudo), or as the user who owns it", err)
		}
		if err != nil {
			return nil, err
		}
		list, err := files(root)
		root.Close()
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			path := filepath.Join(dir, e.Name())
			info, err := e.Info()
			if err != nil || info.Size() == r.read[path] && r.read[path] > 0 || info.ModTime().Before(r.Since) { // removed meanwhile, or nothing new
				continue
			}
			paths = append(paths, path)
		}
	}
	slices.SortFunc(paths, func(a, b string) int { return cmp.Compare(filepath.Base(a), filepath.Base(b)) })
	return paths, nil
}

// open opens a file where reading goes on; nil: it has no more lines, or was removed.
func (r *Reader) open(path string) (*source, error) {
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w; run this as root (sudo), or as the user who owns it", err)
	case err != nil:
		return nil, err
	}
	if _, err := f.Seek(r.read[path], io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	s := &source{path: path, file: f, lines: bufio.NewReaderSize(f, spoolBytes)} // no line is longer
	if !r.advance(s) {
		f.Close()
		return nil, nil
	}
	return s, nil
}

// advance takes the next whole line; false: there is none yet. What is no record is shown as a message, at the time of the line before.
func (r *Reader) advance(s *source) bool {
	line, err := s.lines.ReadSlice('\n')
	if err != nil {
		return false
	}
	r.read[s.path] += int64(len(line))
	before := s.next.Time
	s.next = entry{}
	if json.Unmarshal(line, &s.next) != nil || s.next.Time == "" {
		s.next = entry{Time: before, Severity: "ERROR", Message: visible(string(bytes.TrimSuffix(line, []byte("\n"))))}
	}
	return true
}

func (r *Reader) print(out *bufio.Writer, e entry) error {
	if level, err := ParseLevel(e.Severity); err == nil && level < r.Level {
		return nil
	}
	if at, err := time.Parse(time.RFC3339Nano, e.Time); err == nil && at.Before(r.Since) {
		return nil
	}
	_, err := fmt.Fprintf(out, "%s %s %s\n", e.Time, visible(e.Severity), visible(e.Message))
	return err
}

// ServiceFolder has the logs of services on Windows.
func (w Whose) ServiceFolder() string { return filepath.Join(w.Getenv("ProgramData"), inPlace) }

// Folders are where the logs of client and gateway may be on this machine: the caller's place, and for root that of services too. Windows
// says by itself who may read those.
func (w Whose) Folders() []string {
	var list []string
	if p := w.DefaultPlace(); !p.None() {
		list = append(list, p.String())
	}
	if w.OS == "windows" {
		return append(list, w.ServiceFolder())
	}
	if w.UID == 0 && !slices.Contains(list, systemPlace.String()) {
		list = append(list, systemPlace.String())
	}
	return list
}
