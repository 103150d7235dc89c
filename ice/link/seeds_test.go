//go:build !soak

package link

// seeds is how many TestTrouble runs.
const seeds = 20
