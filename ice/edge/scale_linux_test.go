package edge

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/link"
	real "github.com/sluice-vpn/sluice/ice/portal"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/relay"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// What a connection may cost its gateway. Measured: see the results of connections-500 beside PERF.md.
const (
	mostGoroutines = 16                   // with an agent that has a relayed candidate
	mostHeap       = 172<<10 + raceStacks // and stacks; 155 KiB, and of those the stacks vary by 10 with the load of the machine
	mostIdleHeap   = 24<<10 + raceStacks
	// Of one that came and went: the TURN client keeps its channel, some 370 bytes, until the number may be used again.
	mostLeft = 2 << 10
	// scaleAgain is how often they come and go once more: tables grow by leaps, which a single time does not spread.
	scaleAgain = 3
)

// scaleReport is what TestScale finds.
type scaleReport struct {
	Go          string  `json:"go"`
	CPUs        int     `json:"cpus"`
	Connections int     `json:"connections"`
	SignInS     float64 `json:"sign_in_s"`        // of all clients to the portal
	ConnectS    float64 `json:"connect_s"`        // from then until the gateway has a session with each
	ConnectCPUs float64 `json:"connect_cpu_s"`    // of the gateway
	EchoS       float64 `json:"echo_s"`           // until each has had a packet back
	WakeS       float64 `json:"wake_s,omitempty"` // the same when all were idle
	LeaveS      float64 `json:"leave_s"`
	Before      figures `json:"before"`
	WithAgents  figures `json:"with_agents"`
	Idle        figures `json:"idle,omitzero"`
	Left        figures `json:"left"`            // after they left
	LeftAgain   figures `json:"left_again"`      // after they came and left scaleAgain times more
	CPUAgents   float64 `json:"cpu_with_agents"` // cores
	CPUIdle     float64 `json:"cpu_idle,omitempty"`
	// Each connection's share
	Goroutines   float64 `json:"goroutines_each"`
	HeapEach     int64   `json:"heap_and_stack_bytes_each"`
	RSSEach      int64   `json:"rss_bytes_each"`
	IdleHeapEach int64   `json:"idle_heap_and_stack_bytes_each,omitempty"`
	LeftEach     int64   `json:"left_heap_bytes_each"` // of a connection that came and went
}

// scaleWorld is a portal, a gateway in another process and clients in this one.
type scaleWorld struct {
	t       *testing.T
	portal  *real.Portal
	gateway *scaleGateway
	tokens  []protocol.Token
	clients []*scaleNode
	report  scaleReport
}

// Many clients come at once, carry data, rest, wake and go. The gateway gives each a bounded share of memory and of
// goroutines, and nothing is left of who has gone. With SLUICE_TEST_SCALE_RESULT=FILE the figures are written there.
func TestScale(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	w := newScaleWorld(t)
	r := &w.report
	r.Before = w.gateway.question("figures")
	w.gateway.profile("connect")
	w.come(true)
	w.gateway.profile("agents")
	r.WithAgents, r.CPUAgents = w.watch()
	w.gateway.profile("idle")
	if scaleIdle {
		w.gateway.await(time.Minute, "idle", func(f figures) bool { return f.Agents == 0 })
		r.Idle, r.CPUIdle = w.watch()
		w.gateway.profile("wake")
		r.WakeS = w.echo().Seconds()
		w.gateway.await(30*time.Second, "agents again", func(f figures) bool { return f.Agents >= scaleClients })
	}
	w.gateway.profile("leave")
	r.LeaveS = w.leave().Seconds()
	r.Left = w.settled()
	for range scaleAgain {
		w.come(false)
		w.leave()
	}
	r.LeftAgain = w.settled()
	w.gateway.profile("")
	w.judge()
	if file := os.Getenv("SLUICE_TEST_SCALE_RESULT"); file != "" {
		text, err := json.MarshalIndent(r, "", "  ")
		if err == nil {
			err = os.WriteFile(file, append(text, '\n'), 0o644)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

func newScaleWorld(t *testing.T) *scaleWorld {
	t.Helper()
	loopback := netip.MustParseAddrPort("127.0.0.1:0")
	p, err := real.Start(real.Config{
		Folder: t.TempDir(), Public: "127.0.0.1", Listen: loopback, Relay: relay.Config{
			Listen: []netip.AddrPort{loopback}, AllowedPeers: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	w := &scaleWorld{t: t, portal: p}
	w.report = scaleReport{Go: runtime.Version(), CPUs: runtime.NumCPU(), Connections: scaleClients}
	token := w.add("gate", protocol.Gateway)
	for i := range scaleClients {
		w.tokens = append(w.tokens, w.add(fmt.Sprintf("client-%d", i), protocol.Client))
	}
	w.gateway = startScaleGateway(t, token)
	w.gateway.await(20*time.Second, "the gateway is there", func(figures) bool {
		list := p.Nodes()
		return list[len(list)-1].PublicKey != ""
	})
	return w
}

func (w *scaleWorld) add(name string, role protocol.Role) protocol.Token {
	w.t.Helper()
	token, err := w.portal.AddNode(w.t.Context(), real.NewNode{Name: name, Role: role})
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

// come has all clients sign in, then connect at once, and exchanges a packet with each.
func (w *scaleWorld) come(first bool) {
	w.t.Helper()
	begin := time.Now()
	buses := make([]*signal.Bus, scaleClients)
	w.each(func(i int) error {
		cfg := w.tokens[i].SignalConfig()
		cfg.Filter.AllowLoopback = true
		bus, err := signal.Connect(cfg)
		if err != nil {
			return err
		}
		buses[i] = bus
		for !bus.State().Up && time.Since(begin) < time.Minute {
			<-bus.Changed()
		}
		return nil
	})
	signIn, before := time.Since(begin), w.gateway.question("figures")
	w.clients = make([]*scaleNode, scaleClients)
	w.each(func(i int) (err error) {
		w.clients[i], err = startScale(buses[i], w.tokens[i].Name, protocol.Client, func(link.Task) {})
		return err
	})
	connect := w.gateway.await(2*time.Minute, "all connected", func(f figures) bool { return f.Up == scaleClients })
	echo := w.echo()
	if first {
		r := &w.report
		r.SignInS, r.ConnectS, r.EchoS = signIn.Seconds(), connect.Seconds(), echo.Seconds()
		r.ConnectCPUs = w.gateway.question("figures").CPU - before.CPU
	}
	w.t.Logf("signed in after %v, connected after %v, data after %v", signIn, connect, echo)
}

// each runs f for every client at once.
func (w *scaleWorld) each(f func(i int) error) {
	w.t.Helper()
	var all sync.WaitGroup
	for i := range scaleClients {
		all.Go(func() {
			if err := f(i); err != nil {
				w.t.Error(err)
			}
		})
	}
	all.Wait()
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// echo has every client send a packet, again each second until it is back. On a busy machine it may be late; that it got lost is a fault.
func (w *scaleWorld) echo() time.Duration {
	w.t.Helper()
	begin := time.Now()
	var mu sync.Mutex
	var last time.Time                // when the last client had its first answer
	var late int                      // of the clients that repeated
	const patience = 30 * time.Second // for all answers
	w.each(func(i int) error {
		n := w.clients[i]
		status, err := n.edge.Status(context.Background())
		if err != nil || len(status.Addresses) == 0 || len(status.Connections) == 0 {
			return fmt.Errorf("client %d: %+v, %v", i, status, err)
		}
		packet := ipPacket(status.Addresses[0].Addr(), status.Connections[0].AllowedIPs[0].Addr(), "there and back")
		n.device.Take()
		n.device.InjectData(packet)
		sent, back, deadline := 1, 0, time.After(patience)
		again := time.NewTicker(time.Second)
		defer again.Stop()
		for back < sent {
			select {
			case <-n.device.Queue(0).Wrote():
				got := len(n.device.TakeSegments())
				if back == 0 && got > 0 {
					mu.Lock()
					last = time.Now()
					mu.Unlock()
				}
				back += got
			case <-again.C:
				if back == 0 {
					n.device.InjectData(packet)
					sent++
				}
			case <-deadline:
				return fmt.Errorf("client %d: %d of %d packets came back within %v, want all", i, back, sent, patience)
			}
		}
		if sent > 1 {
			mu.Lock()
			late++
			mu.Unlock()
		}
		return nil
	})
	if late > 0 {
		w.t.Logf("%d clients waited for more than a second; no packet got lost", late)
	}
	return last.Sub(begin)
}

// watch is what the gateway uses while nothing happens, and how many cores.
func (w *scaleWorld) watch() (figures, float64) {
	span := 3 * time.Second
	if scaleIdle {
		span = 10 * time.Second
	}
	before, begin := w.gateway.question("figures"), time.Now()
	time.Sleep(span) // this is the measurement
	elapsed := time.Since(begin).Seconds()
	after := w.gateway.question("figures")
	return after, (after.CPU - before.CPU) / elapsed
}

// leave ends all clients at once, and returns when the gateway has nothing of them.
func (w *scaleWorld) leave() time.Duration {
	w.t.Helper()
	begin := time.Now()
	w.each(func(i int) error { return w.clients[i].close() })
	w.gateway.await(time.Minute, "no connection is left", func(f figures) bool {
		return f.Up+f.Attempts+f.Agents+f.TURNAgents == 0
	})
	return time.Since(begin)
}

// settled are the gateway's figures once the portal's news have come, its goroutines have ended and its heap has not shrunk for
// restTime: pion's timers hold a closed agent for some hundred milliseconds.
func (w *scaleWorld) settled() figures {
	w.t.Helper()
	const restTime = time.Second
	least := w.gateway.question("figures")
	deadline, since := time.Now().Add(30*time.Second), time.Now()
	for least.Goroutines > w.report.Before.Goroutines+4 || time.Since(since) < restTime {
		if time.Now().After(deadline) {
			w.t.Errorf("it does not come to rest: %d goroutines, %d before", least.Goroutines, w.report.Before.Goroutines)
			break
		}
		time.Sleep(100 * time.Millisecond)
		if f := w.gateway.question("figures"); f.Heap < least.Heap || f.Goroutines < least.Goroutines {
			least, since = f, time.Now()
		}
	}
	return least
}

// judge compares the figures with their bounds.
func (w *scaleWorld) judge() {
	r := &w.report
	share := func(now, before figures) int64 {
		return (now.Heap + now.Stack - before.Heap - before.Stack) / scaleClients
	}
	r.Goroutines = float64(r.WithAgents.Goroutines-r.Before.Goroutines) / scaleClients
	r.HeapEach, r.RSSEach = share(r.WithAgents, r.Before), (r.WithAgents.RSS-r.Before.RSS)/scaleClients
	// Of stacks the runtime keeps what it may need again; those in use are known by their goroutines.
	r.LeftEach = (r.LeftAgain.Heap - r.Left.Heap) / (scaleAgain * scaleClients)
	if scaleIdle {
		r.IdleHeapEach = share(r.Idle, r.Before)
	}
	text, _ := json.MarshalIndent(r, "", "  ")
	w.t.Logf("%s", text)
	if r.Goroutines > mostGoroutines {
		w.t.Errorf("%.1f goroutines for each connection", r.Goroutines)
	}
	if r.HeapEach > mostHeap || r.IdleHeapEach > mostIdleHeap || r.LeftEach > mostLeft {
		w.t.Errorf("bytes for each connection: %d, idle %d, gone %d", r.HeapEach, r.IdleHeapEach, r.LeftEach)
	}
	if r.Left.Peers > scaleClients || r.LeftAgain.Peers > scaleClients {
		w.t.Errorf("%d peers", r.LeftAgain.Peers)
	}
}
