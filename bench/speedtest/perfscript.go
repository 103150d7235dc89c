package speedtest

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// PerfText is what the Firefox Profiler makes of the text that perf script prints.
type PerfText struct {
	Samples int            // with at least one frame; the others are not shown
	Threads map[string]int // samples by "name pid/tid"
	Frames  int
	Named   int // frames with a symbol, not [unknown]
	// Functions counts the samples in which a function's name occurs, module left out.
	Functions map[string]int
	// Strange are lines that the importer would skip, at most the first ten.
	Strange []string
}

// What the importer accepts (firefox-devtools/profiler, src/profile-logic/import/linux-perf): a sample is a line with a
// thread's name, [pid/]tid and a time in seconds before a colon; then a line for each frame, innermost first: address,
// symbol, module in parentheses; then an empty line. Lines that begin with # are a header.
var (
	perfSample = regexp.MustCompile(`^(\S.*?)\s+((?:\d+/)?\d+)(?:\s+\[\d+\])?\s+\d+(?:\.\d+)?:`)
	perfFrame  = regexp.MustCompile(`^\s+([0-9a-f]+)\s+(.+) \(([^)]*)\)$`)
)

// ReadPerfScript reads perf script's text as the Firefox Profiler does. An error is the reader's.
func ReadPerfScript(r io.Reader) (*PerfText, error) {
	p := &PerfText{Threads: make(map[string]int), Functions: make(map[string]int)}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		m := perfSample.FindStringSubmatch(line)
		if m == nil {
			p.strange(line)
			continue
		}
		p.sample(m[1]+" "+m[2], lines)
	}
	return p, lines.Err()
}

// sample reads the frames of one sample, up to an empty line.
func (p *PerfText) sample(thread string, lines *bufio.Scanner) {
	frames := 0
	seen := make(map[string]bool)
	for lines.Scan() && strings.TrimSpace(lines.Text()) != "" {
		m := perfFrame.FindStringSubmatch(lines.Text())
		if m == nil {
			p.strange(lines.Text())
			continue
		}
		frames++
		name, _, _ := strings.Cut(m[2], "+0x") // the offset in the function
		if name == "[unknown]" {
			continue
		}
		p.Named++
		if !seen[name] {
			seen[name] = true
			p.Functions[name]++
		}
	}
	if p.Frames += frames; frames > 0 {
		p.Samples++
		p.Threads[thread]++
	}
}

func (p *PerfText) strange(line string) {
	if len(p.Strange) < 10 {
		p.Strange = append(p.Strange, line)
	}
}

// String tells in one line whether the text is worth loading.
func (p *PerfText) String() string {
	return fmt.Sprintf("%d samples in %d threads, %d of %d frames named", p.Samples, len(p.Threads), p.Named, p.Frames)
}
