package status

import (
	"slices"
	"strings"
	"testing"
)

func TestWrap(t *testing.T) {
	for _, tt := range []struct {
		text, first, rest string
		width             int
		want              []string
	}{
		{"", "- ", "  ", 10, []string{"- "}},
		{"one two", "", "", 0, []string{"one two"}},
		{"one  two\nthree", "", "  ", 7, []string{"one two", "  three"}},
		{"one two", "* ", "  ", 8, []string{"* one", "  two"}},
		{"a-word-that-is-too-long b", "", "  ", 8, []string{"a-word-that-is-too-long", "  b"}},
		{"fünf über", "", "", 9, []string{"fünf über"}}, // columns, not bytes
	} {
		if got := Wrap(tt.text, tt.first, tt.rest, tt.width); !slices.Equal(got, tt.want) {
			t.Errorf("%q within %d: %q, want %q", tt.text, tt.width, got, tt.want)
		}
	}
	if got := WrapCommand("sluice portal node", "  ", "    ", 17); !slices.Equal(got, []string{`  sluice portal \`, `    node`}) {
		t.Errorf("a command: %q", got)
	}
}

func TestTable(t *testing.T) {
	rows := [][]string{{"NAME", "X", "Y"}, {"a", "1", ""}, {"a-long-name", "2", "zwölf"}, {"über", "3", "4"}}
	for width, want := range map[int]string{
		0:  "NAME         X  Y\na            1\na-long-name  2  zwölf\nüber         3  4",
		21: "NAME         X  Y\na            1\na-long-name  2  zwölf\nüber         3  4",
		20: "NAME  X  Y\na     1\na-long-name\n      2  zwölf\nüber  3  4",
	} {
		if got := strings.Join(Table(rows, width), "\n"); got != want {
			t.Errorf("%d columns:\n%s\nwant\n%s", width, got, want)
		}
	}
}
