package speedtest

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Kind of load of a case.
type loadKind uint8

const (
	loadTCP loadKind = iota
	loadUDP
	loadRTT
)

// Case is one kind of load.
type Case struct {
	Name string
	What string // for -h, one line
	kind loadKind

	forward, backward int  // TCP flows from A to B and from B to A
	size              int  // bytes of UDP payload
	loaded            bool // a TCP flow runs while the round trips are measured
}

// Cases are all cases, in the order in which they run.
func Cases() []Case {
	return []Case{
		{Name: "tcp-1", What: "one TCP flow, A to B, goodput", kind: loadTCP, forward: 1},
		{Name: "tcp-4", What: "four TCP flows, A to B", kind: loadTCP, forward: 4},
		{Name: "tcp-16", What: "sixteen TCP flows, A to B", kind: loadTCP, forward: 16},
		{Name: "tcp-bidir", What: "one TCP flow in each direction at once, both counted", kind: loadTCP, forward: 1, backward: 1},
		{Name: "udp-100", What: "100 bytes of UDP payload, one sendto a packet, at full speed", kind: loadUDP, size: 100},
		{Name: "udp-1200", What: "1200 bytes of UDP payload, likewise", kind: loadUDP, size: 1200},
		{Name: "rtt-idle", What: "round trips of 64-byte UDP probes every 2 ms, nothing else running", kind: loadRTT},
		{Name: "rtt-loaded", What: "the same probes while one TCP flow runs A to B", kind: loadRTT, loaded: true, forward: 1},
	}
}

// Names of implementations that are not programs to compare with.
const (
	ImplSluice = "sluice"
	ImplBare   = "bare"
	ImplNull   = "null"
)

// Limits are the names that Config.Limits may hold.
func Limits() []string { return []string{ImplBare, ImplNull} }

// The topologies: two nodes on one cable, or a client and a gateway that find each other through a portal.
const (
	TopologyDirect = "direct" // a cable; the nodes are told everything, as by `wg`
	TopologyNAT    = "nat"    // each behind a NAT; ICE finds a direct path
	TopologyRelay  = "relay"  // each behind a symmetric NAT; all goes over the portal's relay
	TopologyLive   = "live"   // of Connect: a tunnel that is up, to another machine
)

// The programs that make the load.
const (
	LoadOwn   = "own"    // threads of the speed test itself
	LoadIperf = "iperf3" // which must be installed; it measures no round trips
)

// Loads are the values of Config.Load.
func Loads() []string { return []string{LoadOwn, LoadIperf} }

// Topologies are the values of Config.Topology.
func Topologies() []string { return []string{TopologyDirect, TopologyNAT, TopologyRelay} }

// Profiles are the values of Config.Profile.
func Profiles() []string { return []string{"cpu", "mem", "mutex", "block", "trace"} }

// Bounds of the duration of one measurement.
const (
	MinDuration = 50 * time.Millisecond
	MaxDuration = time.Hour
)

// Config says what to run. The zero value runs nothing of ours: Node has to be set for that. Every other zero field means its
// default.
type Config struct {
	// Node is our node's command without the interface name, such as {"/usr/bin/sluice", "node"}. Empty: the
	// implementations sluice and null are left out.
	Node     []string
	Against  []string      // names of Peers, or paths of programs
	Limits   []string      // default bare and null
	Cases    []string      // default all
	Duration time.Duration // of one measurement, default 3 s
	WarmUp   time.Duration // before each, default a fifteenth of Duration
	Rounds   int           // default 1
	Topology string        // one of Topologies, default direct
	Load     string        // one of Loads, default own
	Segment  bool          // switch tx-udp-segmentation and TSO off on the cable
	Profile  string        // one of Profiles: our node is started with -profile
	Perf     bool          // perf record -g on both nodes
	OutDir   string        // for the files of Profile and Perf, default "speedtest-out"

	Progress io.Writer // live progress; nil is none
	Terminal bool      // Progress is a terminal: one line, rewritten
}

// Normalize checks c and returns it with the defaults filled in. The error says what is wrong and what to do.
func (c Config) Normalize() (Config, error) {
	if c.Duration == 0 {
		c.Duration = 3 * time.Second
	}
	if c.Duration < MinDuration || c.Duration > MaxDuration {
		return c, fmt.Errorf("duration %v is out of range; use %v to %v, such as 3s", c.Duration, MinDuration, MaxDuration)
	}
	if c.WarmUp == 0 {
		c.WarmUp = c.Duration / 15
	}
	if c.WarmUp < 0 {
		return c, fmt.Errorf("warm-up %v is negative; use 0 or more", c.WarmUp)
	}
	if c.Rounds == 0 {
		c.Rounds = 1
	}
	if c.Rounds < 1 || c.Rounds > 1000 {
		return c, fmt.Errorf("%d rounds are out of range; use 1 to 1000", c.Rounds)
	}
	if c.Limits == nil {
		c.Limits = []string{ImplBare, ImplNull}
	}
	for _, name := range c.Limits {
		if !slices.Contains(Limits(), name) {
			return c, fmt.Errorf("no limit %q; use one or more of %s, or none", name, strings.Join(Limits(), ","))
		}
	}
	if c.Profile != "" && !slices.Contains(Profiles(), c.Profile) {
		return c, fmt.Errorf("no profile %q; use one of %s", c.Profile, strings.Join(Profiles(), ", "))
	}
	if c.Topology == "" {
		c.Topology = TopologyDirect
	}
	if !slices.Contains(Topologies(), c.Topology) {
		return c, fmt.Errorf("no topology %q; use one of %s", c.Topology, strings.Join(Topologies(), ", "))
	}
	if c.Topology != TopologyDirect {
		if len(c.Against) > 0 || c.Profile != "" {
			return c, fmt.Errorf("topology %s has a portal, a client and a gateway of ours: leave out -against and -profile", c.Topology)
		}
		c.Limits = []string{} // neither goes through a NAT
	}
	if c.OutDir == "" {
		c.OutDir = "speedtest-out"
	}
	if c.Load == "" {
		c.Load = LoadOwn
	}
	if !slices.Contains(Loads(), c.Load) {
		return c, fmt.Errorf("no load %q; use one of %s", c.Load, strings.Join(Loads(), ", "))
	}
	if len(c.Cases) == 0 {
		for _, known := range Cases() {
			if known.kind != loadRTT || c.Load == LoadOwn {
				c.Cases = append(c.Cases, known.Name)
			}
		}
	}
	list, err := c.selected()
	for _, one := range list {
		if one.kind == loadRTT && c.Load != LoadOwn {
			return c, fmt.Errorf("%s measures no round trips; leave out case %s, or -load", c.Load, one.Name)
		}
	}
	return c, err
}

// selected returns the cases of c in their own order.
func (c Config) selected() ([]Case, error) {
	var names []string
	for _, known := range Cases() {
		names = append(names, known.Name)
	}
	for _, name := range c.Cases {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("no case %q; use one or more of %s", name, strings.Join(names, ","))
		}
	}
	var list []Case
	for _, known := range Cases() {
		if slices.Contains(c.Cases, known.Name) {
			list = append(list, known)
		}
	}
	return list, nil
}
