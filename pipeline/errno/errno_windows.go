package errno

import (
	"syscall"

	"golang.org/x/sys/windows"
)

// Those of package syscall come from devices and sockets of our own.
var (
	inUse      = []error{windows.WSAEADDRINUSE, windows.WSAEACCES, syscall.EADDRINUSE} // WSAEACCES: held exclusively
	refused    = []error{windows.WSAECONNREFUSED, windows.WSAECONNRESET, syscall.ECONNREFUSED, syscall.ECONNRESET}
	unreached  = []error{windows.WSAETIMEDOUT, windows.WSAEHOSTUNREACH, windows.WSAECONNABORTED, syscall.ETIMEDOUT, syscall.EHOSTUNREACH}
	brokenPipe = []error{windows.ERROR_BROKEN_PIPE, windows.ERROR_NO_DATA, windows.ERROR_PIPE_NOT_CONNECTED}
)
