package uapi

import (
	"bytes"
	"errors"
	"io"
)

// lineReader reads the lines of one connection, within bounds. It is no bufio.Reader, since that keeps what it has moved
// within its buffer, and the lines hold keys.
type lineReader struct {
	r io.Reader
	// buf has the bytes from first to end that were read, and zeros but for the line that was returned last.
	buf              []byte
	last, first, end int // where the last line begins, the next one, and what was not read yet
	total            int // bytes of this request so far
	ended            bool
}

func newLines(r io.Reader) *lineReader { return &lineReader{r: r, buf: make([]byte, maxLine)} }

// next returns a line without its newline, borrowed until the following call, which overwrites it: it may hold a key.
// After errLineTooLong the reader stands at the next line; other errors end the connection.
func (u *lineReader) next() ([]byte, error) {
	tooLong := false
	for searched := u.first; ; {
		u.forget()
		if i := bytes.IndexByte(u.buf[searched:u.end], '\n'); i >= 0 {
			return u.take(searched+i+1, tooLong)
		}
		if u.total+u.end-u.first > maxRequest {
			u.ended = true
			return nil, errTooLarge
		}
		if u.first == 0 && u.end == len(u.buf) {
			tooLong = true
			u.total += u.end
			u.first = u.end
			u.forget()
		}
		u.slide()
		n, err := u.r.Read(u.buf[u.end:])
		searched = u.end
		u.end += n
		if n == 0 && err != nil {
			u.ended = true
			if errors.Is(err, io.EOF) {
				return nil, errCut
			}
			return nil, err
		}
	}
}

// take returns the line that ends before end.
func (u *lineReader) take(end int, tooLong bool) ([]byte, error) {
	line := u.buf[u.first : end-1]
	u.total += end - u.first
	u.first = end
	switch {
	case u.total > maxRequest:
		u.ended = true
		return nil, errTooLarge
	case tooLong:
		return nil, errLineTooLong
	}
	return line, nil
}

// forget overwrites the last line.
func (u *lineReader) forget() {
	clear(u.buf[u.last:u.first])
	u.last = u.first
}

// slide moves what is not used yet to the front and overwrites where it was.
func (u *lineReader) slide() {
	n := copy(u.buf, u.buf[u.first:u.end])
	clear(u.buf[n:u.end])
	u.last, u.first, u.end = 0, 0, n
}

// skip reads to the end of a request that should have no more lines.
func (u *lineReader) skip() error {
	var unexpected error
	for {
		line, err := u.next()
		switch {
		case err == errLineTooLong:
		case err != nil:
			return err
		case len(line) == 0:
			return unexpected
		}
		unexpected = &protocolError{errnoInvalid, "a get has trailing lines"}
	}
}

// wipe overwrites all that was read.
func (u *lineReader) wipe() { clear(u.buf) }
