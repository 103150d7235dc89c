package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/urfave/cli/v3"
	"golang.org/x/term"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/edge"
)

// socketDirectories are where running nodes are looked for; tests have their own.
var socketDirectories = status.Directories(os.Getenv)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show how this machine's gateway or client reaches its peers",
		Description: "For each peer: the state of the connection, whether packets go direct or over a relay, when the last WireGuard handshake" +
			"\nwas, the round trip, what was carried, and why the latest connection ended. Without -socket and -interface it shows\n" +
			"every node that runs on this machine. Exit status 1: no node answered.",
		Flags: append(nodeFlags(),
			&cli.BoolFlag{Name: "json", Usage: "print all that is known, as one JSON object a line"},
			&cli.BoolFlag{Name: "watch", Usage: "again every second, with rates and round trips over time"},
		),
		Before: noArguments,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			nodes, err := chosenNodes(cmd)
			if err != nil {
				return err
			}
			root := cmd.Root()
			v := &viewer{nodes: nodes, json: cmd.Bool("json"), out: root.Writer, diagnostics: root.ErrWriter, before: map[string]status.Sample{}}
			v.size = terminalSize(root.Writer)
			if !cmd.Bool("watch") {
				return v.show(ctx)
			}
			ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
			defer stop()
			v.rates = true
			return v.watch(ctx, time.Second)
		},
	}
}

// terminalSize tells the size of the terminal that out is; nil: it is none.
func terminalSize(out io.Writer) func() (width, height int) {
	f, isFile := out.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return func() (width, height int) { width, height, _ = term.GetSize(int(f.Fd())); return width, height }
}

// terminalWidth is the width of the terminal that out is, 0: it is none.
func terminalWidth(out io.Writer) (width int) {
	if size := terminalSize(out); size != nil {
		width, _ = size()
	}
	return width
}

// nodeFlags say which node is meant.
func nodeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "socket", Usage: "ask the node at the status socket `PATH`"},
		&cli.StringFlag{Name: "interface", Usage: "ask the node with the interface `NAME`"},
	}
}

// chosenNodes are the node that the flags name, or all of this machine.
func chosenNodes(cmd *cli.Command) ([]*status.Node, error) {
	socket, iface := cmd.String("socket"), cmd.String("interface")
	switch {
	case socket != "" && iface != "":
		return nil, usageError{"-socket and -interface name a node both; give one of them"}
	case socket != "":
		return []*status.Node{status.NewNode(socket)}, nil
	case iface != "":
		return []*status.Node{status.NewNode(socketOf(iface))}, nil
	}
	var paths []string
	for _, dir := range socketDirectories {
		list, err := status.Sockets(dir)
		if err != nil {
			return nil, err
		}
		paths = append(paths, list...)
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("no node runs on this machine (there is no socket in %s); start one with sluice gateway or sluice client",
			strings.Join(socketDirectories, " or "))
	}
	nodes := make([]*status.Node, len(paths))
	for i, path := range paths {
		nodes[i] = status.NewNode(path)
	}
	return nodes, nil
}

// socketOf is the socket of the node with that interface, in the last folder where there is one.
func socketOf(iface string) string {
	path := status.PathIn(socketDirectories[0], iface)
	for _, dir := range socketDirectories[1:] {
		if _, err := os.Lstat(status.PathIn(dir, iface)); err == nil {
			path = status.PathIn(dir, iface)
		}
	}
	return path
}

// viewer shows nodes once or again and again.
type viewer struct {
	nodes            []*status.Node
	json, rates      bool
	size             func() (width, height int) // of the terminal that out is; nil: it is none
	out, diagnostics io.Writer
	before           map[string]status.Sample // by socket
}

// watch shows until ctx ends. That a node does not answer for a while is shown, not the end.
func (v *viewer) watch(ctx context.Context, interval time.Duration) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	screen, page := *v, &bytes.Buffer{}
	if v.size != nil && !v.json {
		screen.out, screen.diagnostics = page, page
	}
	for {
		if err := screen.show(ctx); err != nil && ctx.Err() == nil {
			fmt.Fprintf(screen.diagnostics, "sluice: %v\n", err)
		}
		if ctx.Err() == nil {
			v.turn(page)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// turn ends one showing: on a terminal, the page takes the place of the one before, without a moment of darkness in between.
func (v *viewer) turn(page *bytes.Buffer) {
	switch {
	case v.json:
	case v.size == nil:
		fmt.Fprintln(v.out)
	default:
		_, height := v.size()
		io.WriteString(v.out, screenful(page.String(), height))
		page.Reset()
	}
}

// screenful draws a page over the one before, from the top: what does not fit into height lines is counted only. The last
// line stays free for the cursor.
func screenful(page string, height int) string {
	const home, restOfLine, rest = "\x1b[H", "\x1b[K", "\x1b[J"
	lines := strings.Split(strings.TrimSuffix(page, "\n"), "\n")
	if room := max(height-2, 1); height > 0 && len(lines) > height-1 {
		lines = append(lines[:room:room], fmt.Sprintf("... and %d lines more; sluice status shows all", len(lines)-room))
	}
	return home + strings.Join(lines, restOfLine+"\n") + restOfLine + "\n" + rest
}

// show asks every node once. What one does not answer is told where others do, and is the error if none does.
func (v *viewer) show(ctx context.Context) error {
	var failed []error
	for i, n := range v.nodes {
		s, err := n.Get(ctx)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if err := v.print(n, s, i > 0); err != nil {
			return err
		}
	}
	if len(failed) == len(v.nodes) {
		return errors.Join(failed...)
	}
	for _, err := range failed {
		fmt.Fprintf(v.diagnostics, "sluice: %v\n", err)
	}
	return nil
}

func (v *viewer) print(n *status.Node, s edge.Status, more bool) error {
	if v.json {
		return json.NewEncoder(v.out).Encode(s)
	}
	if more {
		fmt.Fprintln(v.out)
	}
	view := status.View{Rates: v.rates}
	if v.size != nil {
		view.Width, _ = v.size()
	}
	now := status.Sample{At: time.Now(), Status: s}
	before := v.before[n.Path()]
	v.before[n.Path()] = now
	return view.Write(v.out, now, before)
}
