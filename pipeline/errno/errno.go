// Package errno knows errors of sockets and pipes by what they mean. The names that package syscall has for them are numbers of its own
// on Windows, which no call there returns, so errors.Is with one of those is true on Unix only.
package errno

import (
	"errors"
	"slices"
)

// InUse: the port is another socket's.
func InUse(err error) bool { return isOf(err, inUse) }

// Refused: nobody listens there, or it was reset.
func Refused(err error) bool { return isOf(err, refused) }

// Unreached: no answer came, or no way leads there.
func Unreached(err error) bool { return isOf(err, unreached) }

// BrokenPipe: nobody will ever read what is written.
func BrokenPipe(err error) bool { return isOf(err, brokenPipe) }

func isOf(err error, of []error) bool {
	return slices.ContainsFunc(of, func(e error) bool { return errors.Is(err, e) })
}
