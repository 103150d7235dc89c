package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"
	"golang.org/x/term"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/bench/speedtest"
)

// exitInterrupted is the exit status of a program that Ctrl-C ended, as shells count it.
const exitInterrupted = 130

func speedtestCommand() *cli.Command {
	return &cli.Command{
		Name:        "speedtest",
		Usage:       "measure the tunnel on this machine, beside its limits and other programs",
		Description: speedtestDescription(),
		Before:      noArguments,
		Flags: append([]cli.Flag{
			&cli.DurationFlag{Name: "duration", Value: 3 * time.Second, Usage: "of each measurement"},
			&cli.StringSliceFlag{Name: "cases", Usage: "run only these `CASES`, separated by commas"},
			&cli.StringSliceFlag{Name: "limits", Value: []string{speedtest.ImplBare, speedtest.ImplNull},
				Usage: "measure these `LIMITS` too: " + strings.Join(speedtest.Limits(), ",") + ", or none"},
			&cli.StringSliceFlag{Name: "against", Usage: "measure `PROGRAM` too: " + strings.Join(speedtest.Peers(), ", ") +
				" (built from source, once) or the path of one that is started as PROGRAM -f IFNAME; may be repeated"},
			&cli.IntFlag{Name: "rounds", Value: 1, Usage: "measure everything `N` times, interleaved, and take medians"},
			&cli.StringFlag{Name: "topology", Value: speedtest.TopologyDirect,
				Usage: "direct: a cable; nat: a client and a gateway behind NATs; relay: the same over a relay, with a portal of their own"},
			&cli.StringFlag{Name: "load", Value: speedtest.LoadOwn,
				Usage: "who makes the traffic: " + strings.Join(speedtest.Loads(), " or ") + ", to see what is the load's and what the tunnel's"},
			&cli.BoolFlag{Name: "segment", Usage: "switch TSO and tx-udp-segmentation off on the cable, as most real ones are"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object instead of the table"},
			&cli.StringFlag{Name: "html", Usage: "write a report with charts to `FILE`"},
			&cli.StringFlag{Name: "profile", Usage: "profile our nodes: " + strings.Join(speedtest.Profiles(), ", ")},
			&cli.BoolFlag{Name: "perf", Usage: "perf record -g both nodes; perf script text for the Firefox Profiler (profiler.firefox.com)"},
			&cli.StringFlag{Name: "out", Value: "speedtest-out", Usage: "`FOLDER` for the files of -profile and -perf"},
		}, liveFlags()...),
		Action: runSpeedtest,
	}
}

func speedtestDescription() string {
	var b strings.Builder
	b.WriteString("Builds two network namespaces and a cable between them, starts a node in each, and sends traffic through.\n" +
		"Needs no other program and no set-up; root is not needed where user namespaces are allowed. Nothing is left behind.\n\nCases:\n")
	for _, c := range speedtest.Cases() {
		fmt.Fprintf(&b, "  %-11s %s\n", c.Name, c.What)
	}
	b.WriteString(`
With -connect PEER the same cases go over a tunnel that is up, to a peer on whose machine sluice speedtest -serve
runs. A is this end, B the peer. The server is heard by peers only, at the tunnel's own addresses; it serves one at a
time and ends by itself. The load is that of the cases: it takes all that the tunnel and what is below it can carry.

   sluice speedtest -serve                         on the machine of gate
   sluice speedtest -connect gate -cases tcp-1     on the other

Limits: bare is the same load over the cable without a tunnel; null is our node with the cipher replaced by a copy.

JSON: {schema, started, sluice, machine, settings, programs, peer, results}. results is a list of {case, impl, round, seconds, ...}:
  gbit_per_s                      received payload, 1e9 bit/s (tcp-bidir: both; forward_, backward_gbit_per_s apart)
  kpps, offered_kpps              UDP packets received and sent, 1000/s
  loss_percent, tcp_retransmits   of packets or probes; segments
  rtt_mean_s, _p50_, _p99_, _max_  round trips, seconds
  node_cpu_s, machine_cpu_s, stolen_cpu_s  CPU seconds: of nodes [A, B], of the machine, taken by the hypervisor
  gbit_per_cpu_s, gbit_per_machine_cpu_s   Gbit per CPU second of both nodes, of the machine
  peak_mib                        VmHWM of nodes [A, B], MiB
  segments_per_send, segments_per_receive  datagrams per run of UDP_SEGMENT and UDP_GRO, where counted
  bytes_, packets_sent, _received  totals with warm-up; node_receive_buffer, node_send_buffer: socket buffers, bytes
  drops: [{where, name, packets}], unaccounted_packets  what became of UDP
                                  packets that were sent and not received
  counters                        of nodes [A, B]; samples: [{at_s, gbit_per_s, kpps, rtt_s}] over time`)
	return b.String()
}

// speedtestConfig reads the flags.
func speedtestConfig(cmd *cli.Command) (speedtest.Config, error) {
	c := speedtest.Config{
		Against: cmd.StringSlice("against"), Limits: cmd.StringSlice("limits"), Cases: cmd.StringSlice("cases"),
		Duration: cmd.Duration("duration"), Rounds: cmd.Int("rounds"), Load: cmd.String("load"), Segment: cmd.Bool("segment"),
		Topology: cmd.String("topology"),
		Profile:  cmd.String("profile"), Perf: cmd.Bool("perf"), OutDir: cmd.String("out"),
	}
	if slices.Equal(c.Limits, []string{"none"}) {
		c.Limits = []string{}
	}
	// Zero is the default to the package, but a mistake in a flag.
	if c.Duration == 0 {
		return c, usageError{"-duration 0s is too short; try 3s"}
	}
	if c.Rounds == 0 {
		return c, usageError{"-rounds 0 measures nothing; try 1"}
	}
	c, err := c.Normalize()
	if err != nil {
		return c, usageError{err.Error()}
	}
	return c, nil
}

// runSpeedtest runs twice: outside of the lab up to lab.Enter, where it checks and builds what needs the network, and inside.
func runSpeedtest(ctx context.Context, cmd *cli.Command) error {
	if isLive, err := live(cmd); isLive || err != nil {
		if err != nil {
			return err
		}
		return runLive(ctx, cmd)
	}
	c, err := speedtestConfig(cmd)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c.Node = []string{self, "node"}
	if err := speedtest.Check(c); err != nil {
		return err
	}
	programs, err := speedtest.ResolveAgainst(ctx, c.Against, cmd.Root().ErrWriter)
	if err = errors.Join(err, ctx.Err()); err != nil { // from here on the run inside is told of signals
		return interrupted(err)
	}
	inside, code, err := lab.Enter()
	if err != nil {
		return err
	}
	if !inside {
		if code != 0 {
			os.Exit(code) // the run inside has said why
		}
		return nil
	}
	return measured(cmd, c, func(c speedtest.Config) (*speedtest.Report, error) { return speedtest.Run(ctx, c, programs) })
}

// measured has something measured and writes the reports that are asked for; of a run that ends early, the table of what it has.
func measured(cmd *cli.Command, c speedtest.Config, run func(speedtest.Config) (*speedtest.Report, error)) error {
	html, err := openPage(cmd.String("html"))
	if err != nil {
		return err
	}
	defer html.close()
	c.Progress = cmd.Root().ErrWriter
	if f, ok := c.Progress.(*os.File); ok {
		c.Terminal = term.IsTerminal(int(f.Fd()))
	}
	report, err := run(c)
	if err != nil {
		if report != nil && len(report.Results) > 0 && !cmd.Bool("json") {
			_ = report.WriteTable(cmd.Root().Writer) // the error below counts
		}
		return interrupted(err)
	}
	return writeReports(report, cmd, html)
}

// page is the file of -html; nil if there is none.
type page struct {
	f   *os.File
	new bool // it was not there before
}

// openPage opens the file before the measurement, so that a wrong name costs no time. What is in it stays until write.
func openPage(path string) (*page, error) {
	if path == "" {
		return nil, nil
	}
	_, err := os.Lstat(path)
	p := &page{new: errors.Is(err, os.ErrNotExist)}
	if p.f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644); err != nil {
		return nil, fmt.Errorf("-html: %w", err)
	}
	return p, nil
}

func (p *page) write(report *speedtest.Report) error {
	p.new = false
	if err := p.f.Truncate(0); err != nil && !errors.Is(err, syscall.EINVAL) { // a pipe has no length
		return fmt.Errorf("-html: %w", err)
	}
	if err := report.WriteHTML(p.f); err != nil {
		return err
	}
	if err := p.f.Close(); err != nil {
		return fmt.Errorf("-html: %w", err)
	}
	return nil
}

// close removes a file that was made for nothing.
func (p *page) close() {
	if p == nil {
		return
	}
	p.f.Close()
	if p.new {
		_ = os.Remove(p.f.Name()) // the run's own error is what counts
	}
}

func writeReports(report *speedtest.Report, cmd *cli.Command, html *page) error {
	if html != nil {
		if err := html.write(report); err != nil {
			return err
		}
	}
	w := cmd.Root().Writer
	if cmd.Bool("json") {
		return report.WriteJSON(w)
	}
	if err := report.WriteTable(w); err != nil {
		return err
	}
	return listFiles(w, report)
}

// listFiles names the profiles that were written.
func listFiles(w io.Writer, report *speedtest.Report) error {
	for _, r := range report.Results {
		for _, file := range r.Files {
			if _, err := fmt.Fprintln(w, "wrote", file); err != nil {
				return err
			}
		}
	}
	return nil
}

// interrupted makes the end of the context an exit status of its own.
func interrupted(err error) error {
	if errors.Is(err, context.Canceled) {
		return cli.Exit("interrupted; nothing is left behind", exitInterrupted)
	}
	return err
}
