// Package ops serves what an operator of a client, gateway or portal asks over HTTP:
//
//	/healthz       200 while no part of the program has failed, else 503
//	/readyz        200 if all that it needs is there, else 503; a line for each says what is not
//	/metrics       the counters of package count, in the formats of Prometheus
//	/debug/pprof/  profiles of the running program (net/http/pprof)
//
// Nobody has to sign in for it, so it is off unless asked for, and without an address on this machine's loopback only.
package ops

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluice-vpn/sluice/pipeline/count"
	"github.com/sluice-vpn/sluice/pipeline/errno"
)

// Check is one thing that has to be there. Err is nil if it is, else one line that says why not.
type Check struct {
	Name string
	Err  error
}

// Config says what to serve. All but Healthy are required. The functions are called by any goroutine, only when somebody asks.
type Config struct {
	Role, Version string
	Counters      func() []count.Counter
	Ready         func(context.Context) []Check // in the order that a person would look
	Healthy       func() error                  // nil: while it answers
	Logger        *slog.Logger
}

// Limits of what is served. A scrape looks at each peer once on the control goroutine, whoever asks and however often.
const (
	maxScrapes   = 2
	scrapeLimit  = 10 * time.Second
	readyLimit   = 3 * time.Second
	longestWrite = 5 * time.Minute // of a profile
)

// Address is what -ops names: ADDRESS:PORT, or PORT and :PORT, which are on 127.0.0.1. An error is one line that says what to do.
func Address(at string) (string, error) {
	if _, err := strconv.ParseUint(at, 10, 16); err == nil {
		at = ":" + at
	}
	host, port, err := net.SplitHostPort(at)
	if _, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil {
		return "", fmt.Errorf("-ops %q: use PORT (on 127.0.0.1) or ADDRESS:PORT", at)
	}
	if host == "" {
		host = "127.0.0.1" // who wants others to read it says so with 0.0.0.0 or [::]
	}
	return net.JoinHostPort(host, port), nil
}

// Listen opens an Address.
func Listen(at string) (net.Listener, error) {
	at, err := Address(at)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", at)
	switch {
	case errno.InUse(err):
		return nil, fmt.Errorf("-ops %s: another program has this port; choose another one", at)
	case err != nil:
		return nil, fmt.Errorf("-ops %s: %w", at, err)
	}
	return l, nil
}

// Serve answers at l until the server is closed.
func Serve(l net.Listener, c Config) *http.Server {
	server := &http.Server{
		Handler: New(c), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: longestWrite, IdleTimeout: time.Minute, MaxHeaderBytes: 1 << 14,
		ErrorLog: slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug),
	}
	c.Logger.Info("metrics are served", "address", l.Addr().String())
	go server.Serve(l) // ends with Close
	return server
}

// New makes what answers.
func New(c Config) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collector{c.Counters},
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sluice_build_info", Help: "Always 1; the labels say what runs.", ConstLabels: prometheus.Labels{"role": c.Role, "version": c.Version},
		}, func() float64 { return 1 }),
	)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes, Timeout: scrapeLimit}))
	mux.HandleFunc("GET /healthz", c.healthz)
	mux.HandleFunc("GET /readyz", c.readyz)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	return mux
}

func (c Config) healthz(w http.ResponseWriter, _ *http.Request) {
	if c.Healthy != nil {
		if err := c.Healthy(); err != nil {
			http.Error(w, "failed: "+oneLine(err), http.StatusServiceUnavailable)
			return
		}
	}
	fmt.Fprintln(w, "ok")
}

func (c Config) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readyLimit)
	defer cancel()
	text, ready := "", true
	for _, check := range c.Ready(ctx) {
		if check.Err != nil {
			ready = false
			text += check.Name + ": not ready: " + oneLine(check.Err) + "\n"
			continue
		}
		text += check.Name + ": ok\n"
	}
	if !ready {
		http.Error(w, "not ready\n"+strings.TrimSuffix(text, "\n"), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprint(w, "ready\n"+text)
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// collector shows declared counters. It describes none beforehand: what there is, and each series' one declaration, come with the values.
type collector struct{ counters func() []count.Counter }

func (c collector) Describe(chan<- *prometheus.Desc) {}

func (c collector) Collect(out chan<- prometheus.Metric) {
	for _, one := range c.counters() {
		out <- metric(one)
	}
}

// metric is a counter as client_golang has it.
func metric(c count.Counter) prometheus.Metric {
	var names, values []string
	for i := 0; i+1 < len(c.Labels); i += 2 {
		names, values = append(names, c.Labels[i]), append(values, c.Labels[i+1])
	}
	desc := prometheus.NewDesc(c.Series, c.Family.Help, names, nil)
	switch c.Kind {
	case count.Buckets:
		return prometheus.MustNewConstHistogram(desc, c.Value, float64(c.Sum)*c.Unit, c.Cumulative(), values...)
	case count.Gauge:
		return prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(c.Value), values...)
	}
	return prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(c.Value), values...)
}
