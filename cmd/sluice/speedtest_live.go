package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/bench/speedtest"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/edge"
)

// serveTime is how long -serve lasts unless -for says otherwise.
const serveTime = 10 * time.Minute

func liveFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.BoolFlag{Name: "serve", Usage: "let the peers of this machine's node measure their tunnels to it, until -for has passed"},
		&cli.StringFlag{Name: "connect", Usage: "measure the tunnel to `PEER`, by its name or an address of its own in the tunnel, which runs -serve"},
		&cli.DurationFlag{Name: "for", Value: serveTime, Usage: "-serve ends after `TIME`"},
		&cli.IntFlag{Name: "port", Value: speedtest.LivePort, Usage: "TCP port of -serve and -connect, at the tunnel's addresses"},
	}, nodeFlags()...)
}

// labOnly are flags that are about the network that the speed test builds, liveOnly those that are about a tunnel that is up.
var (
	labOnly  = []string{"limits", "against", "topology", "load", "segment", "profile", "perf", "out"}
	liveOnly = []string{"for", "port", "socket", "interface"}
)

// live reports whether the speed test is one over a live tunnel, and what is wrong with its flags.
func live(cmd *cli.Command) (bool, error) {
	serve, connect := cmd.Bool("serve"), cmd.String("connect")
	if !serve && connect == "" {
		for _, name := range liveOnly {
			if cmd.IsSet(name) {
				return false, usageError{fmt.Sprintf("-%s is for -serve and -connect; give one of them, or leave it out", name)}
			}
		}
		return false, nil
	}
	forbidden := slices.Clone(labOnly)
	if serve {
		forbidden = append(forbidden, "connect", "duration", "cases", "rounds", "json", "html")
	} else {
		forbidden = append(forbidden, "for")
	}
	for _, name := range forbidden {
		if cmd.IsSet(name) {
			what := "-connect"
			if serve {
				what = "-serve"
			}
			return true, usageError{fmt.Sprintf("-%s says nothing to %s; leave it out", name, what)}
		}
	}
	if n := cmd.Int("port"); n < 1 || n > 65535 {
		return true, usageError{fmt.Sprintf("-port %d: want 1 to 65535", n)}
	}
	return true, nil
}

// runLive serves, or measures.
func runLive(ctx context.Context, cmd *cli.Command) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if cmd.Bool("serve") {
		return serveSpeedtest(ctx, cmd)
	}
	c, err := speedtestConfig(cmd)
	if err != nil {
		return err
	}
	nodes, err := chosenNodes(cmd)
	if err != nil {
		return err
	}
	l, err := liveTunnel(ctx, nodes, cmd.String("connect"))
	if err != nil {
		return err
	}
	l.Port = uint16(cmd.Int("port"))
	return measured(cmd, c, func(c speedtest.Config) (*speedtest.Report, error) { return speedtest.Connect(ctx, c, l) })
}

// liveTunnel finds the tunnel to a peer, by its name or by an address of its own.
func liveTunnel(ctx context.Context, nodes []*status.Node, peer string) (l speedtest.Live, err error) {
	to, isAddress := netip.Addr{}, false
	if a, err := netip.ParseAddr(peer); err == nil {
		to, isAddress = a.Unmap(), true
		if peer, err = peerWith(ctx, nodes, to); err != nil {
			return l, err
		}
	}
	node, c, err := findPeer(ctx, nodes, peer)
	if err != nil {
		return l, err
	}
	if !isAddress {
		if to, err = tunnelAddress(c.AllowedIPs); err != nil {
			return l, err
		}
	}
	s, err := node.Get(ctx)
	if err != nil {
		return l, err
	}
	l = speedtest.Live{Peer: peer, Remote: to, Device: s.Interface, Path: status.PathOf(&c).String(), Counters: node.Counters}
	for _, p := range s.Addresses {
		if p.Addr().Is4() == to.Is4() {
			l.Local = p.Addr()
		}
	}
	if !l.Local.IsValid() {
		return l, fmt.Errorf("this node has no tunnel address of the family of %s", to)
	}
	link, err := net.InterfaceByName(s.Interface)
	if err != nil {
		return l, fmt.Errorf("the node's interface %s: %w", s.Interface, err)
	}
	l.MTU = link.MTU
	return l, nil
}

// ownAddress reports whether a peer has the address for itself.
func ownAddress(c *edge.ConnectionStatus, a netip.Addr) bool {
	return slices.Contains(c.AllowedIPs, netip.PrefixFrom(a, a.BitLen()))
}

// peerWith is the name of the peer that has an address.
func peerWith(ctx context.Context, nodes []*status.Node, a netip.Addr) (name string, err error) {
	var failed []error
	for _, n := range nodes {
		s, err := n.Get(ctx)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		for i := range s.Connections {
			if ownAddress(&s.Connections[i], a) {
				return s.Connections[i].Peer, nil
			}
		}
	}
	if len(failed) == len(nodes) {
		return "", errors.Join(failed...)
	}
	return "", fmt.Errorf("%s is no peer's own address in the tunnel; sluice status lists them", a)
}

// serveSpeedtest is -serve.
func serveSpeedtest(ctx context.Context, cmd *cli.Command) error {
	nodes, err := chosenNodes(cmd)
	if err != nil {
		return err
	}
	if len(nodes) > 1 {
		return usageError{"several nodes run on this machine; say by -interface or -socket which one is meant"}
	}
	node := nodes[0]
	s, err := node.Get(ctx)
	if err != nil {
		return err
	}
	switch {
	case len(s.Addresses) == 0:
		return errors.New("this node has no tunnel address yet; sluice status says why")
	case s.RefusesIncoming:
		return errors.New("this client lets no connections in, so no peer would get an answer; start it with -accept-incoming, or serve on the other node")
	}
	errs := cmd.Root().ErrWriter
	server := speedtest.Server{Port: uint16(cmd.Int("port")), Device: s.Interface, For: cmd.Duration("for"), Counters: node.Counters,
		Log: func(text string) { fmt.Fprintln(errs, text) },
		Peer: func(ctx context.Context, a netip.Addr) (string, error) {
			return peerWith(ctx, []*status.Node{node}, a)
		},
		Alive: func(ctx context.Context) error {
			now, err := node.Get(ctx)
			if err == nil && !slices.Equal(now.Addresses, s.Addresses) {
				return errors.New("the node has other tunnel addresses now; start again")
			}
			return err
		}}
	var addresses []string
	for _, p := range s.Addresses {
		server.Addresses = append(server.Addresses, p.Addr())
		addresses = append(addresses, p.Addr().String())
	}
	text := fmt.Sprintf("serving speed tests of this node's peers at %s, TCP port %d, for %s; on a peer: sluice speedtest -connect %s",
		strings.Join(addresses, " and "), server.Port, status.Span(server.For), s.Name)
	fmt.Fprintln(errs, strings.Join(status.Wrap(text, "", "  ", status.Columns), "\n"))
	return speedtest.Serve(ctx, server)
}
