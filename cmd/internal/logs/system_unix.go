//go:build unix

package logs

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// ignoreBrokenPipe lets a write to a pipe that nobody reads fail. The runtime would end the program, if the pipe is its standard output
// or error (package os/signal).
func ignoreBrokenPipe() { signal.Ignore(syscall.SIGPIPE) }

// streamID is device and inode as JOURNAL_STREAM has them, "" if they cannot be had.
func streamID(f *os.File) string {
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}
