//go:build race && linux

package edge

// raceStacks is what the stacks of a connection's goroutines need more where the race detector fills their frames.
const raceStacks = 32 << 10
