package status

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/sluice-vpn/sluice/cmd/internal/tune"
)

// WriteSettings shows a person what sluice tune changes.
func (v View) WriteSettings(out io.Writer, list []tune.Setting) error {
	if v.Width == 0 {
		v.Width = Columns
	}
	rows := [][]string{{"SETTING", "NOW", "WANTED", "BEFORE", ""}}
	for i := range list {
		s := &list[i]
		row := []string{s.Name, strconv.FormatInt(s.Now, 10), strconv.FormatInt(s.Want, 10), "-", "as it should be"}
		if s.Changed {
			row[3] = strconv.FormatInt(s.Before, 10)
			row[4] = "changed; -revert puts it back"
		}
		switch {
		case s.Missing:
			row[1], row[4] = "-", "this kernel has none"
		case s.Lacks():
			row[4] = "-apply raises it"
		}
		rows = append(rows, row)
	}
	_, err := fmt.Fprintln(out, strings.Join(Table(rows, v.Width), "\n"))
	return err
}
