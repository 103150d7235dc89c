package pipeline

import (
	"bytes"
	"errors"
	"io"
)

// uapiLines reads the lines of one connection, within bounds. It is no bufio.Reader, since that keeps what it has moved
// within its buffer, and the lines hold keys.
type uapiLines struct {
	r io.Reader
	// buf has the bytes from first to end that were read, and zeros but for the line that was returned last.
	buf              []byte
	last, first, end int // where the last line begins, the next one, and what was not read yet
	total            int // bytes of this request so far
	ended            bool
}

func newUAPILines(r io.Reader) *uapiLines { return &uapiLines{r: r, buf: make([]byte, uapiMaxLine)} }

// next returns a line without its newline, borrowed until the following call, which overwrites it: it may hold a key.
// After errUAPILineTooLong the reader stands at the next line; other errors end the connection.
func (u *uapiLines) next() ([]byte, error) {
	tooLong := false
	for searched := u.first; ; {
		u.forget()
		if i := bytes.IndexByte(u.buf[searched:u.end], '\n'); i >= 0 {
			return u.take(searched+i+1, tooLong)
		}
		if u.total+u.end-u.first > uapiMaxRequest {
			u.ended = true
			return nil, errUAPITooLarge
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
				return nil, errUAPICut
			}
			return nil, err
		}
	}
}

// take returns the line that ends before end.
func (u *uapiLines) take(end int, tooLong bool) ([]byte, error) {
	line := u.buf[u.first : end-1]
	u.total += end - u.first
	u.first = end
	switch {
	case u.total > uapiMaxRequest:
		u.ended = true
		return nil, errUAPITooLarge
	case tooLong:
		return nil, errUAPILineTooLong
	}
	return line, nil
}

// forget overwrites the last line.
func (u *uapiLines) forget() {
	clear(u.buf[u.last:u.first])
	u.last = u.first
}

// slide moves what is not used yet to the front and overwrites where it was.
func (u *uapiLines) slide() {
	n := copy(u.buf, u.buf[u.first:u.end])
	clear(u.buf[n:u.end])
	u.last, u.first, u.end = 0, 0, n
}

// skip reads to the end of a request that should have no more lines.
func (u *uapiLines) skip() error {
	var unexpected error
	for {
		line, err := u.next()
		switch {
		case err == errUAPILineTooLong:
		case err != nil:
			return err
		case len(line) == 0:
			return unexpected
		}
		unexpected = &uapiError{uapiInvalid, "a get has trailing lines"}
	}
}

// wipe overwrites all that was read.
func (u *uapiLines) wipe() { clear(u.buf) }
