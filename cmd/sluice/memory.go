package main

import (
	"fmt"
	"runtime/debug"

	"github.com/urfave/cli/v3"
)

// leastMemory is what a node's buffers and a few peers need, in MiB; below it the collector would run all the time.
const leastMemory = 32

// memoryFlag is of all three roles; local as of other flags of a command that has commands of its own.
func memoryFlag(local bool) cli.Flag {
	return &cli.IntFlag{Local: local, Name: "memory", Usage: fmt.Sprintf("keep memory at about `MIB`, no less than %d, by collecting garbage more often"+
		" (0: no limit, or GOMEMLIMIT)", leastMemory)}
}

// checkMemory looks at what -memory says.
func checkMemory(cmd *cli.Command) error {
	if n := cmd.Int("memory"); n != 0 && n < leastMemory || n > 1<<20 {
		return usageError{fmt.Sprintf("-memory %d: want MiB, %d or more, or 0 for no limit", n, leastMemory)}
	}
	return nil
}

// limitMemory obeys -memory. The limit is a soft one: buffers are bounded by themselves, and where peers need more than it, memory grows
// beyond it rather than that the program ends.
func limitMemory(cmd *cli.Command) {
	if n := cmd.Int("memory"); n != 0 {
		debug.SetMemoryLimit(int64(n) << 20)
	}
}
