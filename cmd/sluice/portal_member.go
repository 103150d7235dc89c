package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/portal"
)

// clusterFlags are those by which a portal is one of several.
func clusterFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Local: true, Name: "cluster", Usage: "be one of several portals with one state, in the cluster of `NAME`; needs -member and -members"},
		&cli.StringFlag{Local: true, Name: "member", Usage: "`NAME` of this portal in the cluster, which no other has or had"},
		&cli.StringFlag{
			Local: true, Name: "members", Usage: "all portals of the cluster, `NAME=HOST:PORT,...`, three to seven, the same at each; the first brings the state",
		},
		&cli.StringFlag{
			Local: true, Name: "cluster-listen", Usage: "`ADDRESS` for the other portals, TCP; without it the port that -members has for this one, on every address",
		},
	}
}

// clusterConfig reads the flags; nil: the portal is alone.
func clusterConfig(cmd *cli.Command) (*portal.Cluster, error) {
	c := portal.Cluster{Name: cmd.String("cluster"), Self: cmd.String("member")}
	if c.Name == "" {
		for _, flag := range []string{"member", "members", "cluster-listen"} {
			if cmd.IsSet(flag) {
				return nil, usageError{fmt.Sprintf("-%s is for a portal of a cluster; give -cluster NAME too", flag)}
			}
		}
		return nil, nil
	}
	if c.Self == "" || cmd.String("members") == "" {
		return nil, usageError{"-cluster needs -member NAME and -members NAME=HOST:PORT,..., all portals of the cluster"}
	}
	own := ""
	for _, text := range strings.Split(cmd.String("members"), ",") {
		name, address, ok := strings.Cut(strings.TrimSpace(text), "=")
		if !ok {
			return nil, usageError{fmt.Sprintf("-members %q: use NAME=HOST:PORT,...", text)}
		}
		c.Members = append(c.Members, portal.Member{Name: name, Address: address})
		if name == c.Self {
			own = address
		}
	}
	at := cmd.String("cluster-listen")
	if at == "" {
		_, port, err := net.SplitHostPort(own)
		if _, err2 := strconv.ParseUint(port, 10, 16); err != nil || err2 != nil {
			return nil, usageError{fmt.Sprintf("-members has no NAME=HOST:PORT of -member %s", c.Self)}
		}
		at = ":" + port
	}
	var err error
	c.Listen, err = listenAddress("-cluster-listen", at, netip.IPv6Unspecified())
	return &c, err
}

func portalMemberCommand() *cli.Command {
	return &cli.Command{
		Name:  "member",
		Usage: "list the portals of the cluster, and remove one that is lost",
		Commands: []*cli.Command{
			{
				Name: "list", Usage: "list the portals of the cluster, as the one of this machine sees them", Before: noArguments,
				Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}}, Action: listMembers,
			},
			{
				Name: "remove", Usage: "take the vote of a portal that is lost, once another has its place", ArgsUsage: "NAME",
				Action: func(ctx context.Context, cmd *cli.Command) error {
					return withName(cmd, func(name string) error {
						return askDesk(ctx, cmd.String("state"), "DELETE", "/members/"+name, nil, new(string))
					})
				},
			},
		},
	}
}

// members is what the portal tells of its cluster.
type members struct {
	Members []portal.MemberStatus `json:"members"`
	Trouble string                `json:"trouble,omitempty"`
}

func listMembers(ctx context.Context, cmd *cli.Command) error {
	var m members
	if err := askDesk(ctx, cmd.String("state"), "GET", "/members", nil, &m); err != nil {
		return err
	}
	out := cmd.Root().Writer
	if cmd.Bool("json") {
		return printJSON(out, m)
	}
	_, err := fmt.Fprint(out, memberTable(m))
	return err
}

// memberTable is a line for each portal.
func memberTable(m members) string {
	rows := [][]string{{"NAME", "STATE", "NODES", "FOR NODES", "FOR PORTALS"}}
	for _, one := range m.Members {
		state := "not reached"
		switch {
		case one.Leads:
			state = "leads"
		case one.Connected:
			state = "there"
		}
		if one.Connected && !one.Stores && m.Trouble == "" {
			state += ", has no state yet"
		}
		if one.Self {
			state += ", this one"
		}
		address := one.Address
		if address == "" {
			address = "not in -members"
		}
		rows = append(rows, []string{one.Name, state, strconv.Itoa(one.Nodes), one.Public, address})
	}
	lines := status.Table(rows, status.Columns)
	if m.Trouble != "" {
		lines = append(lines, status.Wrap(m.Trouble, "", "  ", status.Columns)...)
	}
	return strings.Join(lines, "\n") + "\n"
}
