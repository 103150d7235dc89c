package member

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/secretfile"
)

// maxToken is the longest file that is read as a token.
const maxToken = 16 << 10

// Advice on where a token may come from.
const Advice = "give it to sluice sign-in on standard input, or write it to a file that only you can read and give -token-file FILE"

// ErrTokenArgument: there is a token among the arguments.
var ErrTokenArgument = errors.New("a token on the command line can be read by every user of this machine, so it is not taken" +
	" (make a new one if others are on it): " + Advice)

// CheckArguments refuses arguments that hold a token.
func CheckArguments(args []string) error {
	for _, arg := range args {
		if strings.Contains(arg, protocol.TokenPrefix) {
			return ErrTokenArgument
		}
	}
	return nil
}

// ReadToken takes the token that was given to this start alone: from file ("-" is stdin), else from SLUICE_TOKEN, else from the systemd
// credential sluice-token (systemd.exec(5), $CREDENTIALS_DIRECTORY). source says which, "" and no error that there is none of them.
// SLUICE_TOKEN is taken out of the environment in any case, so that no program that is started later inherits it.
func ReadToken(file string, stdin io.Reader) (t protocol.Token, source string, err error) {
	text, source, err := tokenText(file, stdin)
	if err != nil {
		return t, source, fmt.Errorf("token: %w", err)
	}
	if source == "" {
		return t, "", nil
	}
	if t, err = protocol.ParseToken(text); err != nil {
		return t, source, fmt.Errorf("%s: %w", source, err)
	}
	return t, source, nil
}

func tokenText(file string, stdin io.Reader) (text, source string, err error) {
	variable := os.Getenv("SLUICE_TOKEN")
	os.Unsetenv("SLUICE_TOKEN")
	credential := ""
	if folder := os.Getenv("CREDENTIALS_DIRECTORY"); folder != "" {
		credential = filepath.Join(folder, "sluice-token")
		if _, err := os.Stat(credential); errors.Is(err, fs.ErrNotExist) {
			credential = "" // there are others
		}
	}
	switch {
	case file == "-":
		source = "standard input"
		text, err = readAll(stdin)
	case file != "":
		source = file
		text, err = readFile(file, true)
	case variable != "":
		source, text = "SLUICE_TOKEN", variable
	case credential != "":
		source = credential
		text, err = readFile(source, false) // systemd has seen to its mode
	default:
		return "", "", nil
	}
	text = strings.TrimSpace(text)
	if err == nil && text == "" {
		err = fmt.Errorf("%s is empty", source)
	}
	return text, source, err
}

// readFile reads a token that nobody else may read, if private.
func readFile(path string, private bool) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if private {
		others, remedy, err := secretfile.OthersRead(f)
		switch {
		case err != nil:
			return "", err
		case others:
			return "", fmt.Errorf("others may read the token in %s, so it is not taken; run %s, and make another token if others use this machine", path, remedy)
		}
	}
	return readAll(f)
}

func readAll(r io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxToken+1))
	if err == nil && len(text) > maxToken {
		err = errors.New("too long to be a token")
	}
	return string(text), err
}
