package main

import (
	"context"
	"fmt"
	"os"

	"github.com/pkg/profile"
	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/node"
)

// profiles are the kinds that -profile takes.
var profiles = map[string]func(*profile.Profile){
	"cpu": profile.CPUProfile, "mem": profile.MemProfileAllocs, "mutex": profile.MutexProfile, "block": profile.BlockProfile,
	"trace": profile.TraceProfile,
}

// nodeCommand is what speedtest starts: sluice-wg with switches for measuring.
func nodeCommand() *cli.Command {
	return &cli.Command{
		Name:        "node",
		Usage:       "run an interface as sluice-wg does, to be measured",
		ArgsUsage:   "INTERFACE-NAME",
		Description: "Takes the environment of sluice-wg, and SLUICE_NULL=1, which replaces the cipher by a copy: INSECURE.",
		Hidden:      true,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "foreground", Aliases: []string{"f"}, Usage: "stay in the foreground"},
			&cli.StringFlag{Name: "profile", Usage: "write a profile: cpu, mem, mutex, block or trace"},
			&cli.StringFlag{Name: "profile-dir", Usage: "into `FOLDER`, which is made if need be", Value: "."},
		},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.NArg() != 1 || cmd.Args().First() == "" {
				return usageError{"sluice node takes one interface name"}
			}
			o := node.Options{Name: cmd.Args().First(), Foreground: cmd.Bool("foreground"), AllowNull: true}
			if name := cmd.String("profile"); name != "" {
				kind, known := profiles[name]
				if !known {
					return usageError{fmt.Sprintf("-profile %q: want cpu, mem, mutex, block or trace", name)}
				}
				o.Profile = profiler(kind, cmd.String("profile-dir"))
			}
			return node.Run(o)
		},
	}
}

func profiler(kind func(*profile.Profile), dir string) func() (func(), error) {
	return func() (func(), error) {
		// Made here because package profile ends the program where it cannot.
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("-profile-dir: %w", err)
		}
		running := profile.Start(kind, profile.ProfilePath(dir), profile.NoShutdownHook, profile.Quiet)
		return running.Stop, nil
	}
}
