//go:build !race && linux

package edge

const raceStacks = 0
