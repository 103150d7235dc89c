package speedtest

import (
	"fmt"
	"io"
	"strings"
)

// progress shows how far a run is: on a terminal one line that is rewritten, elsewhere one line per finished measurement.
// The zero value shows nothing.
type progress struct {
	w        io.Writer
	terminal bool
	done     int
	total    int
	width    int // of the line on the terminal
}

func (p *progress) line(n int, r Result) string {
	rounds := ""
	if r.Round > 1 {
		rounds = fmt.Sprintf(" round %d", r.Round)
	}
	return fmt.Sprintf("[%*d/%d] %-10s %-14s%s", len(fmt.Sprint(p.total)), n, p.total, r.Case, r.Impl, rounds)
}

// live shows the newest sample of a running measurement; on a terminal only.
func (p *progress) live(r Result, s Sample) {
	if p.w == nil || !p.terminal {
		return
	}
	p.rewrite(p.line(p.done+1, r) + figures(s.GbitPerS, s.KPPS, 1e3*s.RTTS))
}

// finished shows a result.
func (p *progress) finished(r Result) {
	p.done++
	if p.w == nil {
		return
	}
	value, unit, _ := headline(r)
	text := fmt.Sprintf("%s %10.2f %s", p.line(p.done, r), value, unit)
	if p.terminal {
		p.rewrite(text)
	} else {
		fmt.Fprintln(p.w, text)
	}
}

// clear removes the line from the terminal.
func (p *progress) clear() {
	if p.w != nil && p.terminal && p.width > 0 {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", p.width))
		p.width = 0
	}
}

func (p *progress) rewrite(text string) {
	fmt.Fprintf(p.w, "\r%-*s", p.width, text)
	p.width = len(text)
}

func figures(gbit, kpps, rtt float64) string {
	var b strings.Builder
	for _, f := range []struct {
		value float64
		unit  string
	}{{gbit, "Gbit/s"}, {kpps, "kpps"}, {rtt, "ms"}} {
		if f.value > 0 {
			fmt.Fprintf(&b, " %10.2f %s", f.value, f.unit)
		}
	}
	return b.String()
}
