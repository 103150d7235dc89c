//go:build !goexperiment.runtimesecret

package crypto

// secretly runs f. Keys that are ours are wiped; copies that the standard library makes wait for the garbage collector.
// Build with GOEXPERIMENT=runtimesecret to erase those as well.
func secretly(f func()) { f() }
