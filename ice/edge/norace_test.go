//go:build !race

package edge

const (
	race       = false
	raceStacks = 0
)
