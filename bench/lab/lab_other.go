//go:build !linux

package lab

import "os"

// Enter reports ErrUnsupported: there are no network namespaces here.
func Enter() (inside bool, code int, err error) { return false, 1, ErrUnsupported }

// Main runs the tests where they are; those that call Need are skipped.
func Main(m Runner) { os.Exit(m.Run()) }

// Inside reports whether the program runs in a lab: never.
func Inside() bool { return false }

// Need skips the test.
func Need(t Skipper) {
	t.Helper()
	t.Skipf("%v", ErrUnsupported)
}
