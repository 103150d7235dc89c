package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
)

// whyGap is how long drops are watched, to tell which of them are of now.
const whyGap = time.Second

func whyCommand() *cli.Command {
	return &cli.Command{
		Name:      "why",
		Usage:     "say what becomes of packets to an address or a peer",
		ArgsUsage: "ADDRESS|PEER",
		Description: "One answer out of what the node and the kernel know: whether packets go through the tunnel, by which route and to which peer," +
			"\nby which path and since when, which routes are refused, why the latest connection ended, what was dropped in total and" +
			"\nwithin the last second, what a firewall here does, and whether full packets fit." +
			"\n\nExit status 0: packets go through the tunnel. 1: they do not, or no node answered.",
		Flags: append(nodeFlags(), &cli.BoolFlag{Name: "json", Usage: "print all that is known, as one JSON object a line"}),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.NArg() != 1 || cmd.Args().First() == "" {
				return usageError{"sluice why takes one address or the name of one peer; sluice status lists them"}
			}
			nodes, err := chosenNodes(cmd)
			if err != nil {
				return err
			}
			return why(ctx, cmd, nodes, cmd.Args().First())
		},
	}
}

// why asks each node. An answer that is not of the node that knows the way is left out if there is one that is.
func why(ctx context.Context, cmd *cli.Command, nodes []*status.Node, subject string) error {
	var answers []status.Why
	var failed []error
	for _, n := range nodes {
		w, err := whyOf(ctx, n, subject)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		answers = append(answers, w)
	}
	if len(answers) == 0 {
		return errors.Join(failed...)
	}
	var through, known []status.Why
	for _, w := range answers {
		if w.Verdict == status.VerdictUp || w.Verdict == status.VerdictOwn {
			through = append(through, w)
		}
		if w.Verdict != status.VerdictNoRoute {
			known = append(known, w)
		}
	}
	if len(known) > 0 {
		answers = known
	}
	out := cmd.Root().Writer
	for i := range answers {
		if cmd.Bool("json") {
			if err := json.NewEncoder(out).Encode(&answers[i]); err != nil {
				return err
			}
			continue
		}
		if i > 0 {
			fmt.Fprintln(out)
		}
		if err := (status.View{Width: terminalWidth(out)}).WriteWhy(out, &answers[i]); err != nil {
			return err
		}
	}
	if len(through) == 0 {
		return cli.Exit(fmt.Sprintf("packets to %s do not go through the tunnel (%s)", subject, answers[0].Verdict), 1)
	}
	return nil
}

// whyOf asks a node twice, since what it dropped long ago is another story than what it drops now.
func whyOf(ctx context.Context, n *status.Node, subject string) (w status.Why, err error) {
	before, err := n.Why(ctx, subject)
	if err != nil {
		return w, err
	}
	select {
	case <-ctx.Done():
		return w, ctx.Err()
	case <-time.After(whyGap):
	}
	if w, err = n.Why(ctx, subject); err != nil {
		return w, err
	}
	w.NewS, w.New = w.At.Sub(before.At).Seconds(), map[string]uint64{}
	for name, count := range w.Drops {
		if was := before.Drops[name]; count > was {
			w.New[name] = count - was
		}
	}
	return w, nil
}
