package status

import (
	"strings"
	"unicode/utf8"
)

// Columns is how wide what a person reads is where no terminal says another width.
const Columns = 80

// Wrap breaks a text at its spaces into lines of at most width columns, a width of 0: one line. The first begins with first, the others
// with rest. A word that is longer stays whole.
func Wrap(text, first, rest string, width int) []string {
	var lines []string
	line, empty := first, true
	for _, word := range strings.Fields(text) {
		switch {
		case empty:
		case width > 0 && wide(line)+1+wide(word) > width:
			lines = append(lines, line)
			line = rest
		default:
			line += " "
		}
		line, empty = line+word, false
	}
	return append(lines, line)
}

// WrapCommand is Wrap for what is to be pasted into a shell: lines that go on end with a backslash.
func WrapCommand(text, first, rest string, width int) []string {
	lines := Wrap(text, first, rest, width-2)
	for i := range lines[:len(lines)-1] {
		lines[i] += ` \`
	}
	return lines
}

// Table lays cells out in columns, the header first, in lines of at most width columns, a width of 0: without limit. Where that does not fit,
// the longest cells of the first column have a line of their own, with the rest of their row below.
func Table(rows [][]string, width int) []string {
	const gap = 2
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row[1:] {
			widths[i+1] = max(widths[i+1], wide(cell))
		}
	}
	room := width - gap*(len(widths)-1)
	for _, w := range widths[1:] {
		room -= w
	}
	for _, row := range rows {
		if n := wide(row[0]); width == 0 || n <= room {
			widths[0] = max(widths[0], n)
		}
	}
	lines := make([]string, len(rows))
	for r, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			if i == 0 && wide(cell) > widths[0] {
				line.WriteString(cell + "\n")
				cell = ""
			}
			line.WriteString(cell + strings.Repeat(" ", widths[i]-wide(cell)+gap))
		}
		lines[r] = strings.TrimRight(line.String(), " ")
	}
	return lines
}

// wide is how many columns a text has.
func wide(s string) int { return utf8.RuneCountInString(s) }
