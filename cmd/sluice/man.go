package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/version"
)

// manSection is that of commands for who runs the system (man(1)).
const manSection = 8

// manCommand writes the manual pages, for packages. There is github.com/urfave/cli-docs for it, which leaves the descriptions of commands
// out and writes flags as --x.
func manCommand() *cli.Command {
	return &cli.Command{
		Name: "man", Hidden: true, ArgsUsage: "FOLDER",
		Usage: "write the manual pages of all commands to a folder",
		Flags: []cli.Flag{&cli.StringFlag{Name: "date", Usage: "`DATE` of the pages", Value: time.Now().UTC().Format(time.DateOnly)}},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.NArg() != 1 {
				return usageError{"sluice man takes one folder"}
			}
			for name, page := range manPages(cmd.Root(), cmd.String("date")) {
				if err := os.WriteFile(filepath.Join(cmd.Args().First(), name), []byte(page), 0o644); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// manPages are one for the program and one for each command that is not hidden, by the names of their files. What is below a command
// below the program is part of the page of that.
func manPages(root *cli.Command, date string) map[string]string {
	pages := map[string]string{}
	page := func(title string, cmd *cli.Command) *strings.Builder {
		b := &strings.Builder{}
		fmt.Fprintf(b, ".TH %s %d %s \"Sluice %s\" \"Sluice\"\n.nh\n.ad l\n.SH NAME\n%s \\- %s\n.SH SYNOPSIS\n",
			strings.ToUpper(roff(title)), manSection, date, roff(strings.Fields(version.String())[0]), roff(title), roff(cmd.Usage))
		return b
	}
	commands := slices.DeleteFunc(slices.Clone(root.VisibleCommands()), func(c *cli.Command) bool { return c.Name == "help" })

	b := page(root.Name, root)
	fmt.Fprintf(b, ".B %s\n.I command\n[\\-h] [options]\n.SH DESCRIPTION\n", roff(root.Name))
	manText(b, described(root))
	fmt.Fprint(b, ".SH COMMANDS\n")
	for _, c := range commands {
		fmt.Fprintf(b, ".TP\n.BR %s\\-%s (%d)\n%s\n", roff(root.Name), roff(c.Name), manSection, roff(c.Usage))
	}
	manEnd(b, "sluice-wg", "wg")
	pages[manName(root.Name)] = b.String()

	for _, c := range commands {
		title := root.Name + "-" + c.Name
		b := page(title, c)
		manSynopsis(b, root.Name, c)
		fmt.Fprint(b, ".SH DESCRIPTION\n")
		manText(b, cmp.Or(described(c), sentence(c.Usage)))
		manFlags(b, c)
		manBelow(b, root.Name+" "+c.Name, c)
		manEnd(b, "sluice")
		pages[manName(title)] = b.String()
	}
	return pages
}

func manName(title string) string { return fmt.Sprintf("%s.%d", title, manSection) }

func manSynopsis(b *strings.Builder, parent string, c *cli.Command) {
	switch words := []string{".B " + roff(parent+" "+c.Name)}; {
	case c.UsageText != "":
		fmt.Fprintf(b, ".nf\n%s\n.fi\n", roffLines(c.UsageText))
	default:
		if len(c.VisibleFlags()) > 0 {
			words = append(words, "[options]")
		}
		if len(c.Commands) > 1 { // help is one
			words = append(words, "[command]")
		}
		if c.ArgsUsage != "" {
			words = append(words, roff(c.ArgsUsage))
		}
		fmt.Fprintln(b, strings.Join(words, "\n"))
	}
}

// manBelow writes the commands below one, and those below them.
func manBelow(b *strings.Builder, parent string, cmd *cli.Command) {
	for _, c := range cmd.VisibleCommands() {
		if c.Name == "help" {
			continue
		}
		name := parent + " " + c.Name
		fmt.Fprintf(b, ".SH \"%s\"\n", strings.ToUpper(roff(name)))
		manSynopsis(b, parent, c)
		fmt.Fprint(b, ".PP\n")
		manText(b, cmp.Or(described(c), sentence(c.Usage)))
		manFlags(b, c)
		manBelow(b, name, c)
	}
}

func sentence(usage string) string { return strings.ToUpper(usage[:1]) + usage[1:] + "." }

// placeholder is what a flag's usage calls its value.
var placeholder = regexp.MustCompile("`([^`]+)`")

func manFlags(b *strings.Builder, c *cli.Command) {
	heading := ".SH OPTIONS\n"
	if strings.Contains(c.FullName(), " ") && len(c.Lineage()) > 2 {
		heading = ".SS Options\n"
	}
	for _, f := range c.VisibleFlags() {
		flag, ok := f.(cli.DocGenerationFlag)
		if !ok || slices.Contains(f.Names(), "help") {
			continue
		}
		b.WriteString(heading)
		heading = ""
		usage, value := flag.GetUsage(), ""
		if m := placeholder.FindStringSubmatch(usage); m != nil {
			value = " \\fI" + roff(m[1]) + "\\fR"
			usage = placeholder.ReplaceAllString(usage, "$1")
		}
		if d := strings.Trim(flag.GetValue(), `"`); flag.TakesValue() && d != "" && d != "[]" && d != "0" && !strings.Contains(usage, "default") {
			usage += " (default: " + d + ")"
		}
		var names []string
		for _, name := range f.Names() {
			names = append(names, "\\fB"+roff("-"+name)+"\\fR")
		}
		fmt.Fprintf(b, ".TP\n%s%s\n%s\n", strings.Join(names, ", "), value, roff(usage))
	}
}

// manText writes the text of a help screen: lines that begin with blanks are as they are, others are filled.
func manText(b *strings.Builder, text string) {
	for i, paragraph := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		asIs := false
		for line := range strings.SplitSeq(paragraph, "\n") {
			switch indented := strings.HasPrefix(line, "   "); {
			case indented && !asIs:
				b.WriteString(".RS 4\n.nf\n")
			case !indented && asIs:
				b.WriteString(".fi\n.RE\n")
			}
			asIs = strings.HasPrefix(line, "   ")
			if line = strings.TrimSpace(line); line != "" {
				b.WriteString(roff(line) + "\n")
			}
		}
		if asIs {
			b.WriteString(".fi\n.RE\n")
		}
	}
}

// manEnd writes what all pages have in common.
func manEnd(b *strings.Builder, also ...string) {
	b.WriteString(".SH EXIT STATUS\n0, or 1 for a failure, or 2 for arguments that were not understood.\n.SH SEE ALSO\n")
	for i, name := range also {
		section, end := manSection, ","
		if i == len(also)-1 {
			end = ""
		}
		fmt.Fprintf(b, ".BR %s (%d)%s\n", roff(name), section, end)
	}
}

func roffLines(text string) string {
	var lines []string
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		lines = append(lines, roff(strings.TrimSpace(line)))
	}
	return strings.Join(lines, "\n")
}

// roff escapes text (groff(7)).
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n", " ").Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	return text
}
