//go:build unix

package logs

import (
	"os/signal"
	"syscall"
)

// ignoreBrokenPipe lets a write to a pipe that nobody reads fail. The runtime would end the program, if the pipe is its standard output
// or error (package os/signal).
func ignoreBrokenPipe() { signal.Ignore(syscall.SIGPIPE) }
