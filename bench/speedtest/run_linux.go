package speedtest

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// loadThreads is how many Go scheduler slots the load gets: with one for each of its threads, a thread that returns from a
// system call goes on at once instead of waiting for a slot.
const loadThreads = 64

// Check reports what is missing on this machine for a run of c, in one line that says what to do. It may be called outside of
// the lab.
func Check(c Config) error {
	if len(c.Node) > 0 || len(c.Against) > 0 {
		if err := lab.CheckTUN(); err != nil {
			return err
		}
	}
	if c.Perf {
		return checkPerf()
	}
	return nil
}

// Run measures. It must be called inside a lab, and once at a time; programs come from ResolveAgainst. It stops early when ctx
// ends, with the cause as error, and leaves no process behind in any case. A report that comes with an error holds what was
// measured before it.
func Run(ctx context.Context, c Config, programs []Program) (*Report, error) {
	c, err := c.Normalize()
	if err != nil {
		return nil, err
	}
	if err := Check(c); err != nil {
		return nil, err
	}
	cases, err := c.selected()
	if err != nil {
		return nil, err
	}
	bed, err := newTestbed(c.Topology, c.Segment)
	if err != nil {
		return nil, err
	}
	defer bed.close()
	dir, err := os.MkdirTemp("/run/wireguard", "speedtest")
	if err != nil {
		return nil, fmt.Errorf("not inside a lab: %w", err)
	}
	defer os.RemoveAll(dir)

	defer undisturbed()()
	mtu := innerMTU
	if c.Topology != TopologyDirect {
		mtu = memberMTU
	}
	impls := implementations(c, programs)
	report := &Report{Schema: ReportSchema, Started: time.Now().UTC().Truncate(time.Second), Sluice: readBuild(), Machine: readMachine(endpoint{ns: bed.ends[0]}),
		Settings: Settings{DurationS: c.Duration.Seconds(), WarmUpS: c.WarmUp.Seconds(), Rounds: c.Rounds, OuterMTU: outerMTU,
			InnerMTU: mtu, Segmented: c.Segment, Topology: c.Topology, Load: c.Load, RTTEveryS: rttEvery.Seconds()},
		Programs: programFiles(c, programs)}
	show := &progress{w: c.Progress, terminal: c.Terminal, total: c.Rounds * len(cases) * len(impls)}
	defer show.clear()
	for _, one := range cases {
		for round := 1; round <= c.Rounds; round++ {
			for _, impl := range impls {
				m := measurement{config: c, bed: bed, dir: dir, load: one, impl: impl, round: round, show: show}
				result, err := m.run(ctx)
				if err != nil {
					return report, err
				}
				report.Results = append(report.Results, result)
				show.finished(result)
				runtime.GC() // what a collection of its own would interrupt
			}
		}
	}
	return report, nil
}

// undisturbed has the load's threads not wait for each other and for the garbage collector, until the function that it returns is called.
func undisturbed() (restore func()) {
	slots, percent := runtime.GOMAXPROCS(max(loadThreads, runtime.NumCPU())), debug.SetGCPercent(-1)
	return func() { runtime.GOMAXPROCS(slots); debug.SetGCPercent(percent) }
}

// implementations lists what is to be measured, in the order of a round: ours, the others, then the limits.
func implementations(c Config, programs []Program) []implementation {
	var list []implementation
	ours := func(name string, env ...string) {
		if len(c.Node) > 0 {
			list = append(list, implementation{name: name, command: c.Node, env: env, ours: true})
		}
	}
	ours(ImplSluice)
	for _, p := range programs {
		list = append(list, implementation{name: p.Name, command: []string{p.Path, "-f"}})
	}
	if slices.Contains(c.Limits, ImplBare) {
		list = append(list, implementation{name: ImplBare})
	}
	if slices.Contains(c.Limits, ImplNull) {
		ours(ImplNull, "SLUICE_NULL=1")
	}
	return list
}

func programFiles(c Config, programs []Program) map[string]string {
	files := map[string]string{}
	if len(c.Node) > 0 {
		files[ImplSluice] = c.Node[0]
	}
	for _, p := range programs {
		files[p.Name] = p.Path
		if p.Version != "" {
			files[p.Name] = p.Version
		}
	}
	return files
}
