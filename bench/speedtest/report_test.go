package speedtest

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"io"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

// testReport has two rounds of two cases with three implementations; one name needs escaping.
func testReport() *Report {
	r := &Report{
		Schema: ReportSchema, Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Machine:  Machine{OS: "linux", Arch: "amd64", Kernel: "6.1", CPU: "Test", CPUs: 2, SocketReceiveBuffer: 8 << 20, SocketSendBuffer: 416 << 10},
		Sluice:   Build{Version: "v1"},
		Settings: Settings{DurationS: 3, WarmUpS: 0.2, Rounds: 2, OuterMTU: 1500, InnerMTU: 1420},
		Programs: map[string]string{"sluice": "/bin/sluice", "<b>&": "/bin/b"},
	}
	for round := 1; round <= 2; round++ {
		g := float64(round)
		samples := []Sample{{AtS: 1, GbitPerS: g, KPPS: g}, {AtS: 2, GbitPerS: g + 1, KPPS: g + 1}}
		r.Results = append(r.Results,
			Result{Case: "tcp-1", Impl: "sluice", Round: round, GbitPerS: 3 + g, GbitPerCPUSecond: 2, PeakMiB: []float64{14, 15}, NodeReceiveBuffer: 4096, Samples: samples},
			Result{Case: "tcp-1", Impl: "<b>&", Round: round, GbitPerS: 1 + g, Retransmits: 12, Samples: samples},
			Result{Case: "tcp-1", Impl: "bare", Round: round, GbitPerS: 110, Samples: []Sample{{AtS: 1, GbitPerS: 100}, {AtS: 2, GbitPerS: 120}}},
			Result{Case: "udp-100", Impl: "sluice", Round: round, KPPS: 200, PacketsSent: 10, PacketsReceived: 9, LossPercent: 10, Samples: samples},
		)
	}
	return r
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	if err := testReport().WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	want := strings.TrimPrefix(`
                                 loss    re-  sluice  Gb/CPU-s    MiB
case     impl    Gbit/s  kpps     %  trans  / this    tunnel    A/B

tcp-1    sluice    4.50                  0              2.00  14/15
         <b>&      2.50                 12   1.80x
         bare       110                  0   0.04x

udp-100  sluice           200  10.0

Sluice v1
2 x Test, 0 MiB, linux 6.1 amd64,
3 s each after 0.2 s, medians of 2 rounds; outer MTU 1500, inner MTU 1420
`, "\n")
	// The position of the upper header follows from the lower one; compare without its leading blanks.
	got := strings.TrimLeft(b.String(), " ")
	if want = strings.TrimLeft(want, " "); !strings.HasPrefix(strings.ReplaceAll(got, ", \n", ",\n"), want) {
		t.Errorf("table\n%s\nwant at its start\n%s", got, want)
	}
	for _, line := range []string{"gets 8.0 MiB to receive and 416 KiB to send", "socket buffers of sluice: 4 KiB to receive"} {
		if !strings.Contains(strings.Join(strings.Fields(got), " "), line) {
			t.Errorf("no %q in\n%s", line, got)
		}
	}
	b.Reset()
	if err := (&Report{}).WriteTable(&b); err != nil || b.String() != "nothing was measured\n" {
		t.Errorf("empty report: %q, %v", b.String(), err)
	}
}

// TestTableWidth: with every figure that there is, no line is wider than a terminal, and no figure is missing.
func TestTableWidth(t *testing.T) {
	r := testReport()
	for i := range r.Results {
		one := &r.Results[i]
		one.GbitPerS, one.KPPS, one.PacketsSent, one.PacketsReceived, one.Retransmits = 12.34, 1234, 10, 9, 12345
		one.RTTMeanS, one.RTTP50S, one.RTTP99S = 0.00026, 0.00025, 0.0138
		one.GbitPerCPUSecond, one.GbitPerMachineCPUSecond, one.PeakMiB = 4.25, 3.56, []float64{194, 181}
		one.SegmentsPerSend, one.SegmentsPerReceive = 41.5, 37.25
		if one.Impl == "<b>&" {
			one.Impl = "wireguard-go"
		}
	}
	r.Machine.CPU, r.Machine.Host = "AMD EPYC 9R14 96-Core Processor", "virtual machine"
	var b bytes.Buffer
	if err := r.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if n := len(strings.TrimSuffix(line, "\n")); n > tableWidth {
			t.Errorf("%d columns, want at most %d: %s", n, tableWidth, line)
		}
	}
	for _, want := range []string{"12.3", "1234", "0.26", "0.25", "13.8", "4.25", "3.56", "194/181", "41.5", "37.2"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, b.String())
		}
	}
	if n := strings.Count(b.String(), "wireguard-go"); n != 2 {
		t.Errorf("the figures of a program are in %d tables, want 2\n%s", n, b.String())
	}
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	in := testReport()
	if err := in.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var out Report
	d := json.NewDecoder(&b)
	d.DisallowUnknownFields()
	if err := d.Decode(&out); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(in, &out) {
		t.Errorf("read back %+v\nwant %+v", out, in)
	}
	if _, err := d.Token(); err != io.EOF {
		t.Errorf("something follows the object: %v", err)
	}
	b.Reset()
	if err := (&Report{}).WriteJSON(&b); err != nil || !strings.Contains(b.String(), `"results": []`) {
		t.Errorf("empty report: %s %v", b.String(), err)
	}
}

func TestHTML(t *testing.T) {
	var b bytes.Buffer
	if err := testReport().WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for what, pattern := range map[string]string{
		"other files": `(?i)(src|href)\s*=|url\(|@import|<script`, "an unescaped name": `<b>`, "a failed figure": `NaN|Inf|%!`,
	} {
		if found := regexp.MustCompile(pattern).FindString(text); found != "" {
			t.Errorf("the page has %s: %q", what, found)
		}
	}
	for _, want := range []string{"prefers-color-scheme: dark", "&lt;b&gt;&amp;", "4.50", "1.80x", "bare is above the scale, up to 120"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page has no %q", want)
		}
	}
	charts := regexp.MustCompile(`(?s)<svg viewBox="0 0 560.*?</svg>`).FindAllString(text, -1)
	if len(charts) != 2 {
		t.Fatalf("%d charts, want one a case", len(charts))
	}
	for i, lines := range []int{6, 2} {
		if n := strings.Count(charts[i], "<polyline"); n != lines {
			t.Errorf("chart %d has %d lines, want %d: one an implementation and round", i, n, lines)
		}
		for d := xml.NewDecoder(strings.NewReader(charts[i])); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("chart %d: %v", i, err)
			}
		}
	}
}

func TestChartAxis(t *testing.T) {
	for in, want := range map[float64]float64{0: 1, 0.03: 0.05, 0.1: 0.1, 0.7: 1, 1: 1, 1.1: 2, 3: 5, 7: 10, 21: 50, 190: 200} {
		if got := niceStep(in); got < want*0.999 || got > want*1.001 {
			t.Errorf("step for %g is %g, want %g", in, got, want)
		}
	}
	flat := drawChart("flat", 0, []chartLine{{name: "x", points: [][2]float64{{0, 0}, {0, 0}}}})
	if strings.Contains(flat, "NaN") || strings.Contains(flat, "Inf") {
		t.Errorf("a chart of zeros: %s", flat)
	}
	for step, want := range map[float64]string{0.05: "1.00", 0.5: "1.0", 1: "1", 200: "1"} {
		if got := tickText(1, step); got != want {
			t.Errorf("tick 1 at step %g: %q, want %q", step, got, want)
		}
	}
}

func TestProgress(t *testing.T) {
	r := Result{Case: "tcp-1", Impl: "sluice", Round: 2, GbitPerS: 4}
	var plain, tty bytes.Buffer
	p := &progress{w: &plain, total: 12}
	p.live(r, Sample{GbitPerS: 3})
	p.finished(r)
	p.clear()
	if got := strings.Join(strings.Fields(plain.String()), " "); got != "[ 1/12] tcp-1 sluice round 2 4.00 Gbit/s" || strings.Contains(plain.String(), "\r") {
		t.Errorf("plain progress %q", plain.String())
	}
	p = &progress{w: &tty, terminal: true, total: 12}
	p.live(r, Sample{GbitPerS: 3})
	p.finished(r)
	p.clear()
	if got := tty.String(); strings.Contains(got, "\n") || !strings.Contains(got, "3.00 Gbit/s") || !strings.HasSuffix(got, " \r") {
		t.Errorf("progress on a terminal %q", got)
	}
	(&progress{}).finished(r) // shows nothing, fails not
}

// TestUnits: times in the report are in seconds, all of them, and the table's are the milliseconds that people read.
func TestUnits(t *testing.T) {
	var walk func(reflect.Type)
	walk = func(of reflect.Type) {
		switch of.Kind() {
		case reflect.Slice, reflect.Pointer, reflect.Map:
			walk(of.Elem())
		case reflect.Struct:
			for i := range of.NumField() {
				if tag := of.Field(i).Tag.Get("json"); strings.Contains(tag, "_ms") || strings.Contains(tag, "_us") || strings.Contains(tag, "_ns") {
					t.Errorf("%s.%s is %s, want seconds", of.Name(), of.Field(i).Name, tag)
				}
				if of.PkgPath() != "time" {
					walk(of.Field(i).Type)
				}
			}
		}
	}
	walk(reflect.TypeFor[Report]())
	var b bytes.Buffer
	r := Report{Results: []Result{{Case: "rtt-idle", Impl: "sluice", RTTMeanS: 0.0065}}}
	if err := r.WriteTable(&b); err != nil || !strings.Contains(b.String(), "6.50") {
		t.Errorf("6.5 ms, %v:\n%s", err, b.String())
	}
}
