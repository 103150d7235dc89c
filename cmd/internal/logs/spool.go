package logs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/errno"
)

const (
	// spoolBytes is how much may wait for whoever reads the log; what comes beyond is lost, and counted.
	spoolBytes = 256 << 10
	// spoolRetry is how soon a write that failed (a full disk) is tried again.
	spoolRetry = 200 * time.Millisecond
	// flushLimit is how long the end of the program waits for the log.
	flushLimit = time.Second
)

// spool is the way of all lines to one file: Write never waits. A reader that stops reading (a paused terminal, a log driver that
// hangs) would else stop whoever logs, and with it the tunnel. A goroutine writes the lines in their order; it lives while there are
// some. What is lost is said when the file takes lines again.
type spool struct {
	file io.Writer

	mu      sync.Mutex
	encode  encoder  // of the line about lost ones
	lines   [][]byte // the first is being written
	bytes   int      // of lines
	dropped int
	lost    uint64        // that were dropped, since the start
	closed  bool          // nobody will ever read: the pipe is broken
	idle    chan struct{} // closed when nothing is left to write; nil while that is so
}

// spools has one for each file, however many loggers write to it. The loggers of one file agree on the form of its lines.
var spools struct {
	mu     sync.Mutex
	byFile map[io.Writer]*spool
}

// spoolFor returns the spool of a file or folder. encode is how its loggers write, nil for who is none.
func spoolFor(f io.Writer, encode encoder) *spool {
	spools.mu.Lock()
	defer spools.mu.Unlock()
	s := spools.byFile[f]
	if s == nil {
		if spools.byFile == nil {
			spools.byFile = map[io.Writer]*spool{}
		}
		s = &spool{file: f, encode: encodeText}
		spools.byFile[f] = s
		ignoreBrokenPipe()
	}
	if encode != nil {
		s.mu.Lock()
		s.encode = encode
		s.mu.Unlock()
	}
	return s
}

// Flush waits until all logs are written, at most for a second: who ends a program calls it last.
func Flush() {
	deadline := time.After(flushLimit)
	spools.mu.Lock()
	defer spools.mu.Unlock()
	for _, s := range spools.byFile {
		s.mu.Lock()
		idle := s.idle
		s.mu.Unlock()
		if idle == nil {
			continue
		}
		select {
		case <-idle:
		case <-deadline:
			return
		}
	}
}

// Write takes one whole line, of which it keeps a copy. It does not wait and does not fail; what finds no room is lost.
func (s *spool) Write(line []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.bytes+len(line) > spoolBytes {
		s.dropped++
		s.lost++
		return len(line), nil
	}
	s.lines = append(s.lines, append([]byte(nil), line...))
	s.bytes += len(line)
	if s.idle == nil {
		s.idle = make(chan struct{})
		go s.drain()
	}
	return len(line), nil
}

// drain writes until nothing is left. One goroutine at a time.
func (s *spool) drain() {
	for {
		s.mu.Lock()
		if len(s.lines) == 0 {
			s.lines = nil
			close(s.idle)
			s.idle = nil
			s.mu.Unlock()
			return
		}
		line := s.lines[0]
		s.mu.Unlock()
		took := s.put(line) // mu is not held: this may take for ever
		s.mu.Lock()
		s.lines = s.lines[1:]
		s.bytes -= len(line)
		if !took {
			s.closed, s.dropped, s.lost = true, s.dropped+1+len(s.lines), s.lost+1+uint64(len(s.lines))
			s.lines, s.bytes = nil, 0
		} else if s.dropped > 0 {
			s.insertLost()
		}
		s.mu.Unlock()
	}
}

// insertLost puts the line about lost ones behind those that wait: they are older. mu is held.
func (s *spool) insertLost() {
	r := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines are missing: whoever reads the log, or its disk, did not take them", 0)
	var b bytes.Buffer
	s.encode(&b, r, []field{{"lines", slog.IntValue(s.dropped)}})
	b.WriteByte('\n')
	s.dropped = 0
	s.lines = append(s.lines, b.Bytes())
	s.bytes += b.Len()
}

// put writes a line as a whole, and tries again where that does not work now. It reports false if it never will.
func (s *spool) put(line []byte) bool {
	for rest := line; ; {
		n, err := s.file.Write(rest)
		rest = rest[n:]
		switch {
		case err == nil:
			return true
		case errno.BrokenPipe(err) || errors.Is(err, fs.ErrClosed) || errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EBADF):
			return false
		}
		// The line must not stand in the file by half: the program may end before there is room, and another one go on there.
		if cut := len(line) - len(rest); cut > 0 {
			if f, ok := s.file.(*os.File); ok && takeBack(f, cut) {
				rest = line
			}
		}
		time.Sleep(spoolRetry)
	}
}

// takeBack removes the last n bytes of a regular file if they are what was written just now.
func takeBack(f *os.File, n int) bool {
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return false // no regular file
	}
	stat, err := f.Stat()
	if err != nil || !stat.Mode().IsRegular() || stat.Size() != at || at < int64(n) {
		return false
	}
	if f.Truncate(at-int64(n)) != nil {
		return false
	}
	_, err = f.Seek(at-int64(n), io.SeekStart) // with O_APPEND it plays no part
	return err == nil
}
