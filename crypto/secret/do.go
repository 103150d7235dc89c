//go:build !goexperiment.runtimesecret

package secret

// Do runs f, which handles keys, and overwrites the stack that f used. f must not wait for anything: meanwhile the garbage
// collector may move a goroutine to a smaller stack.
//
//go:noinline
func Do(f func()) {
	reserve()
	f()
	scrub()
}
