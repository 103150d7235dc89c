//go:build !race

package crypto_test

// slowdown is what the long tests divide their numbers by.
const slowdown = 1
