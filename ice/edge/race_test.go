//go:build race

package edge

const (
	race = true
	// raceStacks is what the stacks of a connection's goroutines need more where the race detector fills their frames.
	raceStacks = 32 << 10
)
