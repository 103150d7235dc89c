// Command sluice is the toolbox of Sluice: the nodes of a network (gateway, client) and what shows how they are (status,
// ping), a speed test that needs nothing but this program, and WireGuard keys. Each command has a file of its own.
//
// Commands return errors of one line that say what is wrong and what to do. The exit status is 0, 1 for a failure, 2 for
// arguments that were not understood.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/member"
	"github.com/sluice-vpn/sluice/cmd/internal/node"
	"github.com/sluice-vpn/sluice/cmd/internal/version"
)

// usageError is one about arguments.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func main() { os.Exit(run(os.Args, os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if err := member.CheckArguments(args); err != nil {
		fmt.Fprintf(stderr, "sluice: %v\n", err)
		return 2
	}
	err := newCommand(stdin, stdout, stderr).Run(context.Background(), args)
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, node.ErrReported):
		return 1
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "sluice: %s\n", usage.text)
		return 2
	}
	fmt.Fprintf(stderr, "sluice: %s\n", strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; "))
	var coder cli.ExitCoder
	if errors.As(err, &coder) && coder.ExitCode() != 0 {
		return coder.ExitCode()
	}
	return 1
}

func newCommand(stdin io.Reader, stdout, stderr io.Writer) *cli.Command {
	root := &cli.Command{
		Name:           "sluice",
		Usage:          "WireGuard tunnels that find their way, and stay fast",
		Description:    "For an interface that wg configures, use sluice-wg, which takes the place of wireguard-go.",
		Reader:         stdin,
		Writer:         stdout,
		ErrWriter:      stderr,
		ExitErrHandler: func(context.Context, *cli.Command, error) {}, // run prints
		Commands: []*cli.Command{
			portalCommand(), gatewayCommand(), clientCommand(), statusCommand(), pingCommand(),
			speedtestCommand(), genkeyCommand(), pubkeyCommand(), genpskCommand(), versionCommand(), nodeCommand(),
		},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return usageError{fmt.Sprintf("unknown command %q; sluice -h lists them", cmd.Args().First())}
			}
			return cli.ShowRootCommandHelp(cmd)
		},
	}
	plain(root)
	return root
}

// plain gives a command and those below it our way with wrong flags: one line, exit status 2.
func plain(cmd *cli.Command) {
	cmd.OnUsageError = func(_ context.Context, cmd *cli.Command, err error, _ bool) error {
		text := strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
		return usageError{fmt.Sprintf("%s; see %s -h", text, cmd.FullName())}
	}
	for _, c := range cmd.Commands {
		plain(c)
	}
}

// noArguments is the check of commands that take none.
func noArguments(ctx context.Context, cmd *cli.Command) (context.Context, error) {
	if cmd.Args().Present() {
		return ctx, usageError{fmt.Sprintf("%s takes no argument, not %q", cmd.FullName(), cmd.Args().First())}
	}
	return ctx, nil
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:   "version",
		Usage:  "print the version",
		Before: noArguments,
		Action: func(_ context.Context, cmd *cli.Command) error {
			_, err := fmt.Fprintf(cmd.Root().Writer, "sluice %s\n", version.String())
			return err
		},
	}
}
