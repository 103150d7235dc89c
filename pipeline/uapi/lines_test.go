package uapi

import (
	"bytes"
	"strings"
	"testing"
	"testing/iotest"
)

// TestUAPILinesForget: of what was read nothing is left but the last line and what follows it, and after wipe nothing at all.
func TestLinesForget(t *testing.T) {
	request := "set=1\nprivate_key=" + keyA + "\npreshared_key=" + keyB + "\nend=1\n"
	for _, size := range []int{1, 7, 100, 1000} {
		lines := newLines(&shortReader{strings.NewReader(request), size})
		for _, want := range strings.Split(strings.TrimSuffix(request, "\n"), "\n") {
			got, err := lines.next()
			if err != nil || string(got) != want {
				t.Fatalf("reads of %d bytes: got %q, %v, want %q", size, got, err, want)
			}
		}
		for _, key := range []string{keyA, keyB} {
			if bytes.Contains(lines.buf, []byte(key[:16])) || bytes.Contains(lines.buf, []byte(key[48:])) {
				t.Errorf("reads of %d bytes: a key is left in the buffer", size)
			}
		}
		lines.wipe()
		if len(bytes.Trim(lines.buf, "\x00")) > 0 {
			t.Errorf("reads of %d bytes: %q is left after wipe", size, bytes.Trim(lines.buf, "\x00"))
		}
	}
	if _, err := newLines(iotest.ErrReader(iotest.ErrTimeout)).next(); err != iotest.ErrTimeout {
		t.Errorf("got %v, want the reader's error", err)
	}
}

type shortReader struct {
	r    *strings.Reader
	size int
}

func (s *shortReader) Read(b []byte) (int, error) { return s.r.Read(b[:min(len(b), s.size)]) }
