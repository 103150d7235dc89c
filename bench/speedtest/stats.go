package speedtest

import (
	"math"
	"slices"
	"strings"
	"time"
)

// median is the middle of values, the mean of the two middle ones for an even number, 0 for none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}

// percentile is the nearest-rank percentile (0 < p <= 100) of sorted values, 0 for none.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// mean of values, 0 for none.
func mean(values []time.Duration) time.Duration {
	if len(values) == 0 {
		return 0
	}
	var sum time.Duration
	for _, v := range values {
		sum += v
	}
	return sum / time.Duration(len(values))
}

// over divides, and gives 0 where that has no meaning.
func over(a, b float64) float64 {
	if b == 0 || math.IsNaN(a) || math.IsNaN(b) {
		return 0
	}
	return a / b
}

// summary is the median over the rounds of one implementation in one case.
type summary struct {
	Case, Impl string
	Rounds     int
	Median     Result // the fields that are figures; counters and samples are those of the last round
}

// summarize groups results by case and implementation, in the order in which they first appear.
func summarize(results []Result) []summary {
	var order [][2]string
	groups := map[[2]string][]Result{}
	for _, r := range results {
		key := [2]string{r.Case, r.Impl}
		if _, ok := groups[key]; !ok {
			order = append(order, key)
		}
		groups[key] = append(groups[key], r)
	}
	// Cases keep their order, also when rounds are interleaved.
	slices.SortStableFunc(order, func(a, b [2]string) int { return caseIndex(a[0]) - caseIndex(b[0]) })
	var list []summary
	for _, key := range order {
		list = append(list, summary{Case: key[0], Impl: key[1], Rounds: len(groups[key]), Median: medians(groups[key])})
	}
	return list
}

func caseIndex(name string) int {
	return slices.IndexFunc(Cases(), func(c Case) bool { return c.Name == name })
}

// medians takes the median of each figure on its own.
func medians(group []Result) Result {
	m := group[len(group)-1]
	of := func(f func(Result) float64) float64 {
		var values []float64
		for _, r := range group {
			values = append(values, f(r))
		}
		return median(values)
	}
	pair := func(f func(Result) []float64) []float64 {
		if len(f(m)) != 2 {
			return nil
		}
		at := func(i int) float64 { return of(func(r Result) float64 { return f(r)[i] }) }
		return []float64{at(0), at(1)}
	}
	m.GbitPerS = of(func(r Result) float64 { return r.GbitPerS })
	m.ForwardGbit = of(func(r Result) float64 { return r.ForwardGbit })
	m.BackwardGbit = of(func(r Result) float64 { return r.BackwardGbit })
	m.KPPS = of(func(r Result) float64 { return r.KPPS })
	m.OfferedKPPS = of(func(r Result) float64 { return r.OfferedKPPS })
	m.LossPercent = of(func(r Result) float64 { return r.LossPercent })
	m.Retransmits = uint64(of(func(r Result) float64 { return float64(r.Retransmits) }))
	m.RTTMeanS = of(func(r Result) float64 { return r.RTTMeanS })
	m.RTTP50S = of(func(r Result) float64 { return r.RTTP50S })
	m.RTTP99S = of(func(r Result) float64 { return r.RTTP99S })
	m.RTTMaxS = of(func(r Result) float64 { return r.RTTMaxS })
	m.NodeCPUSeconds = pair(func(r Result) []float64 { return r.NodeCPUSeconds })
	m.MachineCPUSeconds = of(func(r Result) float64 { return r.MachineCPUSeconds })
	m.GbitPerCPUSecond = of(func(r Result) float64 { return r.GbitPerCPUSecond })
	m.GbitPerMachineCPUSecond = of(func(r Result) float64 { return r.GbitPerMachineCPUSecond })
	m.PeakMiB = pair(func(r Result) []float64 { return r.PeakMiB })
	m.SegmentsPerSend = of(func(r Result) float64 { return r.SegmentsPerSend })
	m.SegmentsPerReceive = of(func(r Result) float64 { return r.SegmentsPerReceive })
	return m
}

// headline is the figure that a case is judged by, and whether more is better.
func headline(r Result) (value float64, unit string, more bool) {
	switch i := caseIndex(r.Case); {
	case i < 0:
		return 0, "", true
	case Cases()[i].kind == loadUDP:
		return r.KPPS, "kpps", true
	case Cases()[i].kind == loadRTT:
		return 1e3 * r.RTTMeanS, "ms", false
	default:
		return r.GbitPerS, "Gbit/s", true
	}
}

// sumCounters adds the counters of all nodes whose name is name, or ends with it after an underscore.
func sumCounters(nodes []map[string]uint64, name string) float64 {
	var sum uint64
	for _, counters := range nodes {
		for key, value := range counters {
			if key == name || strings.HasSuffix(key, "_"+name) {
				sum += value
			}
		}
	}
	return float64(sum)
}
