package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/member"
	"github.com/sluice-vpn/sluice/cmd/internal/service"
)

// serviceRun is the command that the service manager calls.
const serviceRun = "run"

// managed runs a program, which obeys the service manager if that has started it.
func managed(ctx context.Context, cmd *cli.Command, program func(context.Context) error) error {
	if cmd.Name == serviceRun {
		return service.Run(ctx, program)
	}
	return program(ctx)
}

// systemCommands are those that only this system has.
func systemCommands() []*cli.Command {
	simple := func(name, usage, done string, act func() error) *cli.Command {
		return &cli.Command{Name: name, Usage: usage, Before: noArguments, Action: func(_ context.Context, cmd *cli.Command) error {
			if err := act(); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.Root().Writer, done)
			return err
		}}
	}
	run := clientCommand() // as the service manager calls it
	run.Name, run.Hidden = serviceRun, true
	return []*cli.Command{{
		Name:  "service",
		Usage: "run the client as a service of Windows",
		Description: "As an administrator:\n\n   sluice sign-in < client.token\n   sluice service install\n   sluice service start\n\n" +
			`The service SluiceClient runs sluice client with the token that sign-in has stored in %ProgramData%\sluice\state, from every` + "\n" +
			`start of the machine on, and keeps its log in %ProgramData%\sluice\data\logs (sluice logs). The program stays where it is, so` + "\n" +
			`put it, and wintun.dll, where only administrators write: %ProgramFiles%\sluice.`,
		Commands: []*cli.Command{
			run,
			{
				Name: "install", Usage: "make the service, which starts with the machine", UsageText: "sluice service install [-- FLAGS OF sluice client]",
				Action: func(_ context.Context, cmd *cli.Command) error {
					more := cmd.Args().Slice()
					if err := member.CheckArguments(more); err != nil {
						return usageError{err.Error()}
					}
					if err := service.Install(os.Getenv, more); err != nil {
						return err
					}
					_, err := fmt.Fprintf(cmd.Root().Writer, "installed as %s; sluice service start starts it now, its token is that of %s\n", service.Name,
						filepath.Join(service.Folder(os.Getenv), "state"))
					return err
				},
			},
			simple("remove", "stop the service and take it away", "removed; its token and logs stay", service.Remove),
			simple("start", "start the service", "started", service.Start),
			simple("stop", "stop the service until the next start of the machine", "stopped", service.Stop),
		},
	}}
}
