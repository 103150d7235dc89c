//go:build !goexperiment.runtimesecret

package secret

import "runtime"

// Do runs f, which handles keys, and overwrites the stack and the vector registers that f used. Meanwhile no signal reaches the
// thread, since the system would save the registers in memory, and the Go runtime, when it takes the processor from a goroutine
// by a signal, as well. f must not wait for anything.
//
//go:noinline
func Do(f func()) {
	if never {
		takeGuard([guard]byte{})
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var mask signalMask
	mask.hold()
	defer mask.release()
	reserve()
	f()
	scrub()
}
