package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

func trustCommand() *cli.Command {
	return &cli.Command{
		Name:      "trust",
		Usage:     "take a peer with another identity than before for the same node; without NAME list the identities",
		ArgsUsage: "[NAME]",
		Description: "A node knows its peers by their identities, which their tokens give them and the portal cannot make. If a peer has another" +
			"\none than when it was met, there is no session with it (identity_changed): its token was renewed, or somebody is in between." +
			"\nWhat it has now must be what sluice status shows on the peer's own machine.",
		Flags: nodeFlags(),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			nodes, err := chosenNodes(cmd)
			switch {
			case err != nil:
				return err
			case cmd.NArg() > 1:
				return usageError{"sluice trust takes one NAME at most"}
			case cmd.NArg() == 0:
				return listPins(ctx, cmd, nodes)
			case len(nodes) > 1:
				return usageError{"several nodes run on this machine; say which is to trust with -interface"}
			}
			return trust(ctx, cmd, nodes[0], cmd.Args().First())
		},
	}
}

// trust has a node take what the portal offers for a peer now.
func trust(ctx context.Context, cmd *cli.Command, node *status.Node, name string) error {
	pins, err := node.Pins(ctx)
	if err != nil {
		return err
	}
	for _, p := range pins {
		if p.Peer != name {
			continue
		}
		out := cmd.Root().Writer
		if p.Offered == p.Pinned {
			fmt.Fprintf(out, "%s is trusted already: %s\n", name, p.Pinned)
			return nil
		}
		if p.Offered == (protocol.Identity{}) {
			return fmt.Errorf("the portal gives no identity for %s now, so there is nothing to trust; it was %s", name, p.Pinned)
		}
		note, err := node.Trust(ctx, edge.Pin{Peer: name, Offered: p.Offered})
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s is trusted as %s (it was %s); that must be what sluice status shows there\n", name, p.Offered, p.Pinned)
		if note != "" {
			return errors.New(note)
		}
		return nil
	}
	return fmt.Errorf("there is no peer %s; sluice trust lists them", name)
}

func listPins(ctx context.Context, cmd *cli.Command, nodes []*status.Node) error {
	rows, below := [][]string{{"PEER", "MET AS", "NOW"}}, []string{""}
	for _, n := range nodes {
		pins, err := n.Pins(ctx)
		if err != nil {
			return err
		}
		for _, p := range pins {
			now, more := "the same", ""
			switch {
			case p.Distrust != "":
				now, more = p.Offered.Fingerprint(), "  no session: "+p.Distrust+"\n"
			case p.Offered == (protocol.Identity{}):
				now, more = "none", "  not known to the portal, or not signed in\n"
			case p.Offered != p.Pinned:
				now = p.Offered.Fingerprint()
			}
			rows, below = append(rows, []string{p.Peer, p.Pinned.String(), now}), append(below, more)
		}
	}
	for i, line := range status.Table(rows, status.Columns) {
		if _, err := fmt.Fprint(cmd.Root().Writer, line+"\n"+below[i]); err != nil {
			return err
		}
	}
	return nil
}
