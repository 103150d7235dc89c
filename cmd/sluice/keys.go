package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/crypto"
)

// keyText is the longest input that pubkey reads: a key in base64 is 44 characters.
const keyText = 4096

func genkeyCommand() *cli.Command {
	return &cli.Command{
		Name:        "genkey",
		Usage:       "print a new private key",
		Description: "As `wg genkey`: 32 random bytes, clamped for Curve25519, in base64. Keep the output secret: umask 077.",
		Before:      noArguments,
		Action: func(_ context.Context, cmd *cli.Command) error {
			k, err := crypto.GeneratePrivateKey(rand.Reader)
			if err != nil {
				return err
			}
			return printSecret(cmd, k.Encode())
		},
	}
}

func genpskCommand() *cli.Command {
	return &cli.Command{
		Name:        "genpsk",
		Usage:       "print a new preshared key",
		Description: "As `wg genpsk`: 32 random bytes in base64, for both ends of one tunnel.",
		Before:      noArguments,
		Action: func(_ context.Context, cmd *cli.Command) error {
			k, err := crypto.GeneratePresharedKey(rand.Reader)
			if err != nil {
				return err
			}
			return printSecret(cmd, k.Encode())
		},
	}
}

func pubkeyCommand() *cli.Command {
	return &cli.Command{
		Name:        "pubkey",
		Usage:       "read a private key and print its public key",
		Description: "As `wg pubkey`: reads a private key in base64 from standard input.\n\n   sluice genkey | tee private.key | sluice pubkey",
		Before:      noArguments,
		Action: func(_ context.Context, cmd *cli.Command) error {
			text, err := io.ReadAll(io.LimitReader(cmd.Root().Reader, keyText))
			if err != nil {
				return fmt.Errorf("pubkey: %w", err)
			}
			trimmed := strings.TrimSpace(string(text))
			if trimmed == "" {
				return errors.New("pubkey: standard input is empty; it should be a private key, as genkey prints one")
			}
			k, err := crypto.ParsePrivateKey(trimmed)
			if err != nil {
				return errors.New("pubkey: standard input is not a private key: want 32 bytes in base64, which is 44 characters")
			}
			_, err = fmt.Fprintln(cmd.Root().Writer, k.Public().Encode())
			return err
		},
	}
}

// printSecret warns where others may read what it prints.
func printSecret(cmd *cli.Command, secret string) error {
	root := cmd.Root()
	if f, ok := root.Writer.(*os.File); ok {
		if st, err := f.Stat(); err == nil && everybodyReads(f, st) {
			fmt.Fprintln(root.ErrWriter, "sluice: warning: the secret goes to a file that everybody may read; "+maskText)
		}
	}
	_, err := fmt.Fprintln(root.Writer, secret)
	return err
}
