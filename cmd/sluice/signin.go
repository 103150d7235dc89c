package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v3"
	"golang.org/x/term"

	"github.com/sluice-vpn/sluice/cmd/internal/member"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/tun/host"
)

// stateFlag is the state folder of a client or gateway.
func stateFlag() cli.Flag {
	return &cli.StringFlag{Name: "state", Usage: "`FOLDER` of the token and of the identities of peers (default: " + stateText + ")"}
}

func markFlag() cli.Flag {
	return &cli.UintFlag{Name: "mark", Usage: "fwmark `NUMBER` of the question to the portal, as of the client or gateway", Value: host.DefaultMark}
}

// stateFolder is what stateFlag says, for a role.
func stateFolder(cmd *cli.Command, role protocol.Role) string {
	if folder := cmd.String("state"); folder != "" {
		return folder
	}
	return member.StateFolder(role, os.Getenv)
}

// storedFolder is the folder that has a token: what stateFlag says, else of this machine's the one.
func storedFolder(cmd *cli.Command) (string, error) {
	if folder := cmd.String("state"); folder != "" {
		return folder, nil
	}
	var having []string
	all := member.StateFolders(os.Getenv)
	for _, folder := range all {
		if _, ok, err := member.StoredToken(folder); ok || err != nil {
			having = append(having, folder)
		}
	}
	switch len(having) {
	case 0:
		return all[0], nil
	case 1:
		return having[0], nil
	}
	return "", usageError{"this machine has a token in each of " + strings.Join(having, " and ") + "; say which with -state"}
}

func signInCommand() *cli.Command {
	return &cli.Command{
		Name:  "sign-in",
		Usage: "store the token of this machine's client or gateway",
		Description: "Reads the token from standard input, or from -token-file FILE, which nobody else may read. Asks the portal whose it is, and\n" +
			"stores it in the state folder, for its owner alone. A client or gateway that runs there without a token of its own takes\n" +
			"it within a second, in place of another one if need be; one that starts later does as well.\n\n" +
			"   sluice sign-in < token",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "token-file", Usage: "read the token from `FILE`; - is standard input (the default)"},
			stateFlag(), markFlag(),
			&cli.BoolFlag{Name: "json", Usage: "print whom it stands for as one JSON object"},
		},
		Before: noArguments,
		Action: runSignIn,
	}
}

func runSignIn(ctx context.Context, cmd *cli.Command) error {
	root := cmd.Root()
	file := cmd.String("token-file")
	in := root.Reader
	if file == "" {
		file = "-"
		if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			fmt.Fprint(root.ErrWriter, "token: ")
			text, err := term.ReadPassword(int(f.Fd()))
			fmt.Fprintln(root.ErrWriter)
			if err != nil {
				return fmt.Errorf("token: %w", err)
			}
			in = strings.NewReader(string(text))
		}
	}
	token, _, err := member.ReadToken(file, in)
	if err != nil {
		return err
	}
	done, err := member.SignIn(ctx, token, func(r protocol.Role) string { return stateFolder(cmd, r) }, uint32(cmd.Uint("mark")))
	if err != nil {
		return err
	}
	if cmd.Bool("json") {
		return json.NewEncoder(root.Writer).Encode(done)
	}
	_, err = fmt.Fprintf(root.Writer, "signed in as %s, a %s, at the portal %s\nthe token is in %s\n", done.Name, done.Role, done.Portal, done.File)
	return err
}

func signOutCommand() *cli.Command {
	return &cli.Command{
		Name:  "sign-out",
		Usage: "remove the token that sign-in has stored",
		Description: "Removes the token from the state folder and tells the portal. A client or gateway that runs with it ends its connections\n" +
			"within a second, and waits in signed-out state. The token stays good: to end that, on the portal's machine, is sluice\n" +
			"portal node token or node remove.",
		Flags:  []cli.Flag{stateFlag(), markFlag()},
		Before: noArguments,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			folder, err := storedFolder(cmd)
			if err != nil {
				return err
			}
			name, untold, err := member.SignOut(ctx, folder, uint32(cmd.Uint("mark")))
			if err != nil {
				return err
			}
			root := cmd.Root()
			switch {
			case untold != nil:
				fmt.Fprintf(root.ErrWriter, "sluice: warning: the portal was not told: %s\n", oneLine(untold))
			case name == "":
				_, err = fmt.Fprintf(root.Writer, "signed out already: there is no token in %s\n", folder)
				return err
			}
			_, err = fmt.Fprintf(root.Writer, "signed out%s; the token is removed from %s\n", strings.TrimSuffix(" as "+name, " as "), folder)
			return err
		},
	}
}
