//go:build goexperiment.runtimesecret

package secret

import "runtime/secret"

// Do runs f, which handles keys, and has the runtime overwrite the stack and the registers that f used, and what f has left on
// the heap when that is collected.
func Do(f func()) { secret.Do(f) }
