package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/member"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/netcheck"
	"github.com/sluice-vpn/sluice/ice/portal"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/relay"
	signaling "github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/tun/host"
)

func netcheckCommand() *cli.Command {
	return &cli.Command{
		Name:  "netcheck",
		Usage: "say what the network around this machine lets through",
		Description: "Asks relays and portal, from sockets of its own and without a tunnel: whether UDP works, what the NATs before this machine do" +
			"\n(mapping and filtering by RFC 5780, as far as the relays can tell), IPv6, round trips, TCP and TLS to the portal, and whether" +
			"\nonly port 443 is open. It needs no root; as root its packets go past a tunnel that is up." +
			"\n\nPortal and relays are those of a running node, else the portal is of -portal, the token or the sign-in, and its relay on" +
			"\nport 3478." +
			"\n\nExit status 1: UDP does not get through, or no portal is reached.",
		Flags: append(nodeFlags(),
			&cli.StringFlag{Name: "portal", Usage: "`ADDRESS` of the portal, with or without a port"},
			&cli.StringSliceFlag{Name: "relay", Usage: "ask this STUN or TURN server too, `ADDRESS:PORT`"},
			&cli.StringFlag{Name: "token-file", Usage: "take the portal of the token in `FILE`; - is standard input"},
			stateFlag(), markFlag(),
			&cli.BoolFlag{Name: "json", Usage: "print all that is known, as one JSON object"},
		),
		Before: noArguments,
		Action: runNetcheck,
	}
}

func runNetcheck(ctx context.Context, cmd *cli.Command) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	c, err := netcheckConfig(ctx, cmd)
	if err != nil {
		return err
	}
	r := netcheck.Check(ctx, c)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	out := cmd.Root().Writer
	if cmd.Bool("json") {
		err = json.NewEncoder(out).Encode(&r)
	} else {
		err = (status.View{Width: terminalWidth(out)}).WriteNetcheck(out, &r)
	}
	if problems := status.NetcheckProblems(&r); err == nil && len(problems) > 0 {
		err = cli.Exit(strings.Join(problems, ", and "), 1)
	}
	return err
}

// netcheckConfig finds whom to ask.
func netcheckConfig(ctx context.Context, cmd *cli.Command) (c netcheck.Config, err error) {
	c.Getenv = os.Getenv
	mark := host.MarkControl(uint32(cmd.Uint("mark")))
	c.Control = func(network, address string, conn syscall.RawConn) error {
		_ = mark(network, address, conn) // without the right to, packets go where all go
		return nil
	}
	for _, text := range cmd.StringSlice("relay") {
		list, err := serversAt(ctx, "-relay", text, text)
		if err != nil {
			return c, err
		}
		c.Servers = append(c.Servers, list...)
	}
	if c.Portals, c.Fingerprint, err = portalsFor(cmd); err != nil {
		return c, err
	}
	if len(c.Servers) == 0 {
		c.Servers = relaysOfNodes(ctx, cmd)
	}
	if len(c.Servers) > 0 {
		return c, nil
	}
	for _, p := range c.Portals {
		at, _, _ := net.SplitHostPort(p)
		list, err := serversAt(ctx, "portal", "portal", net.JoinHostPort(at, strconv.Itoa(relay.DefaultPort)))
		if err != nil { // told by the check of the portal
			continue
		}
		c.Servers = append(c.Servers, list...)
	}
	return c, nil
}

// serversAt are the addresses of a STUN server.
func serversAt(ctx context.Context, flag, name, text string) (list []netcheck.Server, err error) {
	at, port, err := net.SplitHostPort(text)
	n, err2 := strconv.ParseUint(port, 10, 16)
	if err != nil || err2 != nil || at == "" || n == 0 {
		return nil, usageError{fmt.Sprintf("%s %q: use ADDRESS:PORT", flag, text)}
	}
	addrs, err := resolve(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", flag, text, err)
	}
	for _, a := range addrs {
		list = append(list, netcheck.Server{Name: name, Addr: netip.AddrPortFrom(a, uint16(n))})
	}
	return list, nil
}

// portalsFor are those of -portal, else of the token that is given or stored.
func portalsFor(cmd *cli.Command) ([]string, *signaling.Fingerprint, error) {
	if at := cmd.String("portal"); at != "" {
		if !protocol.ValidAddress(at) {
			at = net.JoinHostPort(strings.Trim(at, "[]"), strconv.Itoa(portal.DefaultPort))
		}
		if !protocol.ValidAddress(at) {
			return nil, nil, usageError{fmt.Sprintf("-portal %q: use ADDRESS or ADDRESS:PORT", cmd.String("portal"))}
		}
		return []string{at}, nil, nil
	}
	token, source, err := member.ReadToken(cmd.String("token-file"), cmd.Root().Reader)
	if err != nil {
		return nil, nil, err
	}
	if source == "" {
		folder, err := storedFolder(cmd)
		if err != nil {
			return nil, nil, err
		}
		var stored bool
		if token, stored, err = member.StoredToken(folder); err != nil {
			return nil, nil, err
		}
		if !stored && len(cmd.StringSlice("relay")) > 0 {
			return nil, nil, nil
		}
		if !stored {
			return nil, nil, usageError{"nothing says which portal to ask: give -portal ADDRESS, or sign in"}
		}
	}
	fingerprint := signaling.Fingerprint(token.Fingerprint)
	return token.Portals, &fingerprint, nil
}

// relaysOfNodes are those that running nodes use; none if no node may be asked.
func relaysOfNodes(ctx context.Context, cmd *cli.Command) (list []netcheck.Server) {
	if cmd.String("portal") != "" {
		return nil
	}
	nodes, err := chosenNodes(cmd)
	if err != nil {
		return nil
	}
	for _, n := range nodes {
		s, err := n.Get(ctx)
		if err != nil {
			continue
		}
		for i := range s.Relays {
			list = append(list, netcheck.Server{Name: s.Relays[i].Name, Addr: s.Relays[i].Server})
		}
	}
	return list
}
