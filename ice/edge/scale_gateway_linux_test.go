package edge

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// This file is the gateway of TestScale: a process of its own, which answers questions about itself on descriptor 4, one
// line each, that it reads on descriptor 3. Its TUN sends every packet back.

const scaleToken = "SLUICE_TEST_SCALE_TOKEN" // for the gateway

// figures are what a gateway is and has used at one moment.
type figures struct {
	Heap       int64   `json:"heap_bytes"`
	Stack      int64   `json:"stack_bytes"`
	RSS        int64   `json:"rss_bytes"`
	Goroutines int     `json:"goroutines"`
	CPU        float64 `json:"cpu_s"` // so far
	Up         int     `json:"up"`    // connections with a session
	Peers      int     `json:"peers"`
	Attempts   int     `json:"attempts"`
	Agents     int     `json:"agents"`
	TURNAgents int     `json:"turn_agents"`
	StatusMs   float64 `json:"status_ms"` // how long Status took
}

// scaleNode is a node with a TUN in memory and real sockets.
type scaleNode struct {
	bus      *signal.Bus
	device   *tuntest.Device
	pipeline *pipeline.Pipeline
	edge     *Edge
	stop     context.CancelFunc
	ran      chan error
}

// listenV4 opens portable sockets, which a TUN in memory needs, of one family.
func listenV4(cfg udp.Config) ([]udp.Pair, error) {
	cfg.Portable = true
	pairs, err := udp.Listen(cfg)
	for i := range pairs {
		if pairs[i].V6 != nil {
			_ = pairs[i].V6.Close()
			pairs[i].V6 = nil
		}
	}
	return pairs, err
}

// startScale starts a node. Only a gateway uses relays: the clients have one address, which one credential each may not share.
func startScale(bus *signal.Bus, name string, role protocol.Role, note func(link.Task)) (*scaleNode, error) {
	n := &scaleNode{bus: bus, device: tuntest.New(tuntest.Config{}), ran: make(chan error, 2)}
	var err error
	n.edge, err = New(Config{
		Name: name, Role: role, Identity: identityOf(name), Signaler: bus, PortalState: bus.State, Loopback: true,
		Sync: func(ctx context.Context, r protocol.SyncRequest) (protocol.Sync, error) {
			s, err := protocol.Ask(ctx, bus, r)
			if role == protocol.Client {
				s.Relays = nil
			}
			return s, err
		},
		Addresses: func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("127.0.0.1")} },
	})
	if err != nil {
		return nil, err
	}
	n.edge.links = link.New(link.Config{
		Name: name, Client: role == protocol.Client, Task: func(t link.Task) { note(t); n.edge.want(t) },
		Signaling: n.edge.signaling, Reachable: n.edge.reachable,
	})
	n.pipeline, err = pipeline.New(pipeline.Config{
		Device: n.device, Listen: listenV4, Stray: n.edge.Stray,
		Connector: n.edge.Connector(),
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	go func() { n.ran <- n.pipeline.Run(context.Background()) }()
	go func() { n.ran <- n.edge.Run(ctx, n.pipeline) }()
	return n, nil
}

// close ends the node in order.
func (n *scaleNode) close() error {
	n.stop()
	first := <-n.ran
	_ = n.pipeline.Close()
	second := <-n.ran
	_ = n.bus.Close()
	if first != nil {
		return first
	}
	return second
}

// TestScaleGateway is the gateway's process and no test by itself.
func TestScaleGateway(t *testing.T) {
	text := os.Getenv(scaleToken)
	if text == "" {
		t.Skip("is started by TestScale")
	}
	token, err := protocol.ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	cfg := token.SignalConfig()
	cfg.Filter.AllowLoopback = true
	bus, err := signal.Connect(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	up := map[uint64]bool{}
	n, err := startScale(bus, token.Name, protocol.Gateway, func(r link.Task) {
		mu.Lock()
		defer mu.Unlock()
		switch r.Kind {
		case link.TaskUp:
			up[r.Serial] = true
		case link.TaskClosed:
			delete(up, r.Serial)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	go n.echo()
	questions, answers := bufio.NewScanner(os.NewFile(3, "questions")), json.NewEncoder(os.NewFile(4, "answers"))
	for questions.Scan() {
		var f figures
		kind, file, _ := strings.Cut(questions.Text(), " ")
		switch kind {
		case "figures":
			runtime.GC() // a sync.Pool keeps what it holds for one collection
			debug.FreeOSMemory()
			f = n.figures(t)
		case "profile":
			profile(t, file)
		}
		mu.Lock()
		f.Up = len(up)
		mu.Unlock()
		n.edge.posts <- func() { f.count(n.edge) }
		done := make(chan struct{})
		n.edge.posts <- func() { close(done) }
		<-done
		if err := answers.Encode(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.close(); err != nil {
		t.Error(err)
	}
}

// count is what of the figures the edge knows, on its goroutine.
func (f *figures) count(e *Edge) {
	f.Peers, f.Attempts = len(e.peers), len(e.ways)
	e.tellAll(func(now time.Duration, l *link.Link) { f.Agents += l.Status(now).Agents })
	for _, c := range e.relays.Counters() {
		if c.Name == "turn_agents" {
			f.TURNAgents = int(c.Value)
		}
	}
}

func (n *scaleNode) figures(t *testing.T) figures {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	f := figures{Heap: int64(m.HeapAlloc), Stack: int64(m.StackInuse), Goroutines: runtime.NumGoroutine(), CPU: cpuTime()}
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			_, _ = fmt.Sscan(rest, &f.RSS)
			f.RSS <<= 10
		}
	}
	begin := time.Now()
	if _, err := n.edge.Status(context.Background()); err != nil {
		t.Error(err)
	}
	f.StatusMs = float64(time.Since(begin).Microseconds()) / 1000
	return f
}

// cpuTime is what this program has used, in seconds.
func cpuTime() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// profile ends the CPU profile under way and begins another, for a file "" none. A heap and a goroutine profile are written beside it.
func profile(t *testing.T, file string) {
	pprof.StopCPUProfile()
	if file == "" {
		return
	}
	f, err := os.Create(file + ".cpu")
	if err == nil {
		err = pprof.StartCPUProfile(f)
	}
	for _, kind := range []string{"heap", "goroutine"} {
		if f, e := os.Create(file + "." + kind); e == nil {
			_ = pprof.Lookup(kind).WriteTo(f, 0)
			_ = f.Close()
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// echo sends back what comes out of the TUN, with source and destination exchanged.
func (n *scaleNode) echo() {
	for range n.device.Queue(0).Wrote() {
		var back [][]byte
		for _, b := range n.device.TakeSegments() {
			if len(b) >= 20 {
				src := [4]byte(b[12:16])
				copy(b[12:16], b[16:20])
				copy(b[16:20], src[:])
				back = append(back, b)
			}
		}
		n.device.InjectData(back...)
	}
}

// scaleGateway is the test's end of the gateway's process.
type scaleGateway struct {
	t        *testing.T
	ask      *os.File
	answers  *json.Decoder
	profiles string // folder, "" for none
}

// startScaleGateway starts the process; it ends with the test.
func startScaleGateway(t *testing.T, token protocol.Token) *scaleGateway {
	t.Helper()
	ours, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, reply, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestScaleGateway$", "-test.timeout=10m")
	cmd.Env = append(os.Environ(), scaleToken+"="+token.Encode())
	cmd.ExtraFiles, cmd.Stderr, cmd.Stdout = []*os.File{ours, reply}, os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = ours.Close(), reply.Close()
	t.Cleanup(func() {
		_ = theirs.Close()
		if err := cmd.Wait(); err != nil {
			t.Error("the gateway:", err)
		}
	})
	return &scaleGateway{t, theirs, json.NewDecoder(answers), os.Getenv("SLUICE_TEST_SCALE_PROFILES")}
}

// question is "now" (only counts), "figures" or "profile FILE".
func (g *scaleGateway) question(text string) (f figures) {
	g.t.Helper()
	if _, err := fmt.Fprintln(g.ask, text); err != nil {
		g.t.Fatal(err)
	}
	if err := g.answers.Decode(&f); err != nil {
		g.t.Fatal("the gateway:", err)
	}
	return f
}

func (g *scaleGateway) profile(name string) {
	if g.profiles != "" {
		if name != "" {
			name = filepath.Join(g.profiles, name)
		}
		g.question("profile " + name)
	}
}

// await asks until f holds, and returns how long that took.
func (g *scaleGateway) await(limit time.Duration, what string, f func(figures) bool) time.Duration {
	g.t.Helper()
	begin := time.Now()
	for {
		now := g.question("now")
		if f(now) {
			return time.Since(begin)
		}
		if time.Since(begin) > limit {
			g.t.Fatalf("not within %v: %s: %+v", limit, what, now)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
