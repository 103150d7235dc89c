package ops

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/pipeline/count"
)

func config(list ...count.Counter) Config {
	return Config{
		Role: "client", Version: "v1", Logger: slog.New(slog.DiscardHandler),
		Counters: func() []count.Counter { return list }, Ready: func(context.Context) []Check { return nil },
	}
}

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	text, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(text)
}

// TestMetrics: every kind of counter is shown, with its labels and help, and promtool finds nothing to say.
func TestMetrics(t *testing.T) {
	var sizes struct {
		H count.Histogram `help:"Sizes." name:"x_seconds" unit:"1e-3"`
	}
	sizes.H.Observe(3)
	list := append(count.Of("", &sizes),
		count.Plain(count.Total, "x_packets", "Packets.", 7), count.Plain(count.Gauge, "x_peers", "Peers.", 2),
		count.Labeled(count.Dropped, "drop_a", "Of this.", 1, "stage", "in", "reason", "a"),
		count.Labeled(count.Dropped, "drop_b", "Of that.", 0, "stage", "in", "reason", "b"))
	code, text := get(t, New(config(list...)), "/metrics")
	if code != 200 {
		t.Fatalf("%d %s", code, text)
	}
	for _, want := range []string{
		"# HELP sluice_x_packets_total Packets.\n# TYPE sluice_x_packets_total counter\nsluice_x_packets_total 7\n",
		"# TYPE sluice_x_peers gauge\nsluice_x_peers 2\n", `sluice_dropped_packets_total{reason="b",stage="in"} 0` + "\n",
		`sluice_x_seconds_bucket{le="0.002"} 0` + "\n", `sluice_x_seconds_bucket{le="0.004"} 1` + "\n", "sluice_x_seconds_sum 0.003\nsluice_x_seconds_count 1\n",
		`sluice_build_info{role="client",version="v1"} 1` + "\n", "go_goroutines ", "process_start_time_seconds ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	promtool(t, text)
}

func promtool(t *testing.T, page string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("SKIPPED: needs promtool (Debian: prometheus) to check the page")
	}
	cmd := exec.Command(path, "check", "metrics")
	cmd.Stdin = strings.NewReader(page)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil || out.Len() > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out.String())
	}
}

// TestReady: a page says of each thing whether it is there, and one that is not makes the whole not ready.
func TestReady(t *testing.T) {
	c := config()
	checks := []Check{{Name: "tun"}, {Name: "portal"}}
	c.Ready = func(context.Context) []Check { return checks }
	h := New(c)
	if code, text := get(t, h, "/readyz"); code != 200 || text != "ready\ntun: ok\nportal: ok\n" {
		t.Errorf("got %d %q", code, text)
	}
	checks[1].Err = errors.New("connection\nrefused")
	if code, text := get(t, h, "/readyz"); code != 503 || text != "not ready\ntun: ok\nportal: not ready: connection; refused\n" {
		t.Errorf("got %d %q", code, text)
	}
	if code, text := get(t, h, "/healthz"); code != 200 || text != "ok\n" {
		t.Errorf("got %d %q", code, text)
	}
	c.Healthy = func() error { return errors.New("gone") }
	if code, text := get(t, New(c), "/healthz"); code != 503 || text != "failed: gone\n" {
		t.Errorf("got %d %q", code, text)
	}
	if code, text := get(t, h, "/debug/pprof/goroutine?debug=1"); code != 200 || !strings.Contains(text, "goroutine profile") {
		t.Errorf("got %d %q", code, text)
	}
}

// TestListen: a port alone is on loopback only, and what cannot be opened is one line.
func TestListen(t *testing.T) {
	for _, at := range []string{"0", ":0", "127.0.0.1:0"} {
		l, err := Listen(at)
		if err != nil {
			t.Fatal(err)
		}
		if !l.Addr().(*net.TCPAddr).IP.IsLoopback() {
			t.Errorf("-ops %s listens at %v, want loopback", at, l.Addr())
		}
		taken := l.Addr().String()
		if _, err := Listen(taken); err == nil || err.Error() != fmt.Sprintf("-ops %s: another program has this port; choose another one", taken) {
			t.Errorf("a port in use: %v", err)
		}
		l.Close()
	}
	for _, at := range []string{"", "host", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "70000"} {
		if l, err := Listen(at); err == nil || !strings.Contains(err.Error(), "use PORT (on 127.0.0.1) or ADDRESS:PORT") {
			t.Errorf("-ops %q: %v %v", at, l, err)
		}
	}
}

// TestScrapesAreBounded: while two scrapes wait others are refused, not queued.
func TestScrapesAreBounded(t *testing.T) {
	c, release, entered := config(), make(chan struct{}), make(chan struct{}, maxScrapes)
	c.Counters = func() []count.Counter { entered <- struct{}{}; <-release; return nil }
	server := httptest.NewServer(New(c))
	defer server.Close()
	done := make(chan int, maxScrapes)
	for range maxScrapes {
		go func() {
			r, err := http.Get(server.URL + "/metrics")
			if err != nil {
				done <- 0
				return
			}
			r.Body.Close()
			done <- r.StatusCode
		}()
		<-entered
	}
	r, err := http.Get(server.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != 503 {
		t.Errorf("one more scrape: %d, want 503", r.StatusCode)
	}
	close(release)
	for range maxScrapes {
		if code := <-done; code != 200 {
			t.Errorf("a scrape that waited: %d, want 200", code)
		}
	}
}
