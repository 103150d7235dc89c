package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/doctor"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "examine whether this machine lets tunnels run, and run fast",
		Description: "Looks at rights, the TUN driver, each offload with what the kernel grants, socket buffers, queues, network devices, nftables and" +
			"\nfaults that the kernel is known for. It makes a TUN device for a moment, and changes nothing. Each finding is ok, a note or" +
			"\na problem, with what to do.\n\nExit status 1: there is a problem.",
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print facts and findings as one JSON object"}},
		Before: noArguments,
		Action: func(_ context.Context, cmd *cli.Command) error {
			facts := doctor.Examine()
			list := status.Findings(&facts)
			out := cmd.Root().Writer
			var err error
			if cmd.Bool("json") {
				err = json.NewEncoder(out).Encode(struct {
					Facts    doctor.Facts     `json:"facts"`
					Findings []status.Finding `json:"findings"`
				}{facts, list})
			} else {
				err = (status.View{Width: terminalWidth(out)}).WriteFindings(out, list)
			}
			problems := 0
			for _, f := range list {
				if f.Level == status.LevelProblem {
					problems++
				}
			}
			if err == nil && problems > 0 {
				err = cli.Exit(fmt.Sprintf("problems: %d", problems), 1)
			}
			return err
		},
	}
}
