// Command sluice is the toolbox of Sluice: the nodes of a network (gateway, client) and what shows how they are (status,
// ping), a speed test that needs nothing but this program, and WireGuard keys. Each command has a file of its own.
//
// Commands return errors of one line that say what is wrong and what to do. The exit status is 0, 1 for a failure, 2 for
// arguments that were not understood.
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"
	"golang.org/x/term"

	"github.com/sluice-vpn/sluice/cmd/internal/logs"
	"github.com/sluice-vpn/sluice/cmd/internal/member"
	"github.com/sluice-vpn/sluice/cmd/internal/node"
	"github.com/sluice-vpn/sluice/cmd/internal/version"
)

// usageError is one about arguments.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func main() {
	status := run(os.Args, os.Stdin, os.Stdout, os.Stderr)
	logs.Flush()
	os.Exit(status)
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if err := member.CheckArguments(args); err != nil {
		fmt.Fprintf(stderr, "sluice: %v\n", err)
		return 2
	}
	ctx := context.Background()
	if args[len(args)-1] == "--generate-shell-completion" {
		ctx = context.WithValue(ctx, completing{}, true)
	}
	err := newCommand(stdin, stdout, stderr).Run(ctx, args)
	var usage usageError
	switch {
	case err == nil, errors.Is(err, errVersion):
		return 0
	case errors.Is(err, node.ErrReported):
		return 1
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "sluice: %s\n", usage.text)
		return 2
	}
	fmt.Fprintf(stderr, "sluice: %s\n", oneLine(err))
	var coder cli.ExitCoder
	if errors.As(err, &coder) && coder.ExitCode() != 0 {
		return coder.ExitCode()
	}
	return 1
}

//go:embed deploy/completion.bash
var bashCompletion string

// completing is the key of a context in which a shell asks what may be next.
type completing struct{}

func init() { cli.HelpPrinter = printHelp } // the library's is one for the process

func newCommand(stdin io.Reader, stdout, stderr io.Writer) *cli.Command {
	root := &cli.Command{
		Name:           "sluice",
		Usage:          "WireGuard tunnels that find their way, and stay fast",
		Description:    "For an interface that wg configures, use sluice-wg, which takes the place of wireguard-go.",
		Reader:         stdin,
		Writer:         stdout,
		ErrWriter:      stderr,
		ExitErrHandler: func(context.Context, *cli.Command, error) {}, // run prints
		// It adds the command completion, which is hidden unless asked for.
		EnableShellCompletion: true,
		ConfigureShellCompletionCommand: func(c *cli.Command) {
			c.Hidden, c.Usage = false, "print what completes commands and flags in a shell"
			for _, shell := range c.Commands {
				if shell.Name == "bash" { // the library's evaluates what was typed
					shell.Action = func(_ context.Context, cmd *cli.Command) error {
						_, err := io.WriteString(cmd.Root().Writer, bashCompletion)
						return err
					}
				}
			}
			c.Description += exitText
			for _, shell := range c.Commands {
				shell.Description = strings.TrimPrefix(shell.Description+exitText, "\n\n")
			}
		},
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "version", Usage: "print the version"}}, // of all commands
		Before: printVersion,
		Commands: []*cli.Command{
			portalCommand(), gatewayCommand(), clientCommand(), signInCommand(), signOutCommand(), statusCommand(), whyCommand(), logsCommand(),
			logLevelCommand(), trustCommand(), pingCommand(), netcheckCommand(), doctorCommand(), tuneCommand(), captureCommand(), debugCommand(),
			speedtestCommand(), genkeyCommand(), pubkeyCommand(), genpskCommand(), versionCommand(), nodeCommand(), manCommand(),
		},
	}
	root.Commands = append(root.Commands, systemCommands()...)
	plain(root)
	return root
}

// parseError is how package strconv begins its errors; the flag and its value are named already.
var parseError = regexp.MustCompile(`strconv\.\w+: parsing "[^"]*": `)

// exitText ends the description of every command.
const exitText = "\n\nExit status: 0, or 1 for a failure, or 2 for arguments that were not understood."

// described is a command's description without exitText.
func described(cmd *cli.Command) string {
	return strings.TrimSpace(strings.TrimSuffix("\n\n"+cmd.Description, exitText))
}

// errVersion: -version has been obeyed.
var errVersion = errors.New("the version was printed")

// printVersion ends any command with -version.
func printVersion(ctx context.Context, cmd *cli.Command) (context.Context, error) {
	if !cmd.Bool("version") {
		return ctx, nil
	}
	if _, err := fmt.Fprintf(cmd.Root().Writer, "sluice %s\n", version.String()); err != nil {
		return ctx, err
	}
	return ctx, errVersion
}

// plain gives a command and those below it our way with wrong flags and unknown commands: one line, exit status 2.
func plain(cmd *cli.Command) {
	cmd.OnUsageError = func(_ context.Context, cmd *cli.Command, err error, _ bool) error {
		return usageError{fmt.Sprintf("%s; see %s -h", parseError.ReplaceAllString(oneLine(err), ""), cmd.FullName())}
	}
	cmd.Description = strings.TrimPrefix(cmd.Description+exitText, "\n\n")
	if cmd.Action == nil { // it only has commands below it
		cmd.Action = func(ctx context.Context, cmd *cli.Command) error {
			if _, err := noArguments(ctx, cmd); err != nil {
				return err
			}
			if cmd.Root() == cmd {
				return cli.ShowRootCommandHelp(cmd)
			}
			return cli.ShowSubcommandHelp(cmd)
		}
	}
	cmd.ShellComplete = complete
	for _, c := range cmd.Commands {
		plain(c)
	}
}

// complete prints what a shell may put next: commands and flags, as the help writes them, each with what it is for.
func complete(_ context.Context, cmd *cli.Command) {
	out := cmd.Root().Writer
	for _, c := range cmd.VisibleCommands() {
		fmt.Fprintf(out, "%s:%s\n", c.Name, c.Usage)
	}
	for _, f := range cmd.VisibleFlags() {
		if flag, ok := f.(cli.DocGenerationFlag); ok {
			fmt.Fprintf(out, "-%s:%s\n", f.Names()[0], strings.ReplaceAll(flag.GetUsage(), "`", ""))
		}
	}
}

// noArguments is the check of commands that take none.
func noArguments(ctx context.Context, cmd *cli.Command) (context.Context, error) {
	switch {
	case !cmd.Args().Present(), ctx.Value(completing{}) != nil: // then the last may be a part of a flag
		return ctx, nil
	case slices.ContainsFunc(cmd.Commands, func(c *cli.Command) bool { return c.Name != "help" }): // which every command has
		return ctx, usageError{fmt.Sprintf("unknown command %q; %s -h lists them", cmd.Args().First(), cmd.FullName())}
	}
	return ctx, usageError{fmt.Sprintf("%s takes no argument, not %q", cmd.FullName(), cmd.Args().First())}
}

// journal is the log of a command that runs for long where programs read it: all that the command has to say is lines of it
// then. Nil for people.
func journal(cmd *cli.Command) *slog.Logger {
	f, ok := cmd.Root().ErrWriter.(*os.File)
	if !ok || term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return logs.New(f, slog.LevelInfo)
}

// told puts the error of a command that runs for long into its journal, if there is one.
func told(cmd *cli.Command, err error) error {
	var usage usageError
	log := journal(cmd)
	if err == nil || log == nil || errors.As(err, &usage) {
		return err
	}
	log.Error(oneLine(err))
	return node.ErrReported
}

func oneLine(err error) string { return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ") }

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
