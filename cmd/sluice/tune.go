package main

import (
	"context"
	"encoding/json"
	"path/filepath"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/cmd/internal/tune"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// tuneName is the file of what was there before, in the state folder.
const tuneName = "tune.json"

func tuneCommand() *cli.Command {
	return &cli.Command{
		Name:  "tune",
		Usage: "show, change or put back settings of this machine that were measured to help",
		Description: "It raises net.core.rmem_max, where it is lower, to what a node asks for its sockets. That matters to nodes that may not pass" +
			"\nit: in containers, and those of users other than root. What was there before is kept in the state folder, and put back by" +
			"\n-revert; a reboot undoes it too. PERF.md has the measurement. It may be run twice.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "show", Usage: "only show the settings (the default)"},
			&cli.BoolFlag{Name: "apply", Usage: "change what is lower than it should be"},
			&cli.BoolFlag{Name: "revert", Usage: "put back what -apply has changed, but for what somebody else has changed since"},
			stateFlag(),
			&cli.BoolFlag{Name: "json", Usage: "print the settings as JSON"},
		},
		Before: noArguments,
		Action: runTune,
	}
}

func runTune(_ context.Context, cmd *cli.Command) error {
	asked := 0
	for _, flag := range []string{"show", "apply", "revert"} {
		if cmd.Bool(flag) {
			asked++
		}
	}
	if asked > 1 {
		return usageError{"give one of -show, -apply and -revert"}
	}
	t := &tune.Tuning{Memory: filepath.Join(stateFolder(cmd, protocol.Client), tuneName)}
	var err error
	switch {
	case cmd.Bool("apply"):
		err = t.Apply()
	case cmd.Bool("revert"):
		err = t.Revert()
	}
	if err != nil {
		return err
	}
	list, err := t.Show()
	if err != nil {
		return err
	}
	out := cmd.Root().Writer
	if cmd.Bool("json") {
		return json.NewEncoder(out).Encode(list)
	}
	return status.View{Width: terminalWidth(out)}.WriteSettings(out, list)
}
