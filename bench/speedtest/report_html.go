package speedtest

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
)

//go:embed report.html
var reportPage string

var reportTemplate = template.Must(template.New("report").Parse(reportPage))

// page is what report.html shows.
type page struct {
	Started  string
	Notes    []string
	Headers  [2][]string
	Rows     []pageRow
	Legend   []pageImpl
	Charts   []pageChart
	Programs []string
}

type pageRow struct {
	First bool // of its case
	Cells []string
}

// pageImpl gives an implementation its place in the palette.
type pageImpl struct {
	Name  string
	Class string
}

type pageChart struct {
	Title, Unit string
	Beyond      string // what is above the scale, "" for nothing
	SVG         template.HTML
}

// WriteHTML writes the report as one file without references to others: the table and, per case, a chart over time.
func (r *Report) WriteHTML(w io.Writer) error {
	p := page{Started: r.Started.Format("2006-01-02 15:04 MST"), Notes: r.notes()}
	headers, rows := r.tableRows()
	p.Headers = headers
	for i, row := range rows {
		p.Rows = append(p.Rows, pageRow{First: i == 0 || row[0] != rows[i-1][0], Cells: row})
	}
	classes := map[string]string{}
	for _, one := range r.Results {
		if classes[one.Impl] == "" {
			classes[one.Impl] = implClass(one.Impl, len(classes))
			p.Legend = append(p.Legend, pageImpl{one.Impl, classes[one.Impl]})
			if file := r.Programs[one.Impl]; file != "" {
				p.Programs = append(p.Programs, one.Impl+": "+file)
			}
		}
	}
	for _, c := range Cases() {
		if chart, ok := r.chart(c, classes); ok {
			p.Charts = append(p.Charts, chart)
		}
	}
	if err := reportTemplate.Execute(w, p); err != nil {
		return fmt.Errorf("HTML report: %w", err)
	}
	return nil
}

// classBare is the CSS class of the bare cable's lines.
const classBare = "limit-bare"

// implClass is the CSS class of a line: limits are dashed and grey, the rest take colours in order.
func implClass(impl string, n int) string {
	switch impl {
	case ImplBare:
		return classBare
	case ImplNull:
		return "limit-null"
	}
	return fmt.Sprintf("impl-%d", n%6)
}

// chart draws the samples of a case over time, one line per implementation and round.
func (r *Report) chart(c Case, classes map[string]string) (pageChart, bool) {
	value, unit := func(s Sample) float64 { return s.GbitPerS }, "Gbit/s"
	switch c.kind {
	case loadUDP:
		value, unit = func(s Sample) float64 { return s.KPPS }, "1000 packets/s"
	case loadRTT:
		value, unit = func(s Sample) float64 { return 1e3 * s.RTTS }, "ms"
	}
	var lines []chartLine
	for _, one := range r.Results {
		if one.Case != c.Name || len(one.Samples) < 2 {
			continue
		}
		line := chartLine{name: fmt.Sprintf("%s, round %d", one.Impl, one.Round), class: classes[one.Impl]}
		for _, s := range one.Samples {
			if c.kind == loadRTT && s.RTTS == 0 {
				continue // no probe was sent in it, or none was answered: that is no round trip of 0
			}
			line.points = append(line.points, [2]float64{s.AtS, value(s)})
		}
		lines = append(lines, line)
	}
	if len(lines) == 0 {
		return pageChart{}, false
	}
	top, beyond := chartScale(lines)
	svg := drawChart(c.Name+" over time, "+unit, top, lines)
	return pageChart{Title: c.Name + ": " + c.What, Unit: unit, Beyond: beyond, SVG: template.HTML(svg)}, true
}

// chartScale returns the largest value that a chart has to show. The bare cable may be many times faster than any tunnel;
// then it is left above the scale, and beyond says so.
func chartScale(lines []chartLine) (top float64, beyond string) {
	var tunnels, bare float64
	for _, l := range lines {
		for _, p := range l.points {
			if l.class == classBare {
				bare = max(bare, p[1])
			} else {
				tunnels = max(tunnels, p[1])
			}
		}
	}
	if tunnels > 0 && bare > 1.5*tunnels {
		return tunnels, fmt.Sprintf("%s is above the scale, up to %s", ImplBare, number(bare))
	}
	return max(tunnels, bare), ""
}

// chartLine is one line of a chart; points are x, y.
type chartLine struct {
	name, class string
	points      [][2]float64
}

// Size of a chart and of its margins, in SVG units.
const (
	chartWidth, chartHeight         = 560.0, 220.0
	marginLeft, marginRight         = 48.0, 8.0
	marginTop, marginBottom         = 8.0, 24.0
	plotWidth                       = chartWidth - marginLeft - marginRight
	plotHeight                      = chartHeight - marginTop - marginBottom
	ticksY, ticksX          float64 = 4, 6
)

// drawChart returns an SVG element. Names are escaped; colours come from the page's style sheet.
// What is above maxY, the top of the scale, is cut off.
func drawChart(label string, maxY float64, lines []chartLine) string {
	var maxX float64
	for _, l := range lines {
		for _, p := range l.points {
			maxX = max(maxX, p[0])
		}
	}
	stepX, stepY := niceStep(maxX/ticksX), niceStep(maxY/ticksY)
	topY := stepY * ceil(maxY/stepY)
	x := func(v float64) float64 { return marginLeft + over(v, maxX)*plotWidth }
	y := func(v float64) float64 { return marginTop + (1-over(v, topY))*plotHeight }

	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %g %g" role="img" aria-label="%s">`, chartWidth, chartHeight, template.HTMLEscapeString(label))
	for i := 0; float64(i)*stepY <= topY*1.0001; i++ {
		v := float64(i) * stepY
		fmt.Fprintf(&b, `<line class="grid" x1="%g" x2="%g" y1="%.1f" y2="%.1f"/>`, marginLeft, chartWidth-marginRight, y(v), y(v))
		fmt.Fprintf(&b, `<text class="tick" text-anchor="end" x="%g" y="%.1f">%s</text>`, marginLeft-6, y(v)+3.5, tickText(v, stepY))
	}
	for i := 0; float64(i)*stepX <= maxX*1.0001; i++ {
		v := float64(i) * stepX
		unit := ""
		if i == 0 {
			unit = " s"
		}
		fmt.Fprintf(&b, `<text class="tick" text-anchor="middle" x="%.1f" y="%g">%s%s</text>`, x(v), chartHeight-6, tickText(v, stepX), unit)
	}
	for _, l := range lines {
		fmt.Fprintf(&b, `<polyline class="line %s" points="`, template.HTMLEscapeString(l.class))
		for _, p := range l.points {
			// Slightly above the picture's edge, which cuts it.
			fmt.Fprintf(&b, "%.1f,%.1f ", x(p[0]), max(y(p[1]), -chartHeight))
		}
		fmt.Fprintf(&b, `"><title>%s</title></polyline>`, template.HTMLEscapeString(l.name))
	}
	b.WriteString("</svg>")
	return b.String()
}

// niceStep rounds a step up to 1, 2 or 5 times a power of ten; 1 for zero.
func niceStep(step float64) float64 {
	if step <= 0 {
		return 1
	}
	power := 1.0
	for power > step {
		power /= 10
	}
	for power*10 <= step {
		power *= 10
	}
	for _, m := range []float64{1, 2, 5} {
		if step <= m*power*1.0001 {
			return m * power
		}
	}
	return 10 * power
}

func ceil(v float64) float64 {
	n := float64(int(v))
	if v-n > 1e-9 {
		n++
	}
	return max(n, 1)
}

// tickText gives a tick as many decimals as its step needs.
func tickText(v, step float64) string {
	decimals := 0
	for s := step; s < 0.9999 && decimals < 6; s *= 10 {
		decimals++
	}
	return fmt.Sprintf("%.*f", decimals, v)
}
