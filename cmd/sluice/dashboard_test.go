package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// declaredSeries are the series that members and portals have and the values of their labels, as testdata/counters.txt of cmd/internal/member
// has them; a test there holds it against the declarations.
func declaredSeries(t *testing.T) (kinds map[string]string, labels map[string][]string) {
	t.Helper()
	text, err := os.ReadFile("../internal/member/testdata/counters.txt")
	if err != nil {
		t.Fatal(err)
	}
	kinds = map[string]string{"sluice_build_info": "gauge"}
	labels = map[string][]string{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Split(line, "\t")
		if len(fields) != 5 {
			t.Fatalf("not a declaration: %q", line)
		}
		series, values, _ := strings.Cut(fields[3], "{")
		kinds[series] = fields[2]
		for _, m := range regexp.MustCompile(`(\w+)="(\w+)"`).FindAllStringSubmatch(values, -1) {
			labels[series+" "+m[1]] = append(labels[series+" "+m[1]], m[2])
		}
	}
	return kinds, labels
}

// checkExpressions holds what a text asks of Prometheus against the declarations.
func checkExpressions(t *testing.T, name, text string) {
	t.Helper()
	kinds, labels := declaredSeries(t)
	seen := 0
	for _, m := range regexp.MustCompile(`(sluice_\w+)(?:\{([^}]*)\})?`).FindAllStringSubmatch(text, -1) {
		series := m[1]
		if base := strings.TrimSuffix(series, "_bucket"); kinds[base] == "histogram" {
			series = base
		}
		if kinds[series] == "" {
			t.Errorf("%s asks for %s, which nothing declares", name, m[1])
			continue
		}
		seen++
		for _, matcher := range regexp.MustCompile(`(\w+)(?:=~|!~|=|!=)"([^"]*)"`).FindAllStringSubmatch(m[2], -1) {
			for _, value := range strings.Split(matcher[2], "|") {
				if matcher[1] != "instance" && !slices.Contains(labels[series+" "+matcher[1]], value) {
					t.Errorf("%s asks for %s with %s=%q, which nothing declares", name, series, matcher[1], value)
				}
			}
		}
	}
	if seen < 8 {
		t.Errorf("%s asks for %d series, want 8 at least", name, seen)
	}
}

// TestDashboard: every series and label of the Grafana dashboard is declared.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("deploy/grafana/sluice.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	all := ""
	for _, p := range board.Panels {
		if p.Title == "" || len(p.Targets) == 0 {
			t.Errorf("a panel without title or query: %+v", p)
		}
		for _, target := range p.Targets {
			all += target.Expr + "\n"
		}
	}
	checkExpressions(t, "the dashboard", all)
}

// TestAlertRules: every series and label of the alert rules is declared, and promtool takes them.
func TestAlertRules(t *testing.T) {
	const path = "deploy/prometheus/sluice.rules.yml"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	checkExpressions(t, "the alert rules", string(text))
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("SKIPPED: needs promtool (Debian: prometheus) to check the rules")
	}
	if out, err := exec.Command(promtool, "check", "rules", path).CombinedOutput(); err != nil {
		t.Errorf("promtool check rules: %v\n%s", err, out)
	}
}
