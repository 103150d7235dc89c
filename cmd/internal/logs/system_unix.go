//go:build unix

package logs

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
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

// lock says to other programs that a file is written.
func lock(f *os.File) { _ = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// inUse reports whether somebody has locked a file.
func inUse(root *os.Root, name string) bool {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// ownedBy reports whether a folder, and no link, is a user's.
func ownedBy(path string, uid int) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == uid
}
