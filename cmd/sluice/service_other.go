//go:build !windows

package main

import (
	"context"

	"github.com/urfave/cli/v3"
)

// systemCommands are none here: services are units of systemd.
func systemCommands() []*cli.Command { return nil }

// managed runs a program.
func managed(ctx context.Context, _ *cli.Command, program func(context.Context) error) error {
	return program(ctx)
}
