package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"
	"go.yaml.in/yaml/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/member"
	"github.com/sluice-vpn/sluice/cmd/internal/ops"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// configText is of the descriptions of commands with configFlags.
const configText = `

-config FILE has flags by their names, in YAML: a line is "mtu: 1380", "fail-closed: true" or "routes: [10.0.0.0/24, fd09::/64]". Flags of
the command line take precedence. Secrets are not taken from it, only the names of their files. -check looks at both, and at the token, and ends
with status 0 or 2 without touching the network.`

// configFlags are those by which a command's other flags come from a file.
func configFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Local: true, Name: "config", Usage: "read flags from `FILE`"},
		&cli.BoolFlag{Local: true, Name: "check", Usage: "only say whether flags, -config and the token are good"},
	}
}

// maxConfig bounds a configuration file, in bytes.
const maxConfig = 64 << 10

// notConfigured are flags that a file cannot have.
var notConfigured = []string{"config", "check", "release", "help", "version"}

// secretWords are what a key is called whose value would be a secret.
var secretWords = []string{"token", "secret", "password", "key", "private-key", "preshared-key", "psk"}

// config is where a command's flags came from. The zero value is the command line alone.
type config struct {
	path  string
	lines map[string]int // by flag
}

// configure sets the flags of -config that the command line does not have.
func configure(cmd *cli.Command) (c config, err error) {
	if c.path = cmd.String("config"); c.path == "" {
		return c, nil
	}
	f, err := os.Open(c.path)
	if err != nil {
		return c, usageError{"-config: " + err.Error()}
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	switch {
	case err != nil:
		return c, usageError{"-config: " + err.Error()}
	case len(text) > maxConfig:
		return c, usageError{fmt.Sprintf("-config %s: longer than %d bytes", c.path, maxConfig)}
	}
	var doc yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	if err := decoder.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return c, usageError{fmt.Sprintf("-config %s: %s", c.path, oneLine(err))}
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return c, usageError{fmt.Sprintf("-config %s: something follows the first document", c.path)}
	}
	if len(doc.Content) == 0 {
		return c, nil
	}
	return c, c.apply(cmd, doc.Content[0])
}

// apply sets flags by the keys of a mapping.
func (c *config) apply(cmd *cli.Command, root *yaml.Node) error {
	if root.Kind != yaml.MappingNode {
		return c.wrong(root.Line, `want lines like "mtu: 1380"`)
	}
	given := map[string]bool{} // on the command line
	var names []string
	for _, f := range cmd.Flags {
		if name := f.Names()[0]; !slices.Contains(notConfigured, name) {
			names = append(names, name)
			given[name] = cmd.IsSet(name)
		}
	}
	c.lines = map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		name := key.Value
		switch {
		case slices.Contains(secretWords, name):
			return c.wrong(key.Line, "%s: secrets are not taken from here; %s", name, c.insteadOfSecret(names))
		case slices.Contains(notConfigured, name):
			return c.wrong(key.Line, "%s is for the command line only", name)
		case key.Kind != yaml.ScalarNode || !slices.Contains(names, name):
			return c.wrong(key.Line, "%s has no flag %.40q; did you mean %s?", cmd.FullName(), name, nearest(name, names))
		case c.lines[name] != 0:
			return c.wrong(key.Line, "%s is in line %d already", name, c.lines[name])
		}
		c.lines[name] = key.Line
		values, err := c.values(name, value)
		if err != nil || given[name] {
			if err != nil {
				return err
			}
			continue
		}
		if _, several := flagOf(cmd, name).(*cli.StringSliceFlag); !several {
			values = []string{strings.Join(values, ",")}
		}
		for _, v := range values {
			if err := cmd.Set(name, v); err != nil {
				return c.wrong(key.Line, "%s: %.80q is not understood: %s", name, v, parseError.ReplaceAllString(oneLine(err), ""))
			}
		}
	}
	for name := range given {
		if given[name] {
			delete(c.lines, name) // it is not from here
		}
	}
	return nil
}

// values are a scalar's or a list's.
func (c *config) values(name string, value *yaml.Node) (list []string, err error) {
	nodes := []*yaml.Node{value}
	if value.Kind == yaml.SequenceNode {
		nodes = value.Content
	}
	for _, n := range nodes {
		switch {
		case n.Kind != yaml.ScalarNode || n.Tag == "!!null":
			return nil, c.wrong(n.Line, "%s: want a value, or a list of values", name)
		case strings.Contains(n.Value, protocol.TokenPrefix):
			return nil, c.wrong(n.Line, "%s: this is a token, which is not taken from here, and may have been read by others; make another one and name its file by token-file", name)
		}
		list = append(list, n.Value)
	}
	return list, nil
}

func (c *config) insteadOfSecret(names []string) string {
	if slices.Contains(names, "token-file") {
		return "token-file names a file"
	}
	return "relay names a file"
}

func (c *config) wrong(line int, format string, a ...any) error {
	return usageError{fmt.Sprintf("%s:%d: %s", c.path, line, fmt.Sprintf(format, a...))}
}

// located says in which line the flag stands that an error is about.
func (c *config) located(err error) error {
	var usage usageError
	if !errors.As(err, &usage) {
		return err
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(usage.text, "-"), " ")
	if line := c.lines[strings.TrimSuffix(name, ":")]; line != 0 {
		return c.wrong(line, "%s", usage.text)
	}
	return err
}

func flagOf(cmd *cli.Command, name string) cli.Flag {
	for _, f := range cmd.Flags {
		if f.Names()[0] == name {
			return f
		}
	}
	return nil
}

// nearest is the name that takes the fewest changes of single letters.
func nearest(word string, names []string) (best string) {
	least := -1
	for _, name := range names {
		if d := distance(word, name); least < 0 || d < least {
			best, least = name, d
		}
	}
	return best
}

// distance is Levenshtein's, of two words of which the first 64 bytes count.
func distance(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// checked ends a command with -check: err is what is wrong.
func checked(cmd *cli.Command, err error) error {
	var usage usageError
	switch {
	case err == nil:
		_, err = fmt.Fprintf(cmd.Root().Writer, "%s: the configuration is good\n", cmd.FullName())
		return err
	case errors.As(err, &usage):
		return err
	}
	return usageError{oneLine(err)}
}

// checkToken looks at the token that a client or gateway would take. Standard input stays unread, and that there is none yet is good.
func checkToken(cmd *cli.Command) error {
	file := cmd.String("token-file")
	if file == "-" {
		return nil
	}
	_, source, err := member.ReadToken(file, strings.NewReader(""))
	if err != nil || source != "" {
		return err
	}
	return member.CheckStored(stateFolder(cmd, protocol.Role(cmd.Name)))
}

// checkServed looks at what -ops and -memory say.
func checkServed(cmd *cli.Command) error {
	if at := cmd.String("ops"); at != "" {
		if _, err := ops.Address(at); err != nil {
			return usageError{err.Error()}
		}
	}
	return checkMemory(cmd)
}

// unresolved stands for the addresses of names that are not to be asked for (RFC 5737).
func unresolved(context.Context, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1})}, nil
}
