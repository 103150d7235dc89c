//go:build !windows

package errno

import "syscall"

var (
	inUse      = []error{syscall.EADDRINUSE}
	refused    = []error{syscall.ECONNREFUSED, syscall.ECONNRESET}
	unreached  = []error{syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ECONNABORTED}
	brokenPipe = []error{syscall.EPIPE}
)
