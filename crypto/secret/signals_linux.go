package secret

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// signalMask is what signals a thread had held back before.
type signalMask struct {
	before unix.Sigset_t
	held   bool
}

// held are all signals but those that tell of a fault of the thread itself: the system ends a program that holds them back.
var held = func() (set unix.Sigset_t) {
	for i := range set.Val {
		set.Val[i] = ^set.Val[i]
	}
	bits := 8 * int(unsafe.Sizeof(set.Val[0]))
	for _, s := range []unix.Signal{unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP, unix.SIGSYS} {
		n := int(s) - 1
		set.Val[n/bits] &^= 1 << (n % bits)
	}
	return set
}()

// hold keeps signals from the thread, to which the goroutine is locked.
func (m *signalMask) hold() {
	m.held = unix.PthreadSigmask(unix.SIG_BLOCK, &held, &m.before) == nil
}

// release lets the signals come that hold has held back.
func (m *signalMask) release() {
	if m.held {
		_ = unix.PthreadSigmask(unix.SIG_SETMASK, &m.before, nil)
	}
}
