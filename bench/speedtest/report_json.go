package speedtest

import (
	"encoding/json"
	"fmt"
	"io"
)

// WriteJSON writes the report as one object, indented, with a final newline.
func (r *Report) WriteJSON(w io.Writer) error {
	if r.Results == nil {
		r.Results = []Result{} // a list, not null
	}
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("JSON report: %w", err)
	}
	return nil
}
