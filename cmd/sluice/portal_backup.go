package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/portal"
	"github.com/sluice-vpn/sluice/ice/secretfile"
)

func portalBackupCommand() *cli.Command {
	return &cli.Command{
		Name: "backup", Usage: "write all that the portal of this machine knows to a file, while it runs", ArgsUsage: "FILE",
		Description: "FILE is for its owner only, and as secret as the state folder: who has it can be the portal. An earlier backup is replaced, in\n" +
			"one step; any other file is left alone. Keep it on another machine.",
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return withFile(cmd, func(file string) error { return backupPortal(ctx, cmd, file) })
		},
	}
}

func portalRestoreCommand() *cli.Command {
	return &cli.Command{
		Name: "restore", Usage: "make a state folder of a backup", ArgsUsage: "FILE",
		Description: "The folder, -state, must be empty or not there yet. A portal that is then started with it is the one that was backed up: give it\n" +
			"the same -public and -listen, since tokens name them, and start the old one never again. Nodes that were removed since the backup\n" +
			"are known again, tokens that were made since are not.",
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return withFile(cmd, func(file string) error { return restorePortal(ctx, cmd, file) })
		},
	}
}

// withFile runs f with the one argument.
func withFile(cmd *cli.Command, f func(file string) error) error {
	if cmd.NArg() != 1 || cmd.Args().First() == "" {
		return usageError{fmt.Sprintf("%s takes one FILE", cmd.FullName())}
	}
	return f(cmd.Args().First())
}

func backupPortal(ctx context.Context, cmd *cli.Command, file string) error {
	was, err := readBackupFile(file)
	switch {
	case err == nil && !portal.IsBackup(was):
		return fmt.Errorf("%s is there and is no backup; give another FILE", file)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	}
	var text json.RawMessage
	if err := askDesk(ctx, cmd.String("state"), "GET", "/backup", nil, &text); err != nil {
		return err
	}
	if err := secretfile.Write(file, text); err != nil {
		return fmt.Errorf("the backup could not be written: %w", err)
	}
	_, err = fmt.Fprintf(cmd.Root().Writer, "%s holds the portal's state and its key; keep it secret, and on another machine.\n", file)
	return err
}

func restorePortal(ctx context.Context, cmd *cli.Command, file string) error {
	text, err := readBackupFile(file)
	if err != nil {
		return err
	}
	folder := cmd.String("state")
	got, err := portal.Restore(ctx, folder, text)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	_, err = fmt.Fprintf(cmd.Root().Writer, "%s has the state of %s (%s ago), with %d nodes. Nodes that were removed since are known again.\n",
		folder, got.Created.Format(time.RFC3339), status.Span(time.Since(got.Created)), got.Nodes)
	return err
}

// readBackupFile reads what may be a backup.
func readBackupFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, portal.MaxBackup+1))
	if err == nil && len(text) > portal.MaxBackup {
		err = fmt.Errorf("%s is too large to be a backup", file)
	}
	return text, err
}
