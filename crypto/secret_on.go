//go:build goexperiment.runtimesecret

package crypto

import "runtime/secret"

// secretly runs f so that its stack, its registers and what it left on the heap are erased after it: the copies of keys
// that the standard library makes are then gone too.
func secretly(f func()) { secret.Do(f) }
