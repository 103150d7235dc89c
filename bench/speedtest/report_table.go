package speedtest

import (
	"fmt"
	"io"
	"strings"
)

// column is a column of the table: its header and the text of a cell, "" where it has no meaning.
type column struct {
	header [2]string
	cell   func(s summary, reference *summary) string
}

// number formats a figure with about three digits, "" for zero.
func number(v float64) string {
	switch {
	case v == 0:
		return ""
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func both(values []float64) string {
	if len(values) != 2 {
		return ""
	}
	return fmt.Sprintf("%.0f/%.0f", values[0], values[1])
}

// figure makes a column of one figure.
func figure(top, bottom string, f func(Result) float64) column {
	return column{[2]string{top, bottom}, func(s summary, _ *summary) string { return number(f(s.Median)) }}
}

// tableColumns are the columns of the table and of the HTML report. ref is the implementation that one of them compares with.
func tableColumns(ref string) []column {
	return []column{
		{[2]string{"", "case"}, func(s summary, _ *summary) string { return s.Case }},
		{[2]string{"", "impl"}, func(s summary, _ *summary) string { return s.Impl }},
		figure("", "Gbit/s", func(r Result) float64 { return r.GbitPerS }),
		figure("", "kpps", func(r Result) float64 { return r.KPPS }),
		{[2]string{"loss", "%"}, lossCell},
		{[2]string{"re-", "trans"}, retransmitCell},
		figure("RTT", "mean ms", func(r Result) float64 { return 1e3 * r.RTTMeanS }),
		figure("RTT", "p50 ms", func(r Result) float64 { return 1e3 * r.RTTP50S }),
		figure("RTT", "p99 ms", func(r Result) float64 { return 1e3 * r.RTTP99S }),
		{[2]string{ref, "/ this"}, ratioCell},
		figure("Gb/CPU-s", "tunnel", func(r Result) float64 { return r.GbitPerCPUSecond }),
		figure("Gb/CPU-s", "machine", func(r Result) float64 { return r.GbitPerMachineCPUSecond }),
		{[2]string{"MiB", "A/B"}, func(s summary, _ *summary) string { return both(s.Median.PeakMiB) }},
		figure("segments", "/ send", func(r Result) float64 { return r.SegmentsPerSend }),
		figure("segments", "/ recv", func(r Result) float64 { return r.SegmentsPerReceive }),
	}
}

func lossCell(s summary, _ *summary) string {
	if s.Median.PacketsSent == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f", s.Median.LossPercent)
}

func retransmitCell(s summary, _ *summary) string {
	if i := caseIndex(s.Case); i < 0 || Cases()[i].forward == 0 {
		return ""
	}
	return fmt.Sprint(s.Median.Retransmits)
}

// ratioCell is the reference's headline over this one's: above 1 the reference has more of it.
func ratioCell(s summary, reference *summary) string {
	if reference == nil || reference.Impl == s.Impl {
		return ""
	}
	a, _, _ := headline(reference.Median)
	b, _, _ := headline(s.Median)
	if a == 0 || b == 0 {
		return ""
	}
	return fmt.Sprintf("%.2fx", a/b)
}

// referenceOf is the implementation that others are compared with: ours, or the first that ran.
func referenceOf(results []Result) string {
	for _, r := range results {
		if r.Impl == ImplSluice {
			return ImplSluice
		}
	}
	if len(results) == 0 {
		return ""
	}
	return results[0].Impl
}

// tableRows returns the header lines and the cells of the table, without columns that are empty throughout.
func (r *Report) tableRows() (headers [2][]string, rows [][]string) {
	ref := referenceOf(r.Results)
	list := summarize(r.Results)
	references := map[string]*summary{}
	for i := range list {
		if list[i].Impl == ref {
			references[list[i].Case] = &list[i]
		}
	}
	rows = make([][]string, len(list))
	for _, c := range tableColumns(ref) {
		cells := make([]string, len(list))
		for i, s := range list {
			cells[i] = c.cell(s, references[s.Case])
		}
		if strings.Join(cells, "") == "" {
			continue
		}
		headers[0] = append(headers[0], c.header[0])
		headers[1] = append(headers[1], c.header[1])
		for i := range rows {
			rows[i] = append(rows[i], cells[i])
		}
	}
	return headers, rows
}

// tableWidth is how many columns a terminal has at least.
const tableWidth = 80

// WriteTable writes the report for a person: medians over the rounds, one line per case and implementation. Figures that do not fit beside
// the others within tableWidth are in a table of their own below.
func (r *Report) WriteTable(w io.Writer) error {
	headers, rows := r.tableRows()
	if len(rows) == 0 {
		_, err := fmt.Fprintln(w, "nothing was measured")
		return err
	}
	all := append([][]string{headers[0], headers[1]}, rows...)
	widths := make([]int, len(headers[0]))
	for _, row := range all {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	var b strings.Builder
	for first := 2; first < len(widths); {
		end, room := first, tableWidth-widths[0]-2-widths[1]
		for ; end < len(widths) && (end == first || room >= 2+widths[end]); end++ {
			room -= 2 + widths[end]
		}
		writeFigures(&b, all, widths, first, end)
		b.WriteString("\n")
		first = end
	}
	for _, note := range r.notes() {
		b.WriteString(wrapped(note) + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeFigures writes the columns from first to before end, beside the names of cases and implementations. The first two rows are the header.
func writeFigures(b *strings.Builder, all [][]string, widths []int, first, end int) {
	for i, row := range all {
		name := row[0]
		switch {
		case i < 2:
		case i == 2 || name != all[i-1][0]:
			b.WriteString("\n")
		default:
			name = "" // the case is named once
		}
		line := fmt.Sprintf("%-*s  %-*s", widths[0], name, widths[1], row[1])
		for c := first; c < end; c++ {
			line += fmt.Sprintf("  %*s", widths[c], row[c])
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
}

// wrapped breaks a note at its spaces.
func wrapped(note string) string {
	var b strings.Builder
	column := 0
	for i, word := range strings.Fields(note) {
		switch {
		case i == 0:
		case column+1+len(word) > tableWidth:
			b.WriteString("\n  ")
			column = 2
		default:
			b.WriteString(" ")
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	return b.String()
}

// notes say what the figures were measured on, and how.
func (r *Report) notes() []string {
	if r.Peer != nil {
		return append(r.liveNotes(), r.dropNotes()...)
	}
	m, s := r.Machine, r.Settings
	notes := []string{
		r.Sluice.String(),
		m.String(),
		fmt.Sprintf("%.3g s each after %.3g s, %s; outer MTU %d, inner MTU %d", s.DurationS, s.WarmUpS, rounds(s.Rounds), s.OuterMTU, s.InnerMTU),
		fmt.Sprintf("%s / this: Gbit/s, kpps or mean RTT of %[1]s over that of the line", referenceOf(r.Results)),
		fmt.Sprintf("socket buffers: a program of this lab that asks for 8 MiB gets %s to receive and %s to send, as the kernel counts",
			bufferSize(m.SocketReceiveBuffer), bufferSize(m.SocketSendBuffer)),
	}
	switch s.Topology {
	case TopologyNAT:
		notes = append(notes, "a client and a gateway, each behind a NAT, on the direct path that ICE found")
	case TopologyRelay:
		notes = append(notes, "a client and a gateway, each behind a symmetric NAT, over the portal's relay on the same machine")
	}
	if s.Load == LoadIperf {
		notes = append(notes, "the load is iperf3's")
	}
	if s.Segmented {
		notes = append(notes, "TCP and UDP segmentation offload of the cable are off")
	}
	seen := map[string]bool{}
	for _, one := range r.Results {
		if one.NodeReceiveBuffer > 0 && !seen[one.Impl] {
			seen[one.Impl] = true
			notes = append(notes, fmt.Sprintf("socket buffers of %s: %s to receive, %s to send", one.Impl, bufferSize(one.NodeReceiveBuffer), bufferSize(one.NodeSendBuffer)))
		}
	}
	return append(notes, r.dropNotes()...)
}

func (m Machine) String() string {
	cpu := strings.TrimSpace(m.CPU + " " + m.Host)
	return fmt.Sprintf("%d x %s, %d MiB, %s %s %s, %s", m.CPUs, cpu, m.MemoryMiB, m.OS, m.Kernel, m.Arch, m.GoVersion)
}

// liveNotes are those of a live tunnel.
func (r *Report) liveNotes() []string {
	s, far := r.Settings, r.Peer
	return []string{
		fmt.Sprintf("A is this machine, B is %s (%s), %s", far.Name, far.Address, far.Path),
		fmt.Sprintf("A: %s; %s", r.Sluice, r.Machine), fmt.Sprintf("B: %s; %s", far.Sluice, far.Machine),
		fmt.Sprintf("%.3g s each after %.3g s, %s; inner MTU %d", s.DurationS, s.WarmUpS, rounds(s.Rounds), s.InnerMTU),
		fmt.Sprintf("socket buffers for 8 MiB asked for, A and B: %s and %s to receive, %s and %s to send, as the kernel counts",
			bufferSize(r.Machine.SocketReceiveBuffer), bufferSize(far.Machine.SocketReceiveBuffer),
			bufferSize(r.Machine.SocketSendBuffer), bufferSize(far.Machine.SocketSendBuffer)),
		"what was dropped is of all that the two nodes carried meanwhile",
	}
}

func rounds(n int) string {
	if n == 1 {
		return "one round"
	}
	return fmt.Sprintf("medians of %d rounds", n)
}

// bufferSize formats what SO_RCVBUF reports; half of it is for data, the kernel keeps the rest for its book-keeping.
func bufferSize(n int) string {
	if n >= 1<<20 {
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d KiB", n>>10)
}
