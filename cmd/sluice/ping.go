package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

func pingCommand() *cli.Command {
	return &cli.Command{
		Name:      "ping",
		Usage:     "ask a peer for a sign of life through the tunnel",
		ArgsUsage: "NAME",
		Description: "Sends ICMP echoes to the peer's tunnel address and prints for each the round trip and the path that the connection had" +
			"\nwhen it came back, direct or over a relay, and at the end the round trips of each path. The first echo also makes a" +
			"\nconnection, if there is none. Exit status 1: nothing came back.",
		Flags: append(nodeFlags(),
			&cli.IntFlag{Name: "count", Usage: "how many `ECHOES` to send, one a second", Value: 5},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object at the end"},
		),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.NArg() != 1 || cmd.Args().First() == "" {
				return usageError{"sluice ping takes the name of one peer; sluice status lists them"}
			}
			if n := cmd.Int("count"); n < 1 || n > maxEchoes {
				return usageError{fmt.Sprintf("-count %d: want 1 to %d", n, maxEchoes)}
			}
			nodes, err := chosenNodes(cmd)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
			defer stop()
			node, peer, err := findPeer(ctx, nodes, cmd.Args().First())
			if err != nil {
				return err
			}
			out := cmd.Root().Writer
			if cmd.Bool("json") {
				out = io.Discard
			}
			result, err := ping(ctx, out, node, peer, cmd.Int("count"))
			if cmd.Bool("json") && err == nil {
				err = json.NewEncoder(cmd.Root().Writer).Encode(result)
			}
			if err == nil && result.Received == 0 {
				err = result.silence()
			}
			return err
		},
	}
}

// maxEchoes bounds -count; sequence numbers have 16 bits.
const maxEchoes = 65535

// echoWait is how long an answer may take: the first echo may have to wait for a connection.
const (
	echoInterval = time.Second
	echoWait     = status.EchoLimit
)

// pingResult is what -json prints.
type pingResult struct {
	Peer     string       `json:"peer"`
	Address  netip.Addr   `json:"address"`
	Sent     int          `json:"sent"`
	Received int          `json:"received"`
	Echoes   []echoResult `json:"echoes"`
	Paths    []pathResult `json:"paths"` // those that answered, in their order
	// Explanation is of the connection, at the end, and State its state.
	Explanation string `json:"explanation"`
	State       string `json:"state"`
}

// silence is the error that nothing came back.
func (r *pingResult) silence() error {
	if r.State == "up" || r.State == "idle" {
		return fmt.Errorf("%s does not answer, but there is a connection: a client answers no echoes without -accept-incoming, and a firewall may drop them; %s", r.Peer, r.Explanation)
	}
	return fmt.Errorf("%s does not answer: %s", r.Peer, r.Explanation)
}

// echoResult is one echo, with the path that the connection had when its answer came.
type echoResult struct {
	Sequence int     `json:"sequence"`
	Answered bool    `json:"answered"`
	RTTS     float64 `json:"rtt_s,omitempty"`
	status.PeerPath
}

// pathResult is what came back by one path.
type pathResult struct {
	status.PeerPath
	Received int     `json:"received"`
	LeastS   float64 `json:"rtt_min_s"`
	MeanS    float64 `json:"rtt_mean_s"`
	MostS    float64 `json:"rtt_max_s"`
}

// findPeer asks the nodes which of them knows the peer.
func findPeer(ctx context.Context, nodes []*status.Node, name string) (*status.Node, edge.ConnectionStatus, error) {
	var found *status.Node
	var peer edge.ConnectionStatus
	var known []string
	var failed []error
	out := ""
	for _, n := range nodes {
		s, err := n.Get(ctx)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if s.SignIn.Reason != "" {
			out = s.SignIn.Why
		}
		for _, c := range s.Connections {
			known = append(known, c.Peer)
			if c.Peer != name {
				continue
			}
			if found != nil {
				return nil, peer, fmt.Errorf("several nodes of this machine know %s; say which one to ask with -interface", name)
			}
			found, peer = n, c
		}
	}
	switch {
	case found != nil:
		return found, peer, nil
	case len(failed) == len(nodes):
		return nil, peer, errors.Join(failed...)
	case out != "":
		return nil, peer, fmt.Errorf("%s is not reached: this node is signed out: %s", name, out)
	case len(known) == 0:
		return nil, peer, fmt.Errorf("no peer is called %q; sluice status says why this node has none", name)
	}
	slices.Sort(known)
	return nil, peer, fmt.Errorf("no peer is called %q; there are %s", name, strings.Join(slices.Compact(known), ", "))
}

// tunnelAddress is a peer's own address among its allowed IPs: a single one, of the tunnel's prefixes if it can be.
func tunnelAddress(allowed []netip.Prefix) (netip.Addr, error) {
	var first netip.Addr
	for _, p := range allowed {
		if !p.IsSingleIP() {
			continue
		}
		if slices.ContainsFunc(protocol.DefaultOverlay(), func(o netip.Prefix) bool { return o.Contains(p.Addr()) }) {
			return p.Addr(), nil
		}
		if !first.IsValid() {
			first = p.Addr()
		}
	}
	if !first.IsValid() {
		return first, errors.New("the peer has no tunnel address yet")
	}
	return first, nil
}

// ping sends count echoes and writes a line for each.
func ping(ctx context.Context, out io.Writer, node *status.Node, peer edge.ConnectionStatus, count int) (pingResult, error) {
	r := pingResult{Peer: peer.Peer, Echoes: []echoResult{}, Paths: []pathResult{}}
	var err error
	if r.Address, err = tunnelAddress(peer.AllowedIPs); err != nil {
		return r, err
	}
	e, err := echoerOf(ctx, node, r.Address)
	if err != nil {
		return r, err
	}
	defer e.Close()
	fmt.Fprintf(out, "ping %s (%s)\n", r.Peer, r.Address)
	for sequence := 1; sequence <= count && ctx.Err() == nil; sequence++ {
		began := time.Now()
		r.Sent++
		rtt, err := e.echo(ctx, sequence)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			if ctx.Err() != nil {
				break
			}
			return r, err
		}
		r.note(ctx, out, node, sequence, rtt, err)
		if sequence == count {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(echoInterval - time.Since(began)):
		}
	}
	r.summarize(out)
	return r, nil
}

// note adds an echo's result, with the path that the node has now.
func (r *pingResult) note(ctx context.Context, out io.Writer, node *status.Node, sequence int, rtt time.Duration, lost error) {
	echo := echoResult{Sequence: sequence, Answered: lost == nil}
	if s, err := node.Get(ctx); err == nil {
		for i := range s.Connections {
			if c := &s.Connections[i]; c.Peer == r.Peer {
				echo.PeerPath, r.State, r.Explanation = status.PathOf(c), c.State, c.Explanation
			}
		}
	}
	if lost != nil {
		r.Echoes = append(r.Echoes, echo)
		text := fmt.Sprintf("no answer within %v; %s", echoWait, r.Explanation)
		fmt.Fprintln(out, strings.Join(status.Wrap(text, fmt.Sprintf("%d: ", sequence), "   ", status.Columns), "\n"))
		return
	}
	echo.RTTS = rtt.Seconds()
	r.Received++
	r.Echoes = append(r.Echoes, echo)
	r.count(&echo)
	fmt.Fprintf(out, "%d: %.2f ms, %s\n", sequence, echo.RTTS*1000, echo.PeerPath)
}

// count books an answered echo to its path.
func (r *pingResult) count(e *echoResult) {
	i := slices.IndexFunc(r.Paths, func(p pathResult) bool { return p.PeerPath == e.PeerPath })
	if i < 0 {
		i = len(r.Paths)
		r.Paths = append(r.Paths, pathResult{PeerPath: e.PeerPath, LeastS: e.RTTS})
	}
	p := &r.Paths[i]
	p.MeanS = (p.MeanS*float64(p.Received) + e.RTTS) / float64(p.Received+1)
	p.Received++
	p.LeastS, p.MostS = min(p.LeastS, e.RTTS), max(p.MostS, e.RTTS)
}

func (r *pingResult) summarize(out io.Writer) {
	fmt.Fprintf(out, "%d sent, %d came back\n", r.Sent, r.Received)
	for _, p := range r.Paths {
		fmt.Fprintf(out, "%s: %d, %.2f ms at least, %.2f on average, %.2f at most\n", p.PeerPath, p.Received, p.LeastS*1000, p.MeanS*1000, p.MostS*1000)
	}
}
