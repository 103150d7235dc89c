package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/logs"
)

func logsCommand() *cli.Command {
	return &cli.Command{
		Name:  "logs",
		Usage: "print the log of this machine's gateway or client",
		Description: "Client and gateway keep their log in a folder, a file for each start, 100 MB in all:\n\n" +
			logsText +
			"Lines are printed as by cat *.log | jq -r '\"\\(.time) \\(.severity) \\(.message)\"', those of several\n" +
			"programs in the order of time; " + logsRootText + ". The file latest leads to the newest.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "f", Usage: "go on with the lines that come"},
			&cli.StringFlag{Name: "level", Usage: "only lines of `LEVEL` and above: debug, info, warning or error"},
			&cli.DurationFlag{Name: "since", Usage: "only lines of the last `TIME`, such as 10m or 2h"},
			&cli.StringFlag{Name: "dir", Usage: "read the files of the folder `DIR`"},
		},
		Before: noArguments,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			r := &logs.Reader{Folders: logs.Caller(os.Getenv).Folders(), Level: -1 << 10}
			if text := cmd.String("level"); text != "" {
				level, err := logs.ParseLevel(text)
				if err != nil {
					return usageError{"-level " + err.Error()}
				}
				r.Level = level
			}
			switch since := cmd.Duration("since"); {
			case since < 0:
				return usageError{fmt.Sprintf("-since %v: want a time that is not negative, such as 10m", since)}
			case since > 0:
				r.Since = time.Now().Add(-since)
			}
			if dir := cmd.String("dir"); dir != "" {
				if _, err := os.Stat(dir); err != nil {
					return fmt.Errorf("-dir: %w", err)
				}
				r.Folders = []string{dir}
			}
			if len(r.Folders) == 0 {
				return errors.New("no home folder is known, so nor is that of logs: name it with -dir")
			}
			ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
			defer stop()
			return r.Print(ctx, cmd.Root().Writer, cmd.Bool("f"))
		},
	}
}

func logLevelCommand() *cli.Command {
	return &cli.Command{
		Name:      "log-level",
		Usage:     "change how much a running gateway or client logs",
		UsageText: "sluice log-level [LEVEL]",
		Description: "LEVEL is " + logs.Levels + ", and lasts until the program ends. Without it the level is printed. Without\n" +
			"-socket and -interface it is that of every node that runs on this machine.",
		Flags: nodeFlags(),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			name := cmd.Args().First()
			if cmd.Args().Len() > 1 {
				return usageError{"sluice log-level takes one level"}
			}
			if _, err := logs.ParseLevel(name); err != nil {
				return usageError{err.Error()}
			}
			nodes, err := chosenNodes(cmd)
			if err != nil {
				return err
			}
			for _, n := range nodes {
				before, e := n.LogLevel(ctx, name)
				err = errors.Join(err, e)
				if e != nil {
					continue
				}
				text := before
				if name != "" {
					level, _ := logs.ParseLevel(name) // was parsed above
					text = logs.LevelName(level) + ", before " + before
				}
				fmt.Fprintf(cmd.Root().Writer, "%s: %s\n", n.Path(), text)
			}
			return err
		},
	}
}
