package member

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// maxToken is the longest file that is read as a token.
const maxToken = 16 << 10

// Advice on where a token may come from.
const Advice = "write it to a file that only you can read and give -token-file FILE (- is standard input)," +
	" or set SLUICE_TOKEN, or pass the systemd credential sluice-token"

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

// ReadToken takes the token from file ("-" is stdin), else from SLUICE_TOKEN, else from the systemd credential sluice-token
// (systemd.exec(5), $CREDENTIALS_DIRECTORY). SLUICE_TOKEN is taken out of the environment in any case, so that no program
// that is started later inherits it. warn gets advice about a file that others may read: a warning only, because secrets
// that containers are given as files are often readable by all there.
func ReadToken(file string, stdin io.Reader, warn func(text string)) (protocol.Token, error) {
	text, source, err := tokenText(file, stdin, warn)
	if err != nil {
		return protocol.Token{}, fmt.Errorf("token: %w", err)
	}
	t, err := protocol.ParseToken(text)
	if err != nil {
		return t, fmt.Errorf("%s: %w", source, err)
	}
	return t, nil
}

func tokenText(file string, stdin io.Reader, warn func(string)) (text, source string, err error) {
	variable := os.Getenv("SLUICE_TOKEN")
	os.Unsetenv("SLUICE_TOKEN")
	credentials := os.Getenv("CREDENTIALS_DIRECTORY")
	switch {
	case file == "-":
		source = "standard input"
		text, err = readAll(stdin)
	case file != "":
		source = file
		text, err = readFile(file, warn)
	case variable != "":
		source, text = "SLUICE_TOKEN", variable
	case credentials != "":
		source = filepath.Join(credentials, "sluice-token")
		text, err = readFile(source, func(string) {}) // systemd has seen to its mode
	default:
		err = errors.New("there is none: make one with sluice portal, then " + Advice)
	}
	text = strings.TrimSpace(text)
	if err == nil && text == "" {
		err = fmt.Errorf("%s is empty", source)
	}
	return text, source, err
}

func readFile(path string, warn func(string)) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o077 != 0 {
		warn(fmt.Sprintf("others may read the token in %s; run chmod 600 %s", path, path))
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
