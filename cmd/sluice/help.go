package main

import (
	"bytes"
	"io"
	"regexp"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
)

// printHelp writes what the library makes of a command with flags as everywhere else, with one hyphen, and within status.Columns.
func printHelp(out io.Writer, template string, data any) {
	var page bytes.Buffer
	cli.DefaultPrintHelp(&page, template, data)
	io.WriteString(out, fitHelp(page.String())) // an error means that the reader has gone
}

// Parts of a help page: a section's name, an option or command with its text beside, and what is to be typed in a description.
var (
	helpSection  = regexp.MustCompile(`^[A-Z][A-Z ]*:`)
	helpEntry    = regexp.MustCompile(`^( +\S(?:.*?\S)??) {2,}(\S.*)$`)
	helpRepeated = regexp.MustCompile(` \[ --.* \]$`)
	helpFlag     = regexp.MustCompile(`(^| |, )--([a-z])`)
)

// Columns of a help page's text, and of what is beside an entry; a longer entry has a line of its own.
const helpIndent, helpBesideCommand, helpBesideFlag = 3, 16, 26

// fitHelp breaks lines of a help page that are too long. Lines of a description that follow one another are one paragraph, but for
// those that are indented.
func fitHelp(page string) string {
	var lines []string
	var paragraph []string
	indent := strings.Repeat(" ", helpIndent)
	end := func() {
		if len(paragraph) > 0 {
			lines = append(lines, status.Wrap(strings.Join(paragraph, " "), indent, indent, status.Columns)...)
		}
		paragraph = nil
	}
	section := ""
	for line := range strings.Lines(page) {
		line = strings.TrimRight(line, " \n")
		if helpSection.MatchString(line) {
			section = line
		}
		text := strings.TrimPrefix(line, indent)
		if section == "DESCRIPTION:" && text != line && text != "" && text[0] != ' ' {
			paragraph = append(paragraph, text)
			continue
		}
		end()
		switch entry := helpEntry.FindStringSubmatch(line); {
		case section == "NAME:" || section == "USAGE:":
			lines = append(lines, status.Wrap(line, line[:len(line)-len(strings.TrimLeft(line, " "))], indent+"   ", status.Columns)...)
		case section == "DESCRIPTION:" && entry != nil:
			first := line[:len(line)-len(entry[2])]
			lines = append(lines, status.Wrap(entry[2], first, strings.Repeat(" ", len(first)), status.Columns)...)
		case entry != nil:
			name := helpRepeated.ReplaceAllString(entry[1], " ...")
			beside := helpBesideFlag
			if section == "COMMANDS:" {
				beside = helpBesideCommand
			}
			lines = append(lines, helpLines(helpFlag.ReplaceAllString(name, "$1-$2"), entry[2], beside)...)
		default:
			lines = append(lines, line)
		}
	}
	end()
	return strings.Join(lines, "\n") + "\n"
}

// helpLines sets a text beside an option or command, from that column on.
func helpLines(name, text string, beside int) (lines []string) {
	rest := strings.Repeat(" ", beside)
	first := name + rest[min(len(name), beside):]
	if len(name) > beside-2 {
		lines, first = append(lines, name), rest
	}
	return append(lines, status.Wrap(text, first, rest, status.Columns)...)
}
